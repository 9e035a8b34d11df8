"""The curves against the definition, through a real Trainer; what a user reads beside them; what is refused."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from models import CLASSES, FEATURES, Classifier, curves, data, loader, trainer
from sklearn.metrics import mutual_info_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_info import FisherTraceCallback, InfoPlaneCallback

N, BINS = 48, 5
X, Y = (part[:N] for part in data(64).tensors)


def info_plane(**options) -> InfoPlaneCallback:
    defaults = {"reference": (X, Y), "bins": BINS, "every_n_train_steps": 2, "on_error": "raise", "summary": False}
    return InfoPlaneCallback(**{**defaults, **options})


class Net(Classifier):
    """Tanh and a functional ReLU called twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(FEATURES, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)
        self.act = nn.Tanh()

    def forward(self, x):
        return self.last(torch.relu(self.second(torch.relu(self.act(self.first(x))))))

    def layers(self, x) -> dict[str, torch.Tensor]:
        """The definition of what is measured, in the order of depth."""
        with torch.no_grad():
            act = self.act(self.first(x))
            relu = self.second(act.relu()).relu()
            return {"act": act, "relu:0": act.relu(), "relu:1": relu, "last": self.last(relu)}


class Weights(Callback):
    """The activations of the module at every step."""

    def __init__(self):
        self.seen = {}

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.seen[trainer.global_step] = module.layers(X)

    def on_train_end(self, trainer, module):
        self.seen[trainer.global_step] = module.layers(X)


def fit(*callbacks, module=None, train=None, **options):
    run = trainer(*callbacks, **options)
    run.fit(module or Net(), train or loader())
    return run


def truth(t: torch.Tensor, low: float, high: float, y=Y, bins: int = BINS) -> tuple[float, float]:
    """I(X;T) and I(T;Y) in bits of activations in equal bins, by scikit-learn."""
    index = np.clip(np.floor((t.double().numpy() - low) * (1 / ((high - low) / bins))), 0, bins - 1)
    codes = np.unique(index, axis=0, return_inverse=True)[1].reshape(-1)
    return mutual_info_score(codes, codes) / math.log(2), mutual_info_score(codes, y.numpy()) / math.log(2)


def test_where_the_channels_of_a_layer_are_is_known_after_the_first_look():
    class Images(Classifier):
        def __init__(self):
            super().__init__()
            self.conv, self.act = nn.Conv2d(FEATURES, 4, 1), nn.ReLU()
            self.last = nn.Linear(4, CLASSES)

        def forward(self, x):
            h = self.act(self.conv(x[:, :, None, None].expand(-1, -1, 2, 3)))
            return self.last(torch.relu(h.movedim(1, 3)).mean((1, 2)))

    ours = info_plane(every_n_train_steps=4)
    fit(ours, module=Images(), max_epochs=1)
    (features,) = ours.quantity.statistics()
    assert {one.label: one.channels_first for one in features.layers} == {"act": True, "relu": False}


def value(callback: InfoPlaneCallback, tag: str, step: int) -> float:
    return dict(callback.history[tag])[step]


@pytest.fixture(scope="module")
def trained():
    """A run, and the activations at all of its steps."""
    torch.manual_seed(0)
    layers = ["act", "relu", "last"]
    ranges = ["global", "fixed", "adaptive", (-0.5, 2.0)]
    ours, weights = info_plane(layers=layers, bin_range=ranges, label_information="binned"), Weights()
    fit(ours, weights)
    return ours, weights.seen


RANGES = {
    "_binning_fixed": lambda t: (-1.0, 1.0),
    "_binning_adaptive": lambda t: (t.min().item(), t.max().item()),
    "_binning_-0.5_2": lambda t: (-0.5, 2.0),
}


@pytest.mark.parametrize("family", RANGES)
def test_every_point_is_the_mutual_information_of_the_bins(trained, family):
    ours, seen = trained
    for step in range(0, 17, 2):
        for name, t in seen[step].items():
            x, y = truth(t, *RANGES[family](t))
            assert value(ours, f"info_plane{family}/I_XT/{name}", step) == pytest.approx(x, abs=1e-12)
            assert value(ours, f"info_plane{family}/I_TY/{name}", step) == pytest.approx(y, abs=1e-12)


