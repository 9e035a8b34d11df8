"""Sections 3 and 5: linear students of a linear teacher, for which everything is known exactly.

The formulas are the corrected ones (``docs/errata.md``): inputs of covariance I / 100, and noise of variance 1 on the
hidden layer, for the measurement only. The paper gives neither step size nor initial weights; the figures state theirs.

InfoPlaneCallback measures the same information by covariances. Its reference samples are the 2 D points ± e_i, whose
covariance is exactly I / D, so the two must agree to rounding.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from claims import Claim
from data import Teacher, teacher
from networks import Init, Networks, normal
from torch import Tensor
from training import Run, train

from lightning_info.functional import generalisation_error, linear_information, linear_subset_information
from lightning_info.functional.compression import peak_to_end
from lightning_info.functional.theory.gaussian_bottleneck import gaussian_bottleneck

INPUTS = 100
COVARIANCE = torch.eye(INPUTS, dtype=torch.float64) / INPUTS
NOISE = 1.0
"""Variance of the noise with which the information is measured."""
SMALL = normal(0.01)
LEARNED = 0.15
"""Part of the teacher's signal that a student must know at some time to count as having learned."""
NO_FALL = 0.01
"""Largest fall of I(X;T), in bits, that is none: there are no bins, and all information is exact."""
Plane = dict[str, list[tuple[int, float, float]]]


class Student(NamedTuple):
    """Students of some seeds and their teachers."""

    run: Run
    teachers: list[Teacher]

    @property
    def steps(self) -> list[int]:
        return list(self.run.snapshots)

    def maps(self, step: int, layer: int) -> Tensor:
        """Return W̄ of the students up to a layer, ``(S, units, D)``."""
        weights = list(self.run.at(step).weights)[:layer]
        product = weights[0].detach().double()
        for weight in weights[1:]:
            product = weight.detach().double() @ product
        return product


@cache
def student(
    seeds: tuple[int, ...],
    examples: int,
    epochs: int,
    lr: float,
    batch_size: int | None = None,
    hidden: tuple[int, ...] = (100,),
    init: Init = SMALL,
    weight_variance: float = 1.0,
    relevant: int | None = None,
    points: int = 10,
) -> Student:
    """Train students; a second call costs nothing."""
    teachers = [teacher(seed, examples, INPUTS, weight_variance, 1.0, relevant) for seed in seeds]
    run = train(
        f"linear, {len(hidden)} hidden, {examples} examples, batch {batch_size or examples}",
        Networks(seeds, (INPUTS, *hidden, 1), "linear", "teacher", init, lr),
        torch.stack([told.x for told in teachers]),
        torch.stack([told.y for told in teachers]),
        epochs,
        (torch.cat([torch.eye(INPUTS), -torch.eye(INPUTS)]),),
        batch_size,
        points,
        estimator="gaussian",
        noise_variance=NOISE,
        directions=INPUTS,  # as many as units: nothing is lost
    )
    return Student(run, teachers)


def generalising(full: bool) -> Student:
    """Train those of figure 3 with 300 examples, which generalise well."""
    return student(tuple(range(410, 418 if full else 413)), 300, 1500, 0.5)


def errors(student: Student) -> dict[str, Tensor]:
    """Return the squared error on the examples and, exactly, on fresh ones, ``(steps, S)``."""
    depth = len(student.run.networks.weights)
    curves: dict[str, list[list[float]]] = {"train": [], "test": []}
    for step in student.steps:
        maps = student.maps(step, depth)
        pairs = list(zip(maps, student.teachers, strict=True))
        curves["train"].append([(w @ t.x.double() - t.y).square().mean().item() for w, t in pairs])
        curves["test"].append([generalisation_error(w, t.w, COVARIANCE, t.noise_variance) for w, t in pairs])
    return {name: torch.tensor(values) for name, values in curves.items()}


