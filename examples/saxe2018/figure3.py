"""Figure 3: generalisation and information plane of a linear network with one hidden layer, full-batch descent.

The paper: 100 inputs, 100 hidden units, 100 examples, signal-to-noise ratio 1; the network "learns a map that
generalizes well on this task and shows minimal overtraining"; "no compression is observed".

Initial weights of standard deviation 0.01 and step sizes are ours. As written, with as many examples as inputs, the
network overtrains badly, as section 3 itself says of that case a page later ("overtraining is worst when the number of
inputs matches the number of training samples"). With 300 examples the figure is as the paper describes it. Both run.

300 examples: step size 0.5, 1500 steps. 100 examples: 0.1, 7500 steps; at 0.5 some networks become unstable late, which
looks like saw teeth of the test error, and overtrain as much.

The third column is ours: the same planes below the information-bottleneck bound, which the paper names and leaves out.
The curves are means over the seeds, and the mean of their teachers' bounds.
"""

from __future__ import annotations

from functools import partial

from claims import Claim
from linear import below_bound, bounds, errors, generalising, learned, no_compression, overtraining, planes, student
from matplotlib.figure import Figure
from plotting import draw_bound, draw_curves, draw_plane, mean_plane
from script import Result, main
from twelve_bit import runs

claim = partial(Claim, "3C")


def run(full: bool = False) -> Result:
    few = student(tuple(range(410, 418 if full else 413)), 100, 7500, 0.1, points=50)
    students = {100: few, 300: generalising(full)}
    claims = []
    for examples, name in ((100, "100 examples, as written"), (300, "300 examples")):
        found = students[examples]
        claims.append(
            claim(
                f"{name}: minimal overtraining; last / least test error",
                overtraining(found),
                at_most=1.25,
                source="paper" if examples == 100 else "here",
                learned=learned(found),
                why="The paper itself says a page later that overtraining is worst with as many examples as inputs; "
                "with 300 examples it is as small as described.",
            )
        )
        claims += no_compression("3D", name, found) + below_bound("3D", name, found)
    figure = Figure(figsize=(14, 7), layout="constrained")
    for row, (examples, found) in zip(figure.subplots(2, 3), students.items(), strict=True):
        epochs, exact = found.run.epochs(found.steps), planes(found)
        draw_curves(row[0], list(epochs.values()), errors(found), f"C  {examples} examples", "mean squared error")
        draw_plane(figure, row[1], mean_plane(exact), epochs, f"D  {examples} examples")
        draw_plane(figure, row[2], mean_plane(exact), epochs, "D with the bound")
        draw_bound(row[2], mean_plane(bounds(found, exact))["layer1"])
    said = "; ".join(f"{examples} examples: {runs(found.run)}" for examples, found in students.items())
    return Result(claims, figure, said)


if __name__ == "__main__":
    main(__doc__, run, "figure3")
