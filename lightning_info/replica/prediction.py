"""A batch's prediction: outputs, targets and likelihood, from the module's own ``training_step`` or from an adapter.

Zero configuration: the replica's ``training_step`` runs under a ``TorchFunctionMode`` that sees the likelihoods which
it calls (:data:`~.loss_recognition.LIKELIHOODS`). One over the whole batch is what the module is trained on (of several
see :mod:`~.likelihood_calls`); whatever else the returned loss holds (penalties) is not part of the predictive
distribution.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch.overrides import TorchFunctionMode

from lightning_info.gradients.batches import map_tensors, num_samples
from lightning_info.gradients.layout import bare
from lightning_info.replica import classification_losses, elementwise_errors
from lightning_info.replica.adapter_result import from_adapter
from lightning_info.replica.blame import place_of
from lightning_info.replica.classification_losses import ClassificationLoss
from lightning_info.replica.distribution_calls import ShownLogProbs, arguments_of, log_prob
from lightning_info.replica.elementwise_errors import ElementwiseError
from lightning_info.replica.experiments import experiment
from lightning_info.replica.isolation import default_dtype_of, exits_are_errors
from lightning_info.replica.kept_state import KeptState
from lightning_info.replica.likelihood_calls import Call, chosen, prediction_of, product_of
from lightning_info.replica.likelihood_choice import LikelihoodCall, OutputNodes, outputs_of, run_training_step
from lightning_info.replica.loss_recognition import LIKELIHOODS, NO_LIKELIHOODS
from lightning_info.replica.module_calls import SeenStep, module_calls
from lightning_info.replica.noise import Noise
from lightning_info.replica.padding import Padding, in_batch, in_call, in_layout, signature_of
from lightning_info.replica.predicted import NoLikelihood, NoPrediction, Prediction, Skipped, WritesParameters
from lightning_info.replica.returned_loss import backward, edge_of
from lightning_info.replica.stand_in_trainer import StandInTrainer, detach_from_trainer
from lightning_info.replica.user_warning import warn
from lightning_info.replica.writes import written

Adapter = Callable[[Any, Any], Any]
"""``(module, batch) -> (outputs, targets)`` or ``(outputs, targets, likelihood)``."""

ADAPTER_LINES = """\
    def adapter(module, batch):
        x, y = batch
        return module(x), y, "categorical"  # logits (N, C, *); or "bernoulli" (logits), "gaussian" (means)

