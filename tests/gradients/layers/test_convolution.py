"""Convolutions: whole layers, and every form of the rule that applies on every geometry."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from gradients.cases import check_rules
from torch import nn

from lightning_info.gradients.layers import convolution
from lightning_info.gradients.layers.convolution import Geometry, cheapest, conv_weight
from lightning_info.gradients.memory import LIMITS

LAYERS = {
    "conv1d strided dilated": (nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2), (5, 4, 11)),
    "conv1d grouped": (nn.Conv1d(4, 6, 3, groups=2), (5, 4, 9)),
    "conv2d": (nn.Conv2d(2, 3, 3), (5, 2, 6, 7)),
    "conv2d large map": (nn.Conv2d(1, 2, 3, padding=1), (5, 1, 9, 9)),
    "conv2d few positions": (nn.Conv2d(8, 16, 3), (5, 8, 3, 4)),
    "conv2d grouped": (nn.Conv2d(4, 8, 3, padding=1, groups=2), (5, 4, 5, 5)),
    "conv2d depthwise": (nn.Conv2d(4, 8, 3, groups=4), (5, 4, 5, 5)),
    "conv2d one by one": (nn.Conv2d(4, 3, 1), (5, 4, 5, 5)),
    "conv2d stride leaves a rest": (nn.Conv2d(2, 3, 2, stride=3), (5, 2, 9, 10)),
    "conv2d same, even kernel": (nn.Conv2d(2, 3, 4, padding="same", dilation=2), (5, 2, 9, 9)),
    "conv2d valid": (nn.Conv2d(2, 3, 2, padding="valid"), (5, 2, 4, 4)),
    "conv2d circular": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (5, 2, 4, 4)),
    "conv2d reflect": (nn.Conv2d(2, 3, 3, padding=(2, 1), padding_mode="reflect"), (5, 2, 5, 4)),
    "conv3d": (nn.Conv3d(2, 4, (2, 3, 1), stride=(1, 2, 1), padding=(0, 1, 1), groups=2), (5, 2, 4, 5, 3)),
    "convtranspose1d": (nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1), (5, 4, 6)),
    "convtranspose2d": (nn.ConvTranspose2d(3, 2, 3), (5, 3, 4, 5)),
    "convtranspose2d grouped": (nn.ConvTranspose2d(4, 6, 3, stride=(2, 3), padding=(1, 0), groups=2), (5, 4, 4, 3)),
    "convtranspose2d with a rest": (
        nn.ConvTranspose2d(4, 2, 2, stride=3, padding=1, output_padding=2, dilation=2),
        (5, 4, 4, 3),
    ),
    "convtranspose2d depthwise": (nn.ConvTranspose2d(4, 4, 3, stride=2, output_padding=1, groups=4), (5, 4, 3, 3)),
    "convtranspose3d": (nn.ConvTranspose3d(2, 3, (1, 2, 3), stride=(1, 2, 1)), (5, 2, 2, 3, 3)),
    "without bias": (nn.Conv2d(2, 3, 3, bias=False), (5, 2, 4, 4)),
}
GEOMETRIES = {  # input channels a group, output channels a group, input size, geometry, padding
    "one axis": (2, 3, (11,), Geometry((3,), (2,), (2,), 1), (2,)),
    "two axes": (2, 3, (6, 7), Geometry((3, 2), (1, 2), (1, 1), 1), (1, 0)),
    "two axes, dilated": (2, 3, (7, 7), Geometry((3, 2), (2, 1), (1, 2), 2), (1, 1)),
    "three axes": (2, 1, (4, 5, 3), Geometry((2, 3, 1), (1, 2, 1), (1, 1, 1), 2), (0, 1, 1)),
    "four axes": (2, 2, (3, 4, 3, 3), Geometry((1, 2, 2, 1), (1,) * 4, (1,) * 4, 1), (0, 1, 0, 0)),
    "one by one": (3, 4, (4, 5), Geometry((1, 1), (1, 1), (1, 1), 1), (0, 0)),
    "one by one, strided": (3, 4, (4, 5), Geometry((1, 1), (2, 2), (1, 1), 2), (1, 0)),
    "depthwise": (1, 1, (6, 6), Geometry((3, 3), (1, 1), (1, 1), 4), (1, 1)),
    "depthwise, strided, dilated": (1, 2, (9, 8), Geometry((2, 3), (3, 2), (2, 1), 3), (1, 0)),
    "stride leaves a rest": (2, 3, (9, 10), Geometry((2, 2), (3, 3), (1, 1), 1), (0, 0)),
    "same": (2, 2, (7, 8), Geometry((4, 3), (1, 1), (1, 2), 1), "same"),
    "valid": (2, 2, (7, 8), Geometry((4, 3), (1, 1), (1, 2), 1), "valid"),
}


def by_definition(x, g, geometry, padding):
    """Every pixel that an offset of the kernel meets, one after the other."""
    reach = [d * (k - 1) for d, k in zip(geometry.dilation, geometry.kernel_size, strict=True)]
    if isinstance(padding, str):
        sides = [(r // 2, r - r // 2) if padding == "same" else (0, 0) for r in reach]
    else:
        sides = [(p, p) for p in padding]
    x = F.pad(x, [p for side in reversed(sides) for p in side])
    x, g = (t.unflatten(1, (geometry.groups, -1)) for t in (x, g))
    squares = torch.zeros(len(x), dtype=x.dtype)
    for offset in torch.cartesian_prod(*map(torch.arange, geometry.kernel_size)).view(-1, len(reach)).tolist():
        gradient = torch.zeros(len(x), geometry.groups, g.shape[2], x.shape[2], dtype=x.dtype)
        for position in torch.cartesian_prod(*map(torch.arange, g.shape[3:])).view(-1, len(reach)).tolist():
            pixel = [
                o * d + p * s for o, d, p, s in zip(offset, geometry.dilation, position, geometry.stride, strict=True)
            ]
            gradient += g[(..., *position)].unsqueeze(3) * x[(..., *pixel)].unsqueeze(2)
        squares += gradient.square().sum((1, 2, 3))
    return squares


def drawn(name):
    inside, out, size, geometry, padding = GEOMETRIES[name]
    x = torch.randn(3, inside * geometry.groups, *size, dtype=torch.float64)
    length = []
    for s, k, step, d, axis in zip(
        size, geometry.kernel_size, geometry.stride, geometry.dilation, range(9), strict=False
    ):
        pad = {"same": d * (k - 1), "valid": 0}[padding] if isinstance(padding, str) else 2 * padding[axis]
        length.append((s + pad - d * (k - 1) - 1) // step + 1)
    return x, torch.randn(3, out * geometry.groups, *length, dtype=torch.float64), geometry, padding


def applies(form, name):
    """Torch has no convolution of four axes."""
    inside, _, size, *_ = GEOMETRIES[name]
    return (inside == 1 or form != "depthwise") and (len(size) < 4 or form not in ("direct", "depthwise"))


@pytest.mark.parametrize("chunk", [LIMITS.temporary, 8])
@pytest.mark.parametrize(("name", "form"), [(n, f) for n in GEOMETRIES for f in convolution.FORMS if applies(f, n)])
def test_every_form_is_exact(name, form, chunk, monkeypatch):
    x, g, geometry, padding = drawn(name)
    monkeypatch.setattr(LIMITS, "temporary", chunk)
    monkeypatch.setattr(convolution, "cheapest", lambda *args: form)
    found = conv_weight(x, g, geometry, padding)
    torch.testing.assert_close(found, by_definition(x, g, geometry, padding), rtol=1e-11, atol=0)


def test_the_cheapest_form_depends_on_the_sizes():
    def chosen(inside, out, pixels, kernel, groups=1):
        geometry = Geometry((kernel, kernel), (1, 1), (1, 1), groups)
        x = torch.zeros(1, inside, pixels + kernel - 1, pixels + kernel - 1)
        return cheapest(x, torch.zeros(1, out, pixels, pixels), geometry)

    assert chosen(512, 512, 4, 3) == "shifted"  # few positions, many channels
    assert chosen(64, 64, 32, 3) == "direct"  # many positions
    assert chosen(64, 128, 32, 1) == "matrix"  # nothing to unfold
    assert chosen(64, 64, 16, 5, groups=64) == "depthwise"


@pytest.mark.parametrize("chunk", [LIMITS.temporary, 64])
@pytest.mark.parametrize("name", LAYERS)
def test_the_rules_equal_one_backward_per_sample(name, chunk, monkeypatch):
    monkeypatch.setattr(LIMITS, "temporary", chunk)  # a small one makes every rule work in chunks
    layer, shape = LAYERS[name]
    check_rules(layer, torch.randn(shape))
