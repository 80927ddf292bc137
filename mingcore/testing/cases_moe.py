"""Cases of routing, grouped products and the expert MLP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import ops
from .cases import LARGE, Draw, case
from .layouts import strided


def _logits(
    d: Draw, T: int, E: int, K: int, ties: bool = False, renormalize: bool = True
) -> dict[str, Any]:
    logits = d.normal(T, E, scale=2.0)
    if ties:
        logits = logits.round()
    return {"logits": logits, "top_k": K, "renormalize": renormalize}


case("route_topk", "real_t1", _logits, "real", "mid", T=1, E=64, K=6)
case("route_topk", "real_t128", _logits, "real", T=128, E=64, K=6)
case("route_topk", "ties", _logits, T=40, E=16, K=5, ties=True)
case("route_topk", "not_renormalized", _logits, T=9, E=8, K=2, renormalize=False)
case("route_topk", "odd_sizes", _logits, "odd", T=7, E=13, K=3)
case("route_topk", "all_experts", _logits, "edge", T=3, E=4, K=4)
case("route_topk", "one_expert", _logits, "edge", T=2, E=1, K=1)
case("route_topk", "no_tokens", _logits, "edge", T=0, E=8, K=2)


def _ids(d: Draw, T: int, K: int, E: int, only: int | None) -> Tensor:
    """Expert ids; `only` limits the choice to so many experts, so that the others stay empty."""
    if only is None:
        return d.choices(T, K, E)
    return d.choices(1, only, E)[0][d.choices(T, K, only).long()]


def _sort(d: Draw, T: int, K: int, E: int, only: int | None = None) -> dict[str, Any]:
    return {"ids": _ids(d, T, K, E, only), "num_experts": E}


case("sort_by_expert", "real_t1", _sort, "real", "mid", T=1, K=6, E=64)
case("sort_by_expert", "real_t4096", _sort, "real", T=4096, K=6, E=64)
case("sort_by_expert", "odd_sizes", _sort, "odd", T=17, K=3, E=13)
case("sort_by_expert", "all_to_one", _sort, "edge", T=33, K=1, E=5, only=1)
case("sort_by_expert", "empty_groups", _sort, "edge", T=9, K=2, E=40, only=3)
case("sort_by_expert", "one_expert", _sort, "edge", T=4, K=1, E=1)
case("sort_by_expert", "no_tokens", _sort, "edge", T=0, K=2, E=4)


def _grouped(
    d: Draw,
    sizes: tuple[int, ...],
    K: int,
    N: int,
    layout: Callable[[Tensor], Tensor] = torch.Tensor.contiguous,
) -> dict[str, Any]:
    ends = torch.tensor((0, *sizes), device=d.device).cumsum(0).to(torch.int32)
    x = layout(d.normal(sum(sizes), K))
    return {"x": x, "w": d.matrix(len(sizes), N, K), "offsets": ends}


case("grouped_gemm", "even", _grouped, sizes=(8, 8, 8, 8), K=64, N=48)
case("grouped_gemm", "odd_sizes", _grouped, "odd", sizes=(3, 1, 7, 2, 5), K=37, N=29)
case("grouped_gemm", "empty_groups", _grouped, "edge", sizes=(0, 4, 0, 0, 9, 0), K=32, N=24)
case("grouped_gemm", "all_to_one", _grouped, "edge", sizes=(0, 0, 21, 0), K=32, N=24)
case("grouped_gemm", "one_row", _grouped, "edge", sizes=(0, 1, 0), K=16, N=8)
case("grouped_gemm", "one_group", _grouped, "edge", sizes=(70,), K=48, N=40)
case("grouped_gemm", "no_rows", _grouped, "edge", sizes=(0, 0), K=16, N=8)
case("grouped_gemm", "strided", _grouped, "strided", sizes=(5, 6), K=24, N=16, layout=strided)
case("grouped_gemm", "mid", _grouped, "mid", LARGE, sizes=(1, 2) * 32, K=1024, N=1408)


def _experts(
    d: Draw, E: int, H: int, I: int, shared: int, format: str | None = None
) -> dict[str, Any]:
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
