"""The cuda backend's convolutions in a worker of emulated.py, beyond what test_backends.py does."""

import torch

from mingcore.ops._core import cases, launch
from mingcore.ops._core.layouts import nan_poisoned
from mingcore.ops.conv import cuda_plan as cuda_conv_plan
from mingcore.testing import compare, streaming
from tests.ops.runners.emulated_device import BLOCKS, LARGE_TILES, SMALL_TILES
from tests.ops.runners.emulated_device import GPU as gpu
from tests.ops.runners.protocol import report
from tests.ops.test_streams import conv_call

OPS = ("causal_conv1d", "causal_conv_transpose1d")
DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float32, torch.bfloat16, torch.float16)}
kinds = dict.fromkeys(("many", "few", "depthwise"), 0)
plain = cuda_conv_plan.plan


def counted(*args):
    made = plain(*args)
    if not isinstance(made, str):
        kinds[made.kind] += 1
    return made


cuda_conv_plan.plan = counted


def check(op, kwargs, twice=False):
    """Within tolerance, and the same bits in the next run."""
    with nan_poisoned():
        got = compare.run(op, kwargs, backend="cuda")
    compare.check_op(op, kwargs, got)
    if twice:
        again = compare.run(op, kwargs, backend="cuda")
        assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


def plans():
    """How many launches of each kind the named cases lead to, with both sizes of tiles; reports them."""
    kinds.update(dict.fromkeys(kinds, 0))
    emulated, launch.launch = launch.launch, lambda *_, **__: None
    for op in [name + tail for name in OPS for tail in ("", "_")]:
        for i, case in enumerate(cases.for_op(op)):
            if case.name != "dilated" and not case.tags & {"real", "mid"}:
                gpu.multi_processor_count = (SMALL_TILES, LARGE_TILES)[i // 2 % 2]
                compare.run(op, case.make("cpu", torch.float32, seed=i), backend="cuda")
    launch.launch, gpu.multi_processor_count = emulated, BLOCKS
    report(**kinds)


def deep():
    """More stages than the ring has slots, for weights that are dealt to the warps."""
    gpu.multi_processor_count = SMALL_TILES
    for op in OPS:
        (case,) = [c for c in cases.for_op(op, large=True) if c.name == "proof_few_odd"]
        check(op, case.build(cases.Draw("cpu", torch.bfloat16, 5), **{**case.dims, "N": 9}))
    gpu.multi_processor_count = BLOCKS


def random(seed):
    """Any convolution in every type; in chunks, in place, and by rows the same as in one go."""
    for op in OPS:
        call = conv_call(op, seed)
        for dtype in DTYPES.values():
            parts = {k: call[k].to(dtype) for k in ("x", "weight", "bias")}
            check(op, {**call, **parts, "state": None, "last": seed % 2 == 1})
        sizes = streaming.split(call["x"].shape[2], seed)
        expected = streaming.once(op, call, "cuda")
        for run in (streaming.chunked, streaming.in_place):
            streaming.assert_same(run(op, call, sizes, "cuda"), expected, f"{op} {seed} {sizes}")
        call = conv_call(op, seed, batch=3, length=13)
        for mine, alone in zip(*streaming.by_rows(op, call, seed, "cuda"), strict=True):
            streaming.assert_same(mine, alone, f"{op} {seed}, rows")


def any_convolution(seeds: list[int]) -> None:
    for seed in seeds:
        gpu.multi_processor_count = (SMALL_TILES, LARGE_TILES)[seed % 2]
        random(seed)
    gpu.multi_processor_count = BLOCKS
