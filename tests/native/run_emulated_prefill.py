"""Run by test_cuda_prefill.py with the emulated driver in LD_LIBRARY_PATH: moe_mlp for many tokens.

Arguments: the numbers of multiprocessors to try; the first one gets every shape.
"""

import sys

import torch
from emulated_device import as_rows, draw, pretend

from mingcore.errors import BackendError
from mingcore.ops._core import cases
from mingcore.ops._core.layouts import nan_poisoned, shifted
from mingcore.ops.moe import cuda as cuda_moe
from mingcore.testing import compare

BLOCKS = tuple(map(int, sys.argv[1:]))
gpu = pretend(90, BLOCKS[0])


def check(kwargs):
    """Within tolerance, and the same bits in the next run."""
    with nan_poisoned():
        got = compare.run("moe_mlp", kwargs, backend="cuda")
    compare.check_op("moe_mlp", kwargs, got)
    assert torch.equal(got[0], compare.run("moe_mlp", kwargs, backend="cuda")[0])


def named_cases():
    named = [case for case in cases.for_op("moe_mlp") if case.dims["T"] > cuda_moe.MAX_TOKENS]
    for case in named:
        kwargs = as_rows(case.make("cpu", torch.bfloat16, seed=1))
        if "format" in case.dims:  # 8 bits: Triton's
            why = ""
            try:
                check(kwargs)
            except BackendError as error:
                why = str(error)
            assert "it takes bf16 with bfloat16" in why
        else:
            check(kwargs)
    assert len(named) >= 3


SHAPES = [  # T, K, E, H, I, Is: off every tile, box and step
    (65, 2, 3, 136, 72, 40),
    (64, 3, 9, 72, 136, 0),
    (130, 1, 1, 8, 8, 8),
    (27, 19, 9, 40, 16, 24),  # few tokens, many slots
    (64, 1, 40, 264, 16, 136),
]


def shapes(some):
    for seed, sizes in enumerate(some):
        for dtype in (torch.bfloat16, torch.float16)[: 2 if seed == 0 else 1]:
            check(draw(seed, *sizes, dtype))


def routings():
    """Empty experts, one that gets all, tiles of every width, of 1 and of 192 rows."""
    chosen = (0, 193, 0, 16, 0), (192, 0, 0, 1), (33, 49, 81, 113, 130, 145, 177)
    for seed, counts in enumerate(chosen):
        ids = torch.cat([torch.full((count,), e) for e, count in enumerate(counts)])
        ids = ids[torch.randperm(len(ids))].int().view(-1, 1)
        sizes = len(ids), 1, len(counts), 72, 24
        check(draw(seed, *sizes, 0 if seed else 16, torch.bfloat16, ids=ids))


def awkward_tensors():
    kwargs = draw(3, 64, 2, 4, 40, 24, 16, torch.bfloat16)
    check({**kwargs, "x": shifted(kwargs["x"])})
    check({**kwargs, "x": kwargs["x"].t().contiguous().t()})
    wide = torch.zeros(64, 80, dtype=torch.bfloat16)
    wide[:, :40] = kwargs["x"]
    check({**kwargs, "x": wide[:, :40]})
    ids = torch.zeros(64, 4, dtype=torch.int32)
    ids[:, ::2] = kwargs["ids"]
    check({**kwargs, "ids": ids[:, ::2], "weights": kwargs["weights"].t().contiguous().t()})


for blocks in BLOCKS:
    gpu.multi_processor_count = blocks
    shapes(SHAPES if blocks == BLOCKS[0] else SHAPES[:1])
    if blocks == BLOCKS[0]:
        named_cases()
        routings()
        awkward_tensors()
