"""Figure 5: the information plane with SGD and with full-batch gradient descent, for tanh and for linear networks.

The paper: "Both random and non-random training procedures show similar information plane dynamics", "with robust
compression in tanh networks for both methods"; and linear networks do not compress under either.

A, B: the 12-bit task, tanh, batches of 256 and the full batch. Full batch means Adam without any noise (the authors'
optimiser is Adam), 2000 steps by default and 8000 with --full, which looks at 20 further seeds after 2000 steps, too;
SGD takes many more steps to get as far. A ReLU network trained with the full batch is the control: it does not
compress, under the range that the paper uses; with a range that follows each epoch's activations it would seem to, and
the callback says that its verdict depends on that.
C, D: the linear networks of figures 3 and 4 (the paper names no other task).
"""

from __future__ import annotations

from functools import partial

from claims import COMPRESSES, Claim, chosen, mean
from linear import no_compression, planes, student
from matplotlib.figure import Figure
from plotting import draw_plane, mean_plane
from script import Result, main
from training import Run
from twelve_bit import HIDDEN, OUTPUT, learned, learning, runs, sgd, trained

FULL_BATCH_SEEDS = (100, 101, 102, 103, 104)
RELU_SEEDS = (210, 211, 212, 213)
MANY = tuple(range(600, 620))
"""Seeds that were not used to set any criterion."""
DEAD = "A network with three units in a layer may begin with all of them off, and then learns nothing."
claim = partial(Claim, unit="bits")


def tanh_claims(run: Run, how: str, panel: str) -> list[Claim]:
    return [
        learning(panel, f"tanh, {how}", run),
        claim(panel, f"tanh, {how}: layer 5 compresses", run.falls("layer5", "fixed"), COMPRESSES),
        claim(panel, f"tanh, {how}: the output compresses", run.falls(OUTPUT, "fixed"), COMPRESSES),
    ]


def compared(noise: Run, batch: Run) -> list[Claim]:
    """Compare the mean falls over the seeds, of layer 5 and of the output, with noise and without."""
    layers = ("layer5", OUTPUT)
    did = [all(learned(noise) + learned(batch))] * len(layers)
    more = [mean(noise.falls(layer, "fixed")) - mean(batch.falls(layer, "fixed")) for layer in layers]
    return [
        claim(
            "5",
            "tanh, SGD and full batch are similar: mean fall of layer 5 and of the output, with noise minus without",
            more,
            -COMPRESSES,
            COMPRESSES,
            learned=did,
            why="In the long runs it is the full batch that compresses layer 5 more.",
        ),
        claim("5", "... and noise adds no compression: the same", more, at_most=COMPRESSES, source="here", learned=did),
    ]


def steps(run: Run) -> int:
    return max(run.snapshots)


def relu_claims(run: Run) -> list[Claim]:
    """Return claims on the control: hidden layers under the global range, and the callback's verdict by range."""
    did = learned(run) * len(HIDDEN)
    falls = [fall for layer in HIDDEN for fall in run.falls(layer, "global")]
    adaptive = [max(plane.falls[layer]["adaptive"] for layer in HIDDEN) for plane in run.planes]
    told = ["falls under adaptive" in "".join(plane.verdicts[layer] for layer in HIDDEN) for plane in run.planes]
    return [
        learning("5", "ReLU, full batch", run, why=DEAD),
        claim(
            "5",
            "ReLU, full batch: hidden layers do not compress; mean fall, of networks that learned",
            [mean(chosen(falls, did))],
            at_most=COMPRESSES,
        ),
        claim(
            "5",
            "ReLU, full batch: no hidden layer of any seed falls",
            falls,
            at_most=0.1,
            learned=did,
            why="Single layers of single seeds do fall; what holds is the mean.",
        ),
        claim(
            "5",
            "ReLU, adaptive range: falls all the same; largest by seed",
            adaptive,
            COMPRESSES,
            source="here",
            why="Common, but not universal: 13 of the 20 networks with seeds 600 to 619.",
        ),
        Claim(
            "5",
            "ReLU: share of seeds whose callback says that the range decides",
            [mean(told)],
            0.5,
            source="here",
            why="13 of the 20 with seeds 600 to 619.",
        ),
    ]


def run(full: bool = False) -> Result:
    noise = sgd("tanh", full)
    batch = trained("tanh", FULL_BATCH_SEEDS, 8000 if full else 2000, points=20)
    linear_seeds = tuple(range(400, 404)) if full else (400, 401)
    noisy = student(linear_seeds, 100, 300, 0.05, 5)
    quiet = student(linear_seeds, 300, 500, 0.5)
    control = trained("relu", MANY if full else RELU_SEEDS, 2000, points=10)
    said = {"A": noise, "B": batch, "C": noisy.run, "D": quiet.run, "ReLU": control}
    more = []
    if full:
        said["further seeds"] = many = trained("tanh", MANY, 2000, points=10)
        more = tanh_claims(many, f"full batch, {steps(many)} steps, {len(MANY)} further seeds", "5B")
    claims = [
        *tanh_claims(noise, "SGD", "5A"),
        *tanh_claims(batch, f"full batch, {steps(batch)} steps", "5B"),
        *more,
        *compared(noise, batch),
        *no_compression("5C", "linear, SGD", noisy),
        *no_compression("5D", "linear, full batch", quiet),
        *relu_claims(control),
    ]
    figure = Figure(figsize=(10, 7), layout="constrained")
    axes = figure.subplots(2, 2).flatten()
    for ax, trainings, title in zip(axes, (noise, batch), ("A  tanh, SGD", "B  tanh, full batch"), strict=False):
        plane = mean_plane([plane.curves for plane in trainings.planes])
        draw_plane(figure, ax, plane, trainings.epochs(int(s) for s, *_ in plane[OUTPUT]), title)
    for ax, students, title in zip(axes[2:], (noisy, quiet), ("C  linear, SGD", "D  linear, full batch"), strict=True):
        draw_plane(figure, ax, mean_plane(planes(students)), students.run.epochs(students.steps), title)
    return Result(claims, figure, "; ".join(f"{panel}: {runs(trainings)}" for panel, trainings in said.items()))


if __name__ == "__main__":
    main(__doc__, run, "figure5")
