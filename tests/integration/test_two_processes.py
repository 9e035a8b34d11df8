"""Two CPU processes (gloo): every process has the values of the first over the samples of both, and none waits."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from models import Classifier, Still, curves, data, trainer
from oracle import fisher_trace_by_definition
from torch.utils.data import DataLoader, TensorDataset

from lightning_info import EffectiveInfoCallback, FisherTraceCallback, InfoPlaneCallback

HEAD = """
import copy, hashlib, json, os, signal, sys, time, types, warnings
import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from models import Classifier, Still, curves, data, loader, trainer
from torch.utils.data import DataLoader, Subset
from lightning_info import EffectiveInfoCallback, FisherTraceCallback, InfoPlaneCallback, WeightInfoCallback
from lightning_info.callbacks import preparing
from lightning_info.callbacks.error_policy import Refused
from lightning_info.metrics import FisherTrace
from lightning_info.quantities.fisher_trace import sampling
from lightning_info.replica.reference_samples import ReferenceSamples
from lightning_info.replica.snapshot import ModelSnapshot

def plane(**options):
    estimators = dict(estimator=["binning", "mixture"], bin_range=["global", "adaptive"], bins=4)
    defaults = dict(every_n_train_steps=2, on_error="raise", summary=False, **estimators)
    return InfoPlaneCallback(**{**defaults, **options})

class Watch(pl.Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.seen.append(batch[0].tolist())

def fisher(**options):
    defaults = dict(num_samples=16, every_n_train_steps=2, on_error="raise", summary=False)
    return FisherTraceCallback(**{**defaults, **options})

def weights(module):
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in module.parameters())).hexdigest()

def fit(*callbacks, train=None, module=None, strategy="ddp", **options):
    pl.seed_everything(3, verbose=False)
    module = module or Classifier(dropout=0.5)
    run = trainer(*callbacks, max_epochs=2, strategy=strategy, devices=2, **options)
    run.fit(module, train or DataLoader(data(), 4, shuffle=True))
    return run, module

def on_rank(rank, trainer):
    return trainer.global_rank == rank

def save(**what):
    with open(f"{sys.argv[1]}/rank{os.environ.get('LOCAL_RANK', 0)}.json", "w") as file:
        json.dump(what, file)
"""

SCRIPT = """
def plain():
    return {"weights": weights(fit()[1])}

def gathered():
    watch, ours = Watch(), fisher(estimator="exact")
    pl.seed_everything(3, verbose=False)
    module = Classifier(dropout=0.5)
    start = {name: value.tolist() for name, value in module.state_dict().items()}
    run, module = fit(watch, ours)
    metric = run.callback_metrics["fisher/trace"].item()
    return {"history": ours.history, "metric": metric, "seen": watch.seen, "start": start, "weights": weights(module)}

def timed():
    ours = fisher(every_n_train_steps=None)
    fit(ours)
    return {"history": ours.history}

def uneven():
    # 15 and 13 samples: the last batches hold 3 and 1; neither process gets half of 40
    rank = int(os.environ.get("LOCAL_RANK", 0))
    own = Subset(data(), range(15) if rank == 0 else range(15, 28))
    watch, ours = Watch(), fisher(estimator="exact", num_samples=40)
    pl.seed_everything(3, verbose=False)
    start = {name: value.tolist() for name, value in Classifier(dropout=0.5).state_dict().items()}
    fit(watch, ours, train=DataLoader(own, 4), use_distributed_sampler=False)
    return {"history": ours.history, "seen": watch.seen, "start": start}

