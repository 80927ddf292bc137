"""moe_mlp on the `cuda` backend: one launch of `moe_decode.cu` for up to 63 tokens and 512 slots,
and for more `cuda_prefill`.
"""

import math
import struct
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .._core import cuda as cuda_common
from .._core import launch
from .._core.cuda import COPY_BYTES, TYPES, rows_of_copies
from .._core.support import FLOATS, Support
from . import MATRICES, MOE_MLP, SCALES, cuda_prefill

MAX_TOKENS, MAX_SLOTS = 63, 512
THREADS, TILE = 256, 16
_PARAMS = struct.Struct("<14Qq6i")  # MoeDecodeParams of moe_decode_schedule.cuh
_FORMATS = {
    "fp32": (torch.float32,),  # the types of x that go with the weights
    "bf16": (torch.bfloat16,),
    "fp16": (torch.float16,),
    "int8": (torch.bfloat16, torch.float16),
    "fp8": (torch.bfloat16, torch.float16),
}


def shared_bytes(format: str, large: bool) -> int:
    """Dynamic shared memory of moe_decode, in its order: ring, partial sums, results, plan.

    large: on the GPUs that have 227 KB of it, not 163.
    """
    stage = 8 * 512 * (12 if format in ("int8", "fp8") else 8)
    stages = {True: (3, 5), False: (2, 3)}[large][format not in ("int8", "fp8")]
    slots, entries = MAX_SLOTS + MAX_TOKENS, MAX_SLOTS + -(-MAX_TOKENS // TILE)
    plan = 4 * entries + 2 * (entries + 1) + 2 * (slots + 1) + 3 * 4
    return stage * stages + 2 * 8 * TILE * TILE * 4 + slots * TILE * 4 + -(-plan // 16) * 16


def _is_large(device: torch.device) -> bool:
    return 9 <= torch.cuda.get_device_capability(device)[0] < 12


def _lacks_shared_memory(device: torch.device, format: str) -> str | None:
    needed = shared_bytes(format, _is_large(device))
    there = torch.cuda.get_device_properties(device).shared_memory_per_block_optin
    if there < needed:
        return f"it needs {needed} bytes of shared memory per block; this GPU has {there}"
    return None


def _unsupported_reason(x, gate_up, down, ids, shared_gate_up, shared_down, format, **_):
    many = _are_many(ids)
    reason = cuda_prefill.unsupported_reason(x, gate_up, down, ids) if many else None
    reason = reason or _operands_reason(
        x, (gate_up, down, shared_gate_up, shared_down), format, cuda_prefill.FORMATS if many else _FORMATS
    )
    if reason is None and not many:
        reason = launch.unavailable_reason("moe_decode", x.device) or _lacks_shared_memory(x.device, format)
    return reason


def _operands_reason(x: Tensor, matrices: Sequence[Tensor | None], format: str, formats: Mapping) -> str | None:
    """Why operands cannot go to a kernel that copies 16 bytes at a time, or None.

    formats: those that it takes, each with the types of x.
    """
    if x.dtype not in formats.get(format, ()):
        pairs = ", ".join(f"{name} with {TYPES[t]}" for name in formats for t in formats[name])
        return f"the format is {format} and x is {x.dtype}; it takes {pairs}"
    gate_up, down, _, shared_down = matrices
    width = COPY_BYTES // gate_up.element_size()
    sizes = {"H": x.shape[1], "I": down.shape[2], "Is": 0 if shared_down is None else shared_down.shape[1]}
    for name, size in sizes.items():
        if size % width:
            return f"{name} is {size}; in {format} it takes multiples of {width}"
    for name, t in zip(MATRICES, matrices):
        if t is not None and t.data_ptr() % COPY_BYTES:
            return f"{name} does not begin at an address that is a multiple of {COPY_BYTES}"
    return None


def _are_many(ids) -> bool:
    """Whether tokens and slots are too many for moe_decode."""
    return ids.shape[0] > MAX_TOKENS or ids.numel() > MAX_SLOTS


def rows_per_unit(H: int, blocks: int) -> int:
    """Rows of down per unit of the second phase, 8 or 16: what leaves fewer for the busiest block;
    16 where both leave as many, as it reads hidden half as often.
    """
    busiest = {rows: math.ceil(math.ceil(H / rows) / blocks) * rows for rows in (TILE, TILE // 2)}
    return min(busiest, key=busiest.get)


@MOE_MLP.implementation(
    "cuda",
    Support(
        floats=("x",),
        float32=("weights", *SCALES),
        types={**dict.fromkeys(MATRICES, (*FLOATS, torch.int8, torch.float8_e4m3fn)), "ids": (torch.int32,)},
        contiguous=(*MATRICES, *SCALES),
        layouts=("rows",),
        rule=_unsupported_reason,
    ),
    sources=(launch.source("moe_decode"), launch.source("moe_prefill"), cuda_prefill.__file__, cuda_common.__file__),
    flags=launch.FLAGS,
)
def moe_mlp(x, weights, ids, layout, format, out, *, gate_up, down, shared_gate_up, shared_down, **scales):
    if out.numel() == 0:
        return
    if _are_many(ids):
        cuda_prefill.run(x, gate_up, down, weights, ids, shared_gate_up, shared_down, out)
        return
    (T, K), H, I = ids.shape, x.shape[1], down.shape[2]
    device = x.device.index
    name = f"moe_decode_{TYPES[x.dtype]}_{format}"
    kernel = launch.kernel("moe_decode", name, device, shared_bytes(format, _is_large(x.device)))
    width = 0 if shared_down is None else shared_down.shape[1]
    x, weights, ids = rows_of_copies(x), weights.contiguous(), ids.contiguous()
    hidden = torch.empty(T * (K * I + width), dtype=x.dtype, device=x.device)
    blocks = torch.cuda.get_device_properties(x.device).multi_processor_count
    barrier = launch.barrier_words("moe_decode", device)
    operands = (x, gate_up, down, shared_gate_up, shared_down, *(scales[name] for name in SCALES))
    operands += (weights, ids, hidden, out, barrier)
    pointers = [0 if t is None else t.data_ptr() for t in operands]
    params = _PARAMS.pack(*pointers, x.stride(0), T, K, H, I, width, rows_per_unit(H, blocks))
    launch.launch(kernel, (blocks, 1, 1), (THREADS, 1, 1), params, cooperative=True)
