"""The mixture of SwiGLU experts: the weighted sum of the chosen experts, plus the shared one."""

from torch import Tensor

from ..packed import unpack_experts
from ..registry import register
from .common import matmul, wide
from .grouped_gemm import grouped_gemm
from .routing import sort_by_expert
from .silu_mul import silu_mul


@register("moe_mlp", "reference")
def moe_mlp(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    weights: Tensor,
    ids: Tensor,
    shared_gate_up: Tensor | None,
    shared_down: Tensor | None,
    layout: str,
) -> Tensor:
    """x [T, H], gate_up [E, 2I, H], down [E, H, I], weights and ids [T, K] -> [T, H].

    out[t] = sum_k weights[t, k] * mlp_{ids[t, k]}(x[t]) + mlp_shared(x[t]), the sums in float32.
    """
    (T, K), H = ids.shape, x.shape[1]
    gate_up, down, shared_gate_up, shared_down = unpack_experts(
        gate_up, down, shared_gate_up, shared_down, layout
    )
    if x.is_cpu and T == 1:
        routed = _one_token(x, gate_up, down, weights, ids)
    else:
        rows, offsets = sort_by_expert(ids, gate_up.shape[0])
        hidden = silu_mul(grouped_gemm(x[rows // K], gate_up, offsets))
        by_slot = x.new_empty(T * K, H)
        by_slot[rows] = grouped_gemm(hidden, down, offsets)
        routed = (wide(by_slot).view(T, K, H) * weights.unsqueeze(-1)).sum(dim=1)
    if shared_gate_up is not None:
        shared = matmul(silu_mul(matmul(x, shared_gate_up)), shared_down)
        return routed.to(x.dtype) + shared
    return routed.to(x.dtype)


def _one_token(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
    total = None
    for e, weight in zip(ids[0].tolist(), weights[0].tolist(), strict=True):
        expert = wide(matmul(silu_mul(matmul(x, gate_up[e])), down[e])) * weight
        total = expert if total is None else total + expert
    return total
