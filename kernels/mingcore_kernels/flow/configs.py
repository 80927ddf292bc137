"""Tiles of the flow sampler's products: a committed table and the estimate that picks from it.

`choose(...)` is pure and cheap, and its result prints itself:

    >>> choose("16", rows=22, columns=4096, depth=1024)
    Config(block_m=32, block_n=32, block_k=64, split=4, parts=1, warps=4, stages=4)

The matrices are the released head's 12 H^2 weights a block and the rows are few, so what bounds a
product is how many bytes the busiest SM takes out of L2: its own weight rows, and the activations
once more for every program. The estimate is that, or the tensor cores' time where it is longer, or
the matrix over the memory's rate where that is, with a quarter of the shorter one; cutting K into
`parts` of different programs costs an exchange. Rates are of an H200 and reasoned, not measured;
nothing is tuned while a request runs, so the bits of a result depend on shapes and on the number
of SMs alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from ..lib.target import shared_bytes

# bytes of a weight and of an activation, by kind: float32; 16-bit operands; 8-bit weights; the last
# two where activations are stored in float32
KINDS = {"32": (4, 4), "16": (2, 2), "w8": (1, 2), "16z": (2, 4), "w8z": (1, 4)}

PROCESSORS = 132
PARTS = (1, 2, 4, 8)
LEAST_DEPTH = 512  # of a part of K
_SM_BYTES_NS = 100.0  # 64 bytes a clock
_SM_FLOPS_NS = {"split": 3000.0, "tile": 5000.0}  # mma.sync, wgmma
_MEMORY_BYTES_NS = 4300.0
_EXCHANGE_NS = 1800.0  # partial sums out, a counter, and back in
_APART = 0.25  # of the shorter of two times that overlap
_RESIDENT_BYTES = 100 << 10  # so that the next launch's programs find room beside


@dataclass(frozen=True)
class Config:
    """One program: block_m rows of x against block_n weight rows.

    split: the warps' shares of each step of split * block_k columns, 1 for one tile of all warps.
    parts: programs among which K is divided.
    """

    block_m: int
    block_n: int
    block_k: int
    split: int
    parts: int
    warps: int
    stages: int


# (block_m, block_n, block_k, split, warps, stages). With a split the weights are the n8 operand of
# mma.sync, so that 8 rows of a matrix make a program; without one they are the wide operand.
_TILES = {
    "16": (
        (16, 8, 64, 8, 8, 4),
        (16, 16, 64, 4, 4, 5),
        (16, 32, 64, 4, 4, 4),
        (32, 8, 32, 8, 8, 5),
        (32, 16, 64, 4, 4, 4),
        (32, 32, 64, 4, 4, 4),
        (64, 16, 64, 4, 4, 3),
        (64, 32, 64, 4, 4, 3),
        (64, 64, 64, 1, 4, 4),
        (64, 128, 64, 1, 8, 4),
        (128, 128, 64, 1, 8, 3),
    ),
    "w8": (
        (16, 8, 64, 8, 8, 4),
        (16, 16, 64, 4, 4, 5),
        (16, 32, 64, 4, 4, 4),
        (32, 8, 32, 8, 8, 5),
        (32, 16, 64, 4, 4, 4),
        (32, 32, 64, 4, 4, 4),
        (64, 16, 64, 4, 4, 3),
        (64, 32, 64, 4, 4, 3),
        (64, 64, 64, 1, 4, 4),
        (64, 128, 64, 1, 8, 4),
    ),
    "32": ((16, 32, 32, 1, 4, 3), (32, 32, 32, 1, 4, 3), (64, 32, 32, 1, 4, 2)),
}


# (block_m, block_n) that spill on what came before Hopper
_BEFORE_90 = {"16": {(128, 128)}, "w8": {(16, 32), (32, 16), (32, 32), (64, 32), (64, 128)}}


def kind_of(operand_bytes: int, weight_bytes: int, stored_bytes: int) -> str:
    """Which tiles hold for operands and weights of so many bytes, activations stored in so many."""
    if operand_bytes == 4:
        return "32"
    return ("w8" if weight_bytes == 1 else "16") + ("z" if stored_bytes == 4 else "")


def embedding(operand_bytes: int, rows: int) -> Config:
    """The tile of the tokens' embedding, whose depth is the latents' width."""
    block_m, block_k = (16 if rows <= 16 else 32), (32 if operand_bytes == 4 else 64)
    return Config(block_m, 16, block_k, split=1, parts=1, warps=2, stages=2)


def velocity(operand_bytes: int) -> Config:
    """The tile of the last product, whose columns are the latents' channels."""
    if operand_bytes == 4:
        return Config(16, 16, 32, split=1, parts=1, warps=2, stages=2)
    return Config(16, 8, 64, split=4, parts=1, warps=4, stages=3)


