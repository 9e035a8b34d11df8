"""Theorem 2.2 of Achille, Paolini & Soatto as numbers: what is certain about the error on new digits.

    python examples/achille2020/pac_bayes_mnist.py                     # scikit-learn's digits: half a minute
    python examples/achille2020/pac_bayes_mnist.py --data-root D       # MNIST from the files in D: minutes
    python examples/achille2020/pac_bayes_mnist.py --data-root D --full  # with four times as many steps

Nets with one hidden layer of 100 ReLU units learn ten classes, and 0-4 against 5-9 (the task of Dziugaite & Roy, 2017).
Every bound holds with probability 0.95, and is for weights that are drawn from a Gaussian Q for each prediction, not
for the network with their mean. Three kinds of bound, which differ in what Q and the prior know:

- post hoc: the network as SGD left it, with the noise that the diagonal of its Fisher information allows; the prior is
  centred at the initial weights. This is ``weight_info/pac_bayes_bound`` of ``WeightInfoCallback``;
- optimised Q: mean and standard deviations are trained further, with the bound as the loss; the same prior;
- half-data prior: the prior is centred at a network that was trained on one half of the data, and the bound is from the
  other half. Most of the learning is in the prior then, so this is close to a test on held-out data, whose bound, of
  that network itself, is printed beside it.

Beside the bounds the example prints codes of the training labels, in kilobits: the uniform one, the prequential one of
the first epoch (``weight_info/prequential``), and two with weights from Q, ``N E_Q[loss] + KL(Q‖P)``: as SGD left the
network (``weight_info/complexity``), and of the optimised Q. Blier & Ollivier (2018) publish 199 for the first, about 4
for the second with larger networks, and about 22 for a Q that is optimised for the length of this code.

For comparison: the error of the same Q on test images, and the test-set bound of the network, from these images alone.
Learning rates and numbers of epochs were chosen on seeds 0 and 1 of MNIST with the bounds in view. That costs nothing,
as it only changes Q, and the bounds hold for every Q at once; but for the half-data prior, whose training was changed
twice (log 3 = 1.1 nats). The width was fixed beforehand for ten classes; for two, 300 units were tried too (0.7 nats).
"""

from __future__ import annotations

import argparse
import gzip
import logging
import math
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from lightning_info import WeightInfoCallback
from lightning_info.functional import (
    PRIOR_STDS,
    DiagonalGaussian,
    binomial_tail_inverse,
    gibbs_risk_bound,
    mcallester_bound,
    optimise_posterior,
    seeger_bound,
)

DELTA, SHARE = 0.05, 0.2  # of it, for the measurement of the Gibbs error
BATCH, HIDDEN = 128, 100
TARGETS = {
    ("ten classes", "post hoc"): 0.29,
    ("ten classes", "optimised Q"): 0.22,
    ("ten classes", "half-data prior"): 0.15,
    ("0-4 against 5-9", "post hoc"): 0.25,
    ("0-4 against 5-9", "optimised Q"): 0.19,
}  # for MNIST


class Task(NamedTuple):
    """Training and test images ``(N, d)`` from 0 to 1, and their labels; one logit if there are two classes."""

    name: str
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int


class Row(NamedTuple):
    """One bound.

    Attributes:
        task: Name of the task.
        kind: Which Q and prior.
        samples: N.
        information: KL(Q‖P), nats; NaN where it is not known.
        error: Error of Q on the N samples, as measured.
        upper: What this error is at most.
        bound: The bound in the kl form.
        theorem: The bound in the form of Theorem 2.2; NaN where it is not known.
        test_error: Error of Q on the test images; NaN where Q is not known.
        test_bound: Bound of the network itself by samples that it was not trained on: the test images, or the half that
            the prior did not see.
    """

    task: str
    kind: str
    samples: int
    information: float
    error: float
    upper: float
    bound: float
    theorem: float
    test_error: float
    test_bound: float


class Codes(NamedTuple):
    """Codes of the labels of a task, nats; the excess is that of the prequential code over the final loss."""

    task: str
    uniform: float
    prequential: float
    excess: float
    post_hoc: float
    optimised: float

    @property
    def text(self) -> str:
        kilobits = [
            f"{name} {nats / math.log(2) / 1000:.1f}" for name, nats in zip(self._fields[1:], self[1:], strict=True)
        ]
        return f"codes of the labels in kilobits, {self.task}: {', '.join(kilobits).replace('_', ' ')}"


