"""Triton's norms, rotary embeddings, attention over a cache and linear layers without a GPU:
against the oracle, and as binaries."""

import pytest

pytest.importorskip("triton")

import torch

from mingcore_kernels.attention import attention_decode
from mingcore_kernels.gemm import configs, linear
from mingcore_kernels.norm import norms
from tests.ops.runners import triton

SCENARIOS = "tests.ops.scenarios.small_triton"
REFUSALS = (
    "heads are 512 wide",
    "k_cache overlaps itself",
    "cos is torch.float64",
    "rows have 20000 elements",
    "x is torch.float64",
    "a dense last dimension",
    "it takes one type",
)


@pytest.mark.parametrize("version", ("installed", pytest.param("oldest", marks=pytest.mark.slow)))
@pytest.mark.parametrize("step", (3, pytest.param(1, marks=pytest.mark.slow)))
def test_interpreted_kernels_match_the_oracle(version, step, workers):
    """Formats and activations of linear, shares of attention, rows alone; what is refused."""
    lines = workers.interpreter(version)(f"{SCENARIOS}:interpret", step=step)
    counts = [sum(line.get("op") == op for line in lines) for op in ("linear", "attention_decode")]
    assert counts == ([2, 2] if step == 3 else [7, 9]), counts
    refused = [line["refused"] for line in lines if "refused" in line]
    assert all(expected in got for expected, got in zip(REFUSALS, refused, strict=True)), refused


def check_binaries(lines: list[dict], exact: bool = False) -> None:
    triton.held("small", lines, exact=exact)
    for line in lines:
        usage = line["usage"]
        assert usage["STACK"] <= triton.MAX_STACK and usage["LOCAL"] == 0, line
        assert 0 < usage["REG"] <= 255, line
        assert line["shared"] <= configs.shared_bytes(line["sm"]), line
        if line["kernel"] in ("_attention_decode_kernel", "_linear_kernel"):
            if line["types"][0] != "*fp32":
                assert line["matrix"] and line["copies16"], line  # the matrix unit, wide copies


@pytest.mark.parametrize("version", ("installed", pytest.param("oldest", marks=pytest.mark.slow)))
def test_compiled_kernels_neither_spill_nor_use_local_memory(version, workers):
    lines = workers.compiler(version)(f"{SCENARIOS}:compile_all", everything=False)
    check_binaries(lines)
    assert {line["kernel"] for line in lines} >= {
        "_norm_kernel",
        "_rope_kernel",
        "_kv_write_kernel",
        "_attention_decode_kernel",
        "_combine_kernel",
        "_linear_kernel",
    }


@pytest.mark.slow
@pytest.mark.timeout(1600)
@pytest.mark.parametrize("version", ("installed", pytest.param("oldest", marks=pytest.mark.slow)))
def test_every_tile_and_type_compiles(version, workers):
    lines = workers.compiler(version)(f"{SCENARIOS}:compile_all", everything=True, timeout_s=1500)
    check_binaries(lines, exact=True)


@pytest.mark.parametrize("capability", (80, 86, 89, 90, 100, 120))
def test_every_choice_of_linear_fits(capability):
    for kind in ("16", "w8", "32"):
        for rows in (1, 16, 17, 64, 65, 500):
            for depth in (1, 37, 704, 1280, 2048):
                config = linear.choose(kind, rows, depth, capability)
                there = configs.shared_bytes(capability)
                assert linear.staged_bytes(config, kind) + 1024 <= there
    few = {linear.choose("16", rows, 2048, capability) for rows in range(1, 17)}
    assert len(few) == 1  # one path: a row's bits do not depend on its neighbours


def test_choices_print_themselves():
    for config, module in (
        (linear.choose("16", 1, 2048, 90), linear),
        (attention_decode.choose(5, 64, 2), attention_decode),
    ):
        assert str(config) in module.choose.__doc__
    assert "[1, 4, 8, 16]" in norms.warps_of.__doc__
    assert [norms.warps_of(H) for H in (64, 1024, 2048, 16384)] == [1, 4, 8, 16]
    shares = attention_decode.shares_of
    found = shares(4096, 0, 1, 4, 64), shares(4096, 0, 5, 20, 64), shares(37, 32, 5, 2, 64)
    assert str(found) in shares.__doc__


def test_every_width_of_attention_has_a_tile():
    for D in range(1, attention_decode.WIDEST + 1):
        for dtype in (torch.bfloat16, torch.float32):
            for rows in (1, 16, 17, 64, 65, 5000):
                config = attention_decode.choose(rows, D, dtype.itemsize)
                tallest = 32 if dtype == torch.float32 and D > 128 else 64
                assert config.block_r >= min(rows, tallest)
