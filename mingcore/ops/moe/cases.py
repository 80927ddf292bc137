"""Cases of routing, grouped products and the expert MLP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import ops
from .._core.cases import LARGE, Draw, case
from .._core.layouts import strided


def _ids(d: Draw, T: int, K: int, E: int, only: int | None) -> Tensor:
    """Expert ids; `only` limits the choice to so many experts, so that the others stay empty."""
    if only is None:
        return d.choices(T, K, E)
    return d.choices(1, only, E)[0][d.choices(T, K, only).long()]


def _experts(d: Draw, E: int, H: int, I: int, shared: int, format: str | None = None) -> dict[str, Any]:
    args: dict[str, Any] = {"gate_up": d.matrix(E, 2 * I, H), "down": d.matrix(E, H, I)}
    if shared:
        args["shared"] = (d.matrix(2 * shared, H), d.matrix(H, shared))
    if format:
        args["format"] = format
    return args


def _moe(
    d: Draw,
    T: int,
    K: int,
    E: int,
    H: int,
    I: int,
    shared: int = 0,
    only: int | None = None,
    layout: Callable[[Tensor], Tensor] = torch.Tensor.contiguous,
    format: str | None = None,
) -> dict[str, Any]:
    packed = _experts(d, E, H, I, shared)
    args: dict[str, Any] = {
        "x": layout(d.normal(T, H)),
        "experts": (packed["gate_up"], packed["down"]),
        "weights": d.weights(T, K),
        "ids": _ids(d, T, K, E, only),
    }
    if format:
        args["experts"] = ops.pack_experts(**packed, format=format)
    elif shared:
        args["shared"] = packed["shared"]
    return args


_REAL = {"K": 6, "E": 64, "H": 2048, "I": 1408, "shared": 2816}
_MID = {"K": 6, "E": 64, "H": 1024, "I": 704, "shared": 1408}
for _t in (1, 2, 16, 17, 32, 64, 128, 4096):
    case("moe_mlp", f"real_t{_t}", _moe, "real", LARGE, T=_t, **_REAL)
for _t in (1, 8, 32):
    case("moe_mlp", f"mid_t{_t}", _moe, "mid", LARGE, T=_t, **_MID)
case("moe_mlp", "one_token", _moe, "edge", T=1, K=2, E=8, H=64, I=48, shared=48)
case("moe_mlp", "no_shared", _moe, T=9, K=2, E=8, H=64, I=48)
case("moe_mlp", "odd_sizes", _moe, "odd", T=7, K=3, E=5, H=37, I=29, shared=43)
case("moe_mlp", "t16", _moe, T=16, K=2, E=4, H=64, I=32, shared=64)
case("moe_mlp", "t17", _moe, T=17, K=2, E=4, H=64, I=32, shared=64)
case("moe_mlp", "t63", _moe, T=63, K=3, E=8, H=32, I=48)
case("moe_mlp", "t64", _moe, T=64, K=3, E=8, H=32, I=48, shared=32)
case("moe_mlp", "t65", _moe, T=65, K=2, E=5, H=136, I=72, shared=40)
case("moe_mlp", "t200_skewed", _moe, "edge", T=200, K=1, E=7, H=72, I=24, only=2)
case("moe_mlp", "all_to_one", _moe, "edge", T=20, K=1, E=6, H=32, I=24, only=1)
case("moe_mlp", "empty_groups", _moe, "edge", T=6, K=2, E=32, H=32, I=24, shared=24, only=3)
case("moe_mlp", "one_expert", _moe, "edge", T=3, K=1, E=1, H=16, I=8)
case("moe_mlp", "no_tokens", _moe, "edge", T=0, K=2, E=4, H=16, I=8, shared=8)
case("moe_mlp", "strided", _moe, "strided", T=5, K=2, E=4, H=40, I=24, layout=strided)
for _format in ("int8", "int8_dyn", "fp8"):
    _f = {"format": _format}
    case("moe_mlp", f"{_format}_one_token", _moe, T=1, K=2, E=8, H=64, I=48, shared=64, **_f)
    case("moe_mlp", f"{_format}_odd_sizes", _moe, T=7, K=3, E=5, H=37, I=29, shared=43, **_f)
    case("moe_mlp", f"{_format}_t16", _moe, T=16, K=2, E=4, H=96, I=32, shared=64, **_f)
    case("moe_mlp", f"{_format}_t65", _moe, T=65, K=3, E=6, H=128, I=64, **_f)
    case("moe_mlp", f"{_format}_no_tokens", _moe, "edge", T=0, K=2, E=4, H=16, I=8, **_f)
    case("moe_mlp", f"{_format}_strided", _moe, T=5, K=2, E=4, H=40, I=24, layout=strided, **_f)

case("pack_experts", "even", _experts, E=4, H=64, I=32, shared=64)
case("pack_experts", "no_shared", _experts, E=4, H=64, I=32, shared=0)
case("pack_experts", "odd_sizes", _experts, "odd", E=3, H=37, I=29, shared=43)
case("pack_experts", "one_expert", _experts, "edge", E=1, H=8, I=4, shared=4)
for _format in ("int8", "int8_dyn", "fp8"):
    case("pack_experts", _format, _experts, "odd", E=3, H=37, I=29, shared=43, format=_format)
