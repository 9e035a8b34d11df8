"""Per-sample gradients of any module: rules by layer type, engines, and the plan that chooses and checks one.

Beside them: the Gram matrix ``A Aᵀ`` of per-output gradients, the factor A of the Fisher information ``F = AᵀA / N``,
and, guarded, BackPACK's diagonal and Kronecker factors of F.
"""

from lightning_info.gradients.backpack.ggn import ggn_diagonal, kfac
from lightning_info.gradients.contract import NotCovered
from lightning_info.gradients.fisher_products import FisherProducts, RowProducts
from lightning_info.gradients.gram import Gram, GramPlan, choose_gram_engine, gram_matrix
from lightning_info.gradients.plan import EngineName, Plan, choose_engine, squared_norms
from lightning_info.gradients.rules import SquaredGradNorm

__all__ = [
    "EngineName",
    "FisherProducts",
    "Gram",
    "GramPlan",
    "NotCovered",
    "Plan",
    "RowProducts",
    "SquaredGradNorm",
    "choose_engine",
    "choose_gram_engine",
    "ggn_diagonal",
    "gram_matrix",
    "kfac",
    "squared_norms",
]