@pytest.mark.parametrize("final", [False, True])
def test_the_global_range_is_that_so_far_and_in_the_end_that_of_all_of_training(trained, final):
    ours, seen = trained
    for name in seen[0]:
        for step in range(0, 17, 2):
            known = [seen[s][name] for s in range(0, 17 if final else step + 1, 2)]
            ends = min(t.min().item() for t in known), max(t.max().item() for t in known)
            x, y = truth(seen[step][name], *ends)
            family = "info_plane_final" if final else "info_plane"
            assert value(ours, f"{family}/I_XT/{name}", step) == pytest.approx(x, abs=1e-12)
            assert value(ours, f"{family}/I_TY/{name}", step) == pytest.approx(y, abs=1e-12)


def test_curves_under_any_range_can_be_had_afterwards(trained):
    ours, _ = trained
    for name in ("act", "last"):
        for given, family in (("fixed", "info_plane_binning_fixed"), ("adaptive", "info_plane_binning_adaptive")):
            curve = ours.curves(given)[name]
            assert [(step, x) for step, x, _ in curve] == ours.history[f"{family}/I_XT/{name}"]
            assert [(step, y) for step, _, y in curve] == ours.history[f"{family}/I_TY/{name}"]


def test_the_verdict_is_the_fall_from_peak_to_end_under_each_range(trained):
    ours, seen = trained
    assert list(ours.verdicts) == list(seen[0])
    for name, judgement in ours.verdicts.items():
        assert list(judgement.falls) == ["fixed", "global", "adaptive", "-0.5_2"]
        for choice, fall in judgement.falls.items():
            given = {"-0.5_2": (-0.5, 2.0)}.get(choice, choice)
            values = [x for _, x, _ in ours.curves(given)[name]]
            if not math.isnan(fall):
                assert fall == max(values) - values[-1]
    outside = [(t["last"].abs() > 1).double().mean() > 0.01 for step, t in seen.items() if step % 2 == 0]
    assert any(outside) == math.isnan(ours.verdicts["last"].falls["fixed"])


def test_mixture_and_gaussian_take_noise_in_proportion_to_the_layer():
    ours, weights = info_plane(estimator=["gaussian", "mixture"], noise=0.5), Weights()
    fit(ours, weights)
    for name, t in weights.seen[16].items():
        variance = 0.25 * t.double().var(0, correction=0).mean()
        cov = np.cov(t.double().numpy().T, bias=True)
        expected = 0.5 * np.linalg.slogdet(np.eye(t.shape[1]) + cov / variance.item())[1] / math.log(2)
        assert value(ours, f"info_plane/I_XT/{name}", 16) == pytest.approx(expected, rel=1e-6)
        centres = torch.distributions.MultivariateNormal(t.double(), variance * torch.eye(t.shape[1]).double())
        mixture = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(torch.ones(N)), centres)
        draws = centres.sample((200,))
        noise_entropy = 0.5 * t.shape[1] * math.log(2 * math.pi * math.e * variance)
        sampled = (-mixture.log_prob(draws).mean().item() - noise_entropy) / math.log(2)
        tag = f"info_plane_mixture{{}}/I_XT/{name}"
        low, high = (value(ours, tag.format(end), 16) for end in ("_lower", "_upper"))
        found, stderr = (value(ours, tag.format(end), 16) for end in ("", "_stderr"))
        assert low - 1e-6 <= found <= high + 1e-6
        assert found == pytest.approx(sampled, abs=5 * stderr + 0.02)


def test_the_noise_can_have_one_variance_for_all():
    ours, weights = info_plane(estimator="gaussian", noise_variance=0.3), Weights()
    fit(ours, weights)
    for name, t in weights.seen[16].items():
        cov = np.cov(t.double().numpy().T, bias=True)
        expected = 0.5 * np.linalg.slogdet(np.eye(t.shape[1]) + cov / 0.3)[1] / math.log(2)
        assert value(ours, f"info_plane/I_XT/{name}", 16) == pytest.approx(expected, rel=1e-6)


# ---- what reaches the user


