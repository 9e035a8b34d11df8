"""What one callback has found before the first step, the others that measure alike take over."""

from models import Classifier, loader, trainer

from lightning_info import EffectiveInfoCallback, FisherTraceCallback, InfoPlaneCallback, WeightInfoCallback
from lightning_info.quantities.weight_information import curvature
from lightning_info.replica import label_dependence


def counted(monkeypatch, module, name):
    calls, function = [], getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args, **kwargs: calls.append(args) or function(*args, **kwargs))
    return calls


def fit(*callbacks):
    trainer(*callbacks, max_epochs=1).fit(Classifier(), loader())
    assert all(callback.history for callback in callbacks)
    return callbacks


def test_engines_and_labels_are_looked_at_once(monkeypatch):
    engines = counted(monkeypatch, curvature, "choose_gram_engine")
    labels = counted(monkeypatch, label_dependence, "_changes")
    options = {"num_samples": 8, "every_n_epochs": 1, "summary": False, "on_error": "raise"}
    weights, effective, *_ = fit(
        WeightInfoCallback(curvature="gram", **options),
        WeightInfoCallback(curvature="gram", prefix="other", **options),
        InfoPlaneCallback(**options),
        FisherTraceCallback(**options),
    )
    assert len(engines) == 1
    assert len(labels) == 2  # of outputs with a likelihood, and of the plane's, which asks for none
    assert weights.history["weight_info/kl"] == effective.history["other/weight_info/kl"]


def test_what_was_found_for_other_predictions_is_not_taken_over(monkeypatch):
    engines = counted(monkeypatch, curvature, "choose_gram_engine")
    options = {"num_samples": 8, "every_n_epochs": 1, "summary": False, "on_error": "raise"}

    def adapter(module, batch):
        return module(batch[0]), batch[1], "categorical"

    fit(WeightInfoCallback(curvature="gram", **options),
        WeightInfoCallback(curvature="gram", prefix="other", adapter=adapter, **options))  # fmt: skip
    assert len(engines) == 2


def test_two_kinds_of_quantities_share_one_engine(monkeypatch):
    engines = counted(monkeypatch, curvature, "choose_gram_engine")
    options = {"num_samples": 8, "every_n_epochs": 1, "summary": False, "on_error": "raise"}
    fit(WeightInfoCallback(curvature="diagonal", **options),
        EffectiveInfoCallback(noise="diagonal", draws=4, **options))  # fmt: skip
    assert len(engines) == 1