def why_invalid(config: Config, kind: str, capability: int) -> str | None:
    """Why this tile cannot run, or None."""
    blocks = (config.block_m, config.block_n, config.block_k, config.split, config.warps)
    if any(block & (block - 1) or block < 1 for block in blocks):
        return f"{blocks} are not powers of two"
    if config.split == 1 and min(config.block_m, config.block_n) < 16:
        return f"blocks of {config.block_m} and {config.block_n} rows; 16 is the least"
    if config.split > 1 and config.split != config.warps:
        return f"{config.split} shares for {config.warps} warps"
    if config.parts not in PARTS or config.stages < 1:
        return f"{config.parts} parts, {config.stages} stages"
    sums = config.block_m * config.block_n * config.split / (32 * config.warps)
    if sums > 128:
        return f"{sums:.0f} sums per thread; 128 leave room for the rest"
    there = shared_bytes(capability)
    if _staged(config, kind) + 1024 > there:
        return f"{_staged(config, kind)} bytes of tiles; sm_{capability} has {there}"
    return None


def _staged(config: Config, kind: str) -> int:
    weight, activation = KINDS[kind]
    row = config.split * config.block_k
    # mma.sync leaves the last stage in registers, wgmma reads all of them out of shared memory
    held = config.stages - 1 if config.split > 1 else config.stages
    return held * row * (config.block_n * weight + config.block_m * activation)


def estimate_ns(config: Config, kind: str, rows: int, columns: int, depth: int, processors: int = PROCESSORS) -> float:
    """What the product's time depends on: `rows` of x times `columns` rows of a matrix, of length
    `depth`; without what every tile pays alike."""
    weight, activation = KINDS[kind]
    programs = -(-rows // config.block_m) * -(-columns // config.block_n) * config.parts
    each, rows = -(-programs // processors), min(config.block_m, rows)
    length = depth / config.parts
    moved = length * (config.block_n * weight + rows * activation)
    if config.parts > 1:  # out, and back in by the last
        moved += 4 * rows * config.block_n * (1 + config.parts / each)
    done = 2 * length * config.block_m * config.block_n
    rate = _SM_FLOPS_NS["split" if config.split > 1 else "tile"]
    busiest = each * max(moved / _SM_BYTES_NS, done / rate)
    memory = columns * depth * weight / _MEMORY_BYTES_NS
    overlapping = max(busiest, memory) + _APART * min(busiest, memory)
    return overlapping + (_EXCHANGE_NS if config.parts > 1 else 0.0)


@lru_cache(maxsize=256)
def choose(
    kind: str, *, rows: int, columns: int, depth: int, processors: int = PROCESSORS, capability: int = 90
) -> Config:
    """The tile of one product; of equal ones the first of the table, with the fewest parts.

    Raises ValueError where no tile of the table fits the GPU.
    """
    best, min_cost = None, float("inf")
    for config in candidates(kind, depth, capability):
        took = estimate_ns(config, kind, rows, columns, depth, processors)
        if took < min_cost:
            best, min_cost = config, took
    if best is None:
        raise ValueError(f"no tile for {kind} on sm_{capability}")
    return best


def candidates(kind: str, depth: int, capability: int) -> Iterator[Config]:
    """The table's tiles that run here, with every number of parts that leaves each enough of K.

    Few stages where the shared memory holds no more, and where more would keep the next launch's
    programs off the SM.
    """
    table = kind.removesuffix("z")
    spilling = _BEFORE_90.get(table, set()) if capability < 90 else set()
    for m, n, k, split, warps, stages in _TILES[table]:
        if (m, n) in spilling:
            continue
        for parts in PARTS:
            if parts > 1 and (depth < parts * LEAST_DEPTH or depth % (parts * split * k)):
                continue
            config = Config(m, n, k, split, parts, warps, stages)
            room = min(_RESIDENT_BYTES, shared_bytes(capability) - 1024)
            while config.stages > 2 and _staged(config, kind) > room:
                config = replace(config, stages=config.stages - 1)
            if why_invalid(config, kind, capability) is None:
                yield config
