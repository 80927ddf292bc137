"""Triton's kernels, interpreted on the CPU, in a worker (triton.py starts it)."""

import triton

from mingcore_kernels.conv import causal_conv
from mingcore_kernels.conv import configs as conv_configs
from mingcore_kernels.spectrum import overlap_add, spectrum_head
from tests.ops.runners import named
from tests.ops.runners.protocol import report
from tests.ops.runners.triton_launches import loops_with_new_numpy

FAR = causal_conv.FAR


def set_up() -> None:
    loops_with_new_numpy()
    conv_configs.PROCESSORS = 1  # as few programs as can be: each costs the interpreter seconds


def run(op: str, name: str, dtypes: list[str], index: int) -> None:
    """A named case in these types; `index` chooses what small shapes would not reach."""
    prepare(index)
    for dtype in dtypes:
        declined = named.check(op, name, "triton", dtype, seed=2)
        report(triton=triton.__version__, op=op, case=name, dtype=dtype, declined=declined)


def prepare(index: int) -> None:
    causal_conv.FAR = FAR if index % 3 else 0  # 64-bit distances too
    spectrum_tiles(1 + index % 3)


def spectrum_tiles(splits: int) -> None:
    """Small shapes reach what large ones do: several programs of a row, and the depth cut."""
    spectrum_head.inverse = lambda *_: spectrum_head.Inverse(16, 16, splits, 4, 3)
    two = lambda hop: max(triton.next_power_of_2(hop) // 2, 1)  # noqa: E731  stripes, at least
    overlap_add.blocks_of = lambda hops, hop: (4 if splits == 3 else 32, two(hop), 2)
