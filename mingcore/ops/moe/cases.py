"""Cases, cost and baselines of the expert MLP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._core.cases import LARGE, Baselines, Cost, Draw, baselines_of, case, cost_of
from .._core.layouts import strided, transposed
from ..gemm.cases import takes_grouped_mm
from ..routing.cases import expert_ids
from . import pack_experts


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
    routing_layout: Callable[[Tensor], Tensor] = torch.Tensor.contiguous,
    format: str | None = None,
) -> dict[str, Any]:
    packed = _experts(d, E, H, I, shared)
    args: dict[str, Any] = {
        "x": layout(d.normal(T, H)),
        "experts": (packed["gate_up"], packed["down"]),
        "weights": routing_layout(d.weights(T, K)),
        "ids": routing_layout(expert_ids(d, T, K, E, only)),
    }
    if format:
        args["experts"] = pack_experts(**packed, format=format)
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
case("moe_mlp", "strided_routing", _moe, "strided", T=5, K=2, E=4, H=40, I=24, routing_layout=transposed)
case("moe_mlp", "strided_routing_t65", _moe, "strided", T=65, K=2, E=4, H=40, I=24, routing_layout=strided)
for _format in ("int8", "int8_dyn", "fp8"):
    _f = {"format": _format}
    case("moe_mlp", f"{_format}_one_token", _moe, T=1, K=2, E=8, H=64, I=48, shared=64, **_f)
    case("moe_mlp", f"{_format}_odd_sizes", _moe, T=7, K=3, E=5, H=37, I=29, shared=43, **_f)
    case("moe_mlp", f"{_format}_t16", _moe, T=16, K=2, E=4, H=96, I=32, shared=64, **_f)
    case("moe_mlp", f"{_format}_t65", _moe, T=65, K=3, E=6, H=128, I=64, **_f)
    case("moe_mlp", f"{_format}_no_tokens", _moe, "edge", T=0, K=2, E=4, H=16, I=8, **_f)
    case("moe_mlp", f"{_format}_strided", _moe, T=5, K=2, E=4, H=40, I=24, layout=strided, **_f)


def _balanced(d: Draw, T: int, K: int, E: int) -> Tensor:
    """Every expert gets as many slots as any other, or one more."""
    order = d.uniform(E).argsort()
    return order[torch.arange(T * K, device=d.device) % E].view(T, K)


def _zipf(d: Draw, T: int, K: int, E: int) -> Tensor:
    """The r-th most popular expert is drawn with probability in proportion to 1/r."""
    popularity = 1 / torch.arange(1.0, E + 1, device=d.device)
    chosen = torch.multinomial(popularity.expand(T, -1), K, generator=d.generator)
    return d.uniform(E).argsort()[chosen]


def _one(d: Draw, T: int, K: int, E: int) -> Tensor:
    """Every token chooses the same K experts."""
    return d.uniform(E).argsort()[:K].expand(T, -1)


# the sweep of `bench/run.py --sweep moe`: every size, routing and number of tokens
SIZES = {"real": _REAL, "mid": _MID, "tiny": {"K": 2, "E": 8, "H": 64, "I": 48, "shared": 96}}
ROUTINGS = {"balanced": _balanced, "zipf": _zipf, "one": _one}
SWEEP_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 512, 4096)


def routed(d: Draw, T: int, K: int, E: int, H: int, routing: str) -> dict[str, Tensor]:
    """x, weights and ids of one of ROUTINGS."""
    ids = ROUTINGS[routing](d, T, K, E).to(torch.int32).contiguous()
    return {"x": d.normal(T, H), "weights": d.uniform(T, K).softmax(1), "ids": ids}


case("pack_experts", "even", _experts, E=4, H=64, I=32, shared=64)
case("pack_experts", "no_shared", _experts, E=4, H=64, I=32, shared=0)
case("pack_experts", "odd_sizes", _experts, "odd", E=3, H=37, I=29, shared=43)
case("pack_experts", "one_expert", _experts, "edge", E=1, H=8, I=4, shared=4)
for _format in ("int8", "int8_dyn", "fp8"):
    case("pack_experts", _format, _experts, "odd", E=3, H=37, I=29, shared=43, format=_format)


@cost_of("moe_mlp")
def _moe_cost(kwargs: dict[str, Any], written: int, outputs: tuple[Tensor, ...]) -> Cost:
    experts, (T, K) = kwargs["experts"], kwargs["ids"].shape
    if isinstance(experts, tuple):
        routed, shared = experts, kwargs.get("shared") or ()
    else:
        routed = (*experts.matrices[:2], *(s for s in experts.scales[:2] if s is not None))
        shared = (*experts.matrices[2:], *experts.scales[2:])
        shared = tuple(t for t in shared if t is not None)
    chosen = kwargs["ids"].unique().numel()
    small = kwargs["x"].nbytes + kwargs["weights"].nbytes + kwargs["ids"].nbytes
    weights = chosen * sum(t[0].nbytes for t in routed) + sum(t.nbytes for t in shared)
    per_token = K * sum(t[0].numel() for t in routed[:2]) + sum(t.numel() for t in shared[:2])
    return Cost(weights + small + written, 2 * T * per_token)


GATHERED_BYTES = 1 << 30  # of weights, or of hidden values, that bmm and einsum may make
EINSUM_TOKENS = 64  # every expert computes every token: wasteful early


@baselines_of("moe_mlp")
def _baselines(kw: dict[str, Any]) -> Baselines:
    """All gather, multiply, and sum the slots of a token in float32."""
    yield "loop over the experts hit", loop_over_hit(kw)
    if takes_grouped_mm(kw["x"], *kw["experts"]):
        yield "F.grouped_mm", grouped_mm(kw)


@baselines_of("moe_mlp", more=True)
def _more_baselines(kw: dict[str, Any]) -> Baselines:
    yield "loop over all experts", loop_over_all(kw)
    T, K = kw["ids"].shape
    gate_up, down = kw["experts"]
    if T * K * (gate_up[0].nbytes + down[0].nbytes) <= GATHERED_BYTES:
        yield "bmm of gathered experts", bmm(kw)
    if T <= EINSUM_TOKENS and T * gate_up[:, :, 0].nbytes <= GATHERED_BYTES:
        yield "einsum over all experts", einsum(kw)


def _swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


def _mlp(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    return F.linear(_swiglu(F.linear(x, gate_up)), down)


def _finish(kw: dict[str, Any], slots: Tensor) -> Tensor:
    """Slots [T*K, H] to [T, H]: weighted, summed in float32, plus the shared expert."""
    x, ids, shared = kw["x"], kw["ids"], kw.get("shared")
    y = (slots.view(*ids.shape, -1).float() * kw["weights"][..., None]).sum(1).to(x.dtype)
    return y if shared is None else y + _mlp(x, *shared)


def loop_over_hit(kw: dict[str, Any]) -> Callable[[], Tensor]:
    """Rows sorted by expert, one MLP per expert that has any; counts go to the host."""
    x, ids, (gate_up, down) = kw["x"], kw["ids"], kw["experts"]

    def run() -> Tensor:
        order = ids.flatten().argsort(stable=True)
        counts = ids.flatten().bincount(minlength=len(gate_up)).tolist()
        parts, start = [], 0
        gathered = x[order // ids.shape[1]]
        for e, count in enumerate(counts):
            if count:
                parts.append(_mlp(gathered[start : start + count], gate_up[e], down[e]))
            start += count
        slots = torch.empty_like(gathered)
        slots[order] = torch.cat(parts)
        return _finish(kw, slots)

    return run


def loop_over_all(kw: dict[str, Any]) -> Callable[[], Tensor]:
    """One mask, gather, MLP and scatter per expert, whether tokens chose it or not."""
    x, ids, weights, shared = kw["x"], kw["ids"], kw["weights"], kw.get("shared")
    gate_up, down = kw["experts"]

    def run() -> Tensor:
        total = torch.zeros(x.shape, device=x.device)
        for e in range(len(gate_up)):
            token, slot = torch.where(ids == e)
            rows = _mlp(x[token], gate_up[e], down[e]).float()
            total.index_add_(0, token, rows * weights[token, slot, None])
        y = total.to(x.dtype)
        return y if shared is None else y + _mlp(x, *shared)

    return run


def grouped_mm(kw: dict[str, Any]) -> Callable[[], Tensor]:
    """Two grouped products of the rows sorted by expert; nothing goes to the host."""
    x, ids, (gate_up, down) = kw["x"], kw["ids"], kw["experts"]
    w1, w2 = gate_up.transpose(1, 2), down.transpose(1, 2)

    def run() -> Tensor:
        order = ids.flatten().argsort(stable=True)
        chosen = ids.flatten().long()
        counts = torch.zeros(len(gate_up), dtype=torch.int32, device=x.device)
        ends = counts.scatter_add_(0, chosen, torch.ones_like(chosen, dtype=torch.int32))
        ends = ends.cumsum(0).to(torch.int32)
        hidden = _swiglu(F.grouped_mm(x[order // ids.shape[1]], w1, offs=ends))
        slots = torch.empty(len(order), x.shape[1], dtype=x.dtype, device=x.device)
        slots[order] = F.grouped_mm(hidden, w2, offs=ends)
        return _finish(kw, slots)

    return run


def bmm(kw: dict[str, Any]) -> Callable[[], Tensor]:
    """The chosen experts' matrices copied side by side, one batched product each."""
    x, ids, (gate_up, down) = kw["x"], kw["ids"].long(), kw["experts"]

    def run() -> Tensor:
        chosen = ids.flatten()
        rows = x.repeat_interleave(ids.shape[1], 0).unsqueeze(2)  # [T*K, H, 1]
        hidden = _swiglu(torch.bmm(gate_up[chosen], rows).squeeze(2))
        return _finish(kw, torch.bmm(down[chosen], hidden.unsqueeze(2)).squeeze(2))

    return run


def einsum(kw: dict[str, Any]) -> Callable[[], Tensor]:
    """Every expert computes every token; the chosen ones are kept."""
    x, ids, (gate_up, down) = kw["x"], kw["ids"].long(), kw["experts"]

    def run() -> Tensor:
        hidden = _swiglu(torch.einsum("th,enh->etn", x, gate_up))
        every = torch.einsum("eti,ehi->teh", hidden, down)
        slots = every.gather(1, ids[..., None].expand(-1, -1, x.shape[1]))
        return _finish(kw, slots.flatten(0, 1))

    return run
