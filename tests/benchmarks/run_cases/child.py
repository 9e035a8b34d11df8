"""One case: trained twice without callbacks, with all five, with an adapter if one is advised, and judged."""

from __future__ import annotations

import gc
import hashlib
import importlib.metadata
import json
import math
import random
import re
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

import lightning_info

from .case import Case, Run
from .oracle import fisher_trace, impossible, loss_gradient_trace, relative

SAMPLES = 2
"""That the oracle computes."""
SECONDS = 150
"""Of CPU time after which a run is stopped as by Ctrl-C."""
RARELY = {"every_n_epochs": 10**6}
"""An interval, which no time budget cuts: step 0 and the end of fit."""
SHORT = {
    "FisherTraceCallback": "Fisher",
    "InfoPlaneCallback": "plane",
    "WeightInfoCallback": "weights",
    "EffectiveInfoCallback": "effective",
    "StabilityCallback": "stability",
}
MAIN = {
    "Fisher": ("fisher/trace",),
    "plane": ("info_plane/I_XT/", "info_plane/I_TY/"),
    "weights": ("weight_info/kl", "weight_info/trace", "weight_info/log_det", "weight_info/expected_loss"),
    "effective": ("effective_info/I_XZ/", "effective_info/I_ZY/"),
    "stability": ("stability/param_distance", "stability/output_kl", "stability/unique_information"),
}
"""What a callback is for: tags, or what tags begin with."""
INSTEAD = "fisher/loss_gradient_trace"
"""What ``FisherTraceCallback`` measures of a loss without a known likelihood."""


def seeded() -> None:
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(0)


def fingerprint(module: pl.LightningModule) -> str:
    """Of the weights, buffers and random states."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        is_tensor = isinstance(value, torch.Tensor)
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy() if is_tensor else repr(value).encode())
    digest.update(torch.get_rng_state().numpy())
    digest.update(repr(np.random.get_state()).encode())  # noqa: NPY002
    digest.update(repr(random.getstate()).encode())
    return digest.hexdigest()[:16]


class Said:
    """The warnings of this package."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._catch = warnings.catch_warnings()

    def __enter__(self) -> list[str]:
        self._catch.__enter__()
        warnings.simplefilter("always")
        warnings.showwarning = self._show
        return self.texts

    def __exit__(self, *exception: Any) -> None:
        self._catch.__exit__(*exception)

    def _show(self, message: Any, *rest: Any) -> None:
        self.texts.append(str(message))
        print(f"WARNING {message}", flush=True)


def trained(case: Case, callbacks: list[pl.Callback], adapted: bool = False) -> tuple[Run, Any, dict[str, Any]]:
    """The case, the trained module, and what was seen."""
    seeded()
    run = case.make()
    for callback in callbacks if adapted else ():
        callback.adapter = run.adapter
    seeded()
    gc.collect()
    module, seen = None, {}
    with Said() as texts:
        start = time.process_time()
        try:
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            module = run.fit(callbacks)
        except ImportError:
            raise
        except (KeyboardInterrupt, SystemExit):
            seen["raised"] = f"stopped after {SECONDS} CPU s"
        except Exception as error:
            traceback.print_exc()
            seen["raised"] = cleaned(f"{type(error).__name__}: {error}")
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        seen["seconds"] = time.process_time() - start
    if module is not None:
        seen["fingerprint"] = fingerprint(module)
    ours = [text for text in texts if any(name in text for name in SHORT) or "lightning_info" in text]
    off = " is off, and training goes on"
    seen["off"] = {kind: text.split(": ", 1)[-1] for text in ours for kind in SHORT if f"{kind}{off}" in text}
    seen["tracebacks"] = sum("Traceback (most recent call last)" in text for text in ours)
    seen["faults"] = [cleaned(fault(text)) for text in ours if "Traceback (most recent call last)" in text]
    return run, module, seen


