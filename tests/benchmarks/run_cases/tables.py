"""Tables, recommenders, uncertainty, physics, brain signals."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .case import CLASSES, Rows, Run, case, loader, quiet, run, trainer


def columns(n: int = 48) -> Any:
    """Three numbers, a word and a class."""
    import numpy as np
    import pandas as pd

    table = pd.DataFrame(torch.randn(n, 3).numpy(), columns=["a", "b", "c"])
    table["word"] = np.where(table["a"] > 0, "left", "right")
    table["class"] = (table["a"] + table["b"] > 0).astype(int)
    return table


@case("MLPClassifier", "deeptab", "tables", "cross entropy")
def deeptab_mlp() -> Run:
    from deeptab.models import MLPClassifier

    table = columns()

    def fit(callbacks: list[Any]) -> Any:
        arguments = quiet(callbacks, enable_checkpointing=True)
        epochs = {"max_epochs": arguments.pop("max_epochs"), "batch_size": 8}
        model = MLPClassifier()
        model.fit(table[["a", "b", "c", "word"]], table["class"].to_numpy(), **epochs, **arguments)
        return model._task_model

    return Run(fit)


@case("CategoryEmbeddingModel", "pytorch-tabular", "tables", "cross entropy")
def tabular() -> Run:
    from pytorch_tabular import TabularModel
    from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig
    from pytorch_tabular.models import CategoryEmbeddingModelConfig

    table = columns()

    def fit(callbacks: list[Any]) -> Any:
        off = {"checkpoints": None, "early_stopping": None, "progress_bar": "none", "load_best": False}
        model = TabularModel(
            data_config=DataConfig(target=["class"], continuous_cols=["a", "b", "c"], categorical_cols=["word"]),
            model_config=CategoryEmbeddingModelConfig(task="classification", layers="16-8", metrics=["accuracy"]),
            optimizer_config=OptimizerConfig(),
            trainer_config=TrainerConfig(max_epochs=2, batch_size=8, accelerator="cpu", **off),
            verbose=False,
            suppress_lightning_logger=True,
        )
        model.fit(train=table, validation=table[:8], callbacks=callbacks)
        return model.model

    return Run(fit)


class Recommender(pl.LightningModule):
    """PyTorch Geometric's LightGCN in its documented loss, on pairs of a liked and another item."""

    def __init__(self, edges: Tensor, users: int, items: int) -> None:
        super().__init__()
        from torch_geometric.nn import LightGCN

        self.model = LightGCN(users + items, embedding_dim=8, num_layers=2)
        self.register_buffer("edges", edges)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        user, liked, other = batch
        labels = torch.stack([torch.stack([user, user]), torch.stack([liked, other])]).flatten(1)
        liked_rank, other_rank = self.model(self.edges, labels).chunk(2)
        return self.model.recommendation_loss(liked_rank, other_rank, node_id=labels.unique())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-2)


def ratings(n: int = 32) -> list[Any]:
    return [(torch.tensor(u % 8), torch.tensor(8 + u * 5 % 12), torch.tensor(8 + u * 7 % 12)) for u in range(n)]


@case("LightGCN", "torch-geometric", "recommender", "Bayesian personalised ranking")
def light_gcn() -> Run:
    rows = ratings()
    pairs = torch.tensor([[int(u), int(i)] for u, i, _ in rows]).T
    return run(Recommender(torch.cat([pairs, pairs.flip(0)], 1), 8, 12), loader(rows))


def points(n: int = 48) -> list[dict[str, Tensor]]:
    x = torch.rand(n, 1) * 4 - 2
    return [{"input": a, "target": torch.sin(2 * a) + 0.1 * torch.randn(1)} for a in x]


@case("MVERegression", "lightning-uq-box", "uncertainty", "squared error, then its own NLL")
def mve() -> Run:
    from lightning_uq_box.models import MLP
    from lightning_uq_box.uq_methods import MVERegression

    module = MVERegression(MLP(n_inputs=1, n_hidden=[16, 16], n_outputs=2, activation_fn=nn.Tanh()), burnin_epochs=2)
    return run(module, loader(points()), max_epochs=5)


@case("DeterministicClassification", "lightning-uq-box", "uncertainty", "cross entropy")
def uq_classification() -> Run:
    from lightning_uq_box.models import MLP
    from lightning_uq_box.uq_methods import DeterministicClassification

    net = MLP(n_inputs=3, n_hidden=[16], n_outputs=CLASSES, activation_fn=nn.Tanh())
    module = DeterministicClassification(net, loss_fn=nn.CrossEntropyLoss())
    rows = [{"input": torch.randn(3) + n % CLASSES, "target": torch.tensor(n % CLASSES)} for n in range(32)]
    return run(module, loader(rows), lambda m, b: (m(b["input"])[0], "categorical"))