def fault(stage, rank, step, error=RuntimeError):
    ours = fisher(on_error="warn", num_samples=8)
    owners = {"add": ReferenceSamples, "drawn": ModelSnapshot}
    fired, target = [], owners.get(stage, ours.quantity)
    before = getattr(target, stage)
    def broken(method, trainer):
        def call(*args, **kwargs):
            again = bool(fired) and error is MemoryError
            if trainer.global_rank == rank and step in (trainer.global_step, "always") and not again:
                fired.append(trainer.global_step)
                raise error(stage)
            return method(*args, **kwargs)
        return call
    class Rank(pl.Callback):
        def on_train_start(self, trainer, module):
            setattr(target, stage, broken(before, trainer))
    run, module = fit(ours, Rank())
    setattr(target, stage, before)
    metric = run.callback_metrics["fisher/trace"].item()
    return {"history": ours.history, "fired": fired, "metric": metric, "weights": weights(module)}

def shared():
    # weights stay as they are, so that every point is that of one process on the same samples
    reference, scored, waited = tuple(t[:13] for t in data().tensors), [], []
    original = sampling.scores_of
    def counted(prediction, estimator):
        scored.append(len(prediction.outputs))
        return original(prediction, estimator)
    sampling.scores_of = counted
    common = dict(reference=reference, every_n_train_steps=4)
    ours = fisher(draws=8, also=["empirical", "exact", "hessian", "rao_norm"], **common)
    by_groups = fisher(draws=None, engine="cotangent", prefix="groups", **common)
    drawn = plane(**common)
    fit(ours, by_groups, drawn, module=Still(), precision="64-true")
    sampling.scores_of = original
    return {"history": {**ours.history, **by_groups.history, **drawn.history}, "scored": sum(scored)}

def slow():
    # the other process takes longer, for which the first has to wait
    ours = fisher(reference=data().tensors, every_n_train_steps=4)
    measure = ours.quantity.measure
    def waits(*args):
        time.sleep(0.1 * int(os.environ.get("LOCAL_RANK", 0)))
        return measure(*args)
    ours.quantity.measure = waits
    fit(ours)
    return {"history": ours.history, "spent": ours._clock.spent}

def communicating():
    # another number of passes in each process would leave one waiting
    class Meets(Classifier):
        def training_step(self, batch, batch_idx):
            torch.distributed.all_reduce(torch.ones(1))
            return super().training_step(batch, batch_idx)
    ours = fisher(estimator="exact", reference=tuple(t[:9] for t in data().tensors), on_error="warn")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fit(ours, module=Meets())
    return {"history": ours.history, "told": [str(one.message) for one in told]}

def scaled():
    # every process and every batch scales its logits by a number that is no tensor
    class Scales(Classifier):
        def training_step(self, batch, batch_idx):
            return torch.nn.functional.cross_entropy(self(batch["x"]) * batch["scale"], batch["y"])
    rank = int(os.environ.get("LOCAL_RANK", 0))
    def collate(samples):
        x, y = torch.utils.data.default_collate(samples)
        seen.append(len(x))
        return {"x": x, "y": y, "scale": 1.0 + rank + 2 * ((len(seen) - 1) % 2)}
    seen, ours = [], fisher(estimator="exact")
    pl.seed_everything(3, verbose=False)
    module = Scales()
    start = {name: value.tolist() for name, value in module.state_dict().items()}
    own = DataLoader(Subset(data(), range(32 * rank, 32 * rank + 32)), 4, collate_fn=collate)
    fit(ours, train=own, module=module, use_distributed_sampler=False)
    return {"history": ours.history, "start": start}

def metric():
    class Validated(Classifier):
        def __init__(self):
            super().__init__()
            self.fisher = FisherTrace(estimator="exact")
        def validation_step(self, batch, batch_idx):
            self.fisher.update(self, batch[0])
        def on_validation_epoch_end(self):
            self.log_dict(self.fisher.compute())
    pl.seed_everything(3, verbose=False)
    module = Validated()
    (found,) = trainer(strategy="ddp", devices=2).validate(module, loader(30, 4), verbose=False)
    return {"value": found["trace"], "start": {n: v.tolist() for n, v in module.state_dict().items() if "net" in n}}

