"""A second run in lockstep with the user's, in which one training sample is replaced by another."""

from lightning_info.twin.refusals import NotSupported
from lightning_info.twin.twin import OutOfStep, Twin

__all__ = ["NotSupported", "OutOfStep", "Twin"]