def fault(text: str) -> str:
    """First and last line of a warning with a traceback."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return f"{lines[0]} {lines[-1].strip()}"


def cleaned(text: str) -> str:
    """In one line, without the folders of this machine."""
    return re.sub(r"(/[\w.+-]+)+/site-packages/", "", " ".join(text.split()))


def state_of(callback: Any) -> dict[str, Any]:
    """What a callback has measured, or why it has not."""
    name = SHORT[type(callback).__name__]
    report = callback.report()
    if f"{type(callback).__name__} is off" in report:
        return {"state": "refused", "why": cleaned(reason(report))}
    curves = {main: [c for tag, c in callback.history.items() if tag.startswith(main)] for main in MAIN[name]}
    finite = {main: [math.isfinite(v) for c in found for _, v in c] for main, found in curves.items()}
    missing = [main.rstrip("/") for main, values in finite.items() if not any(values)]
    some = {main: values for main, values in finite.items() if any(values) and not all(values)}
    gaps = [f"no {main.rstrip('/')} at {len(v) - sum(v)} of {len(v)} points" for main, v in some.items()]
    if missing == ["fisher/trace"] and INSTEAD in callback.history:
        return {"state": "part", "points": 0, "why": f"{INSTEAD}, of the loss as it is, in the place of fisher/trace"}
    points = max((len(c) for found in curves.values() for c in found), default=0)
    state = "measured" if not missing and not gaps else "nothing" if len(missing) == len(finite) else "part"
    why = "; ".join([*(["no " + ", ".join(missing)] if missing else []), *gaps])
    return {"state": state, "points": points, "why": why, "impossible": impossible(callback.history)}


def reason(report: str) -> str:
    """Of a refusal, without the callback's name and the lines of an adapter."""
    text = report.split(" is off: ", 1)[1].split("\n\n")[0]
    return re.sub(r"^\w+Callback: ", "", text).replace(" Tell it what the module predicts:", "")


def judged(case: Case, adapted: bool = False, **arguments: Any) -> dict[str, Any]:
    """All five callbacks on the case."""
    given = [getattr(lightning_info, name)(**arguments) for name in SHORT]
    _, module, seen = trained(case, list(given), adapted)
    ran = getattr(getattr(module, "_trainer", None), "callbacks", given)  # some packages copy them
    ours = {type(c): c for c in (*given, *ran) if type(c).__name__ in SHORT}
    states = {SHORT[kind.__name__]: state_of(c) for kind, c in ours.items()}
    for kind, text in seen.pop("off").items():  # of a copy that is gone
        if states[SHORT[kind]]["state"] == "nothing":
            states[SHORT[kind]] = {"state": "refused", "why": cleaned(text.split("\n\n")[0])}
    return {**seen, "callbacks": states}


def compared(case: Case, adapted: bool) -> dict[str, Any]:
    """Traces of F of a few samples, against the oracle's."""
    fisher = lightning_info.FisherTraceCallback(estimator="exact", num_samples=SAMPLES, batch_norm="running", **RARELY)
    weights = lightning_info.WeightInfoCallback(num_samples=SAMPLES, batch_norm="running", **RARELY)
    run, module, seen = trained(case, [fisher, weights], adapted)
    if module is None or (run.predicts is None and INSTEAD not in fisher.history):
        return {}
    if INSTEAD in fisher.history:
        truth = loss_gradient_trace(run, module, SAMPLES)
        found = fisher.history[INSTEAD][-1][1]
        return {"truth": truth, "errors": {INSTEAD: relative(found, truth)}, "fingerprint": seen["fingerprint"]}
    truth = fisher_trace(run, module, SAMPLES)
    print(f"ORACLE {truth:.10g} {fisher.history.get('fisher/trace')} {weights.history.get('weight_info/trace')}")
    errors = {}
    if "fisher/trace" in fisher.history:
        errors["Fisher"] = relative(fisher.history["fisher/trace"][-1][1], truth)
    is_exact = not any(word in weights.report() for word in ("Lanczos", "in place of F"))
    if is_exact and "weight_info/trace" in weights.history:
        errors["weights"] = relative(weights.history["weight_info/trace"][-1][1], truth)
    same = seen["fingerprint"]
    return {"truth": truth, "errors": errors, "fingerprint": same}


def judge(case: Case, out: Path) -> None:
    """Run everything, and write what is known after each part.

    Args:
        case: The case.
        out: A file for the record, a dictionary.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGPROF, signal.default_int_handler)
    record: dict[str, Any] = {"torch": torch.__version__}

    def part(name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        print(f"==== {name}", flush=True)
        record["doing"] = name
        out.write_text(json.dumps(record))
        record[name] = run()
        record.pop("doing")
        out.write_text(json.dumps(record))
        return record[name]

    try:
        part("control", lambda: trained(case, [])[2])
    except ImportError as error:
        out.write_text(json.dumps({"missing": cleaned(str(error))}))
        return
    record["version"] = importlib.metadata.version(case.package)
    part("without", lambda: trained(case, [])[2])
    part("bare", lambda: judged(case))
    states = part("with", lambda: judged(case, **RARELY))["callbacks"]
    seeded()
    run = case.make()
    adapted = run.adapter is not None and states.get("Fisher", {}).get("state") != "measured"
    if adapted:
        states = part("adapter", lambda: judged(case, True, **RARELY))["callbacks"]
    of_weights = [states.get(name, {}).get("state") for name in ("Fisher", "weights")]
    if run.alone is not None and ("measured" in of_weights or "part" in of_weights):
        part("oracle", lambda: compared(case, adapted))
