"""Two CPU processes that shard the parameters (``fully_shard``): values of one process, and an untouched run."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from models import Classifier, curves, data, trainer
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_info import FisherTraceCallback, InfoPlaneCallback, WeightInfoCallback
from lightning_info.replica import sharded


class Sharded(Classifier):
    """The first layer is sharded by itself, the last with the root; their rows are not divisible by two.

    After a validation, as at step 4, the root's are not.
    """

    def __init__(self):
        torch.manual_seed(2)
        super().__init__(torch.nn.Sequential(torch.nn.Linear(6, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3)))
        self.double()

    def configure_model(self):
        if self.device_mesh is not None and not isinstance(self.net[0].weight, DTensor):
            mesh = self.device_mesh["data_parallel"]
            fully_shard(self.net[0], mesh=mesh)
            fully_shard(self.net, mesh=mesh)


def measured():
    x, y = data().tensors
    common = {"reference": (x[:13].double(), y[:13]), "every_n_train_steps": 4, "on_error": "raise", "summary": False}
    return [
        FisherTraceCallback(draws=8, also=["empirical", "exact", "rao_norm"], **common),
        InfoPlaneCallback(bins=4, label_information="binned", **common),
        WeightInfoCallback(draws=2, **common),
    ]


def fit(*callbacks, processes=1):
    x, y = data().tensors
    samples = TensorDataset(x.double(), y)
    module = Sharded()
    strategy = "auto" if processes == 1 else ModelParallelStrategy(processes, 1)
    run = trainer(*callbacks, devices=processes, strategy=strategy, use_distributed_sampler=False)
    own = DistributedSampler(samples, processes, int(os.environ.get("LOCAL_RANK", 0)), shuffle=False)
    loaders = [DataLoader(samples, 16 // processes, sampler=own) for _ in range(2)]
    run.fit(module, *loaders)
    return run, module


def state_of(run, module):
    """A fingerprint of this process's part of the weights, of the optimiser's state and of the random numbers."""
    moments = [value for kept in run.optimizers[0].state.values() for value in kept.values()]
    values = [*module.parameters(), *moments, torch.get_rng_state()]
    local = [value.to_local() if isinstance(value, DTensor) else value for value in values]
    return hashlib.sha256(b"".join(value.detach().numpy().tobytes() for value in local)).hexdigest()


def in_a_process(folder):
    """What one of the two processes does."""
    pl.seed_everything(1, verbose=False)
    plain = state_of(*fit(processes=2))
    pl.seed_everything(1, verbose=False)
    ours = measured()
    run, module = fit(*ours, processes=2)
    found = {"plain": plain, "ours": state_of(run, module), "sharded": isinstance(module.net[0].weight, DTensor)}
    found["history"] = {tag: points for one in ours for tag, points in curves(one).items()}
    found["summary"] = ours[0].report()
    sharded.LARGEST_WHOLE = 100
    large = FisherTraceCallback()
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        found["steps"] = fit(large, processes=2)[0].global_step
    found["large"] = [large.history, large.report()]
    Path(folder, f"rank{run.global_rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    here = os.pathsep.join(map(str, Path(__file__).parents[1:3]))
    environment = {**os.environ, "PYTHONPATH": here, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(command, env=environment, timeout=240, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def test_every_value_is_that_of_one_process(ranks):
    ours = measured()
    fit(*ours)
    truth = {tag: points for one in ours for tag, points in curves(one).items()}
    assert [step for step, _ in truth["fisher/trace"]] == [0, 4, 8]
    for rank in ranks:
        assert rank["sharded"]
        missing = {tag for tag in truth if "bound" in tag or "gibbs" in tag}  # no process sees the whole epoch
        split = {tag for tag in rank["history"] if "prequential" in tag}  # one process sees a half
        assert rank["history"].keys() - split == truth.keys() - missing
        for tag, points in truth.items():
            if tag in missing:
                continue
            found = [tuple(point) for point in rank["history"][tag]]
            near = [(step, pytest.approx(value, rel=1e-6, abs=1e-9, nan_ok=True)) for step, value in points]
            assert found == near, tag
    assert all(math.isfinite(value) for _, value in truth["fisher/scale_invariant_trace"])


def test_training_does_not_notice(ranks):
    assert [rank["ours"] for rank in ranks] == [rank["plain"] for rank in ranks]


def test_the_summary_says_what_the_second_copy_takes(ranks):
    assert "sharded, and gathered for each point: a second copy of 0.000557 MiB" in " ".join(
        ranks[0]["summary"].split()
    )


def test_a_larger_module_is_refused_in_all_processes_and_trained(ranks):
    for rank in ranks:
        history, report = rank["large"]
        assert history == {}
        assert "measure the consolidated checkpoint instead" in report
        assert rank["steps"] == 8


if __name__ == "__main__":
    in_a_process(sys.argv[1])