and pass it to the callback: {callback}(adapter=adapter)."""


@dataclass
class Predictor:
    """Maps a replica and a batch to the prediction; needs the trainer only to hide it from the replica.

    Args:
        stand_in: Put in the trainer's place.
        adapter: Used instead of the ``training_step`` if given.
        shared: The replica shares the user's weights, so that a write to them must be refused.
        shares_frozen: It shares those that are not trained.
        noise: What its passes draw.
        state: What its passes change, which is put back after each.
    """

    stand_in: StandInTrainer
    adapter: Adapter | None = None
    shared: bool = True
    noise: Noise = field(default_factory=Noise)
    state: KeptState = field(default_factory=KeptState, repr=False)
    shares_frozen: bool = False
    _places: dict[int, list[int]] = field(default_factory=dict, init=False, repr=False)
    _hand_written: ElementwiseError | ClassificationLoss | None = field(default=None, init=False, repr=False)
    _is_searched: bool = field(default=False, init=False, repr=False)

    def __call__(self, module: nn.Module, batch: Any) -> Prediction:
        """The prediction for a batch on the module's device.

        Raises:
            NoPrediction: None, several or an unusable likelihood; or the module writes to shared parameters.
            Skipped: The ``training_step`` returns None for the batch, which is then not trained on.
        """
        samples, given = num_samples(batch), bare(batch)
        passed = self._run(module, batch)
        watch = passed.watch
        by_gradient = self._by_gradient(module, batch, passed)
        if by_gradient is not None:
            prediction = by_gradient
        elif self.runs_step:
            automatic, owner = getattr(module, "automatic_optimization", True), type(module).__name__
            trained = _trained(watch, passed.returned, owner, automatic)
            prediction = self._from_calls(*trained, passed.nodes, samples, owner)
        else:
            prediction = from_adapter(passed.returned, samples)
        prediction.writes = watch.writes
        if self.runs_step:
            prediction.step_loss = partial(_number, passed.returned)
        padded = watch.padded
        prediction.padding = lambda: [*in_batch(given, samples), *padded, *in_layout(batch)]
        return prediction

    def trained_loss(self, module: nn.Module, batch: Any) -> Tensor:
        """The loss of the ``training_step`` for a batch, a number with a graph.

        Raises:
            NoPrediction: There is none, or several go backward apart.
            Skipped: The ``training_step`` returns None for the batch.
        """
        passed = self._run(module, batch)
        return self._loss_in(passed.returned, passed.watch, type(module).__name__)

    def _loss_in(self, returned: Any, watch: _Watch, owner: str) -> Tensor:
        loss = returned.get("loss") if isinstance(returned, Mapping) else returned
        if loss is None and not watch.losses:
            raise Skipped(f"{owner}.training_step returned None")
        losses = watch.losses or [loss]
        if len(losses) != 1:
            raise NoPrediction(f"{owner}.training_step goes backward from {len(losses)} losses")
        (loss,) = losses
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise NoPrediction(f"{owner}.training_step gives no loss of one number with a graph")
        return loss.squeeze()

    def _by_gradient(self, module: nn.Module, batch: Any, passed: _Pass) -> Prediction | None:
        """What a loss says that is a known one written by hand; None if it is not, or calls a likelihood."""
        if self.adapter is not None or passed.watch.calls:
            return None
        given, outputs, again = bare(batch), passed.outputs, partial(self.trained_loss, module, batch)
        try:
            loss = self._loss_in(passed.returned, passed.watch, type(module).__name__)
        except NoPrediction:  # also without a graph, as where gradients are off
            loss = None
        if self._hand_written is None:
            if self._is_searched or loss is None or _is_wrapped(loss):
                return None
            self._is_searched = True
            with experiment():
                self._hand_written = elementwise_errors.recognised(again, module, given)
                self._hand_written = self._hand_written or classification_losses.recognised(again, module)
                if self._hand_written is None:
                    return None
                with module_calls(module) as outputs:
                    loss = again()
        return self._hand_written.prediction(SeenStep(outputs, loss, given, num_samples(batch), again, module))

    def _run(self, module: nn.Module, batch: Any) -> _Pass:
        detach_from_trainer(module, self.stand_in)
        return self.noise.fixed(batch, partial(self._once, module), lambda: self.state.has_drawn)

    def _once(self, module: nn.Module, batch: Any) -> _Pass:
        batch = bare(map_tensors(batch, lambda leaf: leaf.clone()))  # a training_step may edit its batch in place
        names = self.adapter.names if isinstance(self.adapter, LikelihoodCall) else []
        with ExitStack() as stack:
            stack.enter_context(self.state.passing(module))
            outputs = [] if self._hand_written is None else stack.enter_context(module_calls(module))
            nodes = stack.enter_context(outputs_of(module, names))
            stack.enter_context(default_dtype_of(module))
            watch = stack.enter_context(_Watch(module, self.shared, self.shares_frozen))
            return _Pass(self._called(module, batch, watch), watch, outputs, nodes)

    @property
    def runs_step(self) -> bool:
        """Predictions come from the ``training_step``."""
        return self.adapter is None or isinstance(self.adapter, LikelihoodCall)

    def source(self, module: str) -> str:
        """Where predictions come from, with the name of the module's class."""
        return f"{module}.training_step" if self.runs_step else "the adapter"

    def _called(self, module: nn.Module, batch: Any, watch: _Watch) -> Any:
        with exits_are_errors(self.source(type(module).__name__)):
            if not self.runs_step:
                return cast(Adapter, self.adapter)(module, batch)
            try:
                return run_training_step(module, batch)
            except (NoPrediction, KeyboardInterrupt):
                raise
            except BaseException as error:
                if not watch.diverged:
                    raise
                _warn_once(
                    f"{type(module).__name__}.training_step ended with {type(error).__name__} at weights that "
                    f"a measurement has put noise on, as its loss there is not finite; it counts as it is, and "
                    f"training goes on"
                )
                return watch.calls[0].value

    def _from_calls(
        self, calls: list[Call], losses: list[Tensor], nodes: OutputNodes, samples: int, owner: str
    ) -> Prediction:
        is_wrapped = any(call.edge is None for call in calls)
        if isinstance(self.adapter, LikelihoodCall):
            if not is_wrapped or len(calls) not in self._places:
                self._places[len(calls)] = self.adapter.among(calls, nodes, owner)
            return product_of([calls[place] for place in self._places[len(calls)]], losses, samples, owner)
        if is_wrapped:  # under torch.func: those of the last ordinary pass
            if len(calls) > 1 and len(calls) not in self._places:
                raise NoPrediction(f"which of {len(calls)} likelihood calls is meant cannot be seen under torch.func")
        else:
            self._places[len(calls)] = chosen(calls, losses, samples, owner)
        places = self._places.get(len(calls), [0])
        return prediction_of([calls[place] for place in places], losses, samples, owner)

    def outputs(self, module: nn.Module, batch: Any) -> Tensor:
        """Only the outputs, ``(N, ...)``: the form that the gradient engines take."""
        return self(module, batch).outputs


class _Pass(NamedTuple):
    """What one pass gave."""

    returned: Any
    watch: _Watch
    outputs: list[tuple[str, Tensor]]
    nodes: OutputNodes


