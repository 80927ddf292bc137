"""Run by test_cuda_conv.py with the emulated driver in LD_LIBRARY_PATH: the cuda backend's
convolutions. Arguments: "named", or "named" with a type and a number of multiprocessors (the cases
take turns at both without); or "random" with the first and the last seed.
"""

import sys

import torch
from emulated_device import pretend

from mingcore.errors import BackendError
from mingcore.ops._core import cases
from mingcore.ops._core.layouts import nan_poisoned
from mingcore.ops.conv import cuda_plan as cuda_conv_plan
from mingcore.testing import compare, streaming
from tests.ops.test_streams import conv_call

OPS = ("causal_conv1d", "causal_conv_transpose1d")
DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float32, torch.bfloat16, torch.float16)}
LARGE_TILES, SMALL_TILES = 1, 132  # multiprocessors that must all have work
gpu = pretend(90, SMALL_TILES)
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


def named(dtypes, multiprocessors, skip):
    """skip: of the cases of the ops in place only every so many-th."""
    declined = []
    for op in [name + tail for name in OPS for tail in ("", "_")]:
        for i, case in enumerate(cases.for_op(op)):
            if case.tags & {"real", "mid"} or (op.endswith("_") and i % skip):
                continue
            gpu.multi_processor_count = multiprocessors[i // 2 % len(multiprocessors)]
            try:
                kwargs = case.make("cpu", dtypes[i % len(dtypes)], seed=i)
                check(op, kwargs, twice=i % 4 == 0)
            except BackendError as error:
                assert "is made of up to 163 times" in str(error), error
                declined.append(case.name)
    assert set(declined) == {"dilated"}, declined


def deep():
    """More stages than the ring has slots, for weights that are dealt to the warps."""
    gpu.multi_processor_count = SMALL_TILES
    for op in OPS:
        (case,) = [c for c in cases.for_op(op, large=True) if c.name == "proof_few_odd"]
        check(op, case.build(cases.Draw("cpu", torch.bfloat16, 5), **{**case.dims, "N": 9}))


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


if sys.argv[1] == "named" and sys.argv[2:]:
    named([DTYPES[sys.argv[2]]], [int(sys.argv[3])], 1)
elif sys.argv[1] == "named":
    named(list(DTYPES.values()), [SMALL_TILES, LARGE_TILES], 3)
    deep()
else:
    for seed in range(int(sys.argv[2]), int(sys.argv[3])):
        gpu.multi_processor_count = (SMALL_TILES, LARGE_TILES)[seed % 2]
        random(seed)
print("plans", *kinds.values())
