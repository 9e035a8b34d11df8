"""Ten raw networks, each a trap for per-sample gradients, with inputs and likelihood."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


class Residual(nn.Module):
    """BatchNorm residual block with in-place ReLU and in-place addition."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1, bias=False)
        self.norm1, self.norm2, self.norm3 = (nn.BatchNorm2d(6) for _ in range(3))
        self.conv1 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.relu(self.norm1(self.stem(x)))
        y = self.norm3(self.conv2(self.relu(self.norm2(self.conv1(x)))))
        y += x
        return self.head(self.relu(y).mean((2, 3)))


class Depthwise(nn.Module):
    """Depthwise convolution, GroupNorm, PReLU and a bare parameter."""

    def __init__(self):
        super().__init__()
        self.point = nn.Conv2d(2, 8, 1)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm, self.act = nn.GroupNorm(4, 8), nn.PReLU(8)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 8).view(8, 1, 1))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head((self.scale * self.act(self.norm(self.depth(self.point(x))))).mean((2, 3)))


class Tied(nn.Module):
    """The embedding's table is also the output layer's weight."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 5)
        self.mix = nn.Linear(5, 5)
        self.decoder = nn.Linear(5, 7)
        self.decoder.weight = self.embedding.weight

    def forward(self, tokens):
        return self.decoder(torch.tanh(self.mix(self.embedding(tokens).mean(1))))


class Encoder(nn.Module):
    """Two LayerNorm transformer layers with MultiheadAttention."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.encoder(x).mean(1))


class Recurrent(nn.Module):
    """Bidirectional GRU."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True, bidirectional=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.gru(x)[0][:, -1])


class Branching(nn.Module):
    """Control flow on values outside of torch, where vmap cannot follow."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.bare = nn.Linear(6, 5), nn.Linear(5, 4), nn.Parameter(torch.ones(5))

    def forward(self, x):
        if not np.isfinite(x.detach().numpy()).all():
            raise ValueError("bad input")
        return self.second(torch.tanh(self.first(x)) * self.bare)


def _warmed(net: nn.Module, x: torch.Tensor) -> nn.Module:
    """Running statistics away from their identity, where some wrong rules hide."""
    net.train()
    for _ in range(3):
        net(2 * x + 0.5)
    return net.eval()


def make(name: str, size: int = 6) -> tuple[nn.Module, torch.Tensor, str, str]:
    """Network (eval mode), inputs, likelihood, and the engine that ``auto`` is expected to take."""
    torch.manual_seed(1)
    image, tokens = torch.randn(size, 2, 6, 6), torch.randint(0, 7, (size, 3))
    flat, sequence = torch.randn(size, 6), torch.randn(size, 5, 8)
    cnn = nn.Sequential(
        nn.Conv2d(2, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(4, 4)
    )
    mlp = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4))
    return {
        "mlp": lambda: (mlp, flat, "categorical", "backpack"),
        "cnn": lambda: (cnn, image, "categorical", "backpack"),
        "residual": lambda: (_warmed(Residual(), image), image, "categorical", "backpack"),
        "depthwise": lambda: (Depthwise(), image, "categorical", "backpack_vmap"),
        "tied": lambda: (Tied(), tokens, "categorical", "backpack"),
        "encoder": lambda: (Encoder().eval(), sequence, "categorical", "backpack_vmap"),
        "recurrent": lambda: (Recurrent(), torch.randn(size, 5, 3), "categorical", "backpack"),
        "branching": lambda: (Branching(), flat, "categorical", "loop"),
        "multi_label": lambda: (mlp, flat, "bernoulli", "backpack"),
        "regression": lambda: (mlp, flat, "gaussian", "backpack"),
    }[name]()


NAMES = (
    "mlp", "cnn", "residual", "depthwise", "tied", "encoder", "recurrent", "branching", "multi_label", "regression",
)  # fmt: skip
