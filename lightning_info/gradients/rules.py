"""``SquaredGradNorm``: a BackPACK extension that gives every parameter its per-sample squared gradient norms.

Same contract as BackPACK's ``BatchL2Grad`` (``(N,)`` per parameter in ``savefield``), with own rules: the stock one is
wrong by factors for grouped convolutions and knows no LayerNorm or GroupNorm. It reads ``input0`` and the parameters
of a module only, so it runs on throw-away stand-in modules and needs no ``backpack.extend``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from backpack.extensions.firstorder.base import FirstOrderBackpropExtension, FirstOrderModuleExtension
from torch import Tensor

from lightning_info.gradients.layers.base import LAYERS, Layer, NormRule

Gradients = tuple[Tensor, ...]


class _Rule(FirstOrderModuleExtension):  # type: ignore[misc]
    """A layer type's rules in BackPACK's form: one method for each parameter, under the parameter's name."""

    def __init__(self, layer: Layer) -> None:
        for name, rule in layer.squared_norms.items():
            setattr(self, name, partial(self._call, rule))
        super().__init__(list(layer.squared_norms))

    @staticmethod
    def _call(rule: NormRule, ext: Any, module: Any, g_inp: Gradients, g_out: Gradients, bp: Any) -> Tensor:
        return rule(module, module.input0, g_out[0])


class SquaredGradNorm(FirstOrderBackpropExtension):  # type: ignore[misc]
    """BackPACK extension: squared norms of the per-sample gradients, ``(N,)`` per parameter in ``sq_grad_norm``.

    It has the layers of :mod:`~.layers`; further ones are registered there (:func:`~.layers.base.register`), or added
    with BackPACK's own ``set_module_extension(cls, rule)``.
    """

    def __init__(self) -> None:
        rules = {module: _Rule(layer) for module, layer in LAYERS.items()}
        super().__init__(savefield="sq_grad_norm", module_exts=rules, fail_mode="ERROR")
