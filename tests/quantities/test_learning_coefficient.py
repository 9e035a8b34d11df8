"""The local learning coefficient of a network: against its Hessian, and refused where it must be."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from models import Classifier, loader, trainer
from torch import nn
from torch.utils.data import TensorDataset

from lightning_info import InfoCallback, measure
from lightning_info.functional import Spectrum, effective_dimension
from lightning_info.quantities.learning_coefficient import LocalLearningCoefficient

N = 40


def own(**options) -> InfoCallback:
    return InfoCallback(LocalLearningCoefficient(**options), num_samples=N, summary=False, on_error="raise")


def test_of_a_linear_regression_it_is_half_the_effective_dimension():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 3, generator=generator, dtype=torch.float64)
    y = x @ torch.randn(3, 1, generator=generator, dtype=torch.float64)
    net = nn.Linear(3, 1, bias=False).double()
    with torch.no_grad():
        net.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
    result = measure(
        net, TensorDataset(x, y), own(localisation=5.0, chains=2, steps=350, burn_in=100), likelihood="gaussian"
    )
    n_beta = N / math.log(N)
    truth = 0.5 * effective_dimension(Spectrum.of_matrix(x.T @ x / N, 3), 5.0 / n_beta)
    value, error = (result[f"learning_coefficient/value{tail}"] for tail in ("", "_stderr"))
    assert value == pytest.approx(truth, abs=4 * error)
    assert error < 0.15 * truth
    assert result["learning_coefficient/r_hat"] < 1.05
    assert result["learning_coefficient/effective_samples"] > 100


def test_chains_that_are_too_short_are_refused_and_training_does_not_notice():
    callback, trained = own(steps=8, burn_in=2), []
    for callbacks in ([callback], []):
        torch.manual_seed(0)
        module = Classifier()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            trainer(*callbacks, max_epochs=2).fit(module, loader(N, N))
        trained.append(nn.utils.parameters_to_vector(module.parameters()))
        refused = [w for w in said if "no learning_coefficient/value at step 0 (NaN)" in str(w.message)]
        assert len(refused) == len(callbacks)
    assert torch.equal(*trained)
    history = callback.history
    assert all(math.isnan(v) for _, v in history["learning_coefficient/value"])
    assert all(v < 100 for _, v in history["learning_coefficient/effective_samples"])


@pytest.mark.parametrize("options", [{"chains": 1}, {"steps": 4}, {"localisation": 0.0}, {"burn_in": 0}])
def test_bad_arguments_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        own(**options)
