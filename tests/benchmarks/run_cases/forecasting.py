"""Forecasting: through the packages' own data sets and their own calls of ``Trainer.fit``."""

from __future__ import annotations

import math
from typing import Any

import torch

from .case import Run, case, quiet, run

STEPS, SERIES, PAST, FUTURE = 40, 4, 12, 3


def waves() -> Any:
    """A table of a few noisy waves."""
    import pandas as pd

    rows = []
    for series in range(SERIES):
        for step in range(STEPS):
            value = 5 + series + math.sin(step / 3 + series) + 0.1 * float(torch.randn(()))
            rows.append({"series": f"s{series}", "step": step, "value": value})
    return pd.DataFrame(rows)


def forecasting_data(**more: Any) -> tuple[Any, Any]:
    """pytorch-forecasting's data set, and its loader in order."""
    from pytorch_forecasting import TimeSeriesDataSet

    sizes = {"max_encoder_length": PAST, "max_prediction_length": FUTURE}
    columns = {"time_idx": "step", "target": "value", "group_ids": ["series"]}
    data = TimeSeriesDataSet(waves(), **columns, time_varying_unknown_reals=["value"], **sizes, **more)
    return data, data.to_dataloader(train=True, batch_size=16, num_workers=0, shuffle=False, drop_last=False)


def own_trainer(module: Any, data: Any, predicts: Any = None, adapter: Any = None, **arguments: Any) -> Run:
    return run(module, data, predicts, adapter, max_epochs=2, gradient_clip_val=0.1, **arguments)


@case("NBeats", "pytorch-forecasting", "forecasting", "MASE")
def nbeats() -> Run:
    from pytorch_forecasting import NBeats

    data, loader = forecasting_data()
    module = NBeats.from_dataset(data, widths=[16, 32], expansion_coefficient_lengths=[3, 7], learning_rate=1e-3)

    def adapter(module: Any, batch: Any) -> Any:
        x, y = batch
        return module(x)["prediction"].squeeze(-1), y[0], "gaussian"

    return own_trainer(module, loader, lambda m, b: (m(b[0])["prediction"][0], "gaussian"), adapter)


@case("TemporalFusionTransformer", "pytorch-forecasting", "forecasting", "quantile, packed sequences")
def tft() -> Run:
    from pytorch_forecasting import QuantileLoss, TemporalFusionTransformer

    data, loader = forecasting_data(
        min_encoder_length=4, static_categoricals=["series"], time_varying_known_reals=["step"], add_encoder_length=True
    )
    sizes = {"hidden_size": 8, "attention_head_size": 2, "hidden_continuous_size": 4}
    module = TemporalFusionTransformer.from_dataset(data, loss=QuantileLoss([0.1, 0.5, 0.9]), dropout=0.1, **sizes)

    def adapter(module: Any, batch: Any) -> Any:
        x, y = batch
        return module(x)["prediction"][..., 1], y[0], "gaussian"

    return own_trainer(module, loader, lambda m, b: (m(b[0])["prediction"][0, :, 1], "gaussian"), adapter)


@case("DeepAR", "pytorch-forecasting", "forecasting", "NormalDistributionLoss")
def deepar() -> Run:
    from pytorch_forecasting import DeepAR

    data, loader = forecasting_data()
    return own_trainer(DeepAR.from_dataset(data, hidden_size=8, rnn_layers=1, learning_rate=1e-3), loader)


def neural(model: Any) -> Run:
    """A model of neuralforecast, trained by its own ``fit``."""
    import pandas as pd
    from neuralforecast import NeuralForecast

    table = waves().rename(columns={"series": "unique_id", "value": "y"})
    table["ds"] = pd.Timestamp("2020-01-01") + pd.to_timedelta(table.pop("step"), unit="D")

    def fit(callbacks: list[Any]) -> Any:
        arguments = quiet(callbacks, max_steps=12)
        arguments.pop("max_epochs")
        model.trainer_kwargs.update(arguments)
        forecast = NeuralForecast([model], freq="D", local_scaler_type=None)  # which copies the model
        forecast.fit(table)
        return forecast.models[0]

    return Run(fit)


