"""Training with ``FisherTraceCallback`` is bit-identical to training without."""

import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from harness import assert_identical, run
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from models import CLASSES, FEATURES, Classifier, data, loader
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from lightning_info import FisherTraceCallback


def fisher(**options):
    defaults = {"every_n_train_steps": 1, "num_samples": 12, "draws": 5, "also": ("empirical", "exact")}
    return FisherTraceCallback(**{**defaults, "on_error": "raise", "summary": False, **options})


class Manual(Classifier):
    """Two optimisers, a scheduler and clipping by hand."""

    def __init__(self):
        super().__init__(dropout=0.5)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        self.toggle_optimizer(first)
        loss = super().training_step(batch, batch_idx)
        for optimizer in (first, second):
            optimizer.zero_grad()
        self.manual_backward(loss)
        self.untoggle_optimizer(first)
        self.clip_gradients(first, gradient_clip_val=0.1, gradient_clip_algorithm="norm")
        for optimizer in (first, second):
            optimizer.step()
        self.lr_schedulers().step()

    def configure_optimizers(self):
        first = torch.optim.SGD(self.net[0].parameters(), 0.1)
        second = torch.optim.Adam(self.net[4].parameters(), 1e-2)
        return [first, second], [torch.optim.lr_scheduler.ExponentialLR(first, 0.9)]


class FrozenPart(Classifier):
    """A BatchNorm that stays in eval mode, without gradients, while the rest trains."""

    def __init__(self):
        super().__init__(batch_norm=True, dropout=0.5)
        self.net[1].requires_grad_(False)

    def on_train_epoch_start(self):
        self.net[1].eval()


class Busy(Classifier):
    """Reads and acts on all that Lightning offers to a training_step, and keeps state of its own."""

    def __init__(self):
        super().__init__(dropout=0.5)
        self.losses: list[float] = []
        self.seen = 0
        self.accuracy = MulticlassAccuracy(CLASSES)
        self.mean = MeanMetric()
        self.register_buffer("average", torch.zeros(FEATURES))

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        self.average.mul_(0.9).add_(0.1 * x.mean(0))
        self.losses.append(loss.item())
        self.seen += len(x)
        self.mean(loss)
        self.accuracy(logits, y)
        self.log_dict({"mean": self.mean, "accuracy": self.accuracy, "loss": loss}, on_step=True, on_epoch=True)
        self.log("lr", self.optimizers().param_groups[0]["lr"])
        self.log("last_lr", self.lr_schedulers().get_last_lr()[0])
        self.log("progress", self.trainer.global_step / self.trainer.max_epochs + self.current_epoch)
        self.logger.log_metrics({"direct": float(self.seen)}, step=self.global_step)
        for group in self.trainer.optimizers[0].param_groups:
            group["weight_decay"] += 1e-3
        self.trainer.strategy.barrier()
        self.print("")
        return {"loss": loss, "logits": logits.detach()}


class WritesThroughTrainer(Classifier):
    """Keeps its count where ``self.trainer`` finds it: on the LightningModule itself."""

    count = 0

    def training_step(self, batch, batch_idx):
        self.trainer.lightning_module.count += 1
        self.log("count", float(self.count))
        return super().training_step(batch, batch_idx)


class Lbfgs(Classifier):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), 0.1, max_iter=3)


class EditsBatch(Classifier):
    def training_step(self, batch, batch_idx):
        batch[0].mul_(0.5).add_(1.0)
        return super().training_step(batch, batch_idx)


class EditsOwnCopy(Classifier):
    """What EditsBatch computes."""

    def training_step(self, batch, batch_idx):
        return super().training_step((batch[0] * 0.5 + 1.0, batch[1]), batch_idx)


class DrawsNumbers(Classifier):
    """Draws from all global generators, also in eval mode."""

    def training_step(self, batch, batch_idx):
        self.log("draws", torch.rand(1).item() + random.random() + np.random.rand())  # noqa: NPY002
        return super().training_step(batch, batch_idx)