def planes():
    # beside a callback with other samples: what they share must not move what either measures
    watch, ours = Watch(), plane(num_samples=16)
    _, module = fit(watch, fisher(num_samples=8), ours)
    return {"history": ours.history, "seen": watch.seen, "weights": weights(module)}

def weight_information():
    common = dict(every_n_train_steps=2, on_error="raise", summary=False, draws=4)
    watch, ours, losses = Watch(), WeightInfoCallback(num_samples=16, **common), []
    class Losses(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            losses.append(len(batch[1]) * outputs["loss"].item())
    _, module = fit(watch, ours, Losses())
    return {"history": ours.history, "seen": watch.seen, "weights": weights(module), "nats": losses}

def effective_information():
    common = dict(every_n_epochs=2, on_error="raise", summary=False, draws=8, beta=0.05)
    watch, ours = Watch(), EffectiveInfoCallback(num_samples=16, **common)
    _, module = fit(watch, ours)
    return {"history": ours.history, "seen": watch.seen, "weights": weights(module)}

def refused():
    original = preparing.findings
    def refuse(*args):
        if int(os.environ.get("LOCAL_RANK", 0)) == 1:
            raise Refused("not this module")
        return original(*args)
    preparing.findings = refuse
    try:
        fit(fisher())
    except MisconfigurationException as error:
        return {"error": str(error)}

save(
    plain=plain(),
    gathered=gathered(),
    timed=timed(),
    uneven=uneven(),
    other_fails=fault("measure", 1, 2),
    other_fails_in_a_pass=fault("drawn", 1, 2),
    other_has_no_memory=fault("drawn", 1, 2, MemoryError),
    shared=shared(),
    slow=slow(),
    communicating=communicating(),
    first_fails=fault("measure", 0, 2),
    other_keeps_nothing=fault("add", 1, "always"),
    first_draws_nothing=fault("figures", 0, "always"),
    scaled=scaled(),
    planes=planes(),
    weight_information=weight_information(),
    effective_information=effective_information(),
    metric=metric(),
    refused=refused(),
)
"""

SPAWN = """
def adapter(module, batch):
    return module(batch[0]), batch[1]

class Keep(pl.Callback):
    def __init__(self, ours):
        self.ours = ours

    def on_fit_end(self, trainer, module):
        with open(f"{sys.argv[1]}/rank{trainer.global_rank}.json", "w") as file:
            json.dump({"history": self.ours.history}, file)

if __name__ == "__main__":
    ours = fisher(estimator="exact", adapter=adapter)
    run, _ = fit(Keep(ours), ours, strategy="ddp_spawn", module=Classifier())
    assert run.callback_metrics["fisher/trace"] > 0
"""

KILLED = """
rank = int(os.environ.get("LOCAL_RANK", 0))
with open(f"{sys.argv[1]}/pid{rank}", "w") as file:
    file.write(str(os.getpid()))
original = ModelSnapshot.drawn
def dies(self, numbers):
    if rank == int(sys.argv[2]) and self.workers.processes > 1 and self.workers._is_open:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, numbers)
