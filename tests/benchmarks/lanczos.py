"""Spectrum and weight noise by Lanczos' method against the exact Gram matrix, on scikit-learn's digits.

    python tests/benchmarks/lanczos.py [seeds]

``F`` of 256 samples with all classes, in single precision, for an MLP and a CNN at initialisation and trained. Printed
are the errors of the mean over the probes, root mean square over seeds, in per cent of the truth: of the trace, and at
two levels β (λ = 0.1, 1500 samples) of ``log det(H/c + I)`` and of the KL; their cost in plain forward + backward
passes of the same samples; and the error of one draw of weight noise n, ``‖n - n'‖ / ‖n‖`` with lengths measured by H,
which decides what the noise does to the loss. One thread, processor time.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lightning_info.functional import Spectrum, exact_cotangents, weight_information
from lightning_info.functional.lanczos import Tridiagonal, lanczos, runs, spectra
from lightning_info.functional.weight_noise import lanczos_noise
from lightning_info.gradients import gram_matrix
from lightning_info.gradients.fisher_products import FisherProducts
from lightning_info.gradients.func import output_gradients

SAMPLES, TRAINING, LAMBDA, LEVELS = 256, 1500, 0.1, (1.0, 0.01)
STEPS, PROBES = (16, 32, 64), (1, 4, 8)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def cnn() -> nn.Module:
    convolutions = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU()
    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), *convolutions, nn.Flatten(), nn.Linear(256, 10))


def trained(net: nn.Module, x: Tensor, y: Tensor, epochs: int) -> nn.Module:
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(TRAINING).split(32):
            optimizer.zero_grad()
            F.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
    return net


def functionals(weights: int) -> dict[str, Callable[[Spectrum], float]]:
    found: dict[str, Callable[[Spectrum], float]] = {"trace": lambda s: s.trace}
    for beta in LEVELS:
        c = beta / LAMBDA**2
        found[f"log det {beta:g}"] = lambda s, c=c: s.scaled(TRAINING).log_det(c) - weights * math.log(c)
        found[f"KL {beta:g}"] = lambda s, beta=beta: weight_information(s.scaled(TRAINING), 0.0, beta, LAMBDA)
    return found


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Of the processor, least of several."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def noise_errors(net: nn.Module, x: Tensor, products: FisherProducts) -> Iterator[str]:
    """Of one draw, for each level and number of steps: without and with eigenvectors found by as many steps before."""
    net, x = net.double(), x.double()
    columns = torch.stack(list(exact_cotangents(net(x), "categorical")))
    rows = output_gradients(net, lambda m, b: m(b), x, columns)
    a = torch.cat([torch.cat(list(rows(n).values()), 1) for n in torch.arange(len(x) * 10).split(256)]) / len(x) ** 0.5
    _, singular, vectors = torch.linalg.svd(a, full_matrices=False)
    net.float()
    h = TRAINING * singular.square()
    first, z = torch.randn(2, products.weights, dtype=torch.float64)

    def error(run: Tridiagonal, beta: float) -> str:
        truth = (beta / (h + beta / LAMBDA**2)).sqrt() * (vectors @ z)  # the components that H sees
        found = vectors @ lanczos_noise(run, beta, LAMBDA, scale=TRAINING)
        return f"{100 * ((h * (found - truth).square()).sum() / (h * truth.square()).sum()).sqrt().item():.2g}"

    for steps in STEPS:
        plain, beside = lanczos(products, z, steps), next(runs(products, (first, z), steps))
        for beta in LEVELS:
            yield f"| {steps} | {beta:g} | {error(plain, beta)} | {error(beside, beta)} |"


def main() -> None:
    torch.set_num_threads(1)
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 6
    digits, labels = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
    x, y = digits.float() / 16, labels
    for make in (mlp, cnn):
        for epochs in (0, 20):
            torch.manual_seed(1)
            net = trained(make(), x, y, epochs)
            inputs = x[:SAMPLES]
            products = FisherProducts(net, lambda m, part: (m(part), "categorical", None), lambda: [inputs])  # noqa: B023
            weights = products.weights
            gram = gram_matrix(net, inputs, exact_cotangents(net(inputs), "categorical")).matrix / SAMPLES
            exact = Spectrum.of_matrix(gram, weights)
            measured = functionals(weights)
            truth = {name: value(exact) for name, value in measured.items()}
            plain = seconds(lambda: net(inputs).sum().backward(), 7)  # noqa: B023
            v = torch.randn(weights, dtype=torch.float64)
            ratio = seconds(lambda: products(v), 7) / plain  # noqa: B023
            listed = ", ".join(f"{name} {value:.4g}" for name, value in truth.items())
            print(
                f"\n{make.__name__}, {epochs} epochs: {weights} weights, {listed}; a product takes {ratio:.1f} passes"
            )
            print(f"| steps | probes | passes | {' | '.join(f'{name}, %' for name in truth)} |")
            print("|---" * (3 + len(truth)) + "|")
            for steps in STEPS:
                runs = [
                    spectra(products, weights, steps, max(PROBES), torch.Generator().manual_seed(seed))
                    for seed in range(seeds)
                ]
                cost = seconds(lambda: lanczos(products, v, steps), 2) / plain  # noqa: B023
                for probes in PROBES:
                    errors = [
                        torch.tensor([value(Spectrum.average(run[:probes])) / truth[name] - 1 for run in runs])
                        for name, value in measured.items()
                    ]
                    cells = " | ".join(f"{100 * error.square().mean().sqrt():.1f}" for error in errors)
                    print(f"| {steps} | {probes} | {(probes + 1) * cost:.0f} | {cells} |", flush=True)
            print("\n| steps | β | noise, % | beside known eigenvectors, % |\n|---|---|---|---|")
            print("\n".join(noise_errors(net, inputs, products)), flush=True)


if __name__ == "__main__":
    main()