class Net(pl.LightningModule):
    """One hidden layer, trained by SGD whose learning rate falls to 0."""

    def __init__(self, inputs: int, classes: int, learning_rate: float, width: int = HIDDEN):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, 1 if classes == 2 else classes))
        self.learning_rate = learning_rate

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("test_error", wrong(self(batch[0]), batch[1]).double().mean())

    def configure_optimizers(self):
        optimiser = torch.optim.SGD(self.parameters(), self.learning_rate)
        steps = self.trainer.estimated_stepping_batches
        falling = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, total_iters=steps)
        return [optimiser], [{"scheduler": falling, "interval": "step"}]


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    if z.shape[-1] == 1:
        return F.binary_cross_entropy_with_logits(z[:, 0], y.float())
    return F.cross_entropy(z, y)


def wrong(z: Tensor, y: Tensor) -> Tensor:
    return ((z[..., 0] > 0).long() if z.shape[-1] == 1 else z.argmax(-1)) != y


def idx(folder: Path, name: str) -> Tensor:
    """Read one file of MNIST, ``name`` or ``name.gz`` anywhere in a folder."""
    found = sorted(path for path in folder.rglob(f"{name}*") if path.name in (name, f"{name}.gz"))
    if not found:
        raise SystemExit(f"--data-root: there is no file {name} or {name}.gz in {folder}")
    raw = found[0].read_bytes()
    raw = gzip.decompress(raw) if found[0].suffix == ".gz" else raw
    axes = raw[3]
    shape = struct.unpack(f">{axes}I", raw[4 : 4 + 4 * axes])
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape).copy())