ModelSnapshot.drawn = dies
fit(fisher(reference=data().tensors))
"""


def launch(folder: Path, script: str) -> list[dict]:
    path = folder / "script.py"
    path.write_text(HEAD + script)
    here = os.pathsep.join(map(str, Path(__file__).parents[1:3]))  # the tests, and the package beside them
    environment = {**os.environ, "PYTHONPATH": here, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(path), str(folder)]
    done = subprocess.run(command, env=environment, timeout=240, capture_output=True, text=True, check=False)
    files = [folder / f"rank{rank}.json" for rank in (0, 1)]
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(file.read_text()) for file in files]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return launch(tmp_path_factory.mktemp("ddp"), SCRIPT)


def curve(run, tag="fisher/trace"):
    return [tuple(point) for point in run["history"][tag]]


def assert_alike(*runs):
    """The same points in every process, NaN where there is none."""
    for tag in runs[0]["history"]:
        first, other = (curve(run, tag) for run in runs)
        assert [step for step, _ in first] == [step for step, _ in other], tag
        assert all(a == b or math.isnan(a + b) for (_, a), (_, b) in zip(first, other, strict=True)), tag


def trace_of(start, seen, scale=1.0):
    module = Classifier()
    module.load_state_dict({name: torch.tensor(value) for name, value in start.items()})
    scaling = torch.nn.Linear(3, 3, bias=False).requires_grad_(False)
    scaling.weight.data = scale * torch.eye(3)
    net = torch.nn.Sequential(module.eval().net, scaling)
    return sum(fisher_trace_by_definition(net, torch.tensor(seen), "categorical").values())


def test_the_pool_is_that_of_both_processes(ranks):
    seen = [x for rank in ranks for batch in rank["gathered"]["seen"][:2] for x in batch]
    assert len(seen) == 16
    truth = trace_of(ranks[0]["gathered"]["start"], seen)
    assert curve(ranks[0]["gathered"])[0] == (0, pytest.approx(truth, rel=1e-5))


def test_the_pool_holds_batches_of_uneven_size(ranks):
    epochs = [rank["uneven"]["seen"][:4] for rank in ranks]
    assert [[len(batch) for batch in epoch] for epoch in epochs] == [[4, 4, 4, 3], [4, 4, 4, 1]]
    truth = trace_of(ranks[0]["uneven"]["start"], [x for epoch in epochs for batch in epoch for x in batch])
    assert curve(ranks[0]["uneven"])[0] == (0, pytest.approx(truth, rel=1e-5))
    assert_alike(*(rank["uneven"] for rank in ranks))


def test_both_processes_have_the_same_curve(ranks):
    # 64 samples, two processes, batches of 4: 8 steps an epoch; the pool is complete in the second batch
    assert [step for step, _ in curve(ranks[0]["gathered"])] == [0, 2, 4, 6, 8, 10, 12, 14, 16]
    assert_alike(*(rank["gathered"] for rank in ranks))
    assert ranks[0]["gathered"]["metric"] == ranks[1]["gathered"]["metric"]


def test_both_processes_decide_alike_by_the_clock(ranks):
    assert_alike(*(rank["timed"] for rank in ranks))
    steps = [step for step, _ in curve(ranks[0]["timed"])]
    assert (steps[0], steps[-1]) == (0, 16)


def test_training_does_not_notice(ranks):
    fingerprints = {run["weights"] for rank in ranks for run in rank.values() if "weights" in run}
    assert fingerprints == {ranks[0]["plain"]["weights"]}


@pytest.mark.parametrize(("fault", "where"), [("first_fails", 0), ("other_fails", 1), ("other_fails_in_a_pass", 1)])
def test_a_fault_in_one_process_is_a_gap_in_both(ranks, fault, where):
    runs = [rank[fault] for rank in ranks]
    assert [bool(run["fired"]) for run in runs] == [where == 0, where == 1]
    assert_alike(*runs)
    assert [step for step, value in curve(runs[0]) if math.isnan(value)] == [2]
    assert runs[0]["metric"] == runs[1]["metric"]


@pytest.mark.parametrize(
    ("fault", "where"), [("other_has_no_memory", 1), ("other_keeps_nothing", 1), ("first_draws_nothing", 0)]
)
def test_a_fault_that_costs_no_value(ranks, fault, where):
    runs = [rank[fault] for rank in ranks]
    assert [bool(run["fired"]) for run in runs] == [where == 0, where == 1]
    assert_alike(*runs)
    waits = fault == "other_keeps_nothing"  # the pool is then complete with the last batch of the epoch
    assert [step for step, _ in curve(runs[0])] == [0, *([] if waits else [2, 4, 6]), 8, 10, 12, 14, 16]
    assert all(math.isfinite(value) for _, value in curve(runs[0]))
    assert runs[0]["metric"] == runs[1]["metric"]


def test_what_belongs_to_a_batch_stays_with_it(ranks):
    x = data().tensors[0].tolist()
    truth = 0.0
    for rank in (0, 1):
        for batch, scale in ((0, 1.0 + rank), (1, 3.0 + rank)):
            rows = x[32 * rank + 4 * batch : 32 * rank + 4 * batch + 4]
            truth += trace_of(ranks[0]["scaled"]["start"], rows, scale) / 4
    for rank in ranks:
        assert curve(rank["scaled"])[0] == (0, pytest.approx(truth, rel=1e-5))


def test_every_scalar_is_that_of_one_process_on_the_same_samples(ranks):
    run = ranks[0]["gathered"]
    module = Classifier(dropout=0.5)
    module.load_state_dict({name: torch.tensor(value) for name, value in run["start"].items()})
    x = torch.tensor([row for rank in ranks for batch in rank["gathered"]["seen"][:2] for row in batch])
    samples = (x, torch.zeros(len(x), dtype=torch.long))  # the exact trace does not look at labels
    alone = FisherTraceCallback("exact", num_samples=16, reference=samples, on_error="raise", summary=False)
    trainer(alone, max_steps=1).fit(module, DataLoader(TensorDataset(*samples), 4))
    there = {tag: points[0][1] for tag, points in run["history"].items() if not tag.endswith("/overhead")}
    assert there == pytest.approx({tag: points[0][1] for tag, points in curves(alone).items()}, rel=1e-6)


def alone(*callbacks, module, **options):
    """What callbacks measure in one process."""
    trainer(*callbacks, max_epochs=2, **options).fit(module, DataLoader(data(), 8))
    return {tag: points for one in callbacks for tag, points in curves(one).items()}


def test_shared_work_is_that_of_one_process_at_every_point(ranks):
    reference = tuple(tensor[:13] for tensor in data().tensors)
    common = {"reference": reference, "every_n_train_steps": 4, "on_error": "raise", "summary": False}
    also = ["empirical", "exact", "hessian", "rao_norm"]
    ours = FisherTraceCallback(draws=8, num_samples=16, also=also, **common)
    groups = FisherTraceCallback(draws=None, num_samples=16, engine="cotangent", prefix="groups", **common)
    estimators = {"estimator": ["binning", "mixture"], "bin_range": ["global", "adaptive"], "bins": 4}
    truth = alone(ours, groups, InfoPlaneCallback(**estimators, **common), module=Still(), precision="64-true")
    runs = [rank["shared"] for rank in ranks]
    assert_alike(*runs)
    assert len(truth["fisher/trace"]) == 5
    for tag, points in truth.items():
        assert curve(runs[0], tag) == [(step, pytest.approx(value, rel=1e-6, abs=1e-9)) for step, value in points], tag
    # scores are taken by three estimators at each of five points, and each process takes those of its samples
    assert [run["scored"] for run in runs] == [5 * 3 * 6, 5 * 3 * 7]


def test_the_first_process_counts_the_time_that_the_others_take(ranks):
    assert len(curve(ranks[0]["slow"])) == 5
    assert ranks[0]["slow"]["spent"] > 0.5


def test_a_module_that_communicates_is_measured_whole_in_every_process(ranks):
    runs = [rank["communicating"] for rank in ranks]
    assert_alike(*runs)
    assert all(math.isfinite(value) for _, value in curve(runs[0]))
    assert [one for one in runs[0]["told"] if "every process measures all samples" in one]


def test_the_metric_is_that_over_all_processes(ranks):
    truth = trace_of(ranks[0]["metric"]["start"], data(30).tensors[0].tolist())
    assert [rank["metric"]["value"] for rank in ranks] == pytest.approx([truth, truth], rel=1e-5)


def test_a_module_that_one_process_refuses_is_refused_by_both(ranks):
    assert ranks[1]["refused"]["error"] == "not this module"
    assert "refused by another process" in ranks[0]["refused"]["error"]


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "(zombie)" not in status.read_text()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_in_a_measurement_ends_the_other(tmp_path, rank):
    (tmp_path / "script.py").write_text(HEAD + KILLED)
    here = os.pathsep.join(map(str, Path(__file__).parents[1:3]))
    environment = {**os.environ, "PYTHONPATH": here, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path), str(rank)]
    done = subprocess.run(command, env=environment, timeout=120, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    other = int((tmp_path / f"pid{1 - rank}").read_text())
    for _ in range(60):
        if not is_running(other):
            break
        time.sleep(1)
    assert not is_running(other)


@pytest.mark.slow
def test_processes_that_are_spawned(tmp_path):
    runs = launch(tmp_path, SPAWN)
    assert_alike(*runs)
    assert [step for step, _ in curve(runs[0])] == [0, 2, 4, 6, 8, 10, 12, 14, 16]


def samples_and_labels(runs):
    """The samples of the first two batches of every process."""
    samples = torch.tensor([x for run in runs for batch in run["seen"][:2] for x in batch])
    labels = dict(zip(map(tuple, data().tensors[0].tolist()), data().tensors[1], strict=True))
    return samples, torch.stack([labels[tuple(x)] for x in samples.tolist()])


def test_two_processes_draw_the_plane_of_one(ranks):
    runs = [rank["planes"] for rank in ranks]
    assert_alike(*runs)
    samples, y = samples_and_labels(runs)
    torch.manual_seed(3)
    module = Classifier(dropout=0.5)
    ours = InfoPlaneCallback(
        estimator=["binning", "mixture"],
        bin_range=["global", "adaptive"],
        bins=4,
        reference=(samples, y),
        summary=False,
    )
    trainer(ours, max_steps=1).fit(module, DataLoader(data(), 4, shuffle=True))
    for tag, alone in curves(ours).items():
        if "_final" not in tag:
            assert curve(runs[0], tag)[0] == (0, pytest.approx(alone[0][1], abs=1e-9)), tag


def test_the_information_in_the_weights_is_that_of_the_samples_and_the_batch_of_all_processes(ranks):
    runs = [rank["weight_information"] for rank in ranks]
    assert_alike(*runs)
    samples = torch.tensor([x for run in runs for batch in run["seen"][:2] for x in batch])
    torch.manual_seed(3)
    module = Classifier(dropout=0.5)
    trace = sum(fisher_trace_by_definition(module.net, samples, "categorical").values())
    history = {tag: dict(curve) for tag, curve in runs[0]["history"].items()}
    assert history["weight_info/trace"][0] == pytest.approx(trace, rel=1e-4)
    assert history["weight_info/temperature"][0] == pytest.approx(1e-2 / (2 * 4 * 2))
    assert all(math.isfinite(value) for value in history["weight_info/kl"].values())
    nats = [sum(run["nats"][:step]) for run in runs for step in (2, 8)]  # 64 samples, 8 steps of 4 in each process
    code = history["weight_info/prequential"]
    assert [code[2], code[8]] == pytest.approx([nats[0] + nats[2], nats[1] + nats[3]], rel=1e-6)
    assert max(code) == 8


def test_the_effective_information_is_that_of_the_samples_of_all_processes(ranks):
    runs = [rank["effective_information"] for rank in ranks]
    assert_alike(*runs)
    samples, y = samples_and_labels(runs)
    torch.manual_seed(3)
    module = Classifier(dropout=0.5)
    ours = EffectiveInfoCallback(reference=(samples, y), draws=8, beta=0.05, on_error="raise", summary=False)
    trainer(ours, max_steps=1).fit(module, DataLoader(data(), 4, shuffle=True))
    for tag, alone in curves(ours).items():
        assert curve(runs[0], tag)[0] == (0, pytest.approx(alone[0][1], rel=1e-5)), tag
    assert math.isfinite(dict(curve(runs[0], "effective_info/I_XZ/net.4"))[16])
