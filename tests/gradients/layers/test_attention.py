"""Attention: the layers inside ``F.multi_head_attention_forward``, and masks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from gradients.cases import N, Net, check, head, real
from torch import nn

from lightning_info.gradients.layers.attention import multi_head_attention_forward


def _attends(roles, **options):
    def body(m, x):
        first = m.attention.batch_first
        output, weights = m.attention(*roles(x if first else x.transpose(0, 1)), **options)
        output = m.head(output.mean(1 if first else 0))
        return output if weights is None else output + weights.square().sum((1, 2)).unsqueeze(1)

    return body


def _itself(x):
    return x, x, x


def _other(x):
    return x[:, :2], x, x


CASES = {
    "weights wanted": (_itself, {}, {}),
    "no weights wanted": (_itself, {"need_weights": False}, {}),
    "time first": (_itself, {"need_weights": False}, {"batch_first": False}),
    "no bias": (_itself, {"need_weights": False}, {"bias": False}),
    "causal": (_itself, {"need_weights": False, "is_causal": True, "attn_mask": torch.ones(N, N).triu(1).bool()}, {}),
    "another sequence": (_other, {}, {}),
    "another sequence, separate weights": (_other, {}, {"kdim": 8, "vdim": 8, "add_bias_kv": True}),
}


@pytest.mark.parametrize("name", CASES)
def test_multi_head_attention(name):
    roles, options, settings = CASES[name]
    attention = nn.MultiheadAttention(8, 2, **{"batch_first": True, **settings})
    # as many steps as samples, so that shapes do not tell them apart
    check(Net(_attends(roles, **options), attention=attention, head=head(8)), real(N, 8), "backpack_vmap")


@pytest.mark.parametrize("norm_first", [True, False])
def test_encoder_and_decoder(norm_first):
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
    decoder = nn.TransformerDecoderLayer(8, 2, 16, norm_first=norm_first)

    def body(m, x):
        memory = m.encoder(x).transpose(0, 1)
        return m.head(m.decoder(2 * memory[:2], memory).mean(0))

    check(Net(body, encoder=encoder, decoder=decoder, head=head(8)), real(5, 8), "backpack_vmap")


MASKS = {
    "none": lambda x: None,
    "causal": lambda x: torch.ones(5, 5, dtype=torch.bool).tril(),
    "of each head": lambda x: torch.linspace(-1, 1, 10, dtype=x.dtype).view(2, 1, 5),
    "of each sample": lambda x: (x[:, :, 0] < x.amax((1, 2), keepdim=True)[..., 0])[:, None, None],
    "with a gradient": lambda x: 2 * x[:, None, :, :1],
}


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("name", MASKS)
def test_masks(name, folded):
    """Under vmap, alone or with the samples folded twice into the batch."""

    def body(m, x):
        q, k, v = m.qkv(x * m.scale).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        mask = MASKS[name](x * m.scale)
        if folded:
            q, k, v = (torch.cat([t, 2 * t]) for t in (q, k, v))
            mask = torch.cat([mask, mask]) if mask is not None and mask.dim() == 4 else mask
        output = F.scaled_dot_product_attention(q, k, v, mask)
        if folded:
            output = output[: len(x)] + output[len(x) :]
        return m.head(output.transpose(1, 2).flatten(2).mean(1))

    net = Net(body, qkv=nn.Linear(8, 24), head=head(8))
    net.scale = nn.Parameter(torch.randn(8))
    check(net, real(5, 8), "backpack_vmap")


def test_attention_of_another_form_is_decomposed():
    def body(m, x):
        q, k, v = m.qkv(x * m.scale).chunk(3, -1)
        return m.head(F.scaled_dot_product_attention(q, k, v, is_causal=True).mean(1))

    net = Net(body, qkv=nn.Linear(8, 24), head=head(8))
    net.scale = nn.Parameter(torch.randn(8))
    check(net, real(5, 8), "backpack_vmap")


def test_the_opened_function_is_torchs_own():
    attention, x = nn.MultiheadAttention(8, 2), torch.randn(5, 3, 8)
    weights = attention.in_proj_weight, attention.in_proj_bias, None, None, False, 0.0, attention.out_proj.weight
    arguments = (x, x, x, 8, 2, *weights, attention.out_proj.bias)
    torch.testing.assert_close(multi_head_attention_forward(*arguments), F.multi_head_attention_forward(*arguments))
