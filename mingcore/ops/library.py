"""The ops as PyTorch sees them: `torch.ops.mingcore.<op>`, for `torch.compile` and `torch.export`.

A schema holds tensors and scalars only; its positional arguments are the *flat arguments* that
every backend function and `why_not` takes. `backend` names a backend, "" leaves the choice to the
time of the call. Fakes give shapes and types; outputs are contiguous and never alias an input.
In-place ops end in `_`, declare what they change and return nothing.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from . import registry

SCHEMAS = {
    "linear": "Tensor x, Tensor weight, Tensor? bias, Tensor? residual, str activation, "
    "str layout, int n -> Tensor",
    "silu_mul": "Tensor gate_up -> Tensor",
    "rms_norm": "Tensor x, Tensor weight, float eps -> Tensor",
    "add_rms_norm": "Tensor x, Tensor residual, Tensor weight, float eps -> (Tensor, Tensor)",
    "layer_norm": "Tensor x, Tensor weight, Tensor? bias, float eps -> Tensor",
    "rope": "Tensor x, Tensor cos, Tensor sin, bool interleaved, int rope_heads -> Tensor",
    "qkv_rope": "Tensor qkv, Tensor cos, Tensor sin, int num_heads, int num_kv_heads, "
    "bool interleaved, int rope_heads -> (Tensor, Tensor, Tensor)",
    "route_topk": "Tensor logits, int top_k, bool renormalize -> (Tensor, Tensor)",
    "sort_by_expert": "Tensor ids, int num_experts -> (Tensor, Tensor)",
    "grouped_gemm": "Tensor x, Tensor w, Tensor offsets -> Tensor",
    "moe_mlp": "Tensor x, Tensor gate_up, Tensor down, Tensor weights, Tensor ids, "
    "Tensor? shared_gate_up, Tensor? shared_down, Tensor? gate_up_scale, Tensor? down_scale, "
    "Tensor? shared_gate_up_scale, Tensor? shared_down_scale, str layout, str format -> Tensor",
    "attention_prefill": "Tensor q, Tensor k, Tensor v, bool causal, int window, float scale "
    "-> Tensor",
    "attention_decode": "Tensor q, Tensor k_cache, Tensor v_cache, Tensor positions, int window, "
    "float scale -> Tensor",
    "kv_write_": "Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor k, Tensor v, Tensor positions "
    "-> ()",
    "flow_step": "Tensor x, Tensor v_cond, Tensor? v_null, float dt, Tensor guidance, "
    "Tensor? noise, Tensor noise_scale -> Tensor",
    "flow_step_": "Tensor(a!) x, Tensor v_cond, Tensor? v_null, float dt, Tensor guidance, "
    "Tensor? noise, Tensor noise_scale -> ()",
    "flow_sample": "Tensor condition, Tensor history, Tensor noise, Tensor guidance, Tensor times, "
    "Tensor dt, Tensor noise_scale, bool[] advance, Tensor cos, Tensor sin, Tensor[] matrices, "
    "Tensor[] biases, Tensor[] norms, Tensor[] scales, int heads, int? rope_heads, bool guided, "
    "str layout, str format -> Tensor",
    "frame_embed": "Tensor samples, Tensor weight, int hop, str layout, int n -> Tensor",
    "overlap_add": "Tensor frames, Tensor window, int hop, Tensor? numerator, Tensor? envelope, "
    "SymInt skip, bool last -> (Tensor, Tensor, Tensor)",
    "spectrum_head": "Tensor hidden, Tensor weight, Tensor? bias, Tensor window, int hop, "
    "Tensor? numerator, Tensor? envelope, SymInt skip, bool last, str layout, int n "
    "-> (Tensor, Tensor, Tensor)",
}


def _empty(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    return like.new_empty(shape, dtype=dtype or like.dtype)


def _accumulator(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _linear(x, weight, bias, residual, activation, layout, n):
    return _empty(x, *x.shape[:-1], n // 2 if activation == "swiglu" else n)


def _silu_mul(gate_up):
    return _empty(gate_up, *gate_up.shape[:-1], gate_up.shape[-1] // 2)


def _same(x, *_):
    return _empty(x, *x.shape)


def _qkv_rope(qkv, cos, sin, num_heads, num_kv_heads, interleaved, rope_heads):
    B, T, width = qkv.shape
    dim = width // (num_heads + 2 * num_kv_heads)
    return tuple(_empty(qkv, B, T, n, dim) for n in (num_heads, num_kv_heads, num_kv_heads))


def _route_topk(logits, top_k, renormalize):
    shape = (logits.shape[0], top_k)
    return _empty(logits, *shape, dtype=torch.float32), _empty(logits, *shape, dtype=torch.int32)


def _sort_by_expert(ids, num_experts):
    rows = _empty(ids, ids.shape[0] * ids.shape[1], dtype=torch.int32)
    return rows, _empty(ids, num_experts + 1, dtype=torch.int32)


def _grouped_gemm(x, w, offsets):
    return _empty(x, x.shape[0], w.shape[1])


def _overlap_add(frames, window, hop, numerator, envelope, skip, last):
    B, T, size = frames.shape
    return _overlap_outputs(frames, B, T, size, hop, skip, last)


def _overlap_outputs(like, B, T, size, hop, skip, last):
    carried = size - hop
    end = T * hop + (carried - carried // 2 if last else 0)
    length = torch.sym_max(end - skip, 0)
    dtype = _accumulator(like)
    shapes = ((B, length), (B, carried), (carried,))
    return tuple(_empty(like, *shape, dtype=dtype) for shape in shapes)


def _frame_embed(samples, weight, hop, layout, n):
    return _empty(samples, samples.shape[0], (samples.shape[1] + hop - 1) // hop, n)


def _spectrum_head(hidden, weight, bias, window, hop, numerator, envelope, skip, last, layout, n):
    B, T, _ = hidden.shape
    return _overlap_outputs(hidden, B, T, window.shape[0], hop, skip, last)


def _flow_sample(condition, history, noise, *_):
    return _empty(noise, *noise.shape[1:])


def _nothing(*_):
    return None


FAKES: dict[str, Callable] = {
    "linear": _linear,
    "silu_mul": _silu_mul,
    "rms_norm": _same,
    "add_rms_norm": lambda x, *_: (_same(x), _same(x)),
    "layer_norm": _same,
    "rope": _same,
    "qkv_rope": _qkv_rope,
    "route_topk": _route_topk,
    "sort_by_expert": _sort_by_expert,
    "grouped_gemm": _grouped_gemm,
    "moe_mlp": _same,
    "attention_prefill": _same,
    "attention_decode": _same,
    "kv_write_": _nothing,
    "flow_step": _same,
    "flow_step_": _nothing,
    "flow_sample": _flow_sample,
    "frame_embed": _frame_embed,
    "overlap_add": _overlap_add,
    "spectrum_head": _spectrum_head,
}


def _at_run_time(op: str) -> Callable:
    def run(*args, backend=""):
        return registry.select(op, args, backend or None)(*args)

    return run


def _fake(op: str) -> Callable:
    return lambda *args, backend="": FAKES[op](*args)


for _op, _schema in SCHEMAS.items():
    _arguments, _returns = _schema.rsplit(" -> ", 1)
    torch.library.define(
        f"mingcore::{_op}",
        f'({_arguments}, *, str backend="") -> {_returns}',
        tags=(torch.Tag.pt2_compliant_tag,),
    )
    torch.library.impl(f"mingcore::{_op}", "CompositeExplicitAutograd", _at_run_time(_op))
    torch.library.register_fake(f"mingcore::{_op}", _fake(_op))
