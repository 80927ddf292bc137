"""Cases of rotary embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._core.cases import Baselines, Draw, baselines_of, case
from .._core.layouts import strided

Layout = Callable[[Tensor], Tensor]


def _rope(
    d: Draw,
    B: int,
    T: int,
    Hn: int,
    D: int,
    interleaved: bool = False,
    rope_heads: int | None = None,
    per_row: bool = False,
    layout: Layout = torch.Tensor.contiguous,
) -> dict[str, Any]:
    cos, sin = d.angles(B if per_row else 1, T, D // 2)
    args: dict[str, Any] = {"x": layout(d.normal(B, T, Hn, D)), "cos": cos, "sin": sin}
    return {**args, "interleaved": interleaved, "rope_heads": rope_heads}


case("rope", "real_llm", _rope, "real", B=1, T=1, Hn=16, D=128)
case("rope", "real_flow", _rope, "real", "mid", B=2, T=11, Hn=16, D=64, interleaved=True)
case("rope", "some_heads", _rope, B=2, T=3, Hn=4, D=8, interleaved=True, rope_heads=1)
case("rope", "odd_sizes", _rope, "odd", B=3, T=5, Hn=3, D=10, per_row=True)
case("rope", "odd_interleaved", _rope, "odd", B=2, T=7, Hn=5, D=6, interleaved=True, per_row=True)
case("rope", "one", _rope, "edge", B=1, T=1, Hn=1, D=2)
case("rope", "strided", _rope, "strided", B=2, T=3, Hn=2, D=16, layout=strided)


def _qkv_rope(
    d: Draw,
    B: int,
    T: int,
    Hq: int,
    Hkv: int,
    D: int,
    interleaved: bool = False,
    rope_heads: int | None = None,
    per_row: bool = False,
    layout: Layout = torch.Tensor.contiguous,
) -> dict[str, Any]:
    cos, sin = d.angles(B if per_row else 1, T, D // 2)
    qkv = layout(d.normal(B, T, (Hq + 2 * Hkv) * D))
    args: dict[str, Any] = {"qkv": qkv, "cos": cos, "sin": sin}
    args.update(num_heads=Hq, num_kv_heads=Hkv)
    return {**args, "interleaved": interleaved, "rope_heads": rope_heads}


case("qkv_rope", "real_llm", _qkv_rope, "real", B=1, T=1, Hq=16, Hkv=4, D=128)
case("qkv_rope", "real_flow", _qkv_rope, "real", "mid", B=2, T=11, Hq=16, Hkv=16, D=64, interleaved=True)
case("qkv_rope", "real_decoder", _qkv_rope, "real", B=1, T=5, Hq=14, Hkv=2, D=64)
case("qkv_rope", "real_semantic", _qkv_rope, "real", B=1, T=5, Hq=20, Hkv=20, D=64, interleaved=True)
case("qkv_rope", "some_heads", _qkv_rope, B=2, T=3, Hq=4, Hkv=4, D=8, interleaved=True, rope_heads=2)
case("qkv_rope", "odd_sizes", _qkv_rope, "odd", B=3, T=5, Hq=6, Hkv=2, D=10, per_row=True)
case("qkv_rope", "one", _qkv_rope, "edge", B=1, T=1, Hq=1, Hkv=1, D=2)
case("qkv_rope", "strided", _qkv_rope, "strided", B=2, T=3, Hq=2, Hkv=1, D=16, layout=strided)


def _rotated(x: Tensor, angles: tuple[Tensor, ...], interleaved: bool) -> Tensor:
    if interleaved:
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * angles[0]).flatten(-2).to(x.dtype)
    cos, sin = angles
    a, b = x.chunk(2, -1)
    return (x * cos + torch.cat((-b, a), -1) * sin).to(x.dtype)


def _angles(kw: dict[str, Any]) -> tuple[Tensor, ...]:
    cos, sin = kw["cos"].unsqueeze(2), kw["sin"].unsqueeze(2)
    if kw["interleaved"]:
        return (torch.complex(cos, sin),)
    return torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)


@baselines_of("rope")
def _rope_baselines(kw: dict[str, Any]) -> Baselines:
    x, interleaved, angles = kw["x"], kw["interleaved"], _angles(kw)
    if kw["rope_heads"] is None:
        yield "complex" if interleaved else "cat", lambda: _rotated(x, angles, interleaved)


@baselines_of("qkv_rope")
def _qkv_rope_baselines(kw: dict[str, Any]) -> Baselines:
    heads, interleaved, angles = ((kw["num_heads"], kw["num_kv_heads"]), kw["interleaved"], _angles(kw))
    qkv, sizes = kw["qkv"], (sum(heads), heads[1])

    def together() -> tuple[Tensor, ...]:
        """q and k rotated in one go; all three are views."""
        qk, v = qkv.unflatten(-1, (sum(sizes), -1)).split(sizes, 2)
        return *_rotated(qk, angles, interleaved).split(heads, 2), v

    if kw["rope_heads"] is None:
        yield "complex" if interleaved else "cat", together
