"""The mixture of experts on the CPU kernels: one native call, from routing indices to the result."""

import torch

from ... import _cpu
from .._core import checks
from .._core.cpu import array, array_or_none, rows
from .._core.invariance import is_batch_invariant
from .._core.packing import CPU_FORMATS, PANEL_TYPES, QUANTISED
from .._core.support import FLOATS, Support
from . import MATRICES, MOE_MLP, SCALES

_LARGEST_K = 1 << 17  # columns whose products of 8-bit integers an int32 can sum
_MAX_INVARIANT = 63  # tokens in bfloat16 that every CPU multiplies alike (csrc/cpu/moe/moe_mlp.cpp)


def _unsupported_reason(x, gate_up, down, gate_up_scale, layout, format, **rest):
    if format in QUANTISED:
        if layout != "panels" or gate_up.dtype != PANEL_TYPES[format] or gate_up_scale is None:
            return f"the {format} experts are {gate_up.dtype} in {layout}; it takes panels"
        H, I = x.shape[1], gate_up_scale.shape[1] // 2
        if format == "int8_dyn" and max(H, I) > _LARGEST_K:
            return f"H is {H} and I {I}; in int8_dyn it takes up to {_LARGEST_K}"
    elif gate_up.dtype not in FLOATS:
        return f"gate_up is {gate_up.dtype} in format {format}"
    if x.shape[1] == 0 or 0 in down.shape:
        return f"H is {x.shape[1]} and down {list(down.shape)}; it takes E, H, I >= 1"
    matrices = {"down": down, **{name: rest[name] for name in MATRICES[2:]}}
    for name, t in matrices.items():
        if t is not None and t.dtype != gate_up.dtype:
            return f"{name} is {t.dtype} and gate_up {gate_up.dtype}; it takes one type"
    return None


@MOE_MLP.implementation(
    "cpu",
    Support(
        floats=("x",),
        float32=SCALES,
        types={
            "weights": (torch.float32, torch.float64),
            **dict.fromkeys(MATRICES, (*FLOATS, torch.int8, torch.uint8)),
        },
        dense_last=(*MATRICES, *SCALES),
        formats=CPU_FORMATS,
        rule=_unsupported_reason,
    ),
)
def moe_mlp(x, weights, ids, out, **experts):
    """Raises InputError when an id is not in 0..E-1."""
    if x.dtype == torch.bfloat16 and x.shape[0] > _MAX_INVARIANT and is_batch_invariant():
        for part in zip(*(t.split(_MAX_INVARIANT) for t in (x, weights, ids, out)), strict=True):
            _moe_mlp(*part, **experts)
    else:
        _moe_mlp(x, weights, ids, out, **experts)


def _moe_mlp(x, weights, ids, out, *, gate_up, down, shared_gate_up, shared_down, layout, format, **scales):
    x, weights = rows(x), weights.float()  # by name: copies must live until the kernel is done
    bad = _cpu.moe_mlp(
        array(x),
        array(gate_up),
        array(down),
        array(weights),
        array(ids),
        array_or_none(shared_gate_up),
        array_or_none(shared_down),
        [array_or_none(scales[name]) for name in SCALES],
        array(out),
        layout,
        torch.get_num_threads(),
    )
    if bad >= 0:
        t, k = divmod(bad, ids.shape[1])
        E = gate_up.shape[0]
        checks.fail("moe_mlp", "ids", f"in 0..E-1 = 0..{E - 1}", f"{ids[t, k]} at [{t}, {k}]")
