"""KV cache options for long audio, which depart from the reference: a sliding window, int8.

window: the newest so many tokens are seen, in a ring of slots, so memory is constant. int8: keys
and values with a scale per token and head, a quarter of float32. By default neither: every key is
kept as it is (`KVState`). `mingcore.precision.measure_context` says what they cost.

int8: stored = round(x * 127 / max|x|) over a head's D elements, scale = max|x| / 127, by
`quantise_activations`; `ops.attention_decode` reads it as it is. One layer of the released size (20
heads of 64, 5 queries) on two cores of an AMD EPYC takes 0.62 times as long as over float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .. import ops
from ..errors import InputError
from ..ops._core.packing import quantise_activations
from .state import KVState

FORMATS = ("int8",)


class ContextCache(NamedTuple):
    """One layer's KV cache: keys, values [B,S,Hkv,D], scales [B,S,Hkv,1] if they are int8, window."""

    keys: Tensor
    values: Tensor
    key_scale: Tensor | None
    value_scale: Tensor | None
    window: int | None

    def write_(self, k: Tensor, v: Tensor, positions: Tensor) -> None:
        """k, v [B,T,Hkv,D] into slots positions mod S; a negative position is skipped."""
        if self.key_scale is None:
            ops.kv_write_(self.keys, self.values, k, v, positions)
            return
        (k, k_scale), (v, v_scale) = _quantised(k), _quantised(v)
        ops.kv_write_(_words(self.keys), _words(self.values), _words(k), _words(v), positions)
        ops.kv_write_(self.key_scale, self.value_scale, k_scale, v_scale, positions)

    def attend(self, q: Tensor, positions: Tensor) -> Tensor:
        """`ops.attention_decode` over these slots: q [B,T,Hq,D] -> [B,T,Hq,D]."""
        scales = {"k_scale": self.key_scale, "v_scale": self.value_scale}
        cache = (self.keys, self.values)
        return ops.attention_decode(q, *cache, positions, window=self.window, **scales)


def _quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    stored, scale = quantise_activations(x.reshape(-1, x.shape[-1]))
    return stored.view(x.shape), scale.view(*x.shape[:-1], 1)


def _words(x: Tensor) -> Tensor:
    """Four int8 reinterpreted as one float32: `kv_write_` copies bits, whatever they mean."""
    return x.view(torch.float32)


@dataclass
class ContextState(KVState):
    """A `KVState` with a window on every layer, or 8-bit keys and values, or both."""

    key_scales: list[Tensor] | None = None
    value_scales: list[Tensor] | None = None

    @classmethod
    def start(
        cls,
        batch: int,
        capacity: int,
        layers: int,
        heads: int,
        head_dim: int,
        *,
        window: int | None,
        format: str | None,
        block: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> ContextState:
        """`capacity` tokens, where there is no window; at most `block` tokens a step."""
        if format is not None and format not in FORMATS:
            raise InputError(f"context: format must be None or int8, got {format!r}")
        if window is not None and window < 1:
            raise InputError(f"context: window must be at least one frame, got {window}")
        if format is not None and head_dim % 4:
            raise InputError(f"context: int8 needs heads of a multiple of 4, got {head_dim}")
        kinds = {"block": min(block, capacity), "device": device}
        made = cls.create(
            batch, capacity, (window,) * layers, heads, head_dim, dtype=dtype if format is None else torch.int8, **kinds
        )
        if format is not None:
            made.key_scales, made.value_scales = (
                [torch.zeros(*t.shape[:3], 1, dtype=torch.float32, device=device) for t in side]
                for side in (made.keys, made.values)
            )
        return made

    def _caches(self) -> Sequence[list[Tensor]]:
        scales = () if self.key_scales is None else (self.key_scales, self.value_scales)
        return self.keys, self.values, *scales

    def _view(self, layer: int, shown: int) -> ContextCache:
        window = self.windows[layer]
        caches = [cache[layer] for cache in self._caches()]
        if window is None:
            caches = [t[:, :shown] for t in caches]
        return ContextCache(*caches, *(None,) * (4 - len(caches)), window)

    def rows(self, start: int, stop: int) -> KVState:
        raise InputError("context: requests that share a batch keep every key as it is")