class InputGradient(Classifier):
    """A penalty on the gradient in the input, so that the input requires grad and the step differentiates."""

    def training_step(self, batch, batch_idx):
        x, y = batch[0].clone().requires_grad_(), batch[1]
        logits = self(x)
        (slope,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
        return F.cross_entropy(logits, y) + slope.square().mean()


class KeepsTensors(Classifier):
    """Keeps tensors with a graph, which cannot be deep-copied."""

    def training_step(self, batch, batch_idx):
        self.logits = self(batch[0])
        self.kept = {"loss": [F.cross_entropy(self.logits, batch[1])]}
        return self.kept["loss"][0]


class SetsModes(Classifier):
    """Switches its net's mode in the step, as self-distillation does."""

    def training_step(self, batch, batch_idx):
        self.net.train()
        return super().training_step(batch, batch_idx)


class OnlyBatch(Classifier):
    def training_step(self, batch, **unused):
        return super().training_step(batch, 0)


class Skips(Classifier):
    """Returns None for a batch, which Lightning then leaves out."""

    def training_step(self, batch, batch_idx):
        return None if batch_idx == 1 else super().training_step(batch, batch_idx)


class Closure(Classifier):
    """A function attribute that holds on to the original module."""

    def __init__(self):
        super().__init__(batch_norm=True)
        self.encode = lambda x: self.net(x)

    def forward(self, x):
        return self.encode(x)


class Tied(Classifier):
    def __init__(self):
        net = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.Tanh(), nn.Linear(FEATURES, FEATURES), nn.ReLU())
        net[2].weight = net[0].weight
        super().__init__(nn.Sequential(net, nn.Linear(FEATURES, CLASSES)))


class Checkpointed(Classifier):
    def forward(self, x):
        return checkpoint(self.net, x, use_reentrant=False)


class Tokens(Classifier):
    """An embedding that is renormalised in place whenever it is looked up and too long."""

    def __init__(self, scale=1.0):
        super().__init__(nn.Sequential(nn.Embedding(20, 8, max_norm=0.05), nn.Flatten(), nn.Linear(16, CLASSES)))
        self.net[0].weight.data.mul_(scale)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return super().training_step(((x[:, :2].abs() * 6).long(), y), batch_idx)


class OwnTensors(Classifier):
    """Makes tensors without a dtype, as the precision plugin's default dtype allows."""

    def forward(self, x):
        return self.net(x) @ torch.eye(CLASSES)


class CountsCalls(Classifier):
    def __init__(self):
        super().__init__(dropout=0.5)
        self.calls = {"forward": 0, "pre": 0, "backward": 0}
        self.net.register_forward_hook(lambda *_: self.count("forward"))
        self.net[0].register_forward_pre_hook(lambda *_: self.count("pre"))
        self.net[0].register_full_backward_hook(lambda *_: self.count("backward"))

    def count(self, kind):
        self.calls[kind] += 1


class Uncompiled(Classifier):
    """Without ``self.log``, which torch.compile does not take."""

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])


class NoisyData(Dataset):
    """Augments from all global generators."""

    def __len__(self):
        return 24

    def __getitem__(self, i):
        x, y = data(24)[i]
        return x + torch.randn(FEATURES) + np.random.rand() + random.random(), y  # noqa: NPY002


def normalised(norm):
    return Classifier(nn.Sequential(norm(nn.Linear(FEATURES, 8)), nn.Tanh(), norm(nn.Linear(8, CLASSES))))


def compiled_in_place(name):
    module = Uncompiled(dropout=0.5, batch_norm=True)
    module.get_submodule(name).compile(backend="eager")
    return module


CASES = {
    "dropout, Adam, scheduler": {"make_module": lambda: Classifier(dropout=0.5)},
    "BatchNorm, accumulation": {"make_module": lambda: Classifier(batch_norm=True), "accumulate_grad_batches": 2},
    "clipped gradients": {"make_module": Classifier, "gradient_clip_val": 0.05},
    "bf16-mixed": {"make_module": lambda: Classifier(dropout=0.5), "precision": "bf16-mixed"},
    "bf16-true": {"make_module": lambda: Classifier(dropout=0.5), "precision": "bf16-true"},
    "64-true": {"make_module": lambda: Classifier(dropout=0.5), "precision": "64-true"},
    "64-true, tensors of the default dtype": {"make_module": OwnTensors, "precision": "64-true"},
    "bf16-true, tensors of the default dtype": {"make_module": OwnTensors, "precision": "bf16-true"},
    "manual optimisation": {"make_module": Manual},
    "frozen BatchNorm": {"make_module": FrozenPart},
    "busy training_step": {"make_module": Busy},
    "module reached through the trainer": {"make_module": WritesThroughTrainer},
    "LBFGS": {"make_module": Lbfgs},
    "batch edited in place": {"make_module": EditsBatch},
    "random numbers in training_step": {"make_module": DrawsNumbers},
    "input gradient": {"make_module": InputGradient},
    "tensors with a graph kept": {"make_module": KeepsTensors},
    "training_step that sets train mode": {"make_module": lambda: SetsModes(dropout=0.5, batch_norm=True)},
    "training_step without batch_idx": {"make_module": lambda: OnlyBatch(dropout=0.5)},
    "skipped batch": {"make_module": lambda: Skips(dropout=0.5)},
    "nested LightningModule": {"make_module": lambda: Classifier(Classifier(dropout=0.5, batch_norm=True))},
    "old weight_norm": {"make_module": lambda: normalised(nn.utils.weight_norm)},
    "new weight_norm": {"make_module": lambda: normalised(nn.utils.parametrizations.weight_norm)},
    "spectral_norm": {"make_module": lambda: normalised(nn.utils.spectral_norm)},
    "tied weights": {"make_module": Tied},
    "activation checkpointing": {"make_module": Checkpointed},
    "embedding with max_norm": {"make_module": Tokens},
    "embedding that reaches max_norm later": {"make_module": lambda: Tokens(1e-3)},
    "forward and backward hooks": {"make_module": CountsCalls},
    "validation inside fit": {
        "make_module": lambda: Classifier(dropout=0.5, batch_norm=True),
        "val_data": lambda: loader(16),
        "val_check_interval": 2,
        "num_sanity_val_steps": 2,
    },
    "data with random augmentation": {
        "make_module": Classifier,
        "data": lambda: DataLoader(NoisyData(), 8, shuffle=True),
    },
    "anomaly detection": {"make_module": Classifier, "detect_anomaly": True},
    "compiled module": {"make_module": lambda: torch.compile(Uncompiled(dropout=0.5), backend="eager")},
    "compiled net": {"make_module": lambda: Uncompiled(torch.compile(Classifier(dropout=0.5).net, backend="eager"))},
    "net compiled in place": {"make_module": lambda: compiled_in_place("net")},
    "module compiled in place": {"make_module": lambda: compiled_in_place("")},
}


