"""flow_sample.cu without a GPU: emulated, its schedule model-checked at real sizes, its
instructions, its reasons to decline. test_compiled.py compiles it.
"""

import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("cuda.bindings")

from mingcore.ops._core import launch
from mingcore.ops.flow import cuda as cuda_flow
from tests.ops import flow_harness
from tests.ops.runners.emulated import build
from tests.ops.support import refusal

ROOT = Path(__file__).parents[2]
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


@needs_compiler
@pytest.mark.parametrize(("task", "launches"), [("some", 14), pytest.param("all", 13, marks=pytest.mark.slow)])
def test_emulated(workers, task, launches):
    """Any number of blocks, copies in any order, a flag that is lost."""
    (done,) = workers.flow_emulator()("tests.ops.scenarios.flow_emulated:run", task=task, timeout_s=900)
    assert done["launches"] == launches


@pytest.fixture(scope="module")
def model(workers):
    return build(workers.shared / "model", "model_flow.cpp", "model", "-Wall", "-Wextra", "-Werror")


def shape(B, R, N, P, H=1024, W=4096, C=64, Hc=2048, L=8, E=2, heads=16, splits=None, pages=11):
    splits = splits or cuda_flow.splits_of(H, W)
    return (B, R, 1 + N + P, N, P, C, Hc, H, W, L, E, heads, heads, splits, pages, E + 1)


REAL = [shape(1, 2, 5, 5, L=3), shape(2, 4, 5, 5, splits=1, L=2)]
LONG = [shape(1, 2, 5, 5, E=4), shape(4, 8, 5, 5), shape(1, 2, 32, 4, pages=7), shape(8, 8, 5, 5)]
LONG += [shape(1, 2, 5, 5, H=2048, W=8192, L=2)]
SIZES = [*REAL, *(pytest.param(each, marks=pytest.mark.slow) for each in LONG)]
SMALL = [
    shape(1, 2, 5, 5, H=64, W=128, C=16, L=2, E=3, heads=4, pages=pages, splits=splits)
    for pages, splits in ((4, 2), (5, 4), (13, 1))
]


@needs_compiler
@pytest.mark.parametrize("lost", (0, 1))
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_control_of_real_heads(model, sizes, lost):
    walk(model, sizes, lost, seeds=1, blocks=132)


@needs_compiler
@pytest.mark.parametrize("lost", (0, 1))
@pytest.mark.parametrize("blocks", (1, 2, 5, 17))
def test_control_of_small_heads(model, blocks, lost):
    for sizes in SMALL:
        walk(model, sizes, lost, seeds=8, blocks=blocks)


def walk(model, sizes, lost, seeds, blocks):
    """Three launches in a row, the flags of the last kept by the next; or one in which a block's
    flag is lost and one after it. A block alone waits for nobody but itself.
    """
    for seed in range(seeds):
        bytes, group = ((2, 4), (1, 4), (2, 2), (1, 2))[(seed + len(sizes)) % 4]
        arguments = (seed, 3, bytes, group, lost, blocks, *sizes)
        done = subprocess.run([model, *map(str, arguments)], capture_output=True, text=True)
        assert done.returncode == 0, f"{arguments}: {done.stdout}"
        lookahead, waits = map(int, re.findall(r"\d+", done.stdout))
        assert lookahead > 0.5 * waits, f"{arguments}: {done.stdout}"


@needs_compiler
@pytest.mark.parametrize(
    "text, instead",
    [
        ("if (kind == ATTENTION) {", "if (kind == ATTENTION) return false;\n    if (kind == QKV) {"),
        ("if (kind == REDUCE) {", "if (kind == REDUCE) return false;\n    if (kind == QKV) {"),
        ("overlap(range, 2 * tiles + first, 2 * tiles + end)", "false"),
        ("    return true;\n}\n\nstruct Cursor", "    return kind != UP;\n}\n\nstruct Cursor"),
        ("size = size < left ? size : left;", "(void)left;"),
        ("return range.first < range.end && (kind == EMBED || block == 0);", "return false;"),
    ],
)
def test_the_model_sees_what_is_wrong(tmp_path, text, instead):
    plan = (ROOT / "csrc" / "cuda" / "flow" / "flow_sample_plan.cuh").read_text()
    assert plan.count(text) == 1
    (tmp_path / "flow").mkdir()
    (tmp_path / "flow" / "flow_sample_plan.cuh").write_text(plan.replace(text, instead))
    broken = build(tmp_path / "model", "model_flow.cpp", "model", f"-I{tmp_path}")
    with pytest.raises(AssertionError):
        for blocks in (5, 17):
            for sizes in SMALL:
                walk(broken, sizes, 0, seeds=8, blocks=blocks)


