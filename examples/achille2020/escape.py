"""Proposition 2.8 of Achille, Paolini & Soatto: how long noise takes to leave a minimum, and which minimum it prefers.

    python examples/achille2020/escape.py

"The expected time for a stochastic gradient-based algorithm with isotropic noise to escape the minimum is"

    E τ = 2π / |λ_1(w_s)| exp((F(w_s) - F(w*)) / T),   F = L + T/2 log |F|,   T proportional to η/B,

"in particular, increasing the temperature parameter T makes the stochastic optimization more likely to avoid minima
with high Fisher Information". This is the law of Eyring and Kramers for ``dw = -∇L dt + √(2T) dW`` if |F| stands for
the determinant of the *Hessian*, of its absolute value at the saddle w_s, where the Fisher information is singular
(``docs/errata.md``). The time is that to the other minimum, in steps times η.

Here L(x, y) = Q(u(x)) + k(x) y²/2 has a sharp minimum and a flat one, the sharp one deeper; Q is of fourth order. Many
particles start at each minimum, and start again when they reach the other. Three dynamics:

- Langevin: exact gradient and Gaussian noise;
- SGD, isotropic noise: samples have the losses L + e·w with 256 vectors e of mean 0 and covariance s² I, so batches of
  B, drawn with replacement, have T = η s² / 2B;
- SGD, noise as the Fisher information: L + e_1 u(x) + e_2 √k(x) y, the noise of a regression through u, scaled to be
  the same at the saddle.

Criteria, written before the numbers: Kramers' law is a limit; it is judged where the barrier is at least 5 T, by 20 %.
An integral in one dimension, of L + T/2 log k, differs from it there by less than 12 %. T is the same for the same η/B:
times by 15 %.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from feature_learning import spearman
from matplotlib.figure import Figure
from results import Claim, Result, main
from tqdm import tqdm

from lightning_info.functional import Spectrum, free_energy, temperature

ETA, T_OF_ONE = 0.0125, 0.55
BATCHES, HALVED = (2, 3, 4, 5), 4
"""Batch sizes, and the one whose half is tried with half of η."""
BLOCK = 100
"""Steps whose noise is drawn at once."""
DYNAMICS = ("Langevin", "SGD, isotropic noise", "SGD, noise as the Fisher information")
WELLS, COLOURS = ("sharp", "flat"), ("#d55e00", "#0072b2")
BARRIER = 5 - 1e-6
"""Least barrier over T for which Kramers' law is judged; 5, but for rounding."""
claim = partial(Claim, "Prop. 2.8")

DEPTH, LEFT, RIGHT = 2.0, -1.15, 1.0  # Q' = DEPTH u (u - LEFT) (u - RIGHT)
BEND, ROUND = 1 / 3, 0.3  # du/dx is 1 + BEND on the left, 1 - BEND on the right
SHARP, FLAT, WIDTH = 6.0, 1.5, 0.25  # k on the left, on the right, and how fast it falls


