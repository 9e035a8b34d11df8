"""Modules that differ in the network and in how it is made."""

from __future__ import annotations

import threading

import torch
import torch.nn.functional as F
from models import CLASSES, FEATURES, Classifier
from torch import nn
from torch.utils.checkpoint import checkpoint


class Everything(Classifier):
    """Dropout and BatchNorm."""

    def __init__(self):
        super().__init__(dropout=0.5, batch_norm=True)


class Closure(Classifier):
    """A function attribute that holds on to the original module."""

    def __init__(self):
        super().__init__(batch_norm=True)
        self.encode = lambda x: self.net(x)

    def forward(self, x):
        return self.encode(x)


class MadeInSetup(Classifier):
    def __init__(self):
        super().__init__()
        self.net = None

    def setup(self, stage):
        self.net = self.net or Everything().net


class MadeInConfigureModel(MadeInSetup):
    def setup(self, stage):
        pass

    def configure_model(self):
        super().setup("fit")


class Tied(Classifier):
    def __init__(self):
        net = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.Tanh(), nn.Linear(FEATURES, FEATURES), nn.ReLU())
        net[2].weight = net[0].weight
        super().__init__(nn.Sequential(net, nn.Linear(FEATURES, CLASSES)))


class Checkpointed(Everything):
    def forward(self, x):
        return checkpoint(self.net, x, use_reentrant=False)


class Tokens(Classifier):
    """An embedding that is renormalised in place whenever it is looked up and too long, or with sparse gradients."""

    def __init__(self, scale=1.0, **options):
        super().__init__(nn.Sequential(nn.Embedding(20, 8, **options), nn.Flatten(), nn.Linear(16, CLASSES)))
        self.net[0].weight.data.mul_(scale)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return super().training_step(((x[:, :2].abs() * 6).long(), y), batch_idx)


class SparseTokens(Tokens):
    def __init__(self):
        super().__init__(sparse=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Recurrent(Classifier):
    """An LSTM with dropout between its layers."""

    def __init__(self):
        super().__init__(nn.Linear(4, CLASSES))
        self.lstm = nn.LSTM(2, 4, num_layers=2, batch_first=True, dropout=0.5)

    def forward(self, x):
        return self.net(self.lstm(x.reshape(len(x), 3, 2))[0][:, -1])


class Convolutional(Classifier):
    """In the memory format ``channels_last``."""

    def __init__(self):
        layers = nn.Unflatten(1, (2, 1, 3)), nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()
        super().__init__(nn.Sequential(*layers, nn.Linear(12, CLASSES)).to(memory_format=torch.channels_last))


class Functional(Classifier):
    """Called through ``torch.func``."""

    def forward(self, x):
        return torch.func.functional_call(self.net, dict(self.net.named_parameters()), (x,))


class OwnTensors(Classifier):
    """Makes tensors without a dtype, as the precision plugin's default dtype allows."""

    def forward(self, x):
        return self.net(x) @ torch.eye(CLASSES)


class CountsCalls(Classifier):
    """Has hooks on modules and on parameters."""

    def __init__(self):
        super().__init__(dropout=0.5)
        self.calls = {"forward": 0, "pre": 0, "backward": 0, "gradient": 0, "accumulated": 0}
        self.net.register_forward_hook(lambda *_: self.count("forward"))
        self.net[0].register_forward_pre_hook(lambda *_: self.count("pre"))
        self.net[0].register_full_backward_hook(lambda *_: self.count("backward"))
        self.net[0].weight.register_hook(lambda _: self.count("gradient"))
        self.net[0].weight.register_post_accumulate_grad_hook(lambda _: self.count("accumulated"))

    def count(self, kind):
        self.calls[kind] += 1


class ComputesInHooks(Classifier):
    """A forward hook and a pre-hook change what it computes, by a learned scale and by closures."""

    def __init__(self):
        super().__init__(dropout=0.5)
        self.scale, shift = nn.Parameter(torch.full((8,), 1.5)), [torch.ones(FEATURES)]
        self.net.register_forward_pre_hook(lambda module, args: (0.5 * args[0] + shift[0],))
        self.net[0].register_forward_hook(self.multiply)

    def multiply(self, module, args, output):
        return output * self.scale


class HeadOnFeatures(Classifier):
    """A head on features that a hook keeps, in a dictionary that it closes over."""

    def __init__(self):
        super().__init__(batch_norm=True)
        self.head, self.features = nn.Linear(8, CLASSES), (features := {})
        self.net[2].register_forward_hook(lambda module, args, output: features.update(hidden=output))

    def forward(self, x):
        return self.net(x) + self.head(self.features["hidden"])


SEEN = []


class Watched(Classifier):
    """Hooks write down what passes: in a list that they close over, in one of this file, and in a file."""

    def __init__(self):
        super().__init__(dropout=0.5)
        SEEN.clear()
        self.rows, self.seen = (rows := []), SEEN
        lock = threading.Lock()
        self.net[0].register_forward_hook(lambda module, args, output: rows.append(output))
        self.net[0].register_forward_pre_hook(lambda module, args: SEEN.append(args[0].mean().item()))

        def locked(module, args, output):
            with lock:
                rows.append(output.sum().item())

        self.net[4].register_forward_hook(locked)


class Uncompiled(Classifier):
    """Without ``self.log``, which torch.compile does not take."""

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])


def normalised(norm):
    return Classifier(nn.Sequential(norm(nn.Linear(FEATURES, 8)), nn.Tanh(), norm(nn.Linear(8, CLASSES))))


def compiled_in_place(name):
    module = Uncompiled(dropout=0.5, batch_norm=True)
    module.get_submodule(name).compile(backend="eager")
    return module
