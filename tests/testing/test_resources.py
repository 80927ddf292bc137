"""A kernel that spills, grows or loses its instructions is caught: shown on broken copies."""

import ast
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import resources_kept
import resources_triton
from mingcore.ops._core import launch
from resources_kept import Taken
from tests.ops.runners import triton

resources = pytest.importorskip("resources")
ROOT = Path(__file__).resolve().parents[2]
TARGETS = {"sm_80", "sm_90a", "sm_100"}
WGMMA, MMA = "wgmma m64n64k16 bf16", "mma m16n8k16 bf16"
GOOD = Taken("sm_90 linear", 100, 20_000, 0, (WGMMA,))


def said(exact=False, **changed):
    kept = {GOOD.name: GOOD}
    return resources_kept.faults([replace(GOOD, **changed)], kept, "make it anew", exact=exact)


def test_less_and_a_little_more_is_no_fault_unless_exact():
    for changed in (
        {},
        {"registers": 107},
        {"registers": 40},
        {"shared_bytes": 21_999},
        {"shared_bytes": 0},
        {"products": (MMA, WGMMA)},
    ):
        assert said(**changed) == []
        assert bool(said(exact=True, **changed)) == bool(changed), changed


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"registers": 108}, "108 registers, kept 100"),
        ({"shared_bytes": 22_001}, "22001 bytes of shared memory, kept 20000"),
        ({"spilled": 4}, "spills 4 bytes"),
        ({"local": True}, "local memory"),
        ({"products": (MMA,)}, "lost wgmma m64n64k16 bf16"),
        ({"name": "sm_90 another"}, "not among what was kept"),
    ],
)
def test_what_is_worse_is_named_with_how_to_renew_the_file(changed, words):
    fault, last = said(**changed)
    assert words in fault and fault.startswith("sm_90"), fault
    assert last == "if it is meant: make it anew"
    if "spilled" in changed:  # what was kept of a kernel that spills is known, more is not
        kept = {GOOD.name: replace(GOOD, spilled=4)}
        again, more = replace(GOOD, spilled=4), replace(GOOD, spilled=8)
        assert not resources_kept.faults([again], kept, "", exact=True)
        assert "spills 8 bytes, kept 4" in resources_kept.faults([more], kept, "")[0]
        assert resources_kept.faults([GOOD], kept, "", exact=True)
        assert not resources_kept.faults([GOOD], kept, "")
    if "registers" in changed:
        kept = {GOOD.name: replace(GOOD, registers=30)}
        assert resources_kept.faults([replace(GOOD, registers=34)], kept, "")  # more than a tenth


def test_every_cuda_kernel_is_kept_for_every_target_and_none_spills():
    content = resources_kept.read(resources.KEPT)
    assert sorted(content["kernels"]) == resources.OPS
    for op, rows in content["kernels"].items():
        assert {row["target"] for row in rows} == set(resources.targets(op)) <= TARGETS
        assert not any(row["spilled"] or row["local"] for row in rows), op
    prefill = [
        row
        for row in content["kernels"]["moe_prefill"]
        if row["name"].startswith(("moe_prefill_up", "moe_prefill_down"))
    ]
    assert prefill and all(row["products"].startswith("wgmma") for row in prefill)


def triton_kernels() -> set[str]:
    """Names of what a launcher starts: jitted functions that end in _kernel."""
    names = set()
    for path in (ROOT / "kernels" / "mingcore_kernels").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel"):
                if any("jit" in ast.unparse(d) for d in node.decorator_list):
                    names.add(node.name)
    return names


# op -> how many of its launches spill a few words: of flow_sample float32's widest product and fp8
# weights under float32 tokens for sm_90, int8 ones under bfloat16 tokens for sm_100; of small six
# of attention_decode's tiles
SPILLING = {"flow_sample": 8, "small": 6}


def test_every_triton_kernel_is_kept_for_three_architectures_and_few_spill():
    content = resources_kept.read(resources_triton.KEPT)
    assert set(content) == set(resources_triton.OPS)
    rows = [row for op in content.values() for row in op["launches"]]
    for kernel in triton_kernels():
        assert {row["sm"] for row in rows if row["kernel"] == kernel} == {80, 90, 100}, kernel
    for row in rows:
        assert row["usage"]["STACK"] <= triton.MAX_STACK and row["usage"]["LOCAL"] == 0, row
    spilling = {op: sum(row["usage"]["STACK"] > 0 for row in content[op]["launches"]) for op in content}
    assert {op: n for op, n in spilling.items() if n} == SPILLING
    wide = [r for r in rows if r["kernel"] == "_grouped_gemm_kernel" and r["sm"] == 90]
    assert any("wgmma" in str(row["products"]) for row in wide)


@pytest.mark.skipif(resources.version() is None, reason="no nvcc")
def test_a_cuda_kernel_compiled_into_too_few_registers_is_caught(monkeypatch, tmp_path):
    if not resources.kept():
        pytest.skip(f"what is kept was not made with nvcc {resources.version()}")
    source = launch.source("spectrum_head")
    shutil.copytree(launch.include_folder(source), tmp_path / "cuda")
    copy = tmp_path / "cuda" / source.parent.name / source.name
    assert resources.faults(resources.compiled("spectrum_head", "sm_80")) == []
    text = copy.read_text()
    copy.write_text(re.sub(r"\(INVERSE_THREADS\)(\s+spec)", r"(INVERSE_THREADS, 4)\1", text))
    assert copy.read_text() != text
    monkeypatch.setattr(resources.launch, "source", lambda op: copy)
    made = resources.compiled("spectrum_head", "sm_80")
    assert [kernel.name for kernel in made if kernel.spilled] == ["spectrum_inverse"]
    fault, last = resources.faults(made)
    assert fault.startswith("sm_80 spectrum_inverse: spills")
    assert "python bench/resources.py --keep" in last


def test_a_triton_kernel_compiled_into_too_few_registers_is_caught(tmp_path):
    pytest.importorskip("triton")
    with triton.compiler("installed", tmp_path) as compiler:
        lines = compiler("tests.ops.scenarios.small_triton:compile_all", everything=False, registers=64)
    worse = resources_triton.faults("small", lines)
    if worse is None:
        pytest.skip(f"what is kept was not made with Triton {lines[0]['triton']}")
    spilled = [line for line in worse if ": spills" in line]
    assert spilled and all(line.startswith("sm_90 _linear_kernel") for line in spilled), worse
    assert worse[-1] == "if it is meant: python bench/resources_triton.py small --keep"
    with pytest.raises(AssertionError, match="spills"):
        triton.held("small", lines)
