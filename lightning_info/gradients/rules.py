"""``SquaredGradNorm``: a BackPACK extension that gives every parameter its per-sample squared gradient norms.

Same contract as BackPACK's ``BatchL2Grad`` (``(N,)`` per parameter in ``savefield``), with own rules: the stock one is
wrong by factors for grouped convolutions and knows no LayerNorm or GroupNorm. It reads ``input0`` and the parameters
of a module only, so it runs on throw-away stand-in modules and needs no ``backpack.extend``.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from backpack.extensions.firstorder.base import FirstOrderBackpropExtension, FirstOrderModuleExtension
from torch import Tensor, nn

from lightning_info.gradients import norms
from lightning_info.gradients.convolution import Geometry, conv_weight

Gradients = tuple[Tensor, ...]


class _Rule(FirstOrderModuleExtension):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__([name for name in ("weight", "bias") if hasattr(self, name)])


class _Linear(_Rule):
    def weight(self, ext: Any, module: Any, g_inp: Gradients, g_out: Gradients, bp: Any) -> Tensor:
        return norms.linear_weight(module.input0, g_out[0])

    def bias(self, ext: Any, module: Any, g_inp: Gradients, g_out: Gradients, bp: Any) -> Tensor:
        return norms.last_axes(g_out[0], 1)


class _PerChannel(_Rule):
    def bias(self, ext: Any, module: Any, g_inp: Gradients, g_out: Gradients, bp: Any) -> Tensor:
        return norms.channels(g_out[0])


class _Conv(_PerChannel):
    def weight(self, ext: Any, module: Any, g_inp: Gradients, g_out: Gradients, bp: Any) -> Tensor:
        return self._norm(module, module.input0, g_out[0])

    @staticmethod
    def _norm(module: Any, x: Tensor, g: Tensor) -> Tensor:
        """``x`` may have rows of a sample as axis 2, behind the channels: positions of a kernel of length one."""
        rows = x.dim() - 2 - len(module.kernel_size)
        kernel_size, stride, dilation = (
            (1,) * rows + setting for setting in (module.kernel_size, module.stride, module.dilation)
        )
        padding = module.padding if isinstance(module.padding, str) else (0,) * rows + module.padding
        return conv_weight(x, g, Geometry(kernel_size, stride, dilation, module.groups), padding)


class _ConvTranspose(_Conv):
    """The gradient at the output meets the kernel where the input does in a convolution."""

    def weight(self, ext: Any, module: Any, g_inp: Gradients, g_out: Gradients, bp: Any) -> Tensor:
        return self._norm(module, g_out[0], module.input0)


class _BatchNorm(_PerChannel):
    """With running statistics; batch statistics have no per-sample gradient and never come here."""

    def weight(self, ext: Any, module: Any, g_inp: Gradients, g_out: Gradients, bp: Any) -> Tensor:
        normalised = F.batch_norm(module.input0, module.running_mean, module.running_var, eps=module.eps)
        return norms.channels(g_out[0] * normalised)


class _GroupNorm(_PerChannel):
    def weight(self, ext: Any, module: Any, g_inp: Gradients, g_out: Gradients, bp: Any) -> Tensor:
        return norms.channels(g_out[0] * F.group_norm(module.input0, module.num_groups, eps=module.eps))


class _LayerNorm(_Rule):
    def weight(self, ext: Any, module: Any, g_inp: Gradients, g_out: Gradients, bp: Any) -> Tensor:
        shape = module.normalized_shape
        return norms.last_axes(g_out[0] * F.layer_norm(module.input0, shape, eps=module.eps), len(shape))

    def bias(self, ext: Any, module: Any, g_inp: Gradients, g_out: Gradients, bp: Any) -> Tensor:
        return norms.last_axes(g_out[0], len(module.normalized_shape))


class _RMSNorm(_Rule):
    def weight(self, ext: Any, module: Any, g_inp: Gradients, g_out: Gradients, bp: Any) -> Tensor:
        shape = module.normalized_shape
        return norms.last_axes(g_out[0] * F.rms_norm(module.input0, shape, eps=module.eps), len(shape))


class _Embedding(_Rule):
    def weight(self, ext: Any, module: Any, g_inp: Gradients, g_out: Gradients, bp: Any) -> Tensor:
        return norms.embedding_weight(module.input0, g_out[0], module.padding_idx)


class SquaredGradNorm(FirstOrderBackpropExtension):  # type: ignore[misc]
    """BackPACK extension: squared norms of the per-sample gradients, ``(N,)`` per parameter in ``sq_grad_norm``.

    Further layers are added with BackPACK's own ``set_module_extension(cls, rule)``.
    """

    def __init__(self) -> None:
        rules: dict[type[nn.Module], FirstOrderModuleExtension] = {
            nn.Linear: _Linear(),
            nn.GroupNorm: _GroupNorm(),
            nn.LayerNorm: _LayerNorm(),
            nn.RMSNorm: _RMSNorm(),
            nn.Embedding: _Embedding(),
        }
        rules.update(dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _Conv()))
        transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
        rules.update(dict.fromkeys(transposed, _ConvTranspose()))
        rules.update(dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _BatchNorm()))
        super().__init__(savefield="sq_grad_norm", module_exts=rules, fail_mode="ERROR")
