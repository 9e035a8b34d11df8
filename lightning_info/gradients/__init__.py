"""Per-sample gradients of any module: rules, taps, engines, and the plan that chooses and checks one.

Beside them, guarded: BackPACK's diagonal and Kronecker factors of the Fisher information.
"""

from lightning_info.gradients.contract import NotCovered
from lightning_info.gradients.curvature import ggn_diagonal, kfac
from lightning_info.gradients.plan import EngineName, Plan, choose_engine, squared_norms
from lightning_info.gradients.rules import SquaredGradNorm

__all__ = [
    "EngineName",
    "NotCovered",
    "Plan",
    "SquaredGradNorm",
    "choose_engine",
    "ggn_diagonal",
    "kfac",
    "squared_norms",
]
