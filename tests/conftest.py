"""Fixtures that every test shares."""

from __future__ import annotations

import logging
import os
import warnings

import pytest
import torch

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start


@pytest.fixture(autouse=True)
def quiet_lightning():
    """Lightning's own start-up lines and hints are not what these tests look at."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.|torch\.utils\.tensorboard|jsonargparse")
        warnings.filterwarnings("ignore", message=".*the Trainer has no logger")
        yield


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_mode_stays_behind():
    """What intercepts torch's functions while something is measured is gone afterwards."""
    yield
    assert torch._C._len_torch_function_stack() == 0
