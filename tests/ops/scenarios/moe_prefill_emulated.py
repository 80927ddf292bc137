"""The cuda backend's moe_mlp for many tokens, in a worker of emulated.py."""

import torch

from mingcore.ops._core.layouts import nan_poisoned, shifted
from mingcore.testing import compare
from tests.ops.runners.emulated_device import GPU as gpu
from tests.ops.runners.emulated_device import draw


def check(kwargs):
    """Within tolerance, and the same bits in the next run."""
    with nan_poisoned():
        got = compare.run("moe_mlp", kwargs, backend="cuda")
    compare.check_op("moe_mlp", kwargs, got)
    assert torch.equal(got[0], compare.run("moe_mlp", kwargs, backend="cuda")[0])


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


def run(every: list[int]) -> None:
    """every: the numbers of multiprocessors to try; the first one gets every shape."""
    for blocks in every:
        gpu.multi_processor_count = blocks
        shapes(SHAPES if blocks == every[0] else SHAPES[:1])
        if blocks == every[0]:
            routings()
            awkward_tensors()