class _Watch(TorchFunctionMode):
    """Records likelihood calls, and keeps ``training_step`` from going backward or writing to shared parameters."""

    def __init__(self, module: nn.Module, shared: bool, shares_frozen: bool = False) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.losses: list[Any] = []  # that went backward
        self.others: dict[Callable[..., Any], str] = {}  # losses that are no likelihoods
        self.padded: list[Padding] = []
        self.log_probs = ShownLogProbs()
        self.writes = False
        self.shared = shared
        self.parameters = [p for p in module.parameters() if not p.is_inference()]
        self.storages = {_storage(p) for p in self.parameters} - {None}
        kept = [p for p in self.parameters if shared or (shares_frozen and not p.requires_grad)]
        self.kept = {_storage(p) for p in kept} - {None}
        self.versions = [p._version for p in self.parameters]

    @property
    def diverged(self) -> bool:
        """There was one likelihood, which is not finite."""
        values = [call.value.detach() for call in self.calls]
        return len(values) == 1 and not _is_wrapped(values[0]) and not bool(values[0].isfinite().all())

    def __enter__(self) -> _Watch:
        self.log_probs.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        """Notice what was written in ways that are not seen; a shared replica shares the counters of writes."""
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        self.log_probs.__exit__(*exception)
        pairs = zip(self.parameters, self.versions, strict=True)
        changed = [p for p, version in pairs if p._version != version]
        if not self.writes and changed:
            self.writes = True
            if self.kept & set(map(_storage, changed)):
                warn(
                    "a measurement has changed the weights of the training run, once, by an operation of the module "
                    "that PyTorch does not show; from now on it is measured on a private copy"
                )
                raise WritesParameters("it changes the module's parameters in a way that is not seen")

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.Tensor.backward, backward):
            self.losses.append(args[0])
            return None
        if func is log_prob:
            kind, given, value, method = args
            result, arguments = method(given, value), arguments_of(given, value)
            predicted = any(isinstance(a, Tensor) and a.requires_grad for n, a in arguments.items() if n != "target")
            return self._recorded(kind, arguments, result) if predicted else result
        self._note_writes(func, args, kwargs)
        result = func(*args, **kwargs)
        if func in LIKELIHOODS:
            return self._recorded(func, signature_of(func).bind(*args, **kwargs).arguments, result)
        if func in NO_LIKELIHOODS:
            self.others[func] = NO_LIKELIHOODS[func]
        if (padding := in_call(func, args, kwargs)) is not None:
            self.padded.append(padding)
        return result

    def _recorded(self, func: Callable[..., Any], arguments: dict[str, Any], result: Tensor) -> Tensor:
        """The result of a call, which is noted if it depends on parameters."""
        depends = any(isinstance(value, Tensor) and value.requires_grad for value in arguments.values())
        if not depends or not torch.is_grad_enabled():
            return result
        if _is_wrapped(result):
            self.calls.append(Call(func, arguments, result, None))
            return result
        with torch._C.DisableTorchFunctionSubclass():  # the step may write to it: in a view its place would be lost
            result = torch.Tensor.clone(result)
        value, place = result.detach().clone(), place_of(sys._getframe(2))
        self.calls.append(Call(func, arguments, value, edge_of(result), place))
        return result

    def _note_writes(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for tensor in written(func, args, kwargs):
            storage = _storage(_unwrapped(tensor))
            if storage in self.storages:
                self.writes = True
                if storage in self.kept:  # it would change the user's weights
                    name = getattr(func, "__qualname__", None) or func.__name__
                    raise WritesParameters(f"it changes the module's parameters while it runs ({name})")


def _unwrapped(tensor: Tensor) -> Tensor:
    while is_functorch_wrapped_tensor(tensor):
        tensor = get_unwrapped(tensor)
    return tensor


def _storage(tensor: Tensor) -> int | None:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # wrapped by torch.func
        return None


@cache
def _warn_once(message: str) -> None:
    warn(message)


def _trained(watch: _Watch, returned: Any, owner: str, automatic: bool) -> tuple[list[Call], list[Tensor]]:
    """The likelihood calls, and the losses that are trained, as far as they have a graph."""
    calls = watch.calls
    loss = returned.get("loss") if isinstance(returned, Mapping) else returned
    if loss is None and not watch.losses and (automatic or not calls):  # Lightning leaves such a batch out, too
        if isinstance(returned, Mapping):
            raise NoPrediction(f"{owner}.training_step returned a {type(returned).__name__} without 'loss'")
        raise Skipped(f"{owner}.training_step returned None")
    if not calls:
        others = "".join(f". {f.__name__} is none: {reason}" for f, reason in watch.others.items())
        raise NoLikelihood(
            f"{owner}.training_step calls no likelihood that is known here, such as cross_entropy, mse_loss or "
            f"log_prob of a distribution{others}"
        )
    trained = watch.losses or [loss]
    return calls, [t for t in trained if isinstance(t, Tensor) and t.numel() == 1 and t.requires_grad]


def _number(returned: Any) -> float:
    loss = returned.get("loss") if isinstance(returned, Mapping) else returned
    return float(loss.detach().double().item()) if isinstance(loss, Tensor) and loss.numel() == 1 else math.nan


def _is_wrapped(tensor: Tensor) -> bool:
    return _storage(tensor) is None
