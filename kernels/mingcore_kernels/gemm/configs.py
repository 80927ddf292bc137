"""Tiles, stages and warps of the grouped products: a committed table and how a row is chosen.

`choose(...)` is pure and cheap, and its result prints itself, so a launch can always be explained:

    >>> choose("gate_up", "16", rows=1.9, depths=(2048,), capability=90)
    Config(block_m=16, block_n=32, block_k=128, warps=4, stages=4)

`rows` is the mean number of rows per group that has any. The tile's height follows from it; the
table gives the rest; then `fitted` makes block_k divide the summed dimension where that can be had
and drops stages until the tile fits the shared memory. `bench/tune.py` proposes other rows of the
table; nothing is ever tuned while a request runs, so the bits of a result depend on shapes alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product as every

from ..lib.target import shared_bytes

# (bytes of a weight, bytes of an activation) by kind of operands: "32" float32 activations,
# "16" two 16-bit operands, "w8" 8-bit weights widened to 16 bits, "dyn" int8 times int8
KINDS = {"32": (4, 4), "16": (2, 2), "w8": (1, 2), "dyn": (1, 1)}
PRODUCTS = ("gate_up", "down", "grouped_gemm")
GROUP_M = 8  # tiles of rows that share weights run side by side
MAX_EXPERTS = 1024
_HEIGHTS = (16, 32, 64, 128)


@dataclass(frozen=True)
class Config:
    """One tile: block_m rows of x against block_n rows of a weight (of gate and of up alike)."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int


@dataclass(frozen=True)
class RowConfig:
    """One program of the kernels for a single token: block_n weight rows, block_k columns."""

    block_n: int
    block_k: int
    warps: int


# kind and height -> (block_n, block_k, warps, stages) of gate_up, then of down and grouped_gemm.
# Reasoned, not measured: small tiles keep four stages of bulk in flight on every SM; the largest
# fills the registers of two warp groups.
_TABLE = {
    ("16", 16): ((32, 128, 4, 4), (32, 128, 4, 4)),
    ("16", 32): ((32, 128, 4, 4), (64, 64, 4, 4)),
    ("16", 64): ((64, 64, 4, 4), (64, 64, 4, 4)),
    ("16", 128): ((128, 64, 8, 4), (128, 64, 8, 4)),
    ("w8", 16): ((32, 128, 4, 4), (32, 128, 4, 4)),
    ("w8", 32): ((32, 128, 4, 4), (64, 128, 4, 4)),
    ("w8", 64): ((64, 64, 4, 4), (64, 64, 4, 4)),
    ("w8", 128): ((64, 64, 8, 4), (128, 64, 8, 4)),
    ("dyn", 16): ((32, 128, 4, 4), (32, 128, 4, 4)),
    ("dyn", 32): ((32, 128, 4, 4), (64, 128, 4, 4)),
    ("dyn", 64): ((64, 128, 4, 4), (64, 128, 4, 4)),
    ("dyn", 128): ((64, 128, 8, 4), (128, 128, 8, 3)),
    ("32", 16): ((32, 32, 4, 3), (32, 32, 4, 3)),
    ("32", 32): ((32, 32, 4, 3), (32, 32, 4, 3)),
    ("32", 64): ((32, 32, 4, 2), (64, 32, 8, 2)),
}
# before Hopper the accumulators of the largest tile would not fit: half as many weight rows
_BEFORE_90 = {("16", 128): ((64, 64, 8, 3), (128, 64, 8, 3))}


def unsupported_reason(config: Config, product: str, kind: str, capability: int) -> str | None:
    """Why this tile cannot run, or None: the one predicate for the table, `fitted` and the tuner.

    product: "gate_up" (two weights and two accumulators), "down" or "grouped_gemm"; kind: one of
    KINDS; capability: such as 90.
    """
    blocks = (config.block_m, config.block_n, config.block_k)
    if any(block & (block - 1) or block < 16 for block in blocks):
        return f"blocks {blocks} are not powers of two from 16 on"
    if config.warps not in (1, 2, 4, 8, 16) or config.stages < 1:
        return f"{config.warps} warps, {config.stages} stages"
    weight, activation = KINDS[kind]
    if min(weight, activation) == 1 and config.block_k < 32:
        return f"block_k = {config.block_k}; 8-bit products take at least 32"
    weights = 2 if product == "gate_up" else 1
    sums = weights * config.block_m * config.block_n / (32 * config.warps)
    if sums > 128:
        return f"{sums:.0f} sums per thread; 128 leave room for the rest"
    stage = weights * config.block_n * weight + config.block_m * activation
    needed, there = config.stages * config.block_k * stage, shared_bytes(capability)
    if needed + 1024 > there:
        return f"{needed} bytes of tiles; sm_{capability} has {there}"
    return None


def fitted(config: Config, product: str, kind: str, depths: tuple[int, ...], capability: int) -> Config:
    """`config` with block_k dividing every summed dimension, if one from 32 on does, and with as
    many stages as the shared memory holds."""
    block_k = config.block_k
    while block_k > 32 and any(depth % block_k for depth in depths):
        block_k //= 2
    if all(depth % block_k == 0 for depth in depths):
        config = replace(config, block_k=block_k)
    while config.stages > 1 and unsupported_reason(config, product, kind, capability):
        config = replace(config, stages=config.stages - 1)
    return config


def choose(product: str, kind: str, *, rows: float, depths: tuple[int, ...], capability: int) -> Config:
    """The tile of a grouped product.

    rows: mean rows per group with any; depths: the summed dimensions of all its matrices. Raises
    ValueError where no tile of the table fits the GPU.
    """
    heights = [height for height in _HEIGHTS if (kind, height) in _TABLE]
    block_m = next((height for height in heights if rows <= height), heights[-1])
    key = kind, block_m
    entry = (_BEFORE_90.get(key) if capability < 90 else None) or _TABLE[key]
    config = Config(block_m, *entry[0 if product == "gate_up" else 1])
    config = fitted(config, product, kind, depths, capability)
    reason = unsupported_reason(config, product, kind, capability)
    if reason:
        raise ValueError(f"{product} {kind} on sm_{capability}: {config} does not fit: {reason}")
    return config


def choose_row(product: str, columns: int, depth: int, processors: int) -> RowConfig:
    """The program of the kernels for one token: `columns` results over `depth` products each.

    Enough programs for three on every processor, down to two weight rows each.
    """
    block_n = 8 if product == "gate_up" else 4
    while block_n > 2 and columns < 3 * processors * block_n:
        block_n //= 2
    widest = 256 if product == "gate_up" else 512
    block_k = 32
    while block_k < min(depth, widest):
        block_k *= 2
    return RowConfig(block_n, block_k, 4)


def candidates(product: str, kind: str, capability: int) -> Iterator[Config]:
    """Every valid tile that is worth a tuner's time."""
    sizes = every((16, 32, 64, 128, 256), (32, 64, 128, 256), (32, 64, 128), (4, 8), (2, 3, 4, 5))
    for size in sizes:
        config = Config(*size)
        if unsupported_reason(config, product, kind, capability) is None:
            yield config
