"""Graphs, molecules and atoms."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .case import CLASSES, Run, case, quiet, run


class GraphClassifier(pl.LightningModule):
    """PyTorch Geometric's tutorial on graph classification."""

    def __init__(self) -> None:
        super().__init__()
        from torch_geometric.nn import GCNConv

        self.conv1, self.conv2, self.lin = GCNConv(6, 16), GCNConv(16, 16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        from torch_geometric.nn import global_mean_pool

        x = self.conv1(x, edge_index).relu()
        x = self.conv2(x, edge_index)
        return self.lin(global_mean_pool(x, batch))

    def training_step(self, data: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(data.x, data.edge_index, data.batch), data.y)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 0.01)


def molecules(n: int = 48) -> list[Any]:
    from torch_geometric.data import Data

    graphs = []
    for place in range(n):
        nodes = 4 + place % 5
        ring = torch.arange(nodes)
        edges = torch.stack([torch.cat([ring, ring.roll(1)]), torch.cat([ring.roll(1), ring])])
        label = torch.tensor([place % CLASSES])
        graphs.append(Data(x=torch.randn(nodes, 6) + label, edge_index=edges, y=label))
    return graphs


def graph_logits(module: Any, data: Any) -> Any:
    return module(data.x, data.edge_index, data.batch)[0], "categorical"


@case("GCN, graphs", "torch-geometric", "graphs", "cross entropy of graphs")
def graph_level() -> Run:
    from torch_geometric.data import Batch
    from torch_geometric.loader import DataLoader

    graphs = molecules()
    data = DataLoader(graphs, batch_size=16)
    one_by_one = lambda: (Batch.from_data_list([graph]) for graph in graphs)  # noqa: E731
    return run(GraphClassifier(), data, graph_logits, alone=one_by_one)


class NodeClassifier(GraphClassifier):
    """The same on the nodes of one graph."""

    def training_step(self, data: Any, batch_idx: int) -> Tensor:
        x = self.lin(self.conv2(self.conv1(data.x, data.edge_index).relu(), data.edge_index))
        return F.cross_entropy(x[data.train_mask], data.y[data.train_mask])


@case("GCN, nodes", "torch-geometric", "graphs", "cross entropy of the nodes of one graph")
def node_level() -> Run:
    from torch_geometric.data import Data
    from torch_geometric.loader import DataLoader

    nodes = 60
    graph = Data(
        x=torch.randn(nodes, 6), edge_index=torch.randint(nodes, (2, 240)), y=torch.arange(nodes) % CLASSES,
        train_mask=torch.arange(nodes) < 40,
    )  # fmt: skip
    return run(NodeClassifier(), DataLoader([graph], batch_size=1), max_epochs=20)


@case("MPNN", "chemprop", "molecules", "its own MSE, graphs of any size")
def chemprop() -> Run:
    import numpy as np
    from chemprop import data, models, nn

    smiles = ["CCO", "CCN", "CCCC", "c1ccccc1", "CC(=O)O", "CCOC", "CNC", "CC#N"] * 6
    points = [data.MoleculeDatapoint.from_smi(one, np.array([float(len(one))])) for one in smiles]
    loader = data.build_dataloader(data.MoleculeDataset(points), batch_size=16, shuffle=False)
    sizes = {"d_h": 16, "depth": 2}
    ffn = nn.RegressionFFN(input_dim=16, hidden_dim=16)
    module = models.MPNN(nn.BondMessagePassing(**sizes), nn.MeanAggregation(), ffn)

    def one_by_one() -> Any:
        return data.build_dataloader(data.MoleculeDataset(points), batch_size=1, shuffle=False)

    def predicts(module: Any, batch: Any) -> Any:
        return module(batch.bmg, batch.V_d, batch.X_d)[0], "gaussian"

    return run(module, loader, predicts, alone=one_by_one)


@case("SchNet", "schnetpack", "atoms", "squared error, ragged atoms")
def schnet() -> Run:
    import schnetpack as spk
    from schnetpack.data.loader import _atoms_collate_fn
    from schnetpack.properties import R, Z, cell, idx, idx_i, idx_j, n_atoms, offsets
    from torch.utils.data import DataLoader

    rows = []
    for place in range(32):
        atoms = 3 + place % 3
        pairs = torch.combinations(torch.arange(atoms))
        pairs = torch.cat([pairs, pairs.flip(1)])
        rows.append({
            idx: torch.tensor([place]), n_atoms: torch.tensor([atoms]), Z: torch.randint(1, 9, (atoms,)),
            R: torch.randn(atoms, 3), cell: torch.zeros(1, 3, 3), idx_i: pairs[:, 0], idx_j: pairs[:, 1],
            offsets: torch.zeros(len(pairs), 3), "energy": torch.randn(1),
        })  # fmt: skip
    radial = {"radial_basis": spk.nn.GaussianRBF(n_rbf=8, cutoff=5.0), "cutoff_fn": spk.nn.CosineCutoff(5.0)}
    net = spk.model.NeuralNetworkPotential(
        spk.representation.SchNet(n_atom_basis=16, n_interactions=1, **radial),
        input_modules=[spk.atomistic.PairwiseDistances()],
        output_modules=[spk.atomistic.Atomwise(n_in=16, output_key="energy")],
    )
    output = spk.task.ModelOutput(name="energy", loss_fn=nn.MSELoss(), loss_weight=1.0, metrics={})
    module = spk.task.AtomisticTask(net, [output], optimizer_args={"lr": 1e-3})
    module.setup = lambda stage=None: None  # it asks for a data module
    data = DataLoader(rows, batch_size=8, collate_fn=_atoms_collate_fn)

    def fit(callbacks: list[Any]) -> Any:
        import pytorch_lightning

        pytorch_lightning.Trainer(**quiet(callbacks)).fit(module, data)
        return module

    return Run(fit)
