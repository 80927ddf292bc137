"""The mixture of SwiGLU experts: the weighted sum of the chosen experts, plus the shared one."""

from torch import Tensor

from .._core import checks
from .._core.invariance import by_row
from .._core.packing import QUANTISED, unpack_experts
from .._core.reference import matmul, quantised_matmul, wide
from ..activation.reference import silu_mul
from ..gemm.reference import by_group, grouped_gemm
from ..routing.reference import sort_by_expert
from . import MOE_MLP


@MOE_MLP.implementation("reference")
@by_row(x=0, weights=0, ids=0)
def moe_mlp(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    weights: Tensor,
    ids: Tensor,
    shared_gate_up: Tensor | None,
    shared_down: Tensor | None,
    gate_up_scale: Tensor | None,
    down_scale: Tensor | None,
    shared_gate_up_scale: Tensor | None,
    shared_down_scale: Tensor | None,
    layout: str,
    format: str,
) -> Tensor:
    """x [T, H], gate_up [E, 2I, H], down [E, H, I], weights and ids [T, K] -> [T, H].

    out[t] = sum_k weights[t, k] * mlp_{ids[t, k]}(x[t]) + mlp_shared(x[t]), the sums in float32.
    Quantised formats have scales [E, 2I], [E, H], [2Is], [H]: weight = scale * stored.
    """
    (T, K), H = ids.shape, x.shape[1]
    if ids.is_cpu:
        _require_experts(ids, gate_up.shape[0])
    scales = (gate_up_scale, down_scale, shared_gate_up_scale, shared_down_scale)
    gate_up, down, shared_gate_up, shared_down = unpack_experts(
        gate_up, down, shared_gate_up, shared_down, layout, scales
    )
    if x.is_cpu and T == 1:
        routed = _one_token(x, (gate_up, gate_up_scale), (down, down_scale), weights, ids, format)
    else:
        rows, offsets = sort_by_expert(ids, gate_up.shape[0])
        hidden = silu_mul(_grouped(x[rows // K], gate_up, gate_up_scale, offsets, format))
        by_slot = x.new_empty(T * K, H)
        by_slot[rows] = _grouped(hidden, down, down_scale, offsets, format)
        routed = (wide(by_slot).view(T, K, H) * weights.unsqueeze(-1)).sum(dim=1)
    if shared_gate_up is not None:
        hidden = silu_mul(_product(x, shared_gate_up, shared_gate_up_scale, format))
        shared = _product(hidden, shared_down, shared_down_scale, format)
        return routed.to(x.dtype) + shared
    return routed.to(x.dtype)


def _require_experts(ids: Tensor, E: int) -> None:
    """Raises InputError for an id [T, K] outside 0..E-1, as the CPU kernel does. On a GPU ids are not looked at."""
    wrong = (ids < 0) | (ids >= E)
    if wrong.any():
        t, k = wrong.nonzero()[0].tolist()
        checks.fail("moe_mlp", "ids", f"in 0..E-1 = 0..{E - 1}", f"{ids[t, k]} at [{t}, {k}]")


Scaled = tuple[Tensor, Tensor | None]


def _one_token(x: Tensor, gate_up: Scaled, down: Scaled, weights: Tensor, ids: Tensor, format: str) -> Tensor:
    total = None
    for e, weight in zip(ids[0].tolist(), weights[0].tolist(), strict=True):
        hidden = silu_mul(_product(x, *_of(e, *gate_up), format))
        expert = wide(_product(hidden, *_of(e, *down), format)) * weight
        total = expert if total is None else total + expert
    return total


def _of(e: int, w: Tensor, scale: Tensor | None) -> Scaled:
    return w[e], None if scale is None else scale[e]


def _grouped(x: Tensor, w: Tensor, scale: Tensor | None, offsets: Tensor, format: str) -> Tensor:
    if scale is None:
        return grouped_gemm(x, w, offsets)
    return by_group(x, offsets, w.shape[1], lambda rows, e: _product(rows, *_of(e, w, scale), format))


def _product(x: Tensor, w: Tensor, scale: Tensor | None, format: str) -> Tensor:
    """x [M, K] W^T -> [M, N] in x.dtype; one matrix [N, K] is widened at a time."""
    if format not in QUANTISED:
        return matmul(x, w)
    return quantised_matmul(x, w, scale, format).to(x.dtype)
