"""moe_mlp on the `cuda` backend for 64 tokens and more: the four launches of `moe_prefill.cu`."""

import struct

import torch
from torch import Tensor

from .._core import launch
from .._core.cuda import TYPES, rows_of_copies

OP = "moe_prefill"
FORMATS = {"bf16": (torch.bfloat16,), "fp16": (torch.float16,)}
MAX_EXPERTS = 256
THREADS, SORTERS, SUMMERS = 384, 512, 256
SHARED_BYTES = 223_288  # of a GEMM: Shared of moe_prefill_schedule.cuh, and 1024 to align it
SORT_BYTES = 2 * SORTERS // 32 * 4
WEIGHTS, DEPTH = 256, 64  # weight rows and summed elements of a tile's stage
_SORT = struct.Struct("<3Q2i")  # MoeSortParams of moe_prefill_schedule.cuh
_PRODUCT = struct.Struct("<128s128s6Qq7i44x")  # MoePrefillParams
_SUM = struct.Struct("<3Q4i")  # MoeSumParams


def unsupported_reason(x: Tensor, gate_up: Tensor, down: Tensor, ids: Tensor) -> str | None:
    """Why moe_prefill cannot serve these sizes or this GPU, or None."""
    reason = launch.unavailable_reason(OP, x.device)
    if reason is not None:
        return f"T is {x.shape[0]}, T * K {ids.numel()}; {reason}"
    if gate_up.shape[0] > MAX_EXPERTS:
        return f"there are {gate_up.shape[0]} experts; it takes up to {MAX_EXPERTS}"
    if gate_up.numel() == 0:
        return f"gate_up is {list(gate_up.shape)}; it takes no empty experts"
    slots = ids.numel() + x.shape[0]
    if slots >= 1 << 31 or slots * max(x.shape[1], down.shape[2]) >= 1 << 35:
        return f"T is {x.shape[0]}; rows beyond 64 GiB of activations are out of its reach"
    return None


def _map(w: Tensor, parts: int) -> bytes:
    """Of a stack of matrices [E, parts * N, K]: boxes of 256 rows, the same of every part."""
    rows, K = w.shape[-2], w.shape[-1]
    E, pitch = w.numel() // (rows * K), K * w.element_size()
    sizes = (K, rows // parts, parts, E)
    strides = (pitch, rows // parts * pitch, rows * pitch)
    box = (DEPTH, WEIGHTS // parts, parts, 1)
    return launch.tensor_map(w.device.index, w.dtype, w.data_ptr(), sizes, strides, box)


def run(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    weights: Tensor,
    ids: Tensor,
    shared_gate_up: Tensor | None,
    shared_down: Tensor | None,
    out: Tensor,
) -> None:
    """Write moe_mlp of x [T, H] to out [T, H], which is dense; no size depends on data."""
    (T, K), H, (E, _, I) = ids.shape, x.shape[1], down.shape
    width = 0 if shared_down is None else shared_down.shape[1]
    S, device, name = T * K, x.device.index, TYPES[x.dtype]
    x, weights, ids = rows_of_copies(x), weights.contiguous(), ids.contiguous()
    rows, offsets = ids.new_empty(S), ids.new_empty(E + 1)
    hidden = x.new_empty(S * I + T * width)
    y = x.new_empty((S + T if width else S) * H)
    shared_hidden = hidden[S * I :].data_ptr() if width else 0
    shared_y = y[S * H :].data_ptr() if width else 0

    sort = launch.kernel(OP, "moe_prefill_sort", device, SORT_BYTES)
    params = _SORT.pack(ids.data_ptr(), rows.data_ptr(), offsets.data_ptr(), S, E)
    launch.launch(sort, (E, 1, 1), (SORTERS, 1, 1), params)

    blocks = torch.cuda.get_device_properties(x.device).multi_processor_count
    order = rows.data_ptr(), offsets.data_ptr(), x.stride(0), T, K, E
    up = gate_up, shared_gate_up, x.data_ptr(), x.data_ptr(), hidden.data_ptr(), shared_hidden
    downwards = down, shared_down, hidden.data_ptr(), shared_hidden, y.data_ptr(), shared_y
    sizes = {"up": (I, width, H, H), "down": (H, H if width else 0, I, width)}
    for part, (w, w_shared, *pointers) in {"up": up, "down": downwards}.items():
        kernel = launch.kernel(OP, f"moe_prefill_{part}_{name}", device, SHARED_BYTES)
        parts = 2 if part == "up" else 1
        maps = [_map(each, parts) for each in (w, w_shared if width else w)]
        params = _PRODUCT.pack(*maps, *pointers, *order, *sizes[part])
        launch.launch(kernel, (blocks, 1, 1), (THREADS, 1, 1), params)

    total = launch.kernel(OP, f"moe_prefill_sum_{name}", device)
    pointers = y.data_ptr(), weights.data_ptr(), out.data_ptr()
    params = _SUM.pack(*pointers, T, K, H, width > 0)
    launch.launch(total, (-(-T * H // (8 * SUMMERS)), 1, 1), (SUMMERS, 1, 1), params)
