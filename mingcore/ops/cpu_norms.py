"""The `cpu` backend's norms, rotary embedding and routing."""

import torch
from torch import Tensor

from .. import _cpu
from .cpu_common import array, array_or_none, dense_last, rows, unfit
from .registry import register


def _matrix(x: Tensor) -> Tensor:
    """x, or where it is not contiguous x as [M, K] with a dense last dimension."""
    return x if x.is_contiguous() and x.dim() <= 5 else rows(x)


def _like(x: Tensor) -> Tensor:
    """Room for a result of x's shape, contiguous; `torch.empty` of a torch.Size takes twice as
    long, which is a tenth of a small norm."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _rms_norm_why_not(x, weight, eps):
    return unfit(("x", "weight"), (x, weight))


@register("rms_norm", "cpu", _rms_norm_why_not)
def rms_norm(x, weight, eps):
    out = _like(x)
    # copies made here must live, by name, until the kernel has read them
    x, weight = _matrix(x), weight.contiguous()
    threads = torch.get_num_threads()
    _cpu.rms_norm(array(x), None, array(weight), eps, array(_matrix(out)), None, threads)
    return out


def _add_rms_norm_why_not(x, residual, weight, eps):
    return unfit(("x", "residual", "weight"), (x, residual, weight))


@register("add_rms_norm", "cpu", _add_rms_norm_why_not)
def add_rms_norm(x, residual, weight, eps):
    out, total = _like(x), _like(x)
    x, residual, weight = _matrix(x), _matrix(residual), weight.contiguous()
    _cpu.rms_norm(
        array(x),
        array(residual),
        array(weight),
        eps,
        array(_matrix(out)),
        array(_matrix(total)),
        torch.get_num_threads(),
    )
    return out, total


def _layer_norm_why_not(x, weight, bias, eps):
    return unfit(("x", "weight", "bias"), (x, weight, bias))


@register("layer_norm", "cpu", _layer_norm_why_not)
def layer_norm(x, weight, bias, eps):
    out = _like(x)
    x, weight = _matrix(x), weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    threads = torch.get_num_threads()
    into = array(_matrix(out))
    _cpu.layer_norm(array(x), array(weight), array_or_none(bias), eps, into, threads)
    return out


def _rope_why_not(x, cos, sin, interleaved, rope_heads):
    if cos.dtype != torch.float32:
        return f"cos is {cos.dtype}; it takes float32 angles"
    return unfit(("x", "cos", "sin"), (x, cos, sin))


@register("rope", "cpu", _rope_why_not)
def rope(x, cos, sin, interleaved, rope_heads):
    out = _like(x)
    x, cos, sin = dense_last(x), dense_last(cos), dense_last(sin)
    threads = torch.get_num_threads()
    _cpu.rope(array(x), array(cos), array(sin), interleaved, rope_heads, array(out), threads)
    return out


def _qkv_rope_why_not(qkv, cos, sin, num_heads, num_kv_heads, interleaved, rope_heads):
    if cos.dtype != torch.float32:
        return f"cos is {cos.dtype}; it takes float32 angles"
    return unfit(("qkv", "cos", "sin"), (qkv, cos, sin))


@register("qkv_rope", "cpu", _qkv_rope_why_not)
def qkv_rope(qkv, cos, sin, num_heads, num_kv_heads, interleaved, rope_heads):
    B, T, width = qkv.shape
    D = width // (num_heads + 2 * num_kv_heads)
    q = qkv.new_empty((B, T, num_heads, D))
    k = qkv.new_empty((B, T, num_kv_heads, D))
    v = qkv.new_empty((B, T, num_kv_heads, D))
    qkv, cos, sin = dense_last(qkv), dense_last(cos), dense_last(sin)
    _cpu.qkv_rope(
        array(qkv),
        array(cos),
        array(sin),
        interleaved,
        rope_heads,
        array(q),
        array(k),
        array(v),
        torch.get_num_threads(),
    )
    return q, k, v


def _route_topk_why_not(logits, top_k, renormalize):
    return unfit(("logits",), (logits,))


@register("route_topk", "cpu", _route_topk_why_not)
def route_topk(logits, top_k, renormalize):
    shape = logits.shape[0], top_k
    weights, ids = torch.empty(shape, dtype=torch.float32), torch.empty(shape, dtype=torch.int32)
    threads = torch.get_num_threads()
    _cpu.route_topk(array(logits), renormalize, array(weights), array(ids), threads)
    return weights, ids