@case("BNN_VI_ELBO_Regression", "lightning-uq-box", "uncertainty", "ELBO, weights drawn in the step")
def bayesian() -> Run:
    from lightning_uq_box.models import MLP
    from lightning_uq_box.uq_methods import BNN_VI_ELBO_Regression

    net = MLP(n_inputs=1, n_hidden=[8], n_outputs=1, activation_fn=nn.Tanh())
    module = BNN_VI_ELBO_Regression(net, nn.MSELoss(), burnin_epochs=1, num_mc_samples_train=2)
    data = pl.LightningDataModule.from_datasets(Rows(points()), batch_size=8)  # it asks for one

    def fit(callbacks: list[pl.Callback]) -> pl.LightningModule:
        trainer(callbacks, max_epochs=4).fit(module, datamodule=data)
        return module

    return Run(fit)


@case("RegressionRoutine", "torch-uncertainty", "uncertainty", "log_prob of a normal")
def routine() -> Run:
    from torch_uncertainty.losses import DistributionNLLLoss
    from torch_uncertainty.models.mlp import mlp
    from torch_uncertainty.routines import RegressionRoutine

    net = mlp(in_features=3, num_outputs=1, hidden_dims=[16], dist_family="normal")
    recipe = torch.optim.Adam(net.parameters(), 1e-3)
    module = RegressionRoutine(net, 1, DistributionNLLLoss(), dist_family="normal", optim_recipe=recipe)
    x = torch.randn(32, 3)
    rows = list(zip(x, x.sum(1), strict=True))
    return run(module, loader(rows), normal_of)


def normal_of(module: Any, batch: Any) -> Any:
    out = module.model(batch[0])
    return torch.stack([out["loc"], out["scale"]])[:, 0], "normal"


class DeepKernel(pl.LightningModule):
    """A net before a Gaussian process, in GPyTorch's tutorial on deep kernels."""

    def __init__(self, inducing: Tensor) -> None:
        super().__init__()
        import gpytorch

        class Process(gpytorch.models.ApproximateGP):
            def __init__(self) -> None:
                distribution = gpytorch.variational.CholeskyVariationalDistribution(len(inducing))
                super().__init__(gpytorch.variational.VariationalStrategy(self, inducing, distribution))
                self.mean_module = gpytorch.means.ConstantMean()
                self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())

            def forward(self, x: Tensor) -> Any:
                return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

        self.net = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2))
        self.process, self.likelihood = Process(), gpytorch.likelihoods.GaussianLikelihood()
        self.loss = gpytorch.mlls.VariationalELBO(self.likelihood, self.process, num_data=32)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return -self.loss(self.process(self.net(x)), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-2)


@case("ApproximateGP, deep kernel", "gpytorch", "Gaussian process", "ELBO")
def deep_kernel() -> Run:
    x = torch.randn(32, 3)
    return run(DeepKernel(torch.randn(8, 2)), loader(list(zip(x, x.sum(1), strict=True))))


@case("PhysicsInformedSingleModelSolver", "pina-mathlab", "physics", "residuals of an equation")
def physics() -> Run:
    from pina import Condition, Trainer
    from pina.domain import CartesianDomain
    from pina.equation import Equation, FixedValue
    from pina.model import FeedForward
    from pina.operator import grad
    from pina.problem import SpatialProblem
    from pina.solver import PhysicsInformedSingleModelSolver

    class Decay(SpatialProblem):
        output_variables = ["u"]  # noqa: RUF012
        spatial_domain = CartesianDomain({"x": [0, 1]})
        domains = {"D": CartesianDomain({"x": [0, 1]}), "x0": CartesianDomain({"x": 0.0})}  # noqa: RUF012
        conditions = {  # noqa: RUF012
            "bound_cond": Condition(domain="x0", equation=FixedValue(1.0)),
            "phys_cond": Condition(
                domain="D",
                equation=Equation(lambda x, u: grad(u, x, components=["u"], d=["x"]) - u.extract(["u"])),
            ),
        }

    problem = Decay()
    problem.discretise_domain(n=32, mode="grid", domains=["D"])
    problem.discretise_domain(n=1, mode="random", domains=["x0"])
    solver = PhysicsInformedSingleModelSolver(problem=problem, model=FeedForward(1, 1, inner_size=8, n_layers=1))

    def fit(callbacks: list[Any]) -> Any:
        Trainer(solver, **quiet(callbacks, max_epochs=10), batch_size=None, train_size=1.0).train()
        return solver

    return Run(fit)


class Signals(pl.LightningModule):
    """A net for brain signals of braindecode, and cross entropy."""

    def __init__(self) -> None:
        super().__init__()
        from braindecode.models import ShallowFBCSPNet

        self.net = ShallowFBCSPNet(n_chans=4, n_outputs=2, n_times=200, n_filters_time=8, n_filters_spat=8)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y, _ = batch
        return F.cross_entropy(self.net(x), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), 1e-3)


@case("ShallowFBCSPNet", "braindecode", "brain signals", "cross entropy")
def signals() -> Run:
    rows = [(torch.randn(4, 200), torch.tensor(n % 2), (n, 0, 200)) for n in range(24)]
    return run(Signals(), loader(rows), lambda m, b: (m.net(b[0])[0], "categorical"))
