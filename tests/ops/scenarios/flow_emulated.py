"""The cuda backend's flow_sample, its kernel emulated on the CPU, in a worker of its own."""

import ctypes
from types import SimpleNamespace

import torch

from mingcore.errors import BackendError
from mingcore.ops._core import launch
from mingcore.ops.flow import cuda as cuda_flow
from mingcore.testing import compare
from tests.ops import flow_harness
from tests.ops.runners import emulated_device
from tests.ops.runners.emulated_device import GPU as gpu
from tests.ops.runners.protocol import report

launches: list[tuple] = []
words: dict[str, torch.Tensor] = {}


def pretend(library: str) -> None:
    """library: what emulated_flow.cpp is compiled to."""
    global emulated
    emulated = ctypes.CDLL(library)
    emulated_device.pretend(90, 3)
    gpu.seed, gpu.latency, gpu.muted = 1, 8, 0
    launch.kernel = lambda op, name, device, shared: SimpleNamespace(name=name, shared_bytes=shared)
    launch.launch = fake_launch
    launch.fault = lambda op, device: words.setdefault("fault", torch.zeros(1, dtype=torch.int64))


def fake_launch(kernel, grid, block, params, *, cooperative):
    assert cooperative and block == (cuda_flow.THREADS, 1, 1)
    assert len(params) == emulated.emulated_params()
    gpu.seed += 1
    launches.append((kernel.name, grid[0], kernel.shared_bytes))
    arguments = (kernel.name.encode(), grid[0], ctypes.c_size_t(kernel.shared_bytes), params)
    emulated.emulated_flow(*arguments, gpu.seed, gpu.latency, ctypes.c_void_p(gpu.muted))


def flags():
    """The abort word and the flags of the blocks."""
    size = 8 * (cuda_flow.FLAG_WORDS + cuda_flow.MAX_BLOCKS)
    found = launch.barrier_words("flow_sample", None, size)
    blocks = found[cuda_flow.FLAG_WORDS :][: gpu.multi_processor_count]
    return found[0], blocks


def make(name, **change):
    return flow_harness.make(name, device="cpu", dtype=torch.bfloat16, rows=True, **change)


def check(name, **change):
    kwargs = make(name, **change)
    with torch.no_grad():
        compare.check_op("flow_sample", kwargs, (flow_harness.run(kwargs, "cuda"),))


def harness():
    """Solver steps, requests alone and together, guidance left out, arguments unchanged."""
    setting = {"backend": "cuda", "device": "cpu", "dtype": torch.bfloat16, "rows": True}
    flow_harness.check_rows_alone(**setting)
    flow_harness.check_no_nan(**setting)
    flow_harness.check_guidance_zero(**setting)
    flow_harness.check_arguments(**setting)


def one_and_many_blocks():
    """More blocks than there is work for, one block for all; few pages; `down` in one piece."""
    pages, splits = cuda_flow.ring_pages, cuda_flow.splits_of
    for blocks, max_pages, parts in ((1, 5, None), (2, 4, 1), (11, 7, None), (37, 4, 4)):
        gpu.multi_processor_count = blocks
        cuda_flow.ring_pages = lambda *sizes, max_pages=max_pages: min(pages(*sizes), max_pages)
        cuda_flow.splits_of = splits if parts is None else lambda H, W, parts=parts: parts
        for name, format in (("b1", None), ("b1", "fp8"))[: 1 + (blocks < 11)]:
            check(name, format=format, qk_norm=True, schedule={"steps": 2})
    gpu.multi_processor_count = 3
    cuda_flow.ring_pages, cuda_flow.splits_of = pages, splits


def same_bits_in_any_order():
    """Whatever the copies' order and lateness: the same bits, and all flags in step."""
    kwargs = make("b1", schedule={"steps": 2})
    expected = flow_harness.run(kwargs, "cuda")
    word, before = flags()[0], flags()[1].clone()
    for latency in (1, 2, 40, 400):
        gpu.latency = latency
        assert torch.equal(flow_harness.run(kwargs, "cuda"), expected)
    gpu.latency = 8
    phases = 2 * (2 + 6 * 2)
    assert word == 0 and (flags()[1] - before == 4 * phases).all(), flags()


def lost_flag():
    """A flag that never comes: NaN, the abort word, the host's word; no hang; NaN ever after."""
    kwargs = make("b1", schedule={"steps": 2})
    flow_harness.run(kwargs, "cuda")
    word, blocks = flags()
    gpu.muted = blocks.data_ptr() + 8
    assert flow_harness.run(kwargs, "cuda").isnan().all()
    assert word == 1 and words["fault"] == 1
    gpu.muted = 0
    try:
        flow_harness.run(kwargs, "cuda")
        raise SystemExit("the host did not see that blocks had lost each other")
    except BackendError as error:
        assert "waited for seconds in vain" in str(error), error
    words["fault"].zero_()  # as a graph replays, which the host does not check
    assert flow_harness.run(kwargs, "cuda").isnan().all() and words["fault"] == 0


TASKS = {"some": [one_and_many_blocks, same_bits_in_any_order, lost_flag], "all": [harness]}


def run(task: str) -> None:
    """One of TASKS; reports how many launches it took."""
    launches.clear()
    for each in TASKS[task]:
        each()
    report(launches=len(launches))
