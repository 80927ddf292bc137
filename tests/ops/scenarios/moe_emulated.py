"""The cuda backend's moe_mlp for few tokens, in a worker of emulated.py that nobody used before."""

import ctypes

import torch

from mingcore.ops._core import launch
from mingcore.ops._core.layouts import nan_poisoned, shifted
from mingcore.ops.moe import cuda as cuda_moe
from mingcore.testing import compare
from tests.ops.runners.emulated_device import GPU as gpu
from tests.ops.runners.emulated_device import draw

launches: dict[int, int] = {}  # by the number of multiprocessors


def words():
    """Arrivals so far and the abort word, of the emulated GPU in use."""
    return launch.barrier_words("moe_decode", None)[::8].tolist()


def check(kwargs, twice=True):
    with nan_poisoned():
        got = compare.run("moe_mlp", kwargs, backend="cuda")
    compare.check_op("moe_mlp", kwargs, got)
    launches[gpu.multi_processor_count] += got[0].numel() > 0
    if twice:
        assert torch.equal(got[0], compare.run("moe_mlp", kwargs, backend="cuda")[0])
        launches[gpu.multi_processor_count] += got[0].numel() > 0


def odd_shapes():
    """H, I, Is off every tile and step; ids that repeat within a token; experts of 17 rows."""
    shapes = [  # T, K, E, H, I, Is
        (1, 6, 9, 200, 88, 176),
        (2, 1, 1, 8, 8, 0),
        (3, 2, 5, 136, 24, 40),
        (16, 2, 3, 72, 56, 8),
        (17, 1, 2, 64, 72, 64),
        (40, 2, 2, 24, 16, 32),
    ]
    for seed, (T, K, E, H, I, shared) in enumerate(shapes[: 6 if gpu.capability >= 90 else 3]):
        dtype = (torch.bfloat16, torch.float16, torch.float32)[seed % 3]
        check(draw(seed, T, K, E, H, I, shared, dtype))
    for seed, (T, K, E, H, I, shared) in enumerate([*shapes[:1], (17, 2, 3, 80, 48, 16)]):
        for format in ("int8", "fp8"):
            for dtype in (torch.bfloat16, torch.float16):
                sizes = [16 * -(-size // 16) for size in (H, I, shared)]
                check(draw(seed, T, K, E, *sizes, dtype, format))
    all_to_one = torch.full((16, 1), 2, dtype=torch.int32)
    check(draw(7, 16, 1, 4, 136, 40, 24, torch.bfloat16, ids=all_to_one))


def every_weight_code():
    """Each of the 8-bit codes reaches its exact value: one-hot rows of down select them."""
    for format in ("int8", "fp8"):
        kwargs = draw(0, 1, 1, 1, 256, 256, 0, torch.float16, format)
        packed = kwargs["experts"]
        codes = torch.arange(256, dtype=torch.uint8).view(torch.int8)
        codes = codes.clamp(min=-127) if format == "int8" else codes
        stored = codes.view(packed.down.dtype) if format == "fp8" else codes
        finite = stored.float().nan_to_num(0).to(stored.dtype)
        packed.down.copy_(finite.expand(1, 256, 256))
        for dtype in (torch.float16, torch.bfloat16):
            check({**kwargs, "x": kwargs["x"].to(dtype)}, twice=False)


def awkward_tensors():
    kwargs = draw(3, 5, 2, 4, 40, 24, 16, torch.bfloat16)
    check({**kwargs, "x": shifted(kwargs["x"])})
    check({**kwargs, "x": kwargs["x"].t().contiguous().t()})
    wide = torch.zeros(5, 4, dtype=torch.int32)
    wide[:, ::2] = kwargs["ids"]
    check({**kwargs, "ids": wide[:, ::2], "weights": kwargs["weights"].t().contiguous().t()})


def weights_leave_memory_once():
    """One block, 40 tokens of each expert: 3 units at each tile, and a cache of an eighth."""
    kwargs = draw(1, 40, 2, 2, 128, 256, 0, torch.bfloat16)
    kwargs["ids"][:] = torch.tensor([0, 1])
    driver = ctypes.CDLL("libcuda.so.1")
    for w in (kwargs["experts"].gate_up, kwargs["experts"].down):
        driver.emulated_watch(*map(ctypes.c_uint64, (w.data_ptr(), w.nbytes, w.nbytes // 8)))
        check(kwargs, twice=False)
        assert w.nbytes <= driver.emulated_missed_bytes() < 1.1 * w.nbytes
        driver.emulated_watch(*map(ctypes.c_uint64, (0, 0, 0)))


def lost_block():
    """An arrival that never comes: NaN, the abort word, and NaN ever after; no hang."""
    kwargs = draw(1, 3, 2, 4, 64, 32, 0, torch.float32)
    barrier = launch.barrier_words("moe_decode", None)
    ctypes.CDLL("libcuda.so.1").emulated_lose(1)
    for _ in range(2):
        out = compare.run("moe_mlp", kwargs, backend="cuda")[0]
        assert out.isnan().all() and barrier[8] == 1
    barrier.zero_()
    launches[gpu.multi_processor_count] = 0
    check(kwargs)


def run(every: list[int]) -> None:
    """every: the numbers of multiprocessors to try."""
    launches.update(dict.fromkeys(every, 0))
    for blocks in every:
        gpu.multi_processor_count = blocks
        odd_shapes()
        awkward_tensors()
        if blocks > 1:
            lost_block()
        else:
            weights_leave_memory_once()
        assert words() == [launches[blocks] * blocks, 0], words()
    every_weight_code()
    assert cuda_moe.rows_per_unit(2048, 132) == 16 and cuda_moe.rows_per_unit(1024, 132) == 8