@pytest.mark.slow  # the resource report holds most of it: test_compiled.py
def test_ptx_has_matrix_products_and_bulk_copies():
    ptx = launch._compile(launch.source("flow_sample"), "compute_90a", "ptx").decode()
    kernels = re.split(r"\.visible \.entry ", ptx)[1:]
    names = {kernel[: kernel.index("(")] for kernel in kernels}
    formats = cuda_flow.WEIGHT_BYTES
    assert names == {f"flow_sample_{f}_{t}" for f in formats for t in cuda_flow.ROW_TILES}
    for kernel in kernels:
        assert "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32" in kernel
        assert kernel.count("cp.async.bulk.shared::cluster.global.mbarrier") == 1
        for each in ("mbarrier.try_wait.parity", "setmaxnreg.inc", "fence.proxy.async"):
            assert each in kernel
        assert not re.search(r"\.local|\.f64|\btrap\b|\batom\.|\bred\.", kernel)


@pytest.fixture
def any_device(monkeypatch):
    """Without a GPU: the architecture is granted, the operands are looked at."""
    there = SimpleNamespace(shared_memory_per_block_optin=232448, multi_processor_count=132)
    monkeypatch.setattr(launch, "unavailable_reason", lambda op, device: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: there)
    return there


def reason(name="b1", dtype=torch.bfloat16, rows=True, condition=None, **change) -> str | None:
    """What the kernel says to the arguments of a case; condition: another type of that argument."""
    kwargs = flow_harness.make(name, device="cpu", dtype=dtype, rows=rows, **change)
    kwargs["condition"] = kwargs["condition"].to(condition or kwargs["condition"].dtype)
    with torch.no_grad():
        return refusal("flow_sample", "cuda", **kwargs)


def test_what_it_takes(any_device):
    for name in ("b1", "qk_norm", "midpoint", "history_0", "strided", "wide_heads"):
        assert reason(name) is None
    for name in ("bf16_b1", "fp8_b1", "fp8_wide"):
        assert reason(name, float_input=False) is None
    assert reason(B=4) is None and reason(B=8, guidance=0.0) is None  # 88 rows


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"B": 5}, "110 rows of tokens; it takes up to 96"),
        ({"name": "odd_sizes"}, "H is 36; it takes multiples of 32"),
        ({"W": 80}, "W is 80; it takes multiples of 32"),
        ({"C": 12}, "C is 12; it takes multiples of 8"),
        ({"Hc": 20}, "Hc is 20"),
        ({"H": 96}, "heads are 24 wide"),
        ({"dtype": torch.float32}, "the weights are fp32; it takes bf16 and fp8"),
        ({"format": "int8"}, "the weights are int8"),
        ({"format": "fp8", "float_input": True}, "condition is torch.float32"),
        ({"format": "fp8", "dtype": torch.float32}, "condition is torch.float32"),
        ({"format": "fp8", "dtype": torch.float32, "condition": torch.bfloat16}, "cond is torch.float32"),
        ({"rows": False}, "'panels'; it takes 'rows'"),
        ({"schedule": {"steps": 257}}, "257 evaluations"),
    ],
)
def test_what_it_declines(any_device, change, expected):
    assert expected in reason(**change)


def test_awkward_gpus_are_declined(any_device):
    any_device.multi_processor_count = 300
    assert "has 300 multiprocessors" in reason()
    any_device.multi_processor_count = 132
    any_device.shared_memory_per_block_optin = 65536
    assert "leave room for" in reason(B=4)


@pytest.mark.parametrize("format, page", [("bf16", 16), ("fp8", 8)])
def test_the_ring_holds_a_block_of_the_head(format, page):
    """1024 wide, one patch: what a multiprocessor reads of one of the eight blocks."""
    pages = cuda_flow.ring_pages(1024, 5 * 64, 132, 2, format, 232448)
    size = cuda_flow.shared_bytes(1024, 5 * 64, 132, 2, format, pages)
    assert size <= 232448 < size + 2 * page * 1024
    assert pages * page >= 176