def planes(student: Student, layers: int = 1) -> list[Plane]:
    """Return exact I(X;T) and I(T;Y) of each student's hidden layers, in bits."""
    found: list[Plane] = [{f"layer{layer}": [] for layer in range(1, layers + 1)} for _ in student.teachers]
    for step in student.steps:
        for layer in range(1, layers + 1):
            for plane, w, told in zip(found, student.maps(step, layer), student.teachers, strict=True):
                point = linear_information(w, COVARIANCE, NOISE, told.w, told.noise_variance)
                plane[f"layer{layer}"].append((step, *point))
    return found


def subset(student: Student, inputs: range) -> Tensor:
    """Return I(T;X_S) of the hidden layer, all other inputs being noise, ``(steps, S)``."""
    return torch.tensor(
        [
            [linear_subset_information(w, COVARIANCE, NOISE, list(inputs)) for w in student.maps(step, 1)]
            for step in student.steps
        ]
    )


def bounds(student: Student, exact: list[Plane]) -> list[Plane]:
    """Return the same planes with the most that any layer with this I(X;T) can tell about Y instead of I(T;Y)."""
    found: list[Plane] = []
    for plane, told in zip(exact, student.teachers, strict=True):
        found.append({})
        for layer, path in plane.items():
            i_xt = torch.tensor([x for _, x, _ in path])
            most = gaussian_bottleneck(i_xt, COVARIANCE, told.w, told.noise_variance).tolist()
            found[-1][layer] = [(step, x, bound) for (step, x, _), bound in zip(path, most, strict=True)]
    return found


def overtraining(student: Student) -> list[float]:
    """Return overtraining: the test error at the end divided by the smallest one."""
    test = errors(student)["test"]
    return (test[-1] / test.min(0).values).tolist()


def gains(student: Student) -> list[float]:
    """Return the largest part of the teacher's signal that every student knows; 0 for one that always says 0."""
    least = errors(student)["test"].min(0).values.tolist()
    nothing = [generalisation_error(0 * t.w, t.w, COVARIANCE, t.noise_variance) for t in student.teachers]
    return [(n - e) / (n - t.noise_variance) for n, e, t in zip(nothing, least, student.teachers, strict=True)]


def learned(student: Student) -> list[bool]:
    return [gain >= LEARNED for gain in gains(student)]


def learning(panel: str, what: str, student: Student) -> Claim:
    """Return the claim that the students learned, which claims such as "no compression" need."""
    text = f"{what}: the networks learn; part of the teacher's signal that is known at best"
    return Claim(panel, text, gains(student), LEARNED, source="here")


def no_compression(panel: str, what: str, student: Student, layers: int = 1) -> list[Claim]:
    """Return claims that the networks learned, on the exact falls of I(X;T), and on InfoPlaneCallback's values."""
    exact = planes(student, layers)
    names = list(exact[0])
    falls = [peak_to_end([x for _, x, _ in plane[layer]]) for layer in names for plane in exact]
    apart = [
        abs(plane[layer][-1][1] - callback.history[f"seed{seed}/info_plane/I_XT/{layer}"][-1][1])
        for plane, callback, seed in zip(exact, student.run.planes, student.run.networks.seeds, strict=True)
        for layer in names
    ]
    return [
        learning(panel, what, student),
        Claim(
            panel,
            f"{what}: no compression; fall of I(X;T)",
            falls,
            at_most=NO_FALL,
            unit="bits",
            learned=learned(student) * len(names),
        ),
        Claim(
            panel,
            f"{what}: InfoPlaneCallback and the exact formula differ at the end by",
            [max(apart)],
            at_most=1e-3,
            unit="bits",
            source="here",
        ),
    ]


def below_bound(panel: str, what: str, student: Student) -> list[Claim]:
    """Return the claim that no layer tells more about Y than the information bottleneck allows."""
    exact = planes(student)
    pairs = [
        [(y, bound) for (*_, y), (*_, bound) in zip(plane["layer1"], most["layer1"], strict=True)]
        for plane, most in zip(exact, bounds(student, exact), strict=True)
    ]
    excess = max(y - bound for points in pairs for y, bound in points)
    said = f"{what}: I(T;Y) is not above the information-bottleneck bound at the same I(X;T); largest excess"
    return [Claim(panel, said, [excess], at_most=1e-9, unit="bits", source="here")]