def test_loggers_have_every_curve_and_tensorboard_the_figure_histograms_and_layout(tmp_path):
    ours = info_plane(bin_range=["global", "adaptive"], prefix="mine")
    fit(ours, logger=[TensorBoardLogger(tmp_path), CSVLogger(tmp_path)])
    folder = str(next(tmp_path.glob("lightning_logs/version_*/events*")).parent)
    events = EventAccumulator(folder, size_guidance={"scalars": 0, "images": 0, "histograms": 0}).Reload()
    for tag, curve in {
        tag: c for tag, c in curves(ours).items() if ours.quantity.is_logged(tag.partition("/")[2])
    }.items():
        read = [(event.step, event.value) for event in events.Scalars(tag)]
        assert read == [(step, float(np.float32(value))) for step, value in curve], tag
    assert {"mine/info_plane/plane", "mine/info_plane_binning_adaptive/plane"} <= set(events.Tags()["images"])
    shown = events.Histograms("mine/activations/act")
    assert [event.step for event in shown] == list(range(0, 17, 2))
    assert shown[0].histogram_value.num == N * 4
    layouts = [event.tensor_proto.string_val[0] for event in events.Tensors("custom_scalars__config__")]
    live, last = (Layout.FromString(text).category[-1].chart for text in layouts)
    titles = [[chart.title for chart in charts] for charts in (live, last)]
    assert titles[0][0] == "mine/I(X;T) so far [bits], binning, global range"
    assert titles[1][0] == "mine/I(X;T) [bits], binning, global range"
    assert len(titles[0]) == len(titles[1]) == 5
    assert titles[0][1] == titles[1][1] == "mine/I(T;Y) by decoders [bits]"
    tags = [[tag.replace("\\", "") for tag in charts[2].multiline.tag] for charts in (live, last)]
    assert tags[0][-1] == "mine/info_plane/I_TY/relu:1$"
    assert tags[1][-1] == "mine/info_plane/I_TY/relu:1$"  # not computed anew beside decoders
    assert [tag.replace("\\", "") for tag in last[0].multiline.tag][-1] == "mine/info_plane_final/I_XT/relu:1$"


def test_the_table_and_the_verdicts_are_printed(capsys):
    fit(info_plane(summary=True))
    text = capsys.readouterr().out
    assert "info_plane_final/I_XT [bits]\n  act " in text
    assert "fall of I(X;T), bits" in text
    assert "One run is not evidence" in text


def test_the_summary_says_which_layers_reduced_how_and_which_labels():
    ours = info_plane(layers=["act", "last"], estimator=["binning", "mixture"])
    fit(ours)
    said = " ".join(ours.report().split())
    assert "layers act (Tanh, 4 units); last (Linear, 3 units)" in said
    assert "binning, global range (over training so far); mixture; 5 bins" in said
    assert "labels classes" in said


def said_by(ours, **options) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(ours, **options)
    return [str(w.message) for w in caught if "InfoPlaneCallback" in str(w.message)]


def test_a_number_that_means_less_than_it_seems_is_named_once():
    said = said_by(info_plane(bins=1000, every_n_train_steps=1))
    assert len([line for line in said if "within 1 bit of its ceiling, log2 N = 5.58" in line]) == 1
    (line,) = [line for line in said if "memorised" in line]
    assert "bits with shuffled labels" in line
    assert not [line for line in said_by(info_plane(bins=2)) if "memorised" in line or "ceiling" in line]


class Growing(Net):
    """Weights that only grow."""

    def on_train_batch_end(self, *args):
        with torch.no_grad():
            for p in self.parameters():
                p.mul_(1.2)


def test_a_range_that_grows_is_said_and_so_is_a_fixed_one_that_does_not_fit():
    said = said_by(info_plane(bin_range=["global", "fixed"]), module=Growing())
    assert len([line for line in said if "has grown more than 2 times" in line]) == 1
    assert len([line for line in said if "lie outside of the bins" in line]) == 1


def test_a_callback_that_monitors_a_layer_is_told_that_points_may_be_left_out():
    stopping = EarlyStopping("info_plane/I_XT/act", strict=False)
    ours = InfoPlaneCallback(reference=(X, Y), on_error="raise", summary=False)
    with pytest.warns(UserWarning, match="EarlyStopping monitors 'info_plane/I_XT/act'.*every_n_epochs=1"):
        fit(ours, stopping, max_epochs=1)


# ---- models of other kinds


