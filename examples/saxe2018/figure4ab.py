"""Figure 4A-B: overtraining and the information plane of a linear network trained with SGD.

The paper: 100 inputs, 100 hidden units, 100 examples, batches of 5; "overtraining is substantial"; "no compression is
observed, and information about the labels is lost during overtraining".

"Comparing to the result in Fig. 3D, both networks exhibit similar information dynamics with respect to the input (no
compression), but yield different generalization performance": compared are the overtraining and the fall of I(X;T) with
those of figure 3 with 300 examples, which the paper's words describe.

Signal-to-noise ratio 1 (of figure 3), step size 0.05 and initial weights of standard deviation 0.01 are ours. The third
panel, too: the same plane below the information-bottleneck bound (see figure 3).
"""

from __future__ import annotations

from claims import Claim
from linear import (
    NO_FALL,
    Student,
    below_bound,
    bounds,
    errors,
    generalising,
    learned,
    no_compression,
    overtraining,
    planes,
    student,
)
from matplotlib.figure import Figure
from plotting import draw_bound, draw_curves, draw_plane, mean_plane
from script import Result, main
from twelve_bit import runs

from lightning_info.functional.compression import peak_to_end


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


def compared(found: Student, well: Student) -> list[Claim]:
    """Compare with students that generalise well."""
    falls = [peak_to_end([x for _, x, _ in plane["layer1"]]) for one in (found, well) for plane in planes(one)]
    return [
        Claim(
            "4B",
            "no compression as in 3D with 300 examples: largest fall of both",
            [max(falls)],
            at_most=NO_FALL,
            unit="bits",
            learned=[all(learned(found) + learned(well))],
        ),
        Claim(
            "4A",
            "... but another generalisation: least overtraining here over the largest there",
            [min(overtraining(found)) / max(overtraining(well))],
            2,
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
    well = generalising(full)
    said = f"{runs(found.run)}; compared with 3D, 300 examples: {runs(well.run)}"
    return Result(judged(found) + compared(found, well), figure, said)


if __name__ == "__main__":
    main(__doc__, run, "figure4ab")
