"""Cost of per-sample squared gradient norms, engine by engine, as ratios to a plain forward + backward pass.

    python tests/benchmarks/engines.py [network ...]

CPU time of one thread; all engines interleaved in one process, medians. Memory is the peak of what a call allocates.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

from lightning_info.gradients import NotCovered
from lightning_info.gradients.plan import ENGINES

REPEATS = {"backpack": 15, "backpack_vmap": 15, "func": 2, "loop": 2}


class Block(nn.Module):
    """Basic block of ResNet."""

    def __init__(self, inside, out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(out), nn.BatchNorm2d(out)
        self.skip = nn.Sequential()
        if stride > 1:
            self.skip = nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x):
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)), inplace=True)))
        y += self.skip(x)
        return F.relu(y, inplace=True)


def resnet18():
    stages = ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))
    layers = [block for inside, out, stride in stages for block in (Block(inside, out, stride), Block(out, out, 1))]
    stem = (nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True))
    return nn.Sequential(*stem, *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def all_cnn_c():
    layers, width = [], 3
    for out, stride in ((96, 1), (96, 1), (96, 2), (192, 1), (192, 1), (192, 2), (192, 1)):
        layers += [nn.Conv2d(width, out, 3, stride, 1), nn.ReLU()]
        width = out
    return nn.Sequential(
        *layers, nn.Conv2d(192, 192, 1), nn.ReLU(), nn.Conv2d(192, 10, 1), nn.AvgPool2d(8), nn.Flatten()
    )


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, activation="gelu", batch_first=True)
        self.embed, self.head = nn.Linear(32, 128), nn.Linear(128, 10)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x)).mean(1))


def mlp():
    return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(64, 128, batch_first=True), nn.Linear(128, 10)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class Inverted(nn.Module):
    """Block of the MobileNets and EfficientNets: wider, depthwise, gates of the channels, narrow again."""

    def __init__(self, inside, wide, out, kernel, stride, gate, act):
        super().__init__()
        layers = [nn.Conv2d(inside, wide, 1, bias=False), nn.BatchNorm2d(wide), act()] if wide != inside else []
        depthwise = nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=wide, bias=False)
        self.first = nn.Sequential(*layers, depthwise, nn.BatchNorm2d(wide), act())
        parts = (nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, gate, 1), nn.ReLU(), nn.Conv2d(gate, wide, 1), nn.Sigmoid())
        self.gates = nn.Sequential(*parts) if gate else None
        self.last = nn.Sequential(nn.Conv2d(wide, out, 1, bias=False), nn.BatchNorm2d(out))
        self.adds = stride == 1 and inside == out

    def forward(self, x):
        y = self.first(x)
        y = self.last(y if self.gates is None else y * self.gates(y))
        return x + y if self.adds else y


def inverted(stem, blocks, last, act):
    """``blocks``: width inside, out, kernel, stride, width of the gates, activation function."""
    layers, width = [nn.Conv2d(3, stem, 3, 2, 1, bias=False), nn.BatchNorm2d(stem), act()], stem
    for wide, out, *rest in blocks:
        layers.append(Inverted(width, wide, out, *rest))
        width = out
    layers += [nn.Conv2d(width, last, 1, bias=False), nn.BatchNorm2d(last), act(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(last, 10))


def mobilenet():
    """The layers of MobileNetV3-small."""
    r, h = nn.ReLU, nn.Hardswish
    blocks = [(16, 16, 3, 2, 8, r), (72, 24, 3, 2, 0, r), (88, 24, 3, 1, 0, r), (96, 40, 5, 2, 24, h)]
    blocks += [(240, 40, 5, 1, 64, h)] * 2 + [(120, 48, 5, 1, 32, h), (144, 48, 5, 1, 40, h)]
    return inverted(16, [*blocks, (288, 96, 5, 2, 72, h), *[(576, 96, 5, 1, 144, h)] * 2], 576, h)


def efficientnet():
    """The layers of EfficientNet-B0."""
    blocks, width = [], 32
    stages = ((1, 16, 3, 1, 1), (6, 24, 3, 2, 2), (6, 40, 5, 2, 2), (6, 80, 3, 2, 3), (6, 112, 5, 1, 3))
    for ratio, out, kernel, stride, count in (*stages, (6, 192, 5, 2, 4), (6, 320, 3, 1, 1)):
        for step in (stride, *[1] * (count - 1)):
            blocks.append((ratio * width, out, kernel, step, width // 4, nn.SiLU))
            width = out
    return inverted(32, blocks, 1280, nn.SiLU)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP 784-512-512-10": (mlp, (256, 784)),
    "All-CNN-C": (all_cnn_c, (16, 3, 32, 32)),
    "ResNet-18": (resnet18, (8, 3, 32, 32)),
    "Transformer encoder": (Encoder, (32, 64, 32)),
    "LSTM 64-128, 32 steps": (Recurrent, (64, 32, 64)),
    "MobileNetV3-small, 64x64": (mobilenet, (16, 3, 64, 64)),
    "EfficientNet-B0, 64x64": (efficientnet, (8, 3, 64, 64)),
}


def call(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return module(x)


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def peak(run: Callable[[], object]) -> int:
    """Largest number of bytes allocated at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def measure(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> str:
    net, x = build().eval(), torch.randn(shape)
    u = torch.randn_like(net(x))

    def plain() -> None:
        net.zero_grad()
        (net(x) * u).sum().backward()

    runs: dict[str, Callable[[], object]] = {"plain": plain}
    cells = {}
    for name, engine in ENGINES.items():
        run = lambda engine=engine: engine(net, call, x, [u])  # noqa: E731
        try:
            run()
            runs[name] = run
        except NotCovered:
            cells[name] = "-"
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(max(REPEATS.values())):
        for name, run in runs.items():
            if turn < REPEATS.get(name, turn + 1):
                times[name].append(seconds(run))
    base = statistics.median(times["plain"])
    memory = {name: peak(run) for name, run in runs.items()}
    for name in runs.keys() - {"plain"}:
        cells[name] = f"{statistics.median(times[name]) / base:.2f} / {memory[name] / memory['plain']:.2f}"
    return f"{1e3 * base:.0f} ms / {memory['plain'] / 1e6:.0f} MB | " + " | ".join(cells[name] for name in ENGINES)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| network, batch | plain | " + " | ".join(ENGINES) + " |\n|" + "---|" * (len(ENGINES) + 2))
    for name, (build, shape) in NETWORKS.items():
        if not sys.argv[1:] or any(word in name for word in sys.argv[1:]):
            print(f"| {name}, {shape[0]} | {measure(build, shape)} |", flush=True)


if __name__ == "__main__":
    main()