class Residual(nn.Module):
    def __init__(self, channels, out, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.skip = nn.Conv2d(channels, out, 1, stride) if stride > 1 else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.skip(x)
        return self.relu(out)


class ResNet18(Classifier):
    """The eighteen layers, of few channels."""

    def __init__(self, width: int = 16):
        super().__init__()
        parts, channels = [nn.Conv2d(3, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)], width
        for stage in range(4):
            out = width * 2**stage
            parts += [Residual(channels, out, 1 + (stage > 0)), Residual(out, out, 1)]
            channels = out
        self.net = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def test_a_resnet_has_eight_curves_without_arguments_that_are_not_all_at_the_ceiling():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(256, 3, 16, 16, generator=generator), torch.arange(256) % 10
    x += y.reshape(-1, 1, 1, 1) / 5 * torch.randn(3, 16, 16, generator=generator)
    ours = InfoPlaneCallback(num_samples=256, on_error="raise", summary=False, max_overhead=1.0)
    fit(ours, module=ResNet18(), train=DataLoader(TensorDataset(x, y), 32), max_epochs=1)
    layers = [tag.split("/")[-1] for tag in ours.history if tag.startswith("info_plane/I_XT/")]
    assert len(layers) == 8
    assert layers[0] == "net.2"
    assert layers[-1] == "net.10.relu:1"
    for layer in layers:
        values = [x for _, x in ours.history[f"info_plane_final/I_XT/{layer}"]]
        assert 0 < min(values) < math.log2(256) - 1, layer


class Regression(Net):
    def training_step(self, batch, batch_idx):
        x, _ = batch
        return F.mse_loss(self(x)[:, :1], x.sum(1, keepdim=True))


class Language(Classifier):
    """A target for each position."""

    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(7, 5), nn.Linear(5, 7)

    def training_step(self, batch, batch_idx):
        tokens = batch[0].abs().long().clamp(max=6)
        return F.cross_entropy(self.out(self.table(tokens).tanh()).transpose(1, 2), tokens.roll(1, 1))


def test_continuous_targets_are_cut_into_bins():
    ours, weights = info_plane(bin_range="fixed"), Weights()
    fit(ours, weights, module=Regression())
    assert "continuous targets, each of 1 cut into 5 equal intervals" in " ".join(ours.report().split())
    target = X.sum(1).double()
    y = ((target - target.min()) / (target.max() - target.min()) * BINS).floor().clamp(0, BINS - 1).long()
    for step in (0, 16):
        t = weights.seen[step]["act"]
        assert value(ours, "info_plane/I_TY/act", step) == pytest.approx(truth(t, -1, 1, y)[1], abs=1e-12)


@pytest.mark.parametrize("kind", ["positions", "adapter"])
def test_without_a_label_for_each_sample_bins_give_i_xt_only(kind):
    if kind == "positions":
        ours, module = info_plane(), Language()
    else:
        ours, module = info_plane(adapter=lambda module, batch: (module(batch[0]), None, "categorical")), Net()
    fit(ours, module=module)
    if kind == "adapter":
        assert "I(X;T) only" in ours.report()
        assert not [tag for tag in ours.history if "I_TY" in tag]
    else:
        assert "positions a sample, for decoders: the 15 most frequent, and the rest" in " ".join(ours.report().split())
        assert not [tag for tag in ours.history if "info_plane/I_TY" in tag]
    assert all(math.isfinite(value) for curve in ours.history.values() for _, value in curve)
    assert ours.drawings()["info_plane/plane"]().axes


def test_targets_that_are_all_different_are_no_labels():
    said = said_by(info_plane(adapter=_own_targets, bins=1000))
    assert len([line for line in said if "I(T;Y) is NaN" in line]) == 1


def _own_targets(module, batch):
    return module(batch[0]), batch[0][:, :CLASSES], "gaussian"


def test_a_single_class_has_no_information_and_this_is_said():
    ours = info_plane(reference=(X, torch.zeros_like(Y)))
    said = said_by(ours)
    assert len([line for line in said if "all reference samples have one label" in line]) == 1
    assert {value for _, value in ours.history["info_plane/I_TY/act"]} == {0.0}


def test_ignored_samples_take_no_part_in_i_ty():
    y = torch.where(torch.arange(N) % 3 > 0, Y, -100)
    ours, weights = info_plane(bin_range="fixed", reference=(X, y)), Weights()
    fit(ours, weights)
    t = weights.seen[16]["act"]
    assert value(ours, "info_plane/I_XT/act", 16) == pytest.approx(truth(t, -1, 1)[0], abs=1e-12)
    assert value(ours, "info_plane/I_TY/act", 16) == pytest.approx(truth(t[y >= 0], -1, 1, y[y >= 0])[1], abs=1e-12)


class Breaking(Net):
    """Activations that are not finite in the second layer from some step on, and constant units."""

    def forward(self, x):
        t = torch.relu(self.act(self.first(x)))
        hidden = self.second(t) + (math.nan if self.steps >= 4 and not self.training else 0.0)
        return self.last(t) + 0 * torch.relu(hidden).nan_to_num()[:, :CLASSES]

    steps = 0

    def on_train_batch_start(self, batch, batch_idx):
        self.steps = self.trainer.global_step


def test_activations_that_are_not_finite_are_a_gap_of_their_layer_only():
    ours = info_plane(layers="relu")
    said = said_by(ours, module=Breaking())
    assert len([line for line in said if "'relu:1' has activations that are not finite at step 6" in line]) == 1
    gaps = [step for step, value in ours.history["info_plane/I_XT/relu:1"] if math.isnan(value)]
    assert gaps == [6, 8, 10, 12, 14, 16]
    assert all(math.isfinite(value) for _, value in ours.history["info_plane/I_XT/relu:0"])
    assert ours.verdicts["relu:1"].verdict


class Dead(Net):
    def forward(self, x):
        return self.last(torch.relu(self.second(self.act(self.first(x)) * 0)))


def test_constant_units_have_no_information():
    ours = info_plane(estimator=["binning", "mixture", "gaussian"], bin_range=["global", "adaptive", "fixed"])
    fit(ours, module=Dead())
    for tag, curve in ours.history.items():
        if tag.endswith(("I_XT/relu", "I_TY/relu")) and "_stderr" not in tag:
            assert max(abs(value) for _, value in curve) < 1e-6, tag


# ---- bad input


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("frist", r"InfoPlaneCallback: there is no layer 'frist'; did you mean 'first'"),
        (["act", "Tanhh"], r"there is no layer 'Tanhh'; did you mean .*'Tanh'"),
        ("net.0", r"layer 'net.0' did not run in the training_step; those that ran: 'first', 'act'"),
        (nn.Conv2d, r"there is no layer 'Conv2d'"),
    ],
)
def test_layers_that_are_not_there_are_refused_before_the_first_step(layers, message):
    module = Net()
    start = [p.clone() for p in module.parameters()]
    with pytest.raises(MisconfigurationException, match=message):
        fit(info_plane(layers=layers, on_error="warn"), module=module)
    assert all(map(torch.equal, start, module.parameters()))


