"""Writes to shared weights are noticed before they happen, whatever does them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import FEATURES
from torch import nn

from lightning_info.replica.predicted import WritesParameters
from lightning_info.replica.prediction import Predictor
from lightning_info.replica.replicate import replicate
from lightning_info.replica.stand_in_trainer import StandInTrainer

aten = torch.ops.aten


@torch.library.custom_op("lightning_info_tests::shrink", mutates_args={"w"})
def shrink(by: float, w: torch.Tensor, other: torch.Tensor) -> None:
    w.mul_(by)


@torch.library.custom_op("lightning_info_tests::shrink_all", mutates_args={"several"})
def shrink_all(several: list[torch.Tensor]) -> None:
    for w in several:
        w.mul_(0.5)


WRITES = {
    "method": lambda w: w.mul_(0.5),
    "operator": lambda w: w.__imul__(0.5),
    "data": lambda w: w.data.mul_(0.5),
    "detached view": lambda w: w.detach()[0].zero_(),
    "item": lambda w: w.__setitem__(0, 0.0),
    "out": lambda w: torch.mul(w, 0.5, out=w),
    "inplace": lambda w: F.relu(w, inplace=True),
    "inplace by position": lambda w: F.relu(w, True),
    "init": lambda w: nn.init.zeros_(w),
    "init, keyword": lambda w: nn.init.constant_(tensor=w, val=0.0),
    "foreach": lambda w: torch._foreach_mul_([w], 0.5),
    "foreach, keyword": lambda w: torch._foreach_mul_(self=[w], scalar=0.5),
    "foreach copy": lambda w: torch._foreach_copy_([torch.ones_like(w), w], [w, torch.zeros_like(w)]),
    "fused": lambda w: torch._fused_sgd_(
        [torch.ones_like(w)],
        [torch.ones_like(w)],
        [w],
        weight_decay=0.0,
        momentum=0.9,
        lr=0.1,
        dampening=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=False,
    ),
    "overload": lambda w: aten.mul_.Tensor(w, torch.tensor(0.5)),
    "overload, keyword": lambda w: aten.mul_.Scalar(self=w, other=0.5),
    "overload, out": lambda w: aten.mul.out(w, torch.tensor(0.5), out=w),
    "packet": lambda w: aten.mul_(w, 0.5),
    "packet, out": lambda w: aten.mul(w, torch.tensor(0.5), out=w),
    "packet, list": lambda w: aten._foreach_mul_([w], 0.5),
    "custom operator": lambda w: shrink(0.5, w, torch.ones(1)),
    "custom operator, keyword": lambda w: shrink(w=w, by=0.5, other=w),
    "custom operator, list": lambda w: shrink_all([torch.ones(1), w]),
    "custom operator by name": lambda w: torch.ops.lightning_info_tests.shrink(0.5, w, torch.ones(1)),
    "numpy": lambda w: w.detach().numpy().fill(0.0),
    "asarray": lambda w: np.asarray(w.detach()).fill(0.0),
    "dlpack": lambda w: np.from_dlpack(w.detach()).sum(),
    "storage": lambda w: w.untyped_storage().fill_(0),
    "under vmap": lambda w: torch.vmap(lambda x: w.mul_(0.5).sum() + x)(torch.ones(2)),
    "under vjp": lambda w: torch.func.vjp(lambda v: torch.no_grad()(v.mul_)(0.5).sum(), w.detach()),
}
HARMLESS = {
    "reading": lambda w: (w * 2).sum() + F.linear(torch.ones(1, FEATURES), w).sum(),
    "another tensor": lambda w: torch.zeros_like(w).add_(w),
    "out elsewhere": lambda w: torch.mul(w, 2, out=torch.empty_like(w)),
    "operator that reads": lambda w: aten.mul.Tensor(w, w) + aten.mul(w, 2),
    "operator that writes to another": lambda w: aten.add_.Tensor(torch.zeros_like(w), w),
    "custom operator that reads": lambda w: shrink(0.5, torch.ones(1), w),
    "gradient": lambda w: setattr(w, "grad", torch.zeros_like(w)),
    "requires_grad": lambda w: w.requires_grad_(False),
    "foreach": lambda w: torch._foreach_copy_([torch.zeros_like(w)], [w]),
    "module": lambda w: nn.BatchNorm1d(FEATURES)(w),
}


@pytest.fixture
def net():
    return nn.Linear(FEATURES, 4)


def writes(replica, act, shared=True) -> bool:
    """Whether a prediction writes to the weights that does something on its way."""

    def adapter(module, batch):
        outputs = module(batch[0])
        act()
        return outputs, batch[1], "gaussian"

    batch = torch.zeros(2, FEATURES), torch.zeros(2, 4)
    with torch.no_grad():
        return Predictor(StandInTrainer(None), adapter, shared)(replica, batch).writes


@pytest.mark.parametrize("kind", WRITES)
def test_a_write_to_shared_weights_is_refused_before_it_happens(net, kind):
    before, replica = net.weight.detach().clone(), replicate(net)
    with pytest.raises(WritesParameters):
        writes(replica, lambda: WRITES[kind](replica.weight))
    assert torch.equal(net.weight, before)


@pytest.mark.parametrize("kind", WRITES)
def test_a_private_replica_is_written_to_and_this_is_known(net, kind):
    replica = replicate(net, private=True)
    assert writes(replica, lambda: WRITES[kind](replica.weight), shared=False)


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_only_reads_is_let_pass(net, kind):
    replica = replicate(net)
    assert not writes(replica, lambda: HARMLESS[kind](replica.weight))


def test_replaced_data_is_a_write_that_stays_on_the_replica(net):
    before, replica = net.weight.detach().clone(), replicate(net)
    zeros = torch.zeros(FEATURES * 4 + 4)
    with pytest.raises(WritesParameters):
        writes(replica, lambda: nn.utils.vector_to_parameters(zeros, replica.parameters()))
    assert torch.equal(net.weight, before)


def test_a_write_that_nothing_shows_is_noticed_when_it_has_happened(net):
    replica = replicate(net)

    def unseen():
        with torch._C.DisableTorchFunction():
            replica.weight.mul_(0.5)

    with (
        pytest.warns(UserWarning, match="has changed the weights of the training run, once"),
        pytest.raises(WritesParameters, match="not seen"),
    ):
        writes(replica, unseen)
