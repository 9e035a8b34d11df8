"""Figure 3: generalisation and information plane of a linear network with one hidden layer, full-batch descent.

The paper: 100 inputs, 100 hidden units, 100 examples, signal-to-noise ratio 1; the network "learns a map that
generalizes well on this task and shows minimal overtraining"; "no compression is observed".

Step size 0.5 and initial weights of standard deviation 0.01 are ours. As written, with as many examples as inputs, the
network overtrains badly, as section 3 itself says of that case a page later ("overtraining is worst when the number of
inputs matches the number of training samples"). With 300 examples the figure is as the paper describes it. Both run.

The saw teeth of the test error with 100 examples are one network that becomes unstable at this step size, late. With
0.1 and five times as many steps the train loss never rises, and the overtraining is no smaller.
"""

from __future__ import annotations

from functools import partial

from claims import Claim
from linear import errors, no_compression, overtraining, planes, student
from matplotlib.figure import Figure
from plotting import draw_curves, draw_plane, mean_plane
from script import Result, main
from twelve_bit import runs

claim = partial(Claim, "3C")


def run(full: bool = False) -> Result:
    seeds = tuple(range(410, 418 if full else 413))
    students = {examples: student(seeds, examples, 1500, 0.5) for examples in (100, 300)}
    claims = []
    for examples, name in ((100, "100 examples, as written"), (300, "300 examples")):
        source = "paper" if examples == 100 else "here"
        ratios = overtraining(students[examples])
        claims.append(
            claim(f"{name}: minimal overtraining; last / least test error", ratios, at_most=1.25, source=source)
        )
        claims += no_compression("3D", name, students[examples])
    figure = Figure(figsize=(10, 7), layout="constrained")
    for row, (examples, found) in zip(figure.subplots(2, 2), students.items(), strict=True):
        epochs = found.run.epochs(found.steps)
        curves = errors(found)
        draw_curves(row[0], list(epochs.values()), curves, f"C  {examples} examples", "mean squared error")
        draw_plane(figure, row[1], mean_plane(planes(found)), epochs, f"D  {examples} examples")
    return Result(claims, figure, runs(students[100].run))


if __name__ == "__main__":
    main(__doc__, run, "figure3")
