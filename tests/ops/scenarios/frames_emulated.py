"""The cuda backend's frame_embed in a worker of emulated.py, against the oracle: what each kernel
is for, random sizes, and what is refused."""

import random

import torch

from mingcore import ops
from mingcore.errors import BackendError
from mingcore.ops._core import cases, launch
from mingcore.ops._core.layouts import nan_poisoned, strided, transposed
from mingcore.ops.spectrum import cuda as cuda_spectrum
from mingcore.testing import compare
from tests.ops.runners.protocol import report

TYPES = (torch.float32, torch.bfloat16, torch.float16)
# (B, L, hop, H): each kernel; frames cut short; channels and frames at the edges of a tile
SIZES = (
    (1, 8 * 40 - 3, 40, 17),
    (1, 600, 600, 16),
    (3, 70, 8, 9),
    (5, 16 * 13, 16, 33),
    (1, 129 * 8 - 7, 8, 65),
    (2, 130 * 24 - 1, 24, 72),
    (1, 128 * 16, 16, 64),
    (2, 66, 160, 70),
)
launched: set[str] = set()
kernel_of = launch.kernel


def kernel(op: str, name: str, *rest):
    launched.add(name)
    return kernel_of(op, name, *rest)


def check(samples: torch.Tensor, weight: torch.Tensor) -> None:
    kwargs = {"samples": samples, "weight": weight, "hop": weight.shape[1]}
    with nan_poisoned():
        got = compare.run("frame_embed", kwargs, backend="cuda")
    compare.check_op("frame_embed", kwargs, got)


def run(few: bool) -> None:
    launched.clear()
    launch.kernel = kernel
    checked = 0
    for i, dtype in enumerate(TYPES):
        for seed, (B, L, hop, H) in enumerate(SIZES):
            d = cases.Draw("cpu", dtype, seed)
            samples, weight = d.normal(B, L), d.matrix(H, hop)
            for max_frames in (256, 0):  # a few frames on the large tiles as well
                cuda_spectrum.FEW_FRAMES = max_frames
                check(samples, weight)
                check(strided(samples, gap=16 - L % 8), weight)
                checked += 2
            cuda_spectrum.FEW_FRAMES = 256
            if few and seed % 3 != i:
                continue
            check(strided(samples), weight)  # rows that no copy of 16 bytes starts
            check(d.normal(B, L + 1)[:, 1:], weight)
            check(transposed(samples), d.matrix(H + 1, hop + 3)[1:, 3:])
            checked += 3

    draw = random.Random(7)
    for seed in range(6 if few else 60):
        d = cases.Draw("cpu", TYPES[seed % 3], seed)
        hop, H = draw.randint(1, 70), draw.randint(1, 80)
        L = draw.randint(1, 4 * hop if seed % 2 else 30 * hop)
        check(strided(d.normal(draw.randint(1, 3), L), draw.randint(1, 9)), d.matrix(H, hop))
        checked += 1

    d, refused = cases.Draw("cpu", torch.bfloat16, 5), 0
    samples, weight = d.normal(1, 40), d.matrix(8, 16)
    for x, w, expected in (
        (samples, weight.float(), "it takes one type"),
        (samples.double(), weight.double(), "samples is torch.float64"),
        (samples, torch.empty(1, cuda_spectrum.MAX_HOP + 1, dtype=torch.bfloat16), "hop is 4194305; it takes"),
    ):
        try:
            ops.frame_embed(x, w, hop=w.shape[1], backend="cuda")
            raise SystemExit(f"not refused: {expected}")
        except BackendError as error:
            assert expected in str(error), error
            refused += 1
    for B, H in ((0, 8), (1, 0)):
        got = ops.frame_embed(samples[:B], weight[:H], hop=16, backend="cuda")
        assert got.shape == (B, 3, H)
    launch.kernel = kernel_of
    report(checked=checked, kernels=len(launched), refused=refused)
