r"""Temperature of stochastic gradient descent and the free energy of a minimum.

Steps of size η along gradients averaged over B samples, whose noise is isotropic with variance σ² a sample and weight,
are a diffusion with the stationary density ``exp(-L/T)``. With momentum μ a gradient makes a step of ``η / (1 - μ)`` in
the end:

.. math:: T = \frac{\eta\,\sigma^2}{2 B (1 - \mu)}, \qquad \mathcal{F}(w) = L(w) + \frac{T}{2} \log\det(F(w) + cI) .

The paper states ``T ∝ η/B``. Here σ² = 1, which is a unit and no measurement: the noise of a real network is neither
isotropic nor constant. T and the free energy compare points of a run and runs with each other. F is singular, so the
damping c is stated.

Adam and its kind divide each gradient by the root of its running square: the noise of a step no longer falls with B as
it does here, and has no one temperature. For them T is computed with their learning rate and μ = 0 (their first moment
is an average, which makes a step of η in the end); it only says how the schedule changes.

Source: Achille, Paolini & Soatto, Proposition 2.8.
"""

from __future__ import annotations

import math

from lightning_info.functional.spectrum import Spectrum


def temperature(learning_rate: float, batch_size: float, momentum: float = 0.0, dampening: float = 0.0) -> float:
    """Return ``T = η (1 - d) / (2 B (1 - μ))``, for the mean loss and gradient noise of unit variance.

    Args:
        learning_rate: η.
        batch_size: B, all samples that go into one step, over accumulated batches and processes.
        momentum: μ of SGD; 0 for Adam, see the module.
        dampening: d of SGD: the share of a gradient that momentum leaves out.

    Raises:
        ValueError: A negative learning rate, a batch size that is not positive, a momentum outside of ``[0, 1)``.
    """
    if not (0 <= learning_rate < math.inf):
        raise ValueError(f"temperature: learning_rate={learning_rate} must be finite and not negative")
    if not (0 < batch_size < math.inf):
        raise ValueError(f"temperature: batch_size={batch_size} must be positive")
    if not (0 <= momentum < 1):
        raise ValueError(f"temperature: momentum={momentum} must be at least 0 and less than 1")
    return learning_rate * (1 - dampening if momentum else 1) / (2 * batch_size * (1 - momentum))


def free_energy(loss: float, spectrum: Spectrum, temperature: float, damping: float) -> float:
    """Return ``L + T/2 log det(F + cI)`` (Proposition 2.8), in nats.

    Args:
        loss: Mean loss of a sample.
        spectrum: Spectrum of F, the Fisher information of the mean loss.
        temperature: T of :func:`temperature`.
        damping: c, stated with the number; it must stay the same over a run.
    """
    return loss + temperature / 2 * spectrum.log_det(damping)