def load(data_root: Path | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images and digits of training and test."""
    if data_root is None:
        digits = load_digits()
        parts = train_test_split(digits.data / 16, digits.target, test_size=0.2, random_state=0, stratify=digits.target)
        x, test_x, y, test_y = (torch.tensor(part) for part in parts)
        return x.float(), y, test_x.float(), test_y
    images, labels = "{}-images-idx3-ubyte", "{}-labels-idx1-ubyte"
    return tuple(
        part
        for name in ("train", "t10k")
        for part in (
            idx(data_root, images.format(name)).flatten(1).float() / 255,
            idx(data_root, labels.format(name)).long(),
        )
    )


def tasks(data_root: Path | None) -> list[Task]:
    x, y, test_x, test_y = load(data_root)
    return [
        Task("ten classes", x, y, test_x, test_y, 10),
        Task("0-4 against 5-9", x, (y > 4).long(), test_x, (test_y > 4).long(), 2),
    ]


class Weights:
    """The net as a function of its weights in one vector."""

    def __init__(self, net: Net):
        self.net, named = net.net, dict(net.net.named_parameters())
        self.names, self.shapes = list(named), [p.shape for p in named.values()]
        self.sizes = [shape.numel() for shape in self.shapes]

    def of(self, net: Net) -> Tensor:
        return nn.utils.parameters_to_vector(net.net.parameters()).detach().clone()

    def __call__(self, w: Tensor, x: Tensor) -> Tensor:
        parts = zip(self.names, w.split(self.sizes), self.shapes, strict=True)
        return torch.func.functional_call(self.net, {name: part.view(shape) for name, part, shape in parts}, x)


def fit(net: Net, x: Tensor, y: Tensor, epochs: int, seed: int, callback=None, test: TensorDataset | None = None):
    order = Generator().manual_seed(seed)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[callback] if callback else [],
        enable_checkpointing=False,
        enable_progress_bar=sys.stdout.isatty(),
        enable_model_summary=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=epochs,
    )
    train = DataLoader(TensorDataset(x, y), BATCH, shuffle=True, generator=order)
    trainer.fit(net, train, DataLoader(test, 1000) if test else None)


@torch.no_grad()
def gibbs(weights: Weights, q: DiagonalGaussian, x: Tensor, y: Tensor, generator: Generator) -> tuple[float, int]:
    """Return the mean error of weights from Q, and the number of independent averages of equal weight in it.

    Each batch of equal size has a draw of its own. In small data sets each sample is one, several times over.
    """
    size, passes = (10, 1) if len(x) >= 10_000 else (1, 5)
    count, found = len(x) // size, []
    for _ in range(passes):
        for some in torch.arange(count * size).split(size):
            found.append(wrong(weights(q.mean + q.noise(1, generator)[0], x[some]), y[some]).double().mean())
    assert count * size == len(x), "batches of equal size"
    return torch.stack(found).mean().item(), len(found)


def certified(
    task: Task, kind: str, weights: Weights, q: DiagonalGaussian, prior: Tensor, x: Tensor, y: Tensor, seed: int
) -> Row:
    """Compute the bound of a Q from samples that the prior does not depend on."""
    generator = Generator().manual_seed(seed)
    error, averages = gibbs(weights, q, x, y, generator)
    upper = gibbs_risk_bound(error, averages, SHARE * DELTA)
    near = q.nearest_prior(prior, weights.sizes, PRIOR_STDS)
    rest = [near.information], len(x), (1 - SHARE) * DELTA, near.log_choices
    many = torch.arange(len(task.test_x)).split(100)
    with torch.no_grad():
        test = [
            wrong(weights(q.mean + q.noise(1, generator)[0], task.test_x[some]), task.test_y[some]).double()
            for some in many
        ]
    return Row(
        task.name,
        kind,
        len(x),
        near.information,
        error,
        upper,
        seeger_bound(upper, *rest).value,
        mcallester_bound(upper, *rest).value,
        torch.cat(test).mean().item(),
        math.nan,
    )


def held_out(weights: Weights, w: Tensor, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return binomial_tail_inverse(int(wrong(weights(w, x), y).sum()), len(x), DELTA)


def optimised(
    task: Task, weights: Weights, prior: Tensor, start: Tensor, x: Tensor, y: Tensor, epochs: int, seed: int
) -> DiagonalGaussian:
    steps = max(1, epochs * (len(x) // BATCH))
    scale = math.log(task.classes if len(x) >= 10_000 else 2)  # of the surrogate: whichever Q is better certified

    def loss(w: Tensor, batch: Tensor) -> Tensor:
        return cross_entropy(weights(w, x[batch]), y[batch]) / scale

    with tqdm(total=steps, desc=f"{task.name}: optimising Q", disable=not sys.stdout.isatty()) as bar:
        return optimise_posterior(
            loss,
            prior,
            start,
            len(x),
            steps=steps,
            batch_size=BATCH,
            generator=Generator().manual_seed(seed),
            sizes=weights.sizes,
            std_learning_rate=0.02,
            delta=(1 - SHARE) * DELTA,
            watch=lambda step: bar.update() and bar.set_postfix(bound=f"{step.objective:.3f}"),
        )


@torch.no_grad()
def code_of(weights: Weights, q: DiagonalGaussian, information: float, x: Tensor, y: Tensor, seed: int) -> float:
    """Return ``N E_Q[loss] + KL``, nats, with a draw of the weights for each thousand samples."""
    generator, total = Generator().manual_seed(seed), 0.0
    for some in torch.arange(len(x)).split(1000):
        total += len(some) * cross_entropy(weights(q.mean + q.noise(1, generator)[0], x[some]), y[some]).item()
    return total + information


def bounds_of(task: Task, epochs: int, more: int, seed: int) -> tuple[list[Row], Codes]:
    """Return the three bounds of a task, the third for ten classes only, and its codes."""
    pl.seed_everything(seed, verbose=False)
    learning_rate = 0.5
    net = Net(task.x.shape[1], task.classes, learning_rate)
    weights = Weights(net)
    initial = weights.of(net)
    # the diagonal in place of F elsewhere too, and a coarse curve: only the bound is looked at
    callback = WeightInfoCallback(
        every_n_epochs=10**6, num_samples=1024, curvature="diagonal", draws=2, delta=DELTA, seed=seed, summary=False
    )
    fit(net, task.x, task.y, epochs, seed, callback, TensorDataset(task.test_x, task.test_y))
    last: Callable[[str], float] = lambda name: callback.history[f"weight_info/{name}"][-1][1]  # noqa: E731
    row = Row(task.name, "post hoc", len(task.x), *[math.nan] * 7)
    row = row._replace(error=last("gibbs_error"), bound=last("pac_bayes_bound"), test_bound=last("test_bound"))
    trained = weights.of(net)
    q = optimised(task, weights, initial, trained, task.x, task.y, more, seed)
    rows = [row, certified(task, "optimised Q", weights, q, initial, task.x, task.y, seed)]
    rows[1] = rows[1]._replace(test_bound=held_out(weights, q.mean, task.test_x, task.test_y))
    near = q.nearest_prior(initial, weights.sizes, PRIOR_STDS)
    code = code_of(weights, q, near.information + near.log_choices, task.x, task.y, seed)
    known = [last(name) for name in ("prequential", "prequential_excess", "complexity")]
    codes = Codes(task.name, len(task.x) * math.log(task.classes), *known, code)
    if task.classes == 2:
        return rows, codes

    order = torch.randperm(len(task.x), generator=Generator().manual_seed(seed))
    half = len(order) // 2
    first, second = order[:half], order[half : 2 * half]
    net = Net(task.x.shape[1], task.classes, learning_rate)
    fit(net, task.x[first], task.y[first], 3 * epochs, seed)
    prior = weights.of(net)
    x, y = task.x[second], task.y[second]
    q = optimised(task, weights, prior, prior, x, y, max(1, more // 2), seed)
    row = certified(task, "half-data prior", weights, q, prior, x, y, seed)
    return [*rows, row._replace(test_bound=held_out(weights, prior, x, y))], codes


def table(rows: list[Row]) -> str:
    def number(value: float, form: str = ".3f") -> str:
        return "-" if math.isnan(value) else format(value, form)

    titles = ["task", "kind", "N", "KL [nats]", "error", "at most", "bound", "Thm 2.2", "on test", "held-out bound"]
    lines = [titles]
    for row in rows:
        forms = (".0f", *[".3f"] * 6)
        lines.append([row.task, row.kind, str(row.samples), *map(number, row[3:], forms)])
    widths = [max(len(line[place]) for line in lines) for place in range(len(titles))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def verdicts(rows: list[Row]) -> list[str]:
    """Say which bounds reach the targets for MNIST."""
    found = []
    for row in rows:
        target = TARGETS[row.task, row.kind]
        reached = "reached" if row.bound <= target else "missed"
        found.append(f"{row.task}, {row.kind}: {row.bound:.3f}, target {target:.2f}: {reached}")
    return found


def draw(rows: list[Row]) -> Figure:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(ylabel="error", title=f"PAC-Bayes bounds that hold with probability {1 - DELTA:g}")
    places = np.arange(len(rows))
    axes.bar(places - 0.2, [row.bound for row in rows], 0.4, label="bound (kl form)")
    axes.bar(places + 0.2, [row.error for row in rows], 0.4, label="error of Q in training")
    axes.plot(places, [row.test_error for row in rows], "k_", markersize=24, label="error of Q on test images")
    axes.plot(places, [row.test_bound for row in rows], "rx", label="held-out bound of the network itself")
    axes.set_xticks(places, [f"{row.task}\n{row.kind}" for row in rows], fontsize=8)
    axes.legend(frameon=False)
    return figure


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, help="folder with the files of MNIST, train-images-idx3-ubyte, ...")
    parser.add_argument("--seeds", type=int, default=1, help="number of trainings")
    parser.add_argument("--epochs", type=int, help="epochs of SGD (2 on MNIST, 20 on digits)")
    parser.add_argument("--optimise", type=int, help="epochs in which Q is optimised (40 on MNIST, 300 on digits)")
    parser.add_argument("--full", action="store_true", help="four times as many of these")
    parser.add_argument("--out", type=Path, default=Path("runs/achille2020"), help="folder of the figure")
    arguments = parser.parse_args(argv)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    is_mnist = arguments.data_root is not None
    epochs = arguments.epochs or (2 if is_mnist else 20)
    more = (arguments.optimise or (40 if is_mnist else 300)) * (4 if arguments.full else 1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for seed in range(arguments.seeds):
        found = [bounds_of(task, epochs, more, seed) for task in tasks(arguments.data_root)]
        rows = [row for some, _ in found for row in some]
        print(f"\nseed {seed}, delta = {DELTA:g}, {HIDDEN} hidden units:\n\n{table(rows)}\n", flush=True)
        print("\n".join(codes.text for _, codes in found))
        if is_mnist:
            print("\n".join(verdicts(rows)))
        draw(rows).savefig(arguments.out / f"pac_bayes_seed{seed}.png", dpi=120)
    print(f"Figure: {arguments.out / 'pac_bayes_seed0.png'}")


if __name__ == "__main__":
    main()
