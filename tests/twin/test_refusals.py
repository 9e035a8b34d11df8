"""What a twin cannot follow is refused before the first step, with the reason and what to do."""

import weakref

import pytest
from lightning.pytorch import LightningDataModule
from lightning.pytorch import callbacks as builtin
from models import Classifier, data, loader, trainer
from torch.utils.data import DataLoader, TensorDataset
from twin.driver import Drive, live_threads

from lightning_info import StabilityCallback
from lightning_info.twin import NotSupported
from lightning_info.twin.refusals import refuse_callback, refuse_strategy, watched_hooks


def refused(match, *callbacks, module=None, batches=None, drive=None, **options):
    drive = drive or Drive()
    run = trainer(drive, *callbacks, **options)
    with pytest.raises(NotSupported, match=match):
        run.fit(module or Classifier(), batches or loader())
    assert run.global_step == 0
    assert live_threads() == []
    assert "process_dataloader" not in vars(run.strategy)


class EditsWeights(builtin.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 2:
            pl_module.net[0].weight.data.mul_(0.5)


class FreezesALayer(builtin.BaseFinetuning):
    def freeze_before_training(self, pl_module):
        pass

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.freeze(pl_module.net[0])


def test_a_callback_that_freezes_a_layer_is_refused():
    refused("FreezesALayer changes what is trained", FreezesALayer())


def test_callbacks_that_are_known_or_declared_are_let_through():
    class Watches(EditsWeights):
        changes_training = False

    class Stops(builtin.EarlyStopping):
        pass

    known = [
        Watches(), Stops("loss"), builtin.ModelCheckpoint(), builtin.EarlyStopping("loss"),
        builtin.LearningRateMonitor(), builtin.TQDMProgressBar(), builtin.ModelSummary(),
        builtin.DeviceStatsMonitor(), builtin.Timer(), builtin.OnExceptionCheckpoint("."),
        builtin.GradientAccumulationScheduler({0: 2}), builtin.ThroughputMonitor(len),
    ]  # fmt: skip
    assert [refuse_callback(callback) for callback in known] == [None] * len(known)


def test_our_own_callbacks_are_let_through():
    from lightning_info import FisherTraceCallback, InfoPlaneCallback

    assert [refuse_callback(callback) for callback in (FisherTraceCallback(), InfoPlaneCallback())] == [None, None]


def test_all_reasons_are_told_at_once():
    refused(
        r"a batch_sampler of type list.*; FreezesALayer changes",
        FreezesALayer(),
        batches=DataLoader(data(16), batch_sampler=[[0, 1], [2, 3]]),
    )


@pytest.mark.parametrize("name", ["DDPStrategy", "FSDPStrategy", "DeepSpeedStrategy"])
def test_several_devices_are_refused(name):
    run = trainer()
    run.strategy.__class__ = type(name, (type(run.strategy),), {})
    assert f"{name} with 1 processes" in refuse_strategy(run)


class Numbers:
    """Batches without a data set."""

    def __len__(self):
        return 4

    def __iter__(self):
        return iter(loader(32))


def test_a_loader_that_is_no_dataloader_is_refused():
    refused("the training loader is a Numbers, in which no sample has an index", batches=Numbers())


def test_batches_given_as_a_list_are_refused():
    refused(
        r"a batch_sampler of type list cannot be observed",
        batches=DataLoader(data(16), batch_sampler=[[0, 1], [2, 3]]),
    )


def test_samples_that_are_not_there_are_refused():
    refused(r"index=64 is not one of the 64 training samples; take 0 to 63", drive=Drive(64, 0))
    refused(r"replacement=-1 is not one of the 64", drive=Drive(0, -1))


def test_an_attribute_that_cannot_be_copied_is_named():
    class Holds(Classifier):
        def __init__(self):
            super().__init__()
            self.source = (number for number in range(3))

    refused(r"the twin is a copy of the module, but attribute 'source' of Holds cannot be copied", module=Holds())


def test_a_weak_reference_to_the_module_is_refused():
    class Refers(Classifier):
        def __init__(self):
            super().__init__()
            self.owner = weakref.ref(self)

    refused(r"attribute 'owner' .* holds on to the original", module=Refers())


class Opened(TensorDataset):
    """Holds what cannot be copied."""

    def __init__(self):
        super().__init__(*data(16).tensors)
        self.file = (line for line in "text")


def test_a_data_set_that_cannot_be_copied_is_refused_unless_nothing_is_replaced():
    batches = DataLoader(Opened(), 8)
    refused(r"sample 1 cannot be drawn from a copy of Opened.*TypeError.*generator", batches=batches, drive=Drive(0, 1))
    drive = Drive(1, 1)
    trainer(drive, max_epochs=1).fit(Classifier(), batches)
    assert set(drive.distances) == {0.0}


def test_a_datamodule_that_cannot_be_copied_is_refused():
    class Holds(LightningDataModule):
        def __init__(self):
            super().__init__()
            self.lines = (line for line in "text")

        def train_dataloader(self):
            return loader()

    refused(r"Holds cannot be copied \(.*generator.*__getstate__", batches=Holds())


def test_a_step_that_fetches_its_own_batches_is_refused():
    class Fetches(Classifier):
        def training_step(self, dataloader_iter):
            batch, batch_idx, _ = next(dataloader_iter)
            return super().training_step(batch, batch_idx)

    refused(r"training_step\(dataloader_iter\)", module=Fetches())


def test_a_callback_is_trusted_by_the_name_of_its_class_and_the_weights_are_watched():
    class Prints(builtin.Callback):
        def on_train_batch_end(self, *args):
            pass

    class PrintsMore(Prints):
        pass

    assert watched_hooks(PrintsMore()) == ["on_train_batch_end"]
    assert watched_hooks(PrintsMore(), ["Prints"]) == []
    ours = StabilityCallback(
        0, 1, trust="Prints", num_samples=8, every_n_train_steps=4, on_error="raise", summary=False
    )
    trainer(PrintsMore(), ours, max_epochs=1).fit(Classifier(), loader())
    assert ours.history["stability/param_distance"][-1][1] > 0
    edited = StabilityCallback(0, 0, trust="EditsWeights", num_samples=8, every_n_epochs=1, summary=False)
    with pytest.warns(UserWarning, match="the twin was lost at step"):
        trainer(EditsWeights(), edited, max_epochs=4).fit(Classifier(), loader())
    assert edited.history["stability/param_distance"][-1][1] != edited.history["stability/param_distance"][-1][1]
