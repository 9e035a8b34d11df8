"""Cost of a step of Lanczos, by trials."""

from __future__ import annotations

import torch

from lightning_info.quantities.weight_information.curvature import STEPS, fisher_products
from lightning_info.replica.snapshot import ModelSnapshot
from lightning_info.replica.timing import trial


def seconds_of_step(snapshot: ModelSnapshot) -> tuple[float, float]:
    """Time a product with F over the samples of a snapshot, and the orthogonalisation of the vectors of a step."""
    product, few = fisher_products(snapshot), 4
    vector = torch.ones(product.weights, dtype=torch.float64, device=snapshot.device)
    rows = vector.expand(few, -1).contiguous()
    beside = trial(lambda: vector - (rows @ vector) @ rows, snapshot.device)
    return trial(lambda: product(vector), snapshot.device), 2 * beside * (STEPS / 2 + STEPS) / few