def assert_measured(callback):
    for name in ("trace", "empirical_trace", "exact_trace"):
        curve = callback.history[f"fisher/{name}"]
        assert all(math.isfinite(value) and value > 0 for _, value in curve)
        assert [step for step, _ in curve] == list(range(curve[-1][0] + 1))


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*non-full backward hook:FutureWarning")
@pytest.mark.parametrize("case", CASES)
def test_training_does_not_notice(case):
    callback = fisher()
    assert_identical(run(**CASES[case]), run_with(CASES[case], callback))
    assert_measured(callback)


def run_with(case, *callbacks):
    options = dict(case)
    return run(options.pop("make_module"), *callbacks, **options)


@pytest.mark.parametrize("engine", ["backpack", "func", "loop"])
def test_training_does_not_notice_any_engine(engine):
    callback = fisher(engine=engine)
    make_module = lambda: Classifier(dropout=0.5, batch_norm=True)  # noqa: E731
    assert_identical(run(make_module), run(make_module, callback))
    assert_measured(callback)
    assert callback.plan.engine == engine


@pytest.mark.parametrize("estimator", ["rademacher", "exact", "empirical"])
def test_training_does_not_notice_any_estimator(estimator):
    assert_identical(run(Busy), run(Busy, fisher(estimator=estimator, also=())))


@pytest.mark.parametrize("make_module", [lambda: Classifier(dropout=0.5, batch_norm=True), FrozenPart])
def test_training_does_not_notice_batch_norm_statistics_of_the_reference_samples(make_module):
    callback = fisher(batch_norm="reference")
    assert_identical(run(make_module), run(make_module, callback))
    assert_measured(callback)


@pytest.mark.parametrize("position", [0, 1])
def test_training_does_not_notice_beside_weight_averaging(position):
    callbacks = [StochasticWeightAveraging(1e-2, swa_epoch_start=1, annealing_epochs=1)]
    plain = run(lambda: Classifier(batch_norm=True), *callbacks, max_epochs=3)
    callbacks = [StochasticWeightAveraging(1e-2, swa_epoch_start=1, annealing_epochs=1)]
    callbacks.insert(position, fisher())
    assert_identical(plain, run(lambda: Classifier(batch_norm=True), *callbacks, max_epochs=3))


def test_training_does_not_notice_a_reference_set_with_random_augmentation():
    assert_identical(run(Classifier), run(Classifier, fisher(reference=NoisyData())))


@pytest.mark.filterwarnings("ignore:.*failed and training goes on")
def test_training_does_not_notice_a_measurement_that_fails():
    def adapter(module, batch):
        outputs = module(batch[0])
        if len(module.losses) > 2:
            torch.rand(1)
            raise RuntimeError("in the middle")
        return outputs, batch[1]

    callback = fisher(adapter=adapter, on_error="warn")
    assert_identical(run(Busy), run(Busy, callback))
    assert any(math.isnan(value) for _, value in callback.history["fisher/trace"])


def test_a_closure_over_the_module_is_refused_or_harmless():
    try:
        disturbed = run(Closure, fisher(on_error="warn"))
    except MisconfigurationException:
        return
    assert_identical(run(Closure), disturbed)


def test_a_batch_edited_in_place_is_measured_as_a_batch_edited_out_of_place():
    in_place, out_of_place = fisher(), fisher()
    run(EditsBatch, in_place)
    run(EditsOwnCopy, out_of_place)
    assert in_place.history == out_of_place.history
