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

_CONV_SIZES = "int kernel, int stride, int dilation, int groups"
_CONV_OWN = {"": "int left_pad, bool replicate", "_transpose": "int flush"}
_CONV_ACTS = (
    "str before, Tensor? before_alpha, Tensor? before_gain, "
    "str after, Tensor? after_alpha, Tensor? after_gain, str layout, int n"
)
_OVERLAP_OUT = "Tensor(a!) out, Tensor(b!) numerator, Tensor(c!) lengths, Tensor(d!) emitted"
SCHEMAS = {
    "linear": "Tensor x, Tensor weight, Tensor? bias, Tensor? residual, str activation, "
    "str layout, int n, Tensor? scale, str format -> Tensor",
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
    "attention_prefill": "Tensor q, Tensor k, Tensor v, bool causal, int window, float scale -> Tensor",
    "attention_decode": "Tensor q, Tensor k_cache, Tensor v_cache, Tensor positions, int window, "
    "float scale, Tensor? k_scale, Tensor? v_scale -> Tensor",
    "kv_write_": "Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor k, Tensor v, Tensor positions -> ()",
    "flow_step": "Tensor x, Tensor v_cond, Tensor? v_null, float dt, Tensor guidance, "
    "Tensor? noise, Tensor noise_scale -> Tensor",
    "flow_step_": "Tensor(a!) x, Tensor v_cond, Tensor? v_null, float dt, Tensor guidance, "
    "Tensor? noise, Tensor noise_scale -> ()",
    "flow_sample": "Tensor condition, Tensor history, Tensor noise, Tensor guidance, Tensor times, "
    "Tensor dt, Tensor noise_scale, bool[] advance, Tensor cos, Tensor sin, Tensor[] matrices, "
    "Tensor[] biases, Tensor[] norms, Tensor[] scales, int heads, int? rope_heads, bool guided, "
    "str layout, str format -> Tensor",
    **{
        f"causal_conv{kind}1d": f"Tensor x, Tensor weight, Tensor? bias, Tensor? residual, "
        f"Tensor? context, Tensor? lengths, Tensor? valid, Tensor? ended, bool last, "
        f"SymInt outputs, {_CONV_SIZES}, {own}, {_CONV_ACTS} -> (Tensor, Tensor, Tensor, Tensor)"
        for kind, own in _CONV_OWN.items()
    },
    **{
        f"causal_conv{kind}1d_": f"Tensor x, Tensor(a!) out, Tensor(b!) context, "
        f"Tensor(c!) lengths, Tensor(d!) emitted, Tensor weight, Tensor? bias, Tensor? residual, "
        f"Tensor? valid, Tensor? ended, bool last, {_CONV_SIZES}, {own}, {_CONV_ACTS} -> ()"
        for kind, own in _CONV_OWN.items()
    },
    "frame_embed": "Tensor samples, Tensor weight, int hop, str layout, int n -> Tensor",
    "overlap_add": "Tensor frames, Tensor window, int hop, Tensor? numerator, Tensor? lengths, "
    "Tensor? valid, Tensor? ended, bool last, SymInt outputs -> (Tensor, Tensor, Tensor, Tensor)",
    "overlap_add_": f"Tensor frames, {_OVERLAP_OUT}, Tensor window, int hop, Tensor? valid, "
    "Tensor? ended, bool last -> ()",
    "spectrum_head": "Tensor hidden, Tensor weight, Tensor? bias, Tensor window, int hop, "
    "Tensor? numerator, Tensor? lengths, Tensor? valid, Tensor? ended, bool last, SymInt outputs, "
    "str layout, int n -> (Tensor, Tensor, Tensor, Tensor)",
    "spectrum_head_": f"Tensor hidden, {_OVERLAP_OUT}, Tensor weight, Tensor? bias, Tensor window, "
    "int hop, Tensor? valid, Tensor? ended, bool last, str layout, int n -> ()",
}


def _empty(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    return like.new_empty(shape, dtype=dtype or like.dtype)


def _accumulator(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _linear(x, weight, bias, residual, activation, layout, n, scale, format):
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


def _causal_conv1d(x, *args):
    kernel, _, dilation = args[9:12]
    return _conv_outputs(x, args[8], args[-1], (kernel - 1) * dilation)


def _causal_conv_transpose1d(x, *args):
    kernel, stride, dilation = args[9:12]
    return _conv_outputs(x, args[8], args[-1], (kernel - 1) * dilation // stride)


def _conv_outputs(x, outputs, channels, width):
    B, C, _ = x.shape
    lengths, emitted = (_empty(x, B, dtype=torch.int64) for _ in range(2))
    return _empty(x, B, channels, outputs), _empty(x, B, C, width), lengths, emitted


def _overlap_add(frames, window, hop, *args):
    return _overlap_outputs(frames, args[5], window.shape[0] - hop)


def _overlap_outputs(like, outputs, carried):
    B, dtype = like.shape[0], _accumulator(like)
    samples, numerator = (_empty(like, B, width, dtype=dtype) for width in (outputs, carried))
    lengths, emitted = (_empty(like, B, dtype=torch.int64) for _ in range(2))
    return samples, numerator, lengths, emitted


def _frame_embed(samples, weight, hop, layout, n):
    return _empty(samples, samples.shape[0], (samples.shape[1] + hop - 1) // hop, n)


def _spectrum_head(hidden, weight, bias, window, hop, *args):
    return _overlap_outputs(hidden, args[5], window.shape[0] - hop)


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
    "causal_conv1d": _causal_conv1d,
    "causal_conv1d_": _nothing,
    "causal_conv_transpose1d": _causal_conv_transpose1d,
    "causal_conv_transpose1d_": _nothing,
    "frame_embed": _frame_embed,
    "overlap_add": _overlap_add,
    "overlap_add_": _nothing,
    "spectrum_head": _spectrum_head,
    "spectrum_head_": _nothing,
}


def _kinds(op: str) -> list[str]:
    """The types of an op's arguments."""
    return [each.split()[0] for each in SCHEMAS[op].rsplit(" -> ", 1)[0].split(", ")]


def _at_run_time(op: str) -> Callable:
    lists = [i for i, kind in enumerate(_kinds(op)) if kind == "Tensor[]"]

    def run(*args, backend=""):
        if lists and any(args[i] is None for i in lists):  # AOTInductor's word for an empty list
            args = tuple([] if i in lists and a is None else a for i, a in enumerate(args))
        return registry.select(op, args, backend or None)(*args)

    return run


def _fake(op: str) -> Callable:
    return lambda *args, backend="": FAKES[op](*args)


for _op, _schema in SCHEMAS.items():
    _arguments, _returns = _schema.rsplit(" -> ", 1)
    torch.library.define(
        f"mingcore::{_op}", f'({_arguments}, *, str backend="") -> {_returns}', tags=(torch.Tag.pt2_compliant_tag,)
    )
    torch.library.impl(f"mingcore::{_op}", "CompositeExplicitAutograd", _at_run_time(_op))
    torch.library.register_fake(f"mingcore::{_op}", _fake(_op))