def warp(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return u and du/dx."""
    root = np.sqrt(x * x + ROUND**2)
    return x - BEND * (root - ROUND), 1 - BEND * x / root


def stiffness(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return k and dk/dx."""
    share = 1 / (1 + np.exp(x / WIDTH))
    return FLAT + (SHARP - FLAT) * share, (FLAT - SHARP) / WIDTH * share * (1 - share)


def loss(x: float) -> float:
    """Return L(x, 0)."""
    u = float(warp(np.float64(x))[0])
    return DEPTH * (u**4 / 4 - (LEFT + RIGHT) * u**3 / 3 + LEFT * RIGHT * u**2 / 2)


class Point(NamedTuple):
    """A stationary point ``(x, 0)``: its loss and the eigenvalues of its Hessian, along x and y."""

    x: float
    loss: float
    along: float
    across: float

    def free_energy(self, at: float) -> float:
        """Return L + T/2 log |det H| at the temperature T."""
        spectrum = Spectrum(torch.tensor([abs(self.along), self.across], dtype=torch.float64), 2)
        return free_energy(self.loss, spectrum, at, damping=1e-12)  # nothing is singular


def point(u: float) -> Point:
    """Return the stationary point at a root u of Q'."""
    low, high = -3.0, 3.0
    while high - low > 1e-14 * (1 + abs(low)):  # u rises with x
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if warp(np.float64(middle))[0] < u else (low, middle)
    x = np.float64(high)
    curvature = DEPTH * (3 * u * u - 2 * (LEFT + RIGHT) * u + LEFT * RIGHT)
    return Point(high, loss(high), curvature * float(warp(x)[1]) ** 2, float(stiffness(x)[0]))


MINIMA, SADDLE = (point(LEFT), point(RIGHT)), point(0.0)


def predicted(well: int, at: float) -> float:
    """Return Kramers' time of a minimum at the temperature T."""
    rise = SADDLE.free_energy(at) - MINIMA[well].free_energy(at)
    return 2 * math.pi / abs(SADDLE.along) * math.exp(rise / at)


def samples(variance: float, generator: np.random.Generator) -> np.ndarray:
    """Return 256 vectors in the plane with mean 0 and covariance ``variance * I``, in pairs e and -e."""
    e = generator.standard_normal((2, 128))
    e = np.linalg.solve(np.linalg.cholesky(np.cov(e, bias=True) + np.outer(e.mean(1), e.mean(1))), e)
    return math.sqrt(variance) * np.concatenate([e, -e], 1)


def noise(dynamics: str, eta: float, batch: int, count: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield the noise of one step after the other, ``(2, count)``, of covariance ``2 η T I``."""
    at = T_OF_ONE / batch * eta / ETA
    if dynamics == "Langevin":
        while True:
            yield from math.sqrt(2 * eta * at) * generator.standard_normal((BLOCK, 2, count), np.float32)
    e = (eta * samples(at / temperature(eta, batch), generator)).astype(np.float32)
    while True:
        of_batch = generator.integers(256, size=(batch, BLOCK, count), dtype=np.uint8)
        yield from np.stack([part[of_batch].mean(0) for part in e], 1)


class Times(NamedTuple):
    """Mean escape times, ``(wells,)`` each.

    Attributes:
        at: T.
        time: Steps times η; NaN where nothing escaped.
        stderr: Standard error: escapes are nearly independent of each other.
    """

    at: float
    time: np.ndarray
    stderr: np.ndarray


def escape(
    dynamics: str, eta: float, batch: int, particles: int, steps: int, generator: np.random.Generator, told: str = ""
) -> Times:
    """Let particles leave both minima again and again, and return total time over number of escapes."""
    start = np.repeat(np.float32([well.x for well in MINIMA]), particles)
    sign = np.repeat(np.float32([1, -1]), particles)
    goal = sign * np.repeat(np.float32([well.x for well in MINIMA[::-1]]), particles)
    like_fisher = dynamics == DYNAMICS[2]
    x, y, escapes = start.copy(), np.zeros_like(start), np.zeros(2)
    steps_noise = noise(dynamics, eta, batch, 2 * particles, generator)
    for _ in tqdm(range(steps), desc=told, disable=not sys.stdout.isatty()):
        (u, slope), (k, dk), (e_x, e_y) = warp(x), stiffness(x), next(steps_noise)
        if like_fisher:
            root = np.sqrt(k / SADDLE.across)
            e_x, e_y = slope * e_x + dk / (2 * root * SADDLE.across) * y * e_y, root * e_y
        x -= eta * (DEPTH * u * (u - LEFT) * (u - RIGHT) * slope + dk * y * y / 2) - e_x
        y -= eta * k * y - e_y
        there = sign * x >= goal
        if there.any():
            escapes += there.reshape(2, -1).sum(1)
            x[there], y[there] = start[there], 0
    time = steps * eta * particles / np.where(escapes > 0, escapes, np.nan)
    return Times(T_OF_ONE / batch * eta / ETA, time, time / np.sqrt(escapes))


def steps_for(at: float, like_fisher: bool, share: float) -> int:
    """Return the number of steps: a share of the longer predicted time.

    It is at least 100 in steps times η. With noise as the Fisher information it is at most 250: escapes from the flat
    minimum are not waited for.
    """
    longest = max(predicted(well, at) for well in range(2))
    time = max(100.0, share * longest)
    return int((min(time, 250.0) if like_fisher else time) / ETA)


class Measured(NamedTuple):
    """Escape times of one repetition.

    Attributes:
        times: ``(dynamics, temperatures)``.
        halved: Isotropic SGD with η and B halved, so at one of these temperatures.
    """

    times: list[list[Times]]
    halved: Times


def measure(seed: int, particles: int, share: float, batches: Sequence[int]) -> Measured:
    generator = np.random.default_rng(seed)

    def one(dynamics: str, batch: int, eta: float = ETA) -> Times:
        at = T_OF_ONE / batch * eta / ETA
        steps = round(steps_for(at, dynamics == DYNAMICS[2], share) * ETA / eta)
        return escape(dynamics, eta, batch, particles, steps, generator, f"seed {seed}, {dynamics}, T = {at:.3f}")

    times = [[one(dynamics, batch) for batch in batches] for dynamics in DYNAMICS]
    return Measured(times, one(DYNAMICS[1], HALVED // 2, ETA / 2))


def share_of_flat(times: Sequence[Times]) -> np.ndarray:
    """Return the share of time at the flat minimum, for each temperature, if escapes are without memory."""
    sharp, flat = np.array([one.time for one in times]).T
    return np.where(np.isnan(flat) & (sharp > 0), 1.0, flat / (sharp + flat))  # nothing left the flat one


def predicted_share(at: float) -> float:
    """Return the same from the free energies: the odds are ``exp(-ΔF / T)``."""
    return 1 / (1 + math.exp((MINIMA[1].free_energy(at) - MINIMA[0].free_energy(at)) / at))


def judge(found: Sequence[Measured], batches: Sequence[int]) -> list[Claim]:
    claims = []
    for dynamics in range(2):
        ratios = [
            one.time[well] / predicted(well, one.at)
            for run in found
            for one in run.times[dynamics]
            for well in range(2)
            if -MINIMA[well].loss >= BARRIER * one.at
        ]
        text = (
            f"{DYNAMICS[dynamics]}: escape times are Kramers' where the barrier is at least 5 T: measured / predicted"
        )
        claims.append(claim(text, ratios, 0.8, 1.2))
    place = list(batches).index(HALVED)
    same = [r for run in found for r in (run.halved.time / run.times[1][place].time).tolist()]
    claims.append(claim("T is proportional to η/B: times with both halved / those before", same, 0.85, 1.15))
    at = np.array([one.at for one in found[0].times[0]])
    shares = [[share_of_flat(run.times[dynamics]) for run in found] for dynamics in range(3)]
    for dynamics in range(3):
        text = f"{DYNAMICS[dynamics]}: a higher T prefers the flat minimum: rank correlation of T with its share"
        claims.append(claim(text, [spearman(at, share) for share in shares[dynamics]], 1 - 1e-9, why=WHY[dynamics]))
    free = np.array([predicted_share(one) for one in at])
    isotropic = [*shares[0], *shares[1]]
    claims += [
        claim(
            "the shares are those of the free energies, isotropic noise: largest difference",
            [float(abs(share - free).max()) for share in isotropic],
            at_most=0.1,
        ),
        claim(
            "the deeper, sharp minimum is preferred at the lowest T: share of the flat one",
            [float(share[at.argmin()]) for share in isotropic],
            at_most=0.5,
            source="here",
        ),
        claim(
            "the flat one is preferred at the highest T: its share",
            [float(share[at.argmax()]) for share in isotropic],
            at_least=0.5,
            source="here",
        ),
        claim(
            "the law does not apply to anisotropic noise: predicted / measured time of the sharp minimum, lowest T",
            [predicted(0, at.min()) / float(run.times[2][at.argmin()].time[0]) for run in found],
            1.2,
        ),
        claim(
            "noise as the Fisher information prefers the flat minimum more: its share minus that of isotropic noise, "
            "least of all T",
            [float((a - b).min()) for a, b in zip(shares[2], shares[1], strict=True)],
            0.0,
        ),
    ]
    return claims


WHY = (
    "",
    "",
    "Noise that is larger at the sharp minimum prefers the flat one at every T, and most at a low one: both times grow "
    "as exp(barrier / T), and the flat minimum's barrier, in units of its noise, is the higher one.",
)


def table(found: Sequence[Measured]) -> str:
    rows = [("dynamics", "T", "minimum", "barrier / T", "time", "stderr", "Kramers", "ratio")]
    for dynamics, times in zip(DYNAMICS, found[0].times, strict=True):
        for one in times:
            for well, name in enumerate(WELLS):
                time, law = one.time[well], predicted(well, one.at)
                numbers = (f"{-MINIMA[well].loss / one.at:.1f}", f"{time:.4g}", f"{one.stderr[well]:.2g}")
                rows.append((dynamics, f"{one.at:.3f}", name, *numbers, f"{law:.4g}", f"{time / law:.3f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def draw(found: Sequence[Measured]) -> Figure:
    """Draw the loss, escape times against 1/T, and the share of the flat minimum against T."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    landscape, waits, flat = figure.subplots(1, 3)
    x = np.linspace(-1.5, 2.1, 400)
    landscape.plot(x, [loss(one) for one in x], color="black", linewidth=1.2, label="L(x, 0)")
    landscape.plot(x, stiffness(x)[0] / 10, ":", color="0.5", label="k(x) / 10")
    for well, name, colour in zip(MINIMA, WELLS, COLOURS, strict=True):
        landscape.plot(well.x, well.loss, "o", color=colour)
        landscape.annotate(name, (well.x, well.loss), (0, -14), textcoords="offset points", ha="center")
    landscape.set(title="The loss along y = 0", xlabel="x", ylabel="nats", ylim=(-1.05, 0.8))
    landscape.legend(frameon=False, fontsize=8)

    runs = found[0].times
    at = np.linspace(min(one.at for one in runs[0]) * 0.95, max(one.at for one in runs[0]) * 1.05, 50)
    for well, (name, colour) in enumerate(zip(WELLS, COLOURS, strict=True)):
        label = f"{name}: Kramers, dotted below 5 T"
        holds = -MINIMA[well].loss >= BARRIER * at
        law = np.array([predicted(well, one) for one in at])
        waits.plot(1 / at[holds], law[holds], "-", color=colour, linewidth=1.2, label=label)
        waits.plot(1 / at[~holds], law[~holds], ":", color=colour, linewidth=1.2)
        for times, marker in zip(runs, "o^x", strict=True):
            seen = [one for one in times if one.stderr[well] < one.time[well] / 3]  # others are a few escapes
            waits.errorbar(
                [1 / one.at for one in seen],
                [one.time[well] for one in seen],
                [1.96 * one.stderr[well] for one in seen],
                fmt=marker, color=colour, markersize=5, linewidth=1, fillstyle="none",
            )  # fmt: skip
    for dynamics, marker in zip(DYNAMICS, "o^x", strict=True):
        waits.plot([], [], marker, color="0.3", fillstyle="none", label=dynamics)
    waits.set(title="Mean escape time", xlabel="1 / T", ylabel="steps times η", yscale="log", ylim=(5, 1e7))
    waits.legend(frameon=False, fontsize=8, loc="upper left")

    flat.plot(at, [predicted_share(one) for one in at], "-", color="black", linewidth=1.2, label="free energies")
    for dynamics, marker in enumerate("o^x"):
        for run in found:
            label = DYNAMICS[dynamics] if run is found[0] else None
            times = run.times[dynamics]
            flat.plot(
                [one.at for one in times], share_of_flat(times), marker, color="0.3", fillstyle="none", label=label
            )
    flat.axhline(0.5, color="0.7", linewidth=0.8, linestyle=":")
    flat.set(title="Share of time at the flat minimum", xlabel="T", ylabel="share", ylim=(0, 1.04))
    flat.legend(frameon=False, fontsize=8, loc="upper right", bbox_to_anchor=(1, 0.93))
    return figure


def run(seeds: int, full: bool, out: Path, particles: int = 0, share: float = 0.0) -> Result:
    particles = particles or (3000 if full else 1000)
    batches = (*BATCHES, 6) if full else BATCHES
    found = [measure(seed, particles, share or (0.3 if full else 0.75), batches) for seed in range(seeds)]
    said = f"seeds 0 to {seeds - 1}; {particles} particles from each minimum, batches of {batches}, η = {ETA}"
    return Result(judge(found, batches), draw(found), said, f"\n{table(found)}\n")


if __name__ == "__main__":
    main(__doc__, run, "escape", seeds=1)
