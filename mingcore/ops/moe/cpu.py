"""moe_mlp on the `cpu` backend: one native call, from routing indices to the result."""

import torch

from ... import _cpu
from .._core import checks
from .._core.cpu import array, array_or_none, rows, unfit
from .._core.invariance import is_batch_invariant
from .._core.packing import CPU_FORMATS
from .._core.registry import register

_WEIGHTS = ("gate_up", "down", "shared_gate_up", "shared_down")
_STORED = {"int8": torch.int8, "int8_dyn": torch.uint8}  # in panels
_LARGEST = 1 << 17  # columns that int32 sums of quads can take
_FEW = 63  # tokens in bfloat16 that every CPU multiplies alike (csrc/cpu/moe/moe_mlp.cpp)


def _why_not(x, gate_up, down, weights, ids, shared_gate_up, shared_down, *rest):
    *scales, layout, format = rest
    if format not in CPU_FORMATS:
        return f"the experts are {format}; it takes {', '.join(CPU_FORMATS)}"
    if format in _STORED:
        if layout != "panels" or gate_up.dtype != _STORED[format]:
            return f"the {format} experts are {gate_up.dtype} in {layout}; it takes panels"
        width = scales[0].shape[1] // 2
        if format == "int8_dyn" and max(x.shape[1], width) > _LARGEST:
            return f"H is {x.shape[1]} and I {width}; in int8_dyn it takes up to {_LARGEST}"
        if any(s is not None and (s.dtype, s.stride(-1)) != (torch.float32, 1) for s in scales):
            return "a scale is not dense float32"
    if x.shape[1] == 0 or down.shape[0] == 0 or 0 in down.shape:
        return f"H is {x.shape[1]} and down {list(down.shape)}; it takes E, H, I >= 1"
    matrices = gate_up, down, shared_gate_up, shared_down
    for name, t in zip(_WEIGHTS, matrices):
        if t is None:
            continue
        if t.dtype != gate_up.dtype:
            return f"{name} is {t.dtype} and gate_up {gate_up.dtype}; it takes one type"
        if t.shape[-1] > 1 and t.stride(-1) != 1:
            return f"{name} has strides {tuple(t.stride())}; it takes a dense last dimension"
    if weights.requires_grad and torch.is_grad_enabled():
        return "weights requires a gradient; it computes none (torch.no_grad() or reference)"
    return unfit(("x",), (x,)) if format in _STORED else unfit(("x", *_WEIGHTS), (x, *matrices))


@register("moe_mlp", "cpu", _why_not)
def moe_mlp(x, gate_up, down, weights, ids, shared_gate_up, shared_down, *rest):
    """Raises InputError when an id is not in 0..E-1."""
    if x.dtype == torch.bfloat16 and x.shape[0] > _FEW and is_batch_invariant():
        experts = gate_up, down
        parts = zip(*(t.split(_FEW) for t in (x, weights, ids)), strict=True)
        shared = shared_gate_up, shared_down
        return torch.cat([moe_mlp(p, *experts, w, i, *shared, *rest) for p, w, i in parts])
    *scales, layout, _ = rest
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    x, weights = rows(x), weights.float()  # by name: copies must live until the kernel is done
    bad = _cpu.moe_mlp(
        array(x),
        array(gate_up),
        array(down),
        array(weights),
        array(ids),
        array_or_none(shared_gate_up),
        array_or_none(shared_down),
        [array_or_none(scale) for scale in scales],
        array(out),
        layout,
        torch.get_num_threads(),
    )
    if bad >= 0:
        t, k = divmod(bad, ids.shape[1])
        E = gate_up.shape[0]
        checks.fail("moe_mlp", "ids", f"in 0..E-1 = 0..{E - 1}", f"{ids[t, k]} at [{t}, {k}]")
    return out
