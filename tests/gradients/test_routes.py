"""Who computes each parameter's gradient: told per parameter by the plan, grouped by its description."""

from __future__ import annotations

import pytest
import torch
from gradients.cases import Net, bare, call, head, prepared, real, tokens
from models import FEATURES, Classifier, loader, trainer
from torch import nn

from lightning_info import FisherTraceCallback
from lightning_info.gradients import Plan, choose_engine, plan
from lightning_info.gradients import engine_vmap_taps as vmap_taps
from lightning_info.gradients.memory import LIMITS

NO_RULE = "copied per sample: no rule for the operator that uses it"
OTHER_USE = "copied per sample: used by an operator without a rule too"


def chosen(net, x, engine="auto"):
    return choose_engine(*prepared(net, x)[:1], call, prepared(net, x)[1], engine)


def image_net():
    parts = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.ConvTranspose2d(4, 4, 2), nn.GroupNorm(2, 4)]
    return nn.Sequential(*parts, nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 3, bias=False))


def test_operators_that_rules_fit():
    found = chosen(image_net(), real(2, 5, 5))
    assert found.engine == "backpack"
    assert found.routes == {
        **dict.fromkeys(("0.weight", "0.bias"), "rule: convolution"),
        **dict.fromkeys(("1.weight", "1.bias"), "rule: batch_norm"),
        **dict.fromkeys(("3.weight", "3.bias"), "rule: transposed convolution"),
        **dict.fromkeys(("4.weight", "4.bias"), "rule: group_norm"),
        **dict.fromkeys(("6.weight", "6.bias"), "rule: layer_norm"),
        "7.weight": "rule: linear",
    }
    assert found.describe() == (
        "rules: 2 of convolution, 2 of batch_norm, 2 of transposed convolution, 2 of group_norm, 2 of layer_norm, "
        "1 of linear"
    )


def test_a_table_that_is_also_the_output_layer():
    net = nn.Sequential(nn.Embedding(9, 6), nn.RMSNorm(6), nn.Linear(6, 9), nn.Flatten())
    net[2].weight = net[0].weight
    net[2].bias.requires_grad_(False)
    routes = chosen(net, tokens(4)).routes
    assert routes == {"0.weight": "rule: embedding and linear", "1.weight": "rule: rms_norm"}


@pytest.mark.parametrize("chunked", [False, True])
def test_copies_and_why_no_rule_fits(chunked, monkeypatch):
    if chunked:
        monkeypatch.setattr(LIMITS, "copies", 0)

    def body(m, x):
        return m.head(m.a(x) * m.scale + m.shift + x @ m.a.weight)

    found = chosen(Net(body, a=nn.Linear(6, 6), head=head(6), spare=nn.Linear(2, 2), **bare(scale=6, shift=6)), real(6))
    assert found.engine == "backpack_vmap"
    assert found.routes == {
        "a.weight": "copied per sample: used more than once, by different operators",
        "a.bias": "copied per sample: used together with a weight that no rule fits",
        **dict.fromkeys(("head.weight", "head.bias"), "rule: linear"),
        **dict.fromkeys(("scale", "shift"), NO_RULE),
        **dict.fromkeys(("spare.weight", "spare.bias"), "unused"),
    }


def test_a_weight_that_is_also_used_by_an_operator_without_a_rule():
    net = Net(lambda m, x: m.head(m.a(x) * m.a.weight.mean()), a=nn.Linear(6, 6), head=head(6))
    assert chosen(net, real(6)).routes["a.weight"] == OTHER_USE


def test_a_parameter_of_one_branch_only_is_used():
    def body(m, x):
        return m.head(m.a(x) * m.scale if x[:, 0].mean() > 0 else x)

    net, x = prepared(Net(body, a=nn.Linear(6, 6), head=head(6), **bare(scale=6)), real(6))
    x[:, 0] = torch.tensor([1.0, -1.0, 2.0, -3.0])
    routes = vmap_taps.squared_norms(net, call, x, [torch.randn(4, 3).double()]).routes
    assert routes["scale"] == NO_RULE
    assert routes["a.weight"] == "rule: linear"


@pytest.mark.parametrize(("engine", "route"), [("func", "torch.func"), ("loop", "loop")])
def test_engines_that_treat_all_parameters_alike(engine, route):
    found = chosen(nn.Linear(4, 3), real(4), engine)
    assert found.routes == {"weight": route, "bias": route}
    assert found.describe() == f"2 {route}"


def test_routes_are_those_of_the_engine_that_is_taken(monkeypatch):
    right = plan.ENGINES["backpack"]
    monkeypatch.setitem(plan.ENGINES, "backpack", lambda *args: {k: v * 2 for k, v in right(*args).items()})
    monkeypatch.setitem(plan.ENGINES, "backpack_vmap", plan.ENGINES["backpack"])
    assert set(chosen(nn.Linear(4, 3), real(4)).routes.values()) == {"torch.func"}


def test_the_description_names_a_few_of_the_copied_ones():
    rules = {f"{i}": "rule: linear" if i % 3 else "rule: convolution" for i in range(61)}
    copied = dict.fromkeys(("token", "position", "scale"), NO_RULE) | {"out.weight": OTHER_USE}
    text = Plan("backpack_vmap", 8, routes=rules | copied | {"spare": "unused"}).describe()
    assert text == (
        "rules: 40 of linear, 21 of convolution; 4 copied per sample (token, position and 1 more: no rule for the "
        "operator that uses it; out.weight: used by an operator without a rule too); 1 unused"
    )


class Scaled(Classifier):
    def __init__(self):
        super().__init__(nn.Sequential(*(nn.Linear(FEATURES, FEATURES) for _ in range(40))))
        self.scale = nn.Parameter(torch.ones(FEATURES))

    def forward(self, x):
        return self.net(x) * self.scale


def test_the_report_of_a_callback_has_it_in_a_line_or_two():
    callback = FisherTraceCallback(num_samples=8, on_error="raise", summary=False)
    trainer(callback, max_epochs=1, limit_train_batches=1).fit(Scaled(), loader())
    report = " ".join(callback.report().split())
    assert "rules: 80 of linear; 1 copied per sample (scale: no rule for the operator that uses it); not 'b" in report


def test_without_routes_there_is_nothing_to_say():
    assert Plan("cotangent", 8).describe() == ""
