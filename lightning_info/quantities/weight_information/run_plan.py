"""Run a plan of how F is measured, and choose again if the module has changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from lightning_info.gradients.contract import NotCovered
from lightning_info.quantities.weight_information.curvature import CurvaturePlan
from lightning_info.replica.snapshot import Unavailable

T = TypeVar("T")


def run_plan(
    plan: CurvaturePlan | None, choose: Callable[[], CurvaturePlan], run: Callable[[CurvaturePlan], T]
) -> tuple[CurvaturePlan, T]:
    """Run a plan; if it no longer fits the replica, as the module changed its structure, choose again, once.

    Returns:
        The plan that ran, and its result.

    Raises:
        Unavailable: No plan fits.
    """
    if plan is not None:
        try:
            return plan, run(plan)
        except NotCovered:
            pass
    try:
        plan = choose()
        return plan, run(plan)
    except NotCovered as error:
        raise Unavailable(f"the Fisher information cannot be computed exactly for this module: {error}") from error
