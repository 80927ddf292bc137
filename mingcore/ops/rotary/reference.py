"""Rotary position embedding, rotate-half or interleaved pairs."""

import torch
from torch import Tensor

from .._core.invariance import by_row
from .._core.reference import wide
from . import QKV_ROPE, ROPE


@ROPE.implementation("reference")
@by_row(x=0, cos=0, sin=0)
def rope(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, rope_heads: int) -> Tensor:
    """x [B, T, Hn, D], cos and sin [1|B, T, D/2] -> [B, T, Hn, D].

    Pairs (a, b) become (a cos - b sin, b cos + a sin): a, b = x[i], x[i + D/2], or interleaved
    x[2i], x[2i+1]. Only the first `rope_heads` heads are rotated.
    """
    rotated, rest = wide(x[:, :, :rope_heads]), x[:, :, rope_heads:]
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    if interleaved:  # (a + ib)(cos + i sin)
        rotated = rotated.contiguous()
        if rotated.storage_offset() % 2:  # a complex number must begin at an even one
            rotated = rotated.clone()
        pairs = torch.view_as_complex(rotated.unflatten(-1, (-1, 2)))
        rotated = torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)
    else:
        a, b = rotated.chunk(2, dim=-1)
        rotated = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
    rotated = rotated.to(x.dtype)
    return rotated if rope_heads >= x.shape[2] else torch.cat((rotated, rest), dim=2)


@QKV_ROPE.implementation("reference")
def qkv_rope(
    qkv: Tensor, cos: Tensor, sin: Tensor, num_heads: int, num_kv_heads: int, interleaved: bool, rope_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """qkv [B, T, (Hq + 2 Hkv) D] -> rope(q) [B, T, Hq, D], rope(k) [B, T, Hkv, D], v as it is."""
    heads = (num_heads, num_kv_heads, num_kv_heads)
    q, k, v = qkv.unflatten(-1, (sum(heads), -1)).split(heads, dim=2)
    q = rope(q, cos, sin, interleaved, min(rope_heads, num_heads))
    k = rope(k, cos, sin, interleaved, min(rope_heads, num_kv_heads))
    return q, k, v.clone(memory_format=torch.contiguous_format)