@case("NHITS", "neuralforecast", "forecasting", "its own MAE, windows drawn in the step")
def nhits() -> Run:
    from neuralforecast.models import NHITS

    sizes = {"mlp_units": 3 * [[16, 16]], "windows_batch_size": 16, "batch_size": SERIES}
    return neural(NHITS(h=FUTURE, input_size=PAST, max_steps=12, **sizes))


@case("LSTM", "neuralforecast", "forecasting", "DistributionLoss, windows drawn in the step")
def neural_lstm() -> Run:
    from neuralforecast.losses.pytorch import DistributionLoss
    from neuralforecast.models import LSTM

    sizes = {"encoder_hidden_size": 8, "decoder_hidden_size": 8, "windows_batch_size": 16, "batch_size": SERIES}
    return neural(LSTM(h=FUTURE, input_size=PAST, max_steps=12, loss=DistributionLoss("Normal", level=[80]), **sizes))


def gluon(estimator: Any, **sizes: Any) -> Run:
    """An estimator of gluonts, trained by its own ``train``."""
    import pandas as pd
    from gluonts.dataset.common import ListDataset

    series = [group["value"].to_numpy() for _, group in waves().groupby("series")]
    data = ListDataset([{"start": pd.Period("2020-01-01", "D"), "target": one} for one in series], freq="D")

    def fit(callbacks: list[Any]) -> Any:
        arguments = quiet(callbacks, enable_checkpointing=True)
        trained = estimator(
            prediction_length=FUTURE, context_length=PAST, batch_size=16, num_batches_per_epoch=6,
            trainer_kwargs=arguments, **sizes,
        ).train_model(data)  # fmt: skip
        return trained.trained_net

    return Run(fit)


@case("DeepAREstimator", "gluonts", "forecasting", "log_prob of Student's t")
def gluon_deepar() -> Run:
    from gluonts.torch import DeepAREstimator

    return gluon(DeepAREstimator, freq="D", num_layers=1, hidden_size=8)


@case("SimpleFeedForwardEstimator", "gluonts", "forecasting", "log_prob of a normal")
def gluon_feed_forward() -> Run:
    from gluonts.torch import SimpleFeedForwardEstimator
    from gluonts.torch.distributions import NormalOutput

    return gluon(SimpleFeedForwardEstimator, hidden_dimensions=[8], distr_output=NormalOutput())


def darts(model: Any, predicts: Any = None) -> Run:
    """A model of darts, trained by its own ``fit``."""
    from darts import TimeSeries

    values = torch.tensor(waves()["value"].to_numpy()[: 2 * STEPS]).float().numpy()

    def fit(callbacks: list[Any]) -> Any:
        model.trainer_params.update(quiet(callbacks))
        model.fit(TimeSeries.from_values(values))
        return model.model

    return Run(fit, predicts)


SIZES = {"input_chunk_length": PAST, "output_chunk_length": FUTURE, "batch_size": 16, "n_epochs": 2, "random_state": 0}


@case("NBEATSModel", "darts", "forecasting", "squared error")
def darts_nbeats() -> Run:
    from darts.models import NBEATSModel

    return darts(NBEATSModel(**SIZES, num_stacks=2, num_layers=2, layer_widths=16))


@case("BlockRNNModel", "darts", "forecasting", "squared error")
def darts_rnn() -> Run:
    from darts.models import BlockRNNModel

    return darts(BlockRNNModel(**SIZES, model="LSTM", hidden_dim=8))


@case("TiDEModel, GaussianLikelihood", "darts", "forecasting", "negative log-likelihood")
def darts_tide() -> Run:
    from darts.models import TiDEModel
    from darts.utils.likelihood_models.torch import GaussianLikelihood

    return darts(TiDEModel(**SIZES, hidden_size=8, likelihood=GaussianLikelihood()))
