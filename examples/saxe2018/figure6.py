"""Figure 6: fitting and compression at the same time, in a linear network whose task ignores 70 of 100 inputs.

The paper: "a linear network shows no overall compression of information about the input", "the information with the
task-relevant subspace increases robustly over training", "the information specifically about the task-irrelevant
subspace does compress after initially growing".

30 relevant and 70 irrelevant inputs, batches of 5, as in the paper, which gives no number of examples, signal-to-noise
ratio, initial weights or step size. Here: 200 examples, σ_w² = 100, σ_o² = 1, weights of standard deviation 0.001, step
size 0.004. With a signal-to-noise ratio of 1, as in figure 3, the irrelevant information does not fall (--full trains
that, too): the result depends on what the paper leaves open. "Information with a subset" is I(T;X_S), the other inputs
being noise (eq. 7 with either block; docs/errata.md).
"""

from __future__ import annotations

from claims import Claim
from linear import INPUTS, learned, learning, no_compression, planes, student, subset
from matplotlib.figure import Figure
from networks import normal
from plotting import draw_plane, mean_plane
from script import Result, main
from twelve_bit import runs

RELEVANT = 30
SEEDS = (300, 301, 302, 303)
TINY = normal(0.001)


def weak_signal() -> list[Claim]:
    """Run the same with the signal-to-noise ratio of figure 3, and enough examples to learn from."""
    students = student(SEEDS, 1000, 60, 0.05, 5, relevant=RELEVANT)
    ignored = subset(students, range(RELEVANT, INPUTS))
    what = "signal-to-noise ratio 1, as in figure 3"
    return [
        learning("6", what, students),
        Claim(
            "6C",
            f"{what}: irrelevant information falls from its peak by this share",
            (1 - ignored[-1] / ignored.max(0).values).tolist(),
            0.5,
            source="here",
            learned=learned(students),
            why="The paper gives no ratio for this figure, and what it shows depends on it: with 100 it is reproduced.",
        ),
    ]


def run(full: bool = False) -> Result:
    seeds = tuple(range(300, 308)) if full else SEEDS
    students = student(seeds, 200, 100, 0.004, 5, init=TINY, weight_variance=100.0, relevant=RELEVANT, points=5)
    exact = planes(students)
    whole = [[x for _, x, _ in plane["layer1"]] for plane in exact]
    wanted, ignored = subset(students, range(RELEVANT)), subset(students, range(RELEVANT, INPUTS))
    falls = 1 - ignored[-1] / ignored.max(0).values
    peaks = ignored.argmax(0).tolist()
    did = learned(students)
    grown = [(wanted[-1, s] - wanted[peak, s]).item() for s, peak in enumerate(peaks)]
    claims = [
        Claim(
            "6A",
            "no overall compression: fall of I(T;X), share of its peak",
            [1 - c[-1] / max(c) for c in whole],
            at_most=0.02,
            learned=did,
        ),
        Claim(
            "6B",
            "relevant information increases: its fall, share of its peak",
            (1 - wanted[-1] / wanted.max(0).values).tolist(),
            at_most=0.02,
            learned=did,
        ),
        Claim("6C", "irrelevant information falls from its peak by this share", falls.tolist(), 0.5, learned=did),
        Claim("6", "while it falls the relevant information still grows, by", grown, 0.01, unit="bits"),
        *[c for c in no_compression("6", "all inputs", students) if c.source == "here"],
    ]
    if full:
        claims += weak_signal()
    about_y = [[y for _, _, y in plane["layer1"]] for plane in exact]
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    panels = {
        "A  all inputs": ("I(T;X) [bits]", whole),
        "B  relevant inputs": ("I(T;$X_{rel}$) [bits]", wanted.T.tolist()),
        "C  irrelevant inputs (another scale)": ("I(T;$X_{irrel}$) [bits]", ignored.T.tolist()),
    }
    for axes, (title, (label, values)) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        paths = [{"": list(zip(students.steps, *pair, strict=True))} for pair in zip(values, about_y, strict=True)]
        draw_plane(figure, axes, mean_plane(paths), students.run.epochs(students.steps), title)
        axes.set_xlabel(label)
    return Result(claims, figure, runs(students.run))


if __name__ == "__main__":
    main(__doc__, run, "figure6")
