"""Attention of several query heads to one head of keys and values, without a copy of those for each.

Where there is a mask, transformers' own copies keys and values for every query head, in some versions; of a decoder's
whole cache in each step that is several times what the step needs to read.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "grouped"
"""``attn_implementation`` of a configuration that uses it."""

WITHOUT_PLANS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""For prefills, which come in many lengths: cuDNN, torch's first choice on Hopper, plans anew for each, some 35 ms on
an H200, in the midst of a test. Steps are of one shape, and torch's own choice. (An order of preference, which
sdpa_kernel takes too, would stay: torch 2.11 makes up its own on first use, and would have been given another back by
then.)"""


def attend(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_others: Any,
) -> tuple[Tensor, None]:
    """``query`` [batch, heads, n, width]; ``key`` and ``value`` [batch, groups, m, width] → [batch, n, heads, width].

    Args:
        attention_mask: bool [batch, 1, n, seen], which of the first ``seen`` keys are seen; None: the first n,
            causally.
    """
    groups = key.shape[1]
    if attention_mask is None:
        count = query.shape[2]
        key, value = key[:, :, :count], value[:, :, :count]
        in_kernel = query.dtype.itemsize == 2  # where the kernels without a mask know groups
        if not in_kernel:
            key, value = (each.repeat_interleave(query.shape[1] // groups, dim=1) for each in (key, value))

        with sdpa_kernel(WITHOUT_PLANS):
            mixed = scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=scaling, enable_gqa=in_kernel
            )
    else:
        # The query heads of a group are so many more queries.
        seen = attention_mask.shape[3]
        queries = torch.unflatten(query, 1, (groups, -1))
        mask = attention_mask[:, :, None].expand(-1, -1, queries.shape[2], -1, -1).flatten(2, 3)
        packed = scaled_dot_product_attention(
            queries.flatten(2, 3), key[:, :, :seen], value[:, :, :seen], attn_mask=mask, scale=scaling
        )
        mixed = torch.unflatten(packed, 2, queries.shape[2:4]).flatten(1, 2)

    return mixed.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attend)
