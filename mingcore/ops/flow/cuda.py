"""The flow sampler on the CUDA kernel, one launch for up to 96 rows of tokens, and its Euler step."""

import struct
from pathlib import Path

import torch
from torch import Tensor

from ...errors import BackendError
from .._core import launch
from .._core.cuda import TYPES
from .._core.support import Support
from . import FLOW_SAMPLE, FLOW_STEP
from .packing import MATRICES, NORMS

ROW_TILE = 16  # rows of all tokens that one product of the tensor cores takes
ROW_TILES = (2, 4, 6)  # kernels for up to so many
MAX_ROWS = ROW_TILE * ROW_TILES[-1]
MAX_EVALUATIONS = 256
MAX_BLOCKS = 240
THREADS, CONSUMERS = 384, 8
TILE, PAGE_DEPTH = 8, 1024  # weight rows of a page, weights of a row
FLAG_WORDS = 16  # before the flags of the blocks
MIN_PAGES = 4
WEIGHT_BYTES = {"bf16": 2, "fp8": 1}
ALIGNMENT = 16
BLOCKS = slice(2, 6)  # of the matrices: those of the blocks
_PARAMS = struct.Struct("<46Q16i")  # Params of flow_sample_ring.cuh


def row_tiles(rows: int) -> int:
    """Tiles of 16 rows of the kernel that takes so many rows of tokens."""
    return next(each for each in ROW_TILES if rows <= ROW_TILE * each)