@pytest.mark.parametrize(
    ("layers", "found"),
    [
        ("relu:1", ["relu:1"]),
        ("relu", ["relu:0", "relu:1"]),
        (nn.Linear, ["first", "second", "last"]),
        (["Tanh", "second"], ["act", "second"]),
        (None, ["act", "relu:0", "relu:1"]),
    ],
)
def test_layers_are_named_by_name_call_or_class(layers, found):
    ours = info_plane(layers=layers)
    fit(ours)
    assert [tag.split("/")[-1] for tag in ours.history if tag.startswith("info_plane/I_XT/")] == found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "kde"}, "unknown estimator 'kde'; choose one of 'binning', 'mixture', 'gaussian'"),
        ({"bin_range": "local"}, "unknown bin_range 'local'; choose one of 'global', 'fixed', 'adaptive'"),
        ({"bin_range": (1.0, 1.0)}, r"bin_range=\(1.0, 1.0\) is not a range"),
        ({"bin_range": (0.0, math.inf)}, "is not a range"),
        ({"bin_range": [(0.0, 1.0, 2.0)]}, "is not a range"),
        ({"bin_range": ["global", "global"]}, "name each estimator and range once"),
        ({"estimator": []}, "name each estimator and range once"),
        ({"bins": 0}, "bins must be a positive integer, got 0; for example bins=30"),
        ({"noise": 0.0}, "noise must be a positive, finite number"),
        ({"noise_variance": -1.0}, "noise_variance must be a positive, finite number"),
        ({"directions": 1.5}, "directions must be a positive integer"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        InfoPlaneCallback(**options)


# ---- with others


def test_callbacks_due_together_share_the_replica_and_the_pass(monkeypatch):
    from lightning_info.callbacks import session as bench
    from lightning_info.replica.prediction import Predictor

    replicas, passes = [], []
    replicate, predict = bench.replicate, Predictor.__call__
    monkeypatch.setattr(bench, "replicate", lambda *a, **k: replicas.append(0) or replicate(*a, **k))
    monkeypatch.setattr(Predictor, "__call__", lambda *a: passes.append(0) or predict(*a))

    def counted(*callbacks):
        replicas.clear(), passes.clear()
        torch.manual_seed(0)
        fit(*callbacks, module=Net())
        return len(replicas), len(passes), [callback.history for callback in callbacks]

    def plane():
        return info_plane(reference=None, num_samples=24, every_n_train_steps=1)

    def fisher():
        return FisherTraceCallback("exact", num_samples=16, every_n_train_steps=1, on_error="raise", summary=False)

    alone = [counted(make()) for make in (plane, fisher)]
    for order in ((plane, fisher), (fisher, plane)):
        replicas_together, passes_together, histories = counted(*(make() for make in order))
        points = len(histories[0]["fisher/overhead" if order[0] is fisher else "info_plane/overhead"])
        saved = alone[0][0] + alone[1][0] - replicas_together
        assert saved >= points - 6  # not where only one of them had its samples
        assert alone[0][1] + alone[1][1] - passes_together >= points - 8
        for history in histories:
            for tag, curve in history.items():
                single = next(h[tag] for _, _, (h,) in alone if tag in h)
                if not tag.endswith("/overhead"):
                    assert curve == single, tag


def test_a_fault_in_one_costs_the_other_nothing(monkeypatch):
    from lightning_info.quantities.information_plane import features as reader

    def broken(*args):
        raise RuntimeError("broken")

    torch.manual_seed(0)
    fisher = FisherTraceCallback("exact", num_samples=16, every_n_train_steps=1, on_error="raise", summary=False)
    fit(fisher)
    monkeypatch.setattr(reader, "targets_of", broken)
    torch.manual_seed(0)
    again = FisherTraceCallback("exact", num_samples=16, every_n_train_steps=1, on_error="raise", summary=False)
    said = said_by(info_plane(on_error="warn", reference=None, num_samples=24))
    assert [line for line in said if "broken" in line]
    torch.manual_seed(0)
    fit(info_plane(on_error="warn", reference=None, num_samples=24, every_n_train_steps=1), again)
    assert again.history["fisher/trace"] == fisher.history["fisher/trace"]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("fails", ["weights", "measurement"])
def test_a_lost_plane_says_so_in_curves_table_verdicts_and_legend(tmp_path, capsys, monkeypatch, fails):
    class Break(Callback):
        def on_train_batch_end(self, trainer, module, *args):
            if trainer.global_step == 5 and fails == "weights":
                module.act.forward = lambda x: x * math.nan
            elif trainer.global_step == 5:
                monkeypatch.setattr(ours.quantity, "measure", lambda *args: 1 / 0)

    ours, board = info_plane(summary=True, on_error="warn", layers=["act", "last"]), TensorBoardLogger(tmp_path)
    trainer(Break(), ours, max_epochs=1, logger=board).fit(Net(), loader(64))
    for family in ("info_plane", "info_plane_final"):
        for layer in ("act", "last"):
            curve = ours.history[f"{family}/I_XT/{layer}"]
            assert [(step, math.isnan(x)) for step, x in curve] == [(s, s > 4) for s in (0, 2, 4, 6, 8)]
    printed = capsys.readouterr().out
    assert "All lost since step 6 (see the warnings)." in printed
    assert printed.count("lost since step 6") == 3  # once, and in the verdicts
    assert all(math.isnan(fall) for judgement in ours.verdicts.values() for fall in judgement.falls.values())
    legend = ours.drawings()["info_plane/plane"]().legends[0]
    assert [text.get_text() for text in legend.get_texts()] == [f"{n} (lost since step 6)" for n in ("act", "last")]
    events = EventAccumulator(board.log_dir, size_guidance={"histograms": 0}).Reload()
    assert [event.step for event in events.Histograms("activations/last")] == [0, 2, 4]  # none of before at 6
