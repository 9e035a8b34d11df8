"""Figure 3 of Achille, Paolini & Soatto: Fisher and Shannon information of one weight against the batch size of SGD.

    python examples/achille2020/figure3.py

The toy: 100 samples x ~ N(μ, 1), μ ~ U(-1, 1); SGD on the mean of (x - φ(θ))² over a batch. A training ends at θ
with ``Q(w|D) = N(θ, F^-1)``, F = 100 φ'(θ)². "Decreasing the Fisher Information ... does indeed decrease the Shannon
Information"; the Gaussian information is "between 4000-5000 nats, versus the ~ 4 nats of the Shannon Information".

The paper draws φ and gives no formula, learning rate, number of steps or initial θ. Here, set before F was measured:

    φ(θ) = 1.2 sin(3 asinh(θ / 0.15)),   learning rate 0.01,   2000 steps,   θ from U(-2, 2),

sharper near the origin, and with many θ for one φ, as described. What is found of the Shannon information holds for
this φ: with 4 √(abs(θ) + 0.05) - 3, of one seed and 900 data sets, its rank correlation with the batch size is -0.89
(that of the data alone, below, is 1 with both).

F has the unit variance of the data, and 1 is added to it (a prior of standard deviation 1), as it is 0 where φ turns.
All trainings with one batch size are one ``Ensemble``.

Of one training on each data set, as in the paper, the Shannon information is also what the weight tells about its
initial value and the order of the batches. Proposition 2.3 is about the data alone: that takes many trainings on each.
Of 30 on each, as here, some of the seed remains and the number is a little too large.

The criteria, written before the numbers: rank correlations with the batch size of 1 for the Fisher and of 0.9 for the
Shannon information, which falls by 0.1 nats; "~4 nats" is 3 to 5; "by orders of magnitude" is a factor of 10.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from ensemble import Ensemble, train
from feature_learning import spearman
from matplotlib.figure import Figure
from results import Claim, Result, main
from torch import Generator, Tensor, nn

from lightning_info.functional import shannon_information

SAMPLES, LEARNING_RATE, REACH = 100, 0.01, 2.0
BATCHES = (1, 2, 5, 10, 20, 50, 100)
PRIOR = 1.0
COLOURS = ("#0072b2", "#d55e00", "#009e73")  # of Okabe and Ito
FEW = (
    "With the best Gaussian prior it is ½ log(λ²F) of one weight, for any φ: 4000 nats would need a prior exp(4000) "
    "times as wide as the posterior."
)
claim = partial(Claim, "3")


def phi(theta: Tensor) -> Tensor:
    return 1.2 * torch.sin(3 * torch.asinh(theta / 0.15))


def fisher(theta: Tensor) -> Tensor:
    """Return ``F = N φ'²`` of the 100 samples, of unit variance."""
    theta = theta.detach().requires_grad_()
    (slope,) = torch.autograd.grad(phi(theta).sum(), theta)
    return SAMPLES * slope**2


class Toy(nn.Module):
    """φ of one weight."""

    def __init__(self, theta: Tensor):
        super().__init__()
        self.theta = nn.Parameter(theta)

    def forward(self, x: Tensor) -> Tensor:
        return phi(self.theta).expand_as(x)


class Data(NamedTuple):
    """Data sets of all repetitions.

    Attributes:
        many: Trained on once each, ``(S, D, N)``.
        few: Trained on R times each, ``(S, D / R, N)``.
        start: Initial weights, ``(S, 2 D)``: of those, and of these.
    """

    many: Tensor
    few: Tensor
    start: Tensor

    @property
    def repeats(self) -> int:
        return self.many.shape[1] // self.few.shape[1]


def draw_data(seeds: int, datasets: int, repeats: int) -> Data:
    count = datasets // repeats
    drawn = []
    for seed in range(seeds):
        generator = Generator().manual_seed(seed)
        mean = 2 * torch.rand(datasets + count, 1, generator=generator, dtype=torch.float64) - 1
        x = mean + torch.randn(datasets + count, SAMPLES, generator=generator, dtype=torch.float64)
        start = 2 * torch.rand(datasets + count * repeats, generator=generator, dtype=torch.float64) - 1
        drawn.append((x[:datasets], x[datasets:], REACH * start))
    return Data(*(torch.stack(part) for part in zip(*drawn, strict=True)))


class Batches:
    """Means of batches, ``(S * 2 D, 1)``: the gradient of the mean loss of a batch is that of its mean.

    The order of the samples in an epoch is one for all data sets, which are independent of each other, and another for
    each training on the same.
    """

    def __init__(self, data: Data, size: int, steps: int):
        self.data, self.size, self.steps = data, size, steps
        self.generator = Generator().manual_seed(size)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count = SAMPLES // self.size
        for step in range(self.steps):
            if step == 0 or (step % count == 0 and count > 1):
                order = torch.rand(1 + self.data.repeats, SAMPLES, generator=self.generator).argsort(1)
                many = self.means(self.data.many, order[:1])
                means = torch.cat([many, self.means(self.data.few, order[1:])], 1).flatten(0, 1)
            x = means[:, step % count, None]
            yield x, x

    def means(self, data: Tensor, orders: Tensor) -> Tensor:
        """Return the means of the batches of an epoch, ``(S, data sets * orders, batches)``."""
        return data[:, :, orders].unflatten(3, (-1, self.size)).mean(4).flatten(1, 2)


