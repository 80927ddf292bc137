"""Tiles of the convolutions: a committed table and how one is chosen.

`choose` and `choose_direct` are pure and cheap, and their results print themselves:

    >>> choose("16", rows=960, times=256)
    Config(block_m=64, block_t=32, block_k=64, warps=4, stages=4)
    >>> choose_direct(channels=192, times=1280, taps=7, stride=1)
    DirectConfig(block_c=2, block_t=128, share=4, warps=4)

A dense convolution is a product of `rows` output rows (channels, times phases where it is
transposed) and the times of a stream: the tile is as wide as there are times, up to a limit, and as
tall as leaves a tile for most processors. The depth of a step is the same for all tiles of a kind,
so a sum does not depend on how a stream is cut. Reasoned, not measured; nothing is tuned while a
request runs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..lib.target import shared_bytes

KINDS = {"32": 4, "16": 2}  # bytes of an operand: float32; two 16-bit operands
PROCESSORS = 132
ENOUGH = 2 / 3  # of the processors with a tile: a smaller tile reads more
SHARED_TAPS = 16  # of a kernel that is unrolled


@dataclass(frozen=True)
class Config:
    """One program of the dense kernel: block_m output rows, block_t times, steps of block_k."""

    block_m: int
    block_t: int
    block_k: int
    warps: int
    stages: int


@dataclass(frozen=True)
class DirectConfig:
    """One program of the kernel for groups of few inputs: block_c channels, block_t times of each
    thread's `share` outputs, which lie a dilation apart and have all but share - 1 inputs in
    common."""

    block_c: int
    block_t: int
    share: int
    warps: int


# kind and block_t -> (block_m, block_k, warps, stages), the tallest first. Inputs that come an
# element at a time, and their addresses, take the registers: wider or deeper tiles spill
_TABLE = {
    ("16", 16): ((64, 64, 4, 4), (32, 64, 4, 4), (16, 64, 4, 4)),
    ("16", 32): ((64, 64, 4, 4), (32, 64, 4, 4), (16, 64, 4, 4)),
    ("16", 64): ((128, 64, 8, 3), (64, 64, 8, 4), (32, 64, 8, 4), (16, 64, 8, 4)),
    ("32", 16): ((32, 32, 4, 3), (16, 32, 4, 3)),
    ("32", 32): ((32, 32, 4, 3), (16, 32, 4, 3)),
    ("32", 64): ((32, 32, 8, 2), (16, 32, 8, 2)),
}


def why_invalid(config: Config, kind: str, capability: int) -> str | None:
    """Why this tile cannot run, or None."""
    blocks = (config.block_m, config.block_t, config.block_k)
    if any(block & (block - 1) or block < 16 for block in blocks):
        return f"blocks {blocks} are not powers of two from 16 on"
    if config.warps not in (1, 2, 4, 8, 16) or config.stages < 1:
        return f"{config.warps} warps, {config.stages} stages"
    sums = config.block_m * config.block_t / (32 * config.warps)
    if sums > 64:
        return f"{sums:.0f} sums per thread; 64 leave room for the addresses"
    stage = config.block_k * (config.block_m + config.block_t) * KINDS[kind]
    needed, there = config.stages * stage, shared_bytes(capability)
    if needed + 1024 > there:
        return f"{needed} bytes of tiles; sm_{capability} has {there}"
    return None


def choose(kind: str, *, rows: int, times: int, batch: int = 1, single: bool = False, capability: int = 90) -> Config:
    """The tile of a dense convolution.

    rows: output rows of a group; times: of a batch row, per phase; batch: rows of the batch times
    groups; single: registers are short, as where the weights come an element at a time: steps of
    half the depth. Raises ValueError where no tile of the table fits the GPU.
    """
    widths = [width for name, width in _TABLE if name == kind]
    # few times: the weights' bytes are what takes long, and need many loads under way
    min_tiles = (1 if times <= 32 else ENOUGH) * PROCESSORS
    block_t = next((width for width in widths if times <= width), widths[-1])
    while block_t > widths[0] and _tiles(rows, times, 64, block_t) * batch < min_tiles:
        block_t = widths[widths.index(block_t) - 1]
    for entry in _TABLE[kind, block_t]:
        block_m, block_k, warps, stages = entry
        if block_m < 2 * rows and _tiles(rows, times, block_m, block_t) * batch >= min_tiles:
            break
    config = Config(block_m, block_t, block_k // 2 if single else block_k, warps, stages)
    while config.stages > 1 and why_invalid(config, kind, capability):
        config = replace(config, stages=config.stages - 1)
    reason = why_invalid(config, kind, capability)
    if reason:
        raise ValueError(f"convolution {kind} on sm_{capability}: {config} does not fit: {reason}")
    return config


def _tiles(rows: int, times: int, block_m: int, block_t: int) -> int:
    return -(-rows // block_m) * -(-times // block_t)


def choose_direct(*, channels: int, times: int, taps: int, stride: int) -> DirectConfig:
    """The program of a convolution whose groups have few inputs.

    channels: outputs; times: of a batch row; taps: of the kernel, or of one phase of a transposed
    one; stride: 0 for a transposed one.
    """
    share = 4 if stride == 1 and 2 < taps <= SHARED_TAPS and times >= 64 else 1
    block_t, room = 1, 1024 // share
    while block_t < min(times / share, 256 if share == 1 else 128):
        block_t *= 2
    block_c = max(room // block_t, 1)
    while (
        block_c > 1 and block_c * block_t > 128 and (_tiles(channels, times, block_c, block_t * share) < 2 * PROCESSORS)
    ):
        block_c //= 2
    return DirectConfig(block_c, block_t, share, 4)


def candidates(kind: str) -> Iterator[Config]:
    """Every tile of the table."""
    for (name, block_t), entries in _TABLE.items():
        if name == kind:
            for block_m, block_k, warps, stages in entries:
                yield Config(block_m, block_t, block_k, warps, stages)
