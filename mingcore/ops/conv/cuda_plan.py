"""How `causal_conv.cu` cuts a convolution into blocks: arithmetic on sizes, the same in every run.

The product of a dense convolution has rows (output channels; transposed, output channels times
taps), columns (times of the outputs; transposed, of the inputs) and summed elements (inputs times
taps; transposed, inputs). "many" takes 128 by 128 of it per block, "few" up to 64 by 32, whose
summed elements are dealt to the block's warps: for weights that meet few times, and wherever "many"
would leave multiprocessors without work. "depthwise" takes lines of single channels.
"""

import math
from typing import NamedTuple

THREADS = 256
SCRATCH = 9 * THREADS * 4  # bytes, as causal_conv_stage.cuh has it
ROWS = {"many": 128, "few": 64}
COLUMNS = {"many": 128, "few": 32}
STEPS = {"many": 2, "few": 8}  # of 64 bytes of summed elements, in a stage
WARPS_DEEP = {"many": 1, "few": 8}  # warps that share the summed elements


class Shape(NamedTuple):
    """B rows of T outputs; C and N: inputs and outputs of a group; up: 0, or transposed the stride,
    and `stride` is 1 then; span: inputs carried; size: bytes of an element; fast: whether inputs
    can be copied 16 bytes at a time; parts: values that an activated input is staged as.
    """

    B: int
    T: int
    C: int
    N: int
    groups: int
    taps: int
    stride: int
    dilation: int
    up: int
    span: int
    size: int
    fast: bool
    parts: int


class Plan(NamedTuple):
    """The fields of CausalConvParams that a tile has, in their order, and what a launch needs."""

    rows: int
    channels: int
    cols: int
    step: int
    rows_all: int
    times_all: int
    direct: bool
    pitch: int
    stages: int
    w_bytes: int
    x_bytes: int
    parts: int
    part_bytes: int
    kind: str
    shared_bytes: int
    blocks: int


def plan(s: Shape, multiprocessors: int, limit: int) -> Plan | str:
    """The tiles for `limit` bytes of shared memory per block, or why there are none."""
    if s.C == 1:
        return _depthwise(s, multiprocessors, limit)
    if s.up and s.taps > ROWS["many"]:
        return f"the kernel has {s.taps} taps; transposed it takes up to {ROWS['many']}"
    few = _few(s, multiprocessors, limit)
    many = _dense(s, "many", ROWS["many"], COLUMNS["many"], limit)
    if many is not None and (few is None or many.blocks >= multiprocessors):
        return many
    if few is not None:
        return few
    for cols in (64, 32, 16, 8):
        small = _dense(s, "many", ROWS["many"], cols, limit)
        if small is not None:
            return small
    if s.up:
        return f"an output is made of up to {s.span + 1} times; transposed it takes up to 120"
    reach = (s.taps - 1) * s.dilation + 1
    return f"a kernel reaches over {reach} inputs; those of a tile do not fit in {limit} bytes"


def _up(a: int, b: int) -> int:
    return -(-a // b)


def _few(s: Shape, multiprocessors: int, limit: int) -> Plan | None:
    times = _up(s.T, s.up) + s.span + 7 * s.fast if s.up else s.T
    max_cols = min(8 * _up(times, 8), COLUMNS["few"])
    found = None
    for cols in range(max_cols, 0, -8):
        for rows in (64,) if s.up else (64, 32, 16):
            found = _dense(s, "few", rows, cols, limit) or found
            if found is not None and found.blocks >= multiprocessors:
                return found
        if found is not None:
            return found
    return None


def _dense(s: Shape, kind: str, rows: int, cols: int, limit: int) -> Plan | None:
    copy = 16 // s.size
    depth = STEPS[kind] * 4 * copy
    shift = 7 if s.fast else 0
    direct = bool(s.up) or (s.taps == 1 and s.stride == 1)
    if s.up:
        channels = rows // s.taps
        multiple = copy // math.gcd(copy, s.taps)  # so many end at a multiple of 16 bytes
        channels -= channels % multiple if channels > multiple else 0
        step, needed = cols - s.span - shift, _up(s.T, s.up)
        if step < needed:
            step -= step % (8 // math.gcd(8, s.up))  # outputs are written by eights
        if step < 1 or channels < 1:
            return None
        summed, times = s.C, needed
    else:
        channels, step, times, summed = rows, cols, s.T, s.C * s.taps
    width = cols if direct else (cols - 1) * s.stride + (s.taps - 1) * s.dilation + 1 + shift
    pitch = 8 * (_up(width, 8) | 1)  # an odd number of 16 bytes: no bank is met twice
    staged = depth if direct else min((depth - 1) // s.taps + 2, s.C)
    w_bytes, part_bytes = rows * depth * s.size, staged * pitch * s.size
    x_bytes = s.parts * part_bytes
    sums = WARPS_DEEP[kind] * rows * cols // 8 * 9 * 4
    for stages in range(max(2, min(4, _up(summed, depth) + 1)), 1, -1):
        shared = SCRATCH + max(stages * (w_bytes + x_bytes + depth * 4), sums)
        if shared <= limit:
            tiles = _up(s.N, channels), _up(times, step)
            blocks = tiles[0] * tiles[1] * s.groups * s.B
            tile = (rows, channels, cols, step, *tiles, direct, pitch)
            ring = (stages, w_bytes, x_bytes, s.parts, part_bytes)
            return Plan(*tile, *ring, kind, shared, blocks)
    return None


def _depthwise(s: Shape, multiprocessors: int, limit: int) -> Plan | str:
    lines, cols = s.groups * s.N, 1
    while cols < THREADS and 8 * cols < s.T:
        cols *= 2
    while True:
        times_all = _up(s.T, 8 * cols)
        # two blocks per multiprocessor before a block gets more lines
        rows = min(THREADS // cols, max(1, lines * s.B * times_all // (2 * multiprocessors)))
        reach = s.span + 2 if s.up else (s.taps - 1) * s.dilation + 1
        width = (8 * cols - 1) * s.stride // (s.up or 1) + reach + 7 * s.fast
        pitch = 8 * _up(width, 8)
        each = 4 * (max(pitch, 9 * cols) + s.taps)
        rows = min(rows, (limit - SCRATCH - 32) // each)
        if rows > 0:
            break
        if cols == 1:
            return f"a kernel reaches over {reach} inputs, more than {limit} bytes hold"
        cols //= 2
    rows_all = _up(lines, rows)
    tile = (rows, rows, cols, 8 * cols, rows_all, times_all, False, pitch, *[0] * 5)
    shared = 16 * _up(SCRATCH + 16 + rows * each, 16)
    return Plan(*tile, "depthwise", shared, rows_all * times_all * s.B)