def splits_of(H: int, W: int) -> int:
    """Parts of the sums of `down`. A block reads all activations of its part for each of its
    tiles, so a part is as wide as the inputs of the other products where that can be; then the
    parts are added up in one more phase.
    """
    return next(n for n in (8, 4, 2, 1) if n == 1 or (W // n >= H and W % (32 * n) == 0))


def shared_bytes(H: int, state: int, blocks: int, tiles: int, format: str, pages: int) -> int:
    """Dynamic shared memory, in its order: ring, barriers, sums, own columns, state, norms.

    state: B * P * C. tiles: of 16 rows. pages: of the ring.
    """
    rows = ROW_TILE * tiles
    page = TILE * (PAGE_DEPTH + 32) * WEIGHT_BYTES[format]
    at_once = {2: 4, 4: 2, 6: 1}[tiles]
    own = -(-(H // TILE) // blocks) * rows * TILE
    floats = CONSUMERS * at_once * rows * TILE + 2 * own + 2 * state + rows
    return pages * (page + 2 * 8) + 2 * 8 + 4 * floats


def ring_pages(H: int, state: int, blocks: int, tiles: int, format: str, limit: int) -> int:
    """Pages that fit into `limit` bytes of shared memory beside all else."""
    fixed = shared_bytes(H, state, blocks, tiles, format, 0)
    return max(limit - fixed, 0) // (shared_bytes(H, state, blocks, tiles, format, 1) - fixed)


def _unsupported_reason(
    condition, history, noise, advance, matrices, biases, norms, scales, heads, guided, format, **_
):
    return (
        launch.unavailable_reason("flow_sample", condition.device)
        or _unsupported_head(matrices, biases, norms, scales, heads, format)
        or _unsupported_sizes(condition, history, noise, advance, matrices, guided, format)
    )


def _unsupported_head(matrices, biases, norms, scales, heads, format) -> str | None:
    H, Hc = matrices[0].shape
    W, C = matrices[4].shape[1], matrices[6].shape[0]
    for name, size, step in (("H", H, 32), ("W", W, 32), ("C", C, 8), ("Hc", Hc, 8)):
        if size % step:
            return f"{name} is {size}; it takes multiples of {step}"
    D = H // heads
    if D < 8 or D > 256 or D & (D - 1):
        return f"heads are {D} wide; it takes powers of two from 8 to 256"
    stored = [torch.bfloat16] * 7
    if format == "fp8":
        stored[BLOCKS] = [torch.float8_e4m3fn] * 4
    for name, w, dtype in zip(MATRICES, matrices, stored):
        if w.dtype != dtype:
            return f"{name} is {w.dtype}; in {format} it takes {dtype}"
        if not w.is_contiguous() or w.data_ptr() % ALIGNMENT:
            return f"{name} is not contiguous from an address that is a multiple of {ALIGNMENT}"
    vectors = [(f"bias of {name}", b) for name, b in zip(MATRICES, biases)]
    for name, t in (*vectors, *zip(NORMS, norms)):
        if t.dtype != torch.bfloat16 or not t.is_contiguous() or t.data_ptr() % ALIGNMENT:
            return f"{name} is not contiguous, aligned bfloat16"
    for name, scale in zip(MATRICES[BLOCKS], scales[BLOCKS]):
        if scale.dtype != torch.float32 or not scale.is_contiguous():
            return f"the scale of {name} is not contiguous float32"
    return None


def _unsupported_sizes(condition, history, noise, advance, matrices, guided, format) -> str | None:
    B, P, C = noise.shape[1:]
    rows = (1 + guided) * B * (1 + history.shape[1] + P)
    if rows > MAX_ROWS:
        return f"there are {rows} rows of tokens; it takes up to {MAX_ROWS}"
    if len(advance) > MAX_EVALUATIONS:
        return f"there are {len(advance)} evaluations; it takes up to {MAX_EVALUATIONS}"
    gpu = torch.cuda.get_device_properties(condition.device)
    blocks, limit = gpu.multi_processor_count, gpu.shared_memory_per_block_optin
    if blocks > MAX_BLOCKS:
        return f"this GPU has {blocks} multiprocessors; it takes up to {MAX_BLOCKS}"
    H = matrices[0].shape[0]
    pages = ring_pages(H, B * P * C, blocks, row_tiles(rows), format, limit)
    if pages < MIN_PAGES:
        return f"{limit} bytes of shared memory leave room for {pages} pages of weights"
    return None


def workspace(rows: int, H: int, W: int, splits: int, velocities: int) -> list[int]:
    """Bytes of what the blocks hand to each other: x, qkv, attended and hidden in bfloat16; the
    squares, the parts of `down` and the velocity in float32. Each a multiple of ALIGNMENT.
    """
    sizes = [2 * rows * H, 2 * rows * 3 * H, 2 * rows * H, 2 * rows * W]
    sizes += [4 * rows * (H // TILE), 4 * rows * H * splits, 4 * velocities]
    return [-(-size // ALIGNMENT) * ALIGNMENT for size in sizes]


@FLOW_SAMPLE.implementation(
    "cuda",
    Support(
        float32=("noise", "guidance", "times", "dt", "noise_scale"),
        types={
            "condition": (torch.bfloat16,),
            "history": (*TYPES, torch.float64),
            "matrices": (*TYPES, torch.float8_e4m3fn),
            "biases": tuple(TYPES),
            "norms": tuple(TYPES),
        },
        layouts=("rows",),
        formats=tuple(WEIGHT_BYTES),
        rule=_unsupported_reason,
    ),
    sources=(launch.source("flow_sample"), Path(__file__).with_name("packing.py")),
    flags=launch.FLAGS,
)
def flow_sample(
    condition,
    history,
    noise,
    guidance,
    times,
    dt,
    noise_scale,
    advance,
    cos,
    sin,
    matrices,
    biases,
    norms,
    scales,
    heads,
    rope_heads,
    guided,
    layout,
    format,
    out,
):
    draws, B, P, C = noise.shape
    (H, Hc), (L, W) = matrices[0].shape, matrices[4].shape[:2]
    N, R = history.shape[1], (1 + guided) * B
    T = 1 + N + P
    device = condition.device
    gpu = torch.cuda.get_device_properties(device)
    blocks, limit = gpu.multi_processor_count, gpu.shared_memory_per_block_optin
    tiles = row_tiles(R * T)
    pages = ring_pages(H, B * P * C, blocks, tiles, format, limit)
    size = shared_bytes(H, B * P * C, blocks, tiles, format, pages)
    kernel = launch.kernel("flow_sample", f"flow_sample_{format}_{tiles}", device.index, size)
    _check_fault(device.index)
    splits = splits_of(H, W)
    inputs = [condition.contiguous(), history.to(condition.dtype).contiguous()]
    inputs += [t.contiguous() for t in (noise, guidance, times, dt, noise_scale, cos, sin)]
    parts = workspace(R * T, H, W, splits, R * P * C)
    space = torch.empty(sum(parts), dtype=torch.uint8, device=device)
    places = [space.data_ptr() + sum(parts[:i]) for i in range(len(parts))]
    flags = launch.barrier_words("flow_sample", device.index, 8 * (FLAG_WORDS + MAX_BLOCKS))
    norms = [*norms, None, None][: len(NORMS)]
    scales = scales[BLOCKS] if scales else [None] * 4
    operands = [*inputs, *matrices, *biases, *norms, *scales]
    pointers = [0 if t is None else t.data_ptr() for t in operands]
    pointers += [*places, out.data_ptr(), flags.data_ptr()]
    pointers.append(launch.fault("flow_sample", device.index).data_ptr())
    bits = sum(1 << e for e, advances in enumerate(advance) if advances)
    words = [bits >> 64 * i & (1 << 64) - 1 for i in range(MAX_EVALUATIONS // 64)]
    shape = (B, R, T, N, P, C, Hc, H, W, L, len(advance), heads)
    shape += (heads if rope_heads is None else rope_heads, splits, pages, draws)
    params = _PARAMS.pack(*pointers, *words, *shape)
    launch.launch(kernel, (blocks, 1, 1), (THREADS, 1, 1), params, cooperative=True)


def _check_fault(device: int) -> None:
    """An earlier launch whose blocks lost each other returned NaN; say so now."""
    if launch.fault("flow_sample", device).item():
        raise BackendError(
            "flow_sample: in an earlier launch a block waited for seconds in vain; that result and "
            "all since are NaN. Another backend serves in this process; a new process starts anew"
        )


_THREADS = 256
_STEP_TENSORS = ("x", "v_cond", "v_null", "guidance", "noise", "noise_scale")
_STEP_PARAMS = struct.Struct("<7Q11q2ifi")  # FlowStepParams of flow_step.cu


def _unsupported_step(x, v_cond, v_null, **_) -> str | None:
    reason = launch.unavailable_reason("flow_step", x.device)
    if reason is None and v_null is not None and v_null.dtype != v_cond.dtype:
        return f"v_null is {v_null.dtype}, v_cond {v_cond.dtype}; it takes one type for both"
    return reason


def _vectors(*tensors: Tensor | None) -> bool:
    """Whether 4 elements can move at once: C, strides and addresses are multiples of 4 elements."""
    return all(
        t.shape[-1] % 4 == 0
        and t.stride(0) % 4 == 0
        and t.stride(1) % 4 == 0
        and t.data_ptr() % (4 * t.element_size()) == 0
        for t in tensors
        if t is not None
    )


@FLOW_STEP.implementation(
    "cuda",
    Support(
        floats=("v_cond", "v_null"),
        float32=("x", "guidance", "noise", "noise_scale"),
        dense_last=_STEP_TENSORS,
        disjoint=("out",),
        rule=_unsupported_step,
    ),
    sources=(launch.source("flow_step"),),
    flags=launch.FLAGS,
)
def flow_step(x, v_cond, v_null, dt, guidance, noise, noise_scale, out):
    B, P, C = x.shape
    if x.numel() == 0:
        return
    tensors = (x, v_cond, v_null, noise, out)
    width = 4 if _vectors(*tensors) else 1
    strides = [s for t in tensors for s in ((0, 0) if t is None else t.stride()[:2])]
    operands = (x, v_cond, v_null, noise, guidance, noise_scale, out)
    pointers = [0 if t is None else t.data_ptr() for t in operands]
    name = f"flow_step_{TYPES[v_cond.dtype]}_{width}"
    kernel = launch.kernel("flow_step", name, x.device.index)
    blocks = (B * P * (C // width) + _THREADS - 1) // _THREADS
    params = _STEP_PARAMS.pack(*pointers, *strides, B, P, C, dt, 0)
    launch.launch(kernel, (blocks, 1, 1), (_THREADS, 1, 1), params)