class Ends(NamedTuple):
    """Ends of trainings with one batch size.

    Attributes:
        theta: Weights at the end, one training on each data set, ``(S, D)``.
        minimum: Those after descending with all samples.
        repeated: Weights of many trainings on each of few data sets, ``(S, D / R, R)``.
    """

    theta: Tensor
    minimum: Tensor
    repeated: Tensor


def square(z: Tensor, y: Tensor) -> Tensor:
    return (z - y).square().mean()


def trained(theta: Tensor, batches: Batches, learning_rate: float, title: str) -> Tensor:
    ensemble = Ensemble([Toy(one) for one in theta.flatten()])
    train(ensemble, batches, square, torch.optim.SGD(ensemble.parameters.values(), learning_rate), title)
    return ensemble.parameters["theta"].detach().view_as(theta)


def ends(data: Data, batch: int, steps: int) -> Ends:
    theta = trained(data.start, Batches(data, batch, steps), LEARNING_RATE, f"batches of {batch}")
    down = trained(theta, Batches(data, SAMPLES, steps // 4), LEARNING_RATE / 20, "... descending")
    datasets = data.many.shape[1]
    repeated = theta[:, datasets:].unflatten(1, (-1, data.repeats))
    return Ends(theta[:, :datasets], down[:, :datasets], repeated)


def variance(theta: Tensor) -> Tensor:
    return 1 / (fisher(theta) + 1 / PRIOR**2)


def gaussian_information(means: Tensor, variances: Tensor) -> float:
    """Return the expected KL of ``N(m_i, v_i)`` from the Gaussian prior for which it is least, in nats.

    This prior has their mean and the variance λ² = Var(m) + E v of their mixture; the KL is ½ (log λ² - E log v).
    """
    return (means.var(correction=0) + variances.mean()).log().item() / 2 - variances.log().mean().item() / 2


def shannon(theta: Tensor, generator: Generator, dataset: Tensor | None = None):
    theta = theta.flatten()
    return shannon_information(theta[:, None], variance(theta)[:, None], dataset=dataset, draws=2, generator=generator)


class Curves(NamedTuple):
    """Measurements against the batch size, ``(seeds, batch sizes)`` each; information in nats.

    Attributes:
        log_fisher: Mean of log(F + 1) at the ends.
        at_minimum: The same after descending.
        shannon: I(w;D), one training on each data set.
        stderr: Its standard error.
        of_data: The same of many trainings on each, so that the initial weights do not count.
        gaussian: Information with the best Gaussian prior.
        distance: Median of abs(θ).
    """

    log_fisher: np.ndarray
    at_minimum: np.ndarray
    shannon: np.ndarray
    stderr: np.ndarray
    of_data: np.ndarray
    gaussian: np.ndarray
    distance: np.ndarray


def measured(one: Ends) -> list[list[float]]:
    """Return the values of ``Curves`` for one batch size, ``(names, seeds)``."""
    rows = []
    for seed, (theta, minimum, repeated) in enumerate(zip(*one, strict=True)):
        generator = Generator().manual_seed(seed)
        whole = shannon(theta, generator)
        dataset = torch.arange(len(repeated)).repeat_interleave(repeated.shape[1])
        row = [
            -variance(theta).log().mean().item(),
            -variance(minimum).log().mean().item(),
            whole.information,
            whole.stderr,
            shannon(repeated, generator, dataset).information,
            gaussian_information(theta, variance(theta)),
            theta.abs().median().item(),
        ]
        rows.append(row)
    return np.array(rows).T.tolist()


def judge(curves: Curves) -> list[Claim]:
    def ranks(values: np.ndarray) -> list[float]:
        return [spearman(np.array(BATCHES), row) for row in values]

    def largest(values: np.ndarray) -> list[float]:
        return (values[:, -1] - values[:, :-1].max(1)).tolist()

    whole, gap = curves.shannon, curves.shannon[:, -1] - curves.shannon[:, 0]
    ratio = curves.gaussian / whole
    seeds = "What the weight tells about its initial value does not fall, and blurs what it tells about the data."
    return [
        claim(
            "small batches leave areas of high Fisher information: rank correlation of the median abs(θ) with B",
            ranks(curves.distance),
            at_most=-0.9,
        ),
        claim(
            "the Fisher information falls with the batch size: rank correlation of mean log F with B",
            ranks(curves.log_fisher),
            1 - 1e-9,
        ),
        claim(
            "B = N has the largest Fisher information: log F minus the largest of the others",
            largest(curves.log_fisher),
            0.0,
            unit="nats",
        ),
        claim(
            "log F of the minima below the ends falls as well: rank correlation with B",
            ranks(curves.at_minimum),
            1 - 1e-9,
            source="here",
        ),
        claim("the Shannon information falls, too: rank correlation with B", ranks(whole), 0.9, why=seeds),
        claim("... from B = 100 to B = 1, by", gap.tolist(), 0.1, unit="nats"),
        claim(
            "B = N has the largest Shannon information: minus the largest of the others",
            largest(whole),
            0.0,
            unit="nats",
            why=seeds,
        ),
        claim(
            "the Shannon information with the data alone falls: rank correlation with B",
            ranks(curves.of_data),
            0.9,
            source="here",
        ),
        claim("Shannon information of about 4 nats, B = 100", whole[:, -1].tolist(), 3, 5, unit="nats"),
        claim(
            "Gaussian information of 4000 to 5000 nats, B = 100",
            curves.gaussian[:, -1].tolist(),
            4000,
            5000,
            unit="nats",
            why=FEW,
        ),
        claim(
            "Fisher's bound is loose by orders of magnitude: Gaussian over Shannon information, B = 100",
            ratio[:, -1].tolist(),
            10,
            why="The Gaussian information is a few nats, see there.",
        ),
        claim("it is a bound: Gaussian over Shannon information, least of all B", ratio.min(1).tolist(), 1.0),
    ]


def table(curves: Curves) -> str:
    """Return the means over the seeds as a table."""
    rows = [("B", "log F", "at minimum", "Shannon", "of the data", "Gaussian", "paper's Gaussian", "median abs(θ)")]
    for i, batch in enumerate(BATCHES):
        mean = Curves(*(values[:, i].mean() for values in curves))
        one = (mean.log_fisher, mean.at_minimum, mean.shannon, mean.of_data, mean.gaussian)
        rows.append((str(batch), *(f"{value:.2f}" for value in one), "4000-5000", f"{mean.distance:.2f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.rjust, row, widths)) for row in rows)


def draw(found: Sequence[Ends], curves: Curves) -> Figure:
    """Draw the three panels of the paper."""
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    marginal, against, right = figure.subplots(1, 3)
    edges = np.linspace(-4, 4, 161)
    for batch, colour in zip((1, 10, 100), COLOURS, strict=True):
        theta = found[BATCHES.index(batch)].theta.flatten().numpy()
        marginal.hist(theta, edges, density=True, histtype="step", color=colour, linewidth=1.4, label=f"B = {batch}")
    grid = torch.linspace(-4, 4, 1601, dtype=torch.float64)
    marginal.set(title="Ends of all trainings", xlabel="θ", ylabel="density")
    marginal.legend(frameon=False, loc="upper left", fontsize=8)
    sharp = marginal.twinx()
    sharp.plot(grid, fisher(grid) + 1 / PRIOR**2, ":", color="0.45", linewidth=1.2)
    sharp.set_yscale("log")
    sharp.set_ylabel("F(θ) + 1, dotted")

    rows = (
        ("log F: mean of log (F + 1)", curves.log_fisher, "o-", COLOURS[0]),
        ("Gaussian, best prior", curves.gaussian, "s-", COLOURS[1]),
        ("Shannon", curves.shannon, "^-", COLOURS[2]),
        ("Shannon, of the data alone", curves.of_data, "v--", COLOURS[2]),
    )
    for name, values, style, colour in rows:
        against.plot(BATCHES, values.mean(0), style, color=colour, markersize=4, linewidth=1.2, label=name)
        against.fill_between(BATCHES, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)
    against.set(xscale="log", xlabel="batch size B", ylabel="nats", title="Information in the weight", ylim=(0, None))
    against.set_xticks(BATCHES, [str(batch) for batch in BATCHES])
    against.minorticks_off()
    against.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, 0.86))
    right.plot(grid, phi(grid), color="black", linewidth=1.2)
    for mean in (-1, 1):
        right.axhline(mean, color="0.6", linewidth=0.8, linestyle=":")
    right.set(title="φ(θ); dotted: range of μ", xlabel="θ", ylabel="φ")
    return figure


def run(seeds: int, full: bool, out: Path, datasets: int = 0, repeats: int = 30, steps: int = 2000) -> Result:
    datasets = datasets or (6000 if full else 1500)
    data = draw_data(seeds, datasets, repeats)
    found = [ends(data, batch, steps) for batch in BATCHES]
    curves = Curves(*np.array([measured(one) for one in found]).transpose(1, 2, 0))
    said = (
        f"seeds 0 to {seeds - 1}: {datasets} data sets with a training each, {datasets // repeats} with {repeats}; "
        f"{steps} steps"
    )
    return Result(judge(curves), draw(found, curves), said, f"\n{table(curves)}\n")


if __name__ == "__main__":
    main(__doc__, run, "figure3", seeds=3)
