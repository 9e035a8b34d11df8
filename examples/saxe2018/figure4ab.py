"""Figure 4A-B: overtraining and the information plane of a linear network trained with SGD.

The paper: 100 inputs, 100 hidden units, 100 examples, batches of 5; "overtraining is substantial"; "no compression is
observed, and information about the labels is lost during overtraining".

Signal-to-noise ratio 1 (of figure 3), step size 0.05 and initial weights of standard deviation 0.01 are ours. The third
panel, too: the same plane below the information-bottleneck bound (see figure 3).
"""

from __future__ import annotations

from claims import Claim
from linear import Student, below_bound, bounds, errors, no_compression, overtraining, planes, student
from matplotlib.figure import Figure
from plotting import draw_bound, draw_curves, draw_plane, mean_plane
from script import Result, main
from twelve_bit import runs


def trained(seeds: tuple[int, ...]) -> Student:
    return student(seeds, 100, 300, 0.05, 5)


def judged(found: Student) -> list[Claim]:
    about_y = [[y for _, _, y in plane["layer1"]] for plane in planes(found)]
    return [
        Claim("4A", "substantial overtraining: last / least test error", overtraining(found), 3),
        *no_compression("4B", "100 examples, SGD", found),
        *below_bound("4B", "100 examples, SGD", found),
        Claim(
            "4B",
            "information about the labels is lost: I(T;Y), last / peak",
            [y[-1] / max(y) for y in about_y],
            at_most=0.8,
            why="It takes longer: of seeds 420 to 427, four are at 0.8 or less after 300 epochs, six after 900 and "
            "seven after 2000.",
        ),
    ]


def run(full: bool = False) -> Result:
    found = trained(tuple(range(420, 428 if full else 424)))
    epochs, exact = found.run.epochs(found.steps), planes(found)
    figure = Figure(figsize=(14, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    draw_curves(left, list(epochs.values()), errors(found), "A  linear, SGD, 100 examples", "mean squared error")
    draw_plane(figure, middle, mean_plane(exact), epochs, "B")
    draw_plane(figure, right, mean_plane(exact), epochs, "B with the bound")
    draw_bound(right, mean_plane(bounds(found, exact))["layer1"])
    return Result(judged(found), figure, runs(found.run))


if __name__ == "__main__":
    main(__doc__, run, "figure4ab")
