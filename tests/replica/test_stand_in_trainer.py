import copy
import importlib
import types

import pytest
import torch
import torch.nn.functional as F
from models import Classifier, data, loader, trainer
from oracle import fisher_trace_by_definition

from lightning_info import FisherTraceCallback
from lightning_info.replica.replicate import replicate
from lightning_info.replica.stand_in_trainer import NullObject, StandInTrainer, detach_from_trainer


def test_an_inert_object_swallows_what_is_done_to_it():
    inert = NullObject()
    inert.param_groups[0]["lr"] = 0.1
    inert.lr = 0.1
    inert.experiment.add_scalar("tag", 1.0, step=2).more(key="word")
    inert.step(closure=lambda: pytest.fail("the closure ran"))
    with inert.profile("name") as entered:
        entered.anything()
    with pytest.raises(KeyError), inert:  # an exception is not swallowed
        raise KeyError
    assert vars(inert) == {}


def test_an_inert_object_is_false_empty_and_zero():
    inert = NullObject()
    assert not inert
    assert float(inert) == 0.0
    assert len(inert) == 0
    assert [*inert] == [] == list(inert["any"].items())
    assert dict(inert) == {}
    assert "key" not in inert


def test_an_inert_object_has_no_special_methods_that_libraries_look_for():
    """``__array__``, ``__torch_function__`` and so on would be called, and must give what they promise."""
    assert not hasattr(NullObject(), "__array__")
    assert not hasattr(StandInTrainer(object()), "__torch_function__")


def test_inert_objects_and_stand_ins_are_not_duplicated_by_deepcopy():
    inert, stand_in = NullObject(), StandInTrainer(object())
    assert copy.deepcopy([inert, stand_in]) == [inert, stand_in]


class Real:
    """What of a Trainer matters here."""

    def __init__(self):
        self.current_epoch = 3
        self.callback_metrics = {"loss": torch.ones(1)}
        self.names = ["a"]
        self.optimizers = ["optimizer"]
        self.lr_scheduler_configs = ["first", "second"]
        self.logger = self.strategy = self
        self.saved = 0
        self.should_stop = False

    def save_checkpoint(self, path):
        self.saved += 1

    @property
    def global_step(self):
        return self.current_epoch * 10


def test_plain_attributes_are_read_through_while_they_change():
    real = Real()
    stand_in = StandInTrainer(real)
    assert (stand_in.current_epoch, stand_in.global_step) == (3, 30)
    real.current_epoch = 4
    assert (stand_in.current_epoch, stand_in.global_step) == (4, 40)


def test_an_attribute_that_the_trainer_does_not_have_is_missing():
    stand_in = StandInTrainer(Real())
    assert not hasattr(stand_in, "nothing")
    with pytest.raises(AttributeError, match="nothing"):
        _ = stand_in.nothing


def test_containers_read_through_are_copies():
    real = Real()
    stand_in = StandInTrainer(real)
    stand_in.callback_metrics["other"] = 1
    stand_in.names.append("b")
    assert list(real.callback_metrics) == ["loss"]
    assert real.names == ["a"]


def test_attributes_set_on_the_stand_in_stay_on_it():
    real = Real()
    stand_in = StandInTrainer(real)
    stand_in.should_stop = True
    assert stand_in.should_stop
    assert not real.should_stop


@pytest.mark.parametrize("name", ["logger", "strategy", "optimizers", "lr_scheduler_configs", "save_checkpoint"])
def test_what_acts_is_inert(name):
    real = Real()
    found = getattr(StandInTrainer(real), name)
    assert isinstance(found, NullObject)
    found("path")
    assert real.saved == 0


@pytest.mark.parametrize("name", ["model", "lightning_module"])
def test_the_users_module_is_not_handed_to_the_replica(name):
    module, fit = Classifier(dropout=0.5), trainer(max_steps=1)
    fit.fit(module, loader(8))
    assert getattr(fit, name) is module
    replica = replicate(module, trainer=fit, stand_in=StandInTrainer(fit))
    detach_from_trainer(replica, StandInTrainer(fit))
    assert getattr(replica.trainer, name) is not module


@pytest.mark.parametrize(
    ("optimizers", "schedulers"), [([], []), (["one"], ["one"]), (["one", "two"], []), (["one", "two"], ["one"])]
)
def test_as_many_optimisers_and_schedulers_as_lightning_would_give(optimizers, schedulers):
    real = types.SimpleNamespace(optimizers=optimizers, lr_scheduler_configs=schedulers)
    module = replicate(Classifier())
    detach_from_trainer(module, StandInTrainer(real))
    for found, expected in ((module.optimizers(), optimizers), (module.lr_schedulers(), schedulers)):
        assert isinstance(found, list) == (len(expected) > 1)
        assert (found is None) == (not expected)
        if len(expected) > 1:
            assert len(found) == len(expected)


def test_a_detached_replica_neither_logs_nor_optimises():
    module, real = Classifier(Classifier()), Real()
    replica = replicate(module)
    detach_from_trainer(replica, StandInTrainer(real))
    for part in (replica, replica.net):
        loss = part.net(torch.ones(2, 6)).sum()
        part.log("name", loss)
        part.log_dict({"name": loss})
        part.print("nothing")
        part.manual_backward(loss)
        part.toggle_optimizer(part.optimizers())
        part.clip_gradients(part.optimizers(), 0.1, "norm")
        part.untoggle_optimizer(part.optimizers())
        part.optimizers().step()
        part.logger.experiment.add_scalar("name", 1.0)
        assert part.all_gather(loss) is loss
        assert part.current_epoch == real.current_epoch
        assert isinstance(part.trainer, StandInTrainer)
    assert all(p.grad is None and p.requires_grad for p in replica.parameters())
    assert all("log" not in vars(part) for part in module.modules())


def test_a_module_used_without_a_trainer_is_detached_too():
    replica = replicate(Classifier())
    detach_from_trainer(replica, StandInTrainer(None))
    assert replica.optimizers() is None
    replica.log("name", 1.0)


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_a_step_may_ask_of_what_class_its_optimisers_are(package):
    pl = importlib.import_module(package)
    seen = []

    class Manual(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.automatic_optimization = torch.nn.Linear(6, 3), False

        def training_step(self, batch, batch_idx):
            one, two = self.optimizers()
            kinds = (pl.core.optimizer.LightningOptimizer, torch.optim.Optimizer, torch.optim.SGD, torch.optim.Adam)
            seen.append([isinstance(optimizer, kind) for optimizer in (one, two) for kind in kinds])
            loss = F.cross_entropy(self.net(batch[0]), batch[1])
            one.zero_grad()
            self.manual_backward(loss)
            one.step()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1), torch.optim.Adam(self.parameters(), 0.1)

    def trained(*callbacks):
        torch.manual_seed(0)
        module, quiet = Manual(), {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        pl.Trainer(callbacks=list(callbacks), max_epochs=1, accelerator="cpu", **quiet).fit(module, loader(16))
        return module

    plain, steps = trained(), len(seen)
    callback = FisherTraceCallback("exact", num_samples=16, every_n_epochs=1, on_error="raise", summary=False)
    module = trained(callback)
    assert len(seen) > 2 * steps  # the replica's, too
    assert seen == [[True, True, True, False, True, True, False, True]] * len(seen)
    assert torch.equal(module.net.weight, plain.net.weight)
    x = torch.stack([x for x, _ in data(16)])
    truth = sum(fisher_trace_by_definition(module.net, x, "categorical").values())
    assert callback.history["fisher/trace"][-1][1] == pytest.approx(truth, rel=1e-5)
