"""Triton's norms, rotary embeddings, attention over a cache and linear layers without a GPU:
against the oracle, and as binaries."""

from pathlib import Path

import pytest

pytest.importorskip("triton")

import torch

from mingcore_kernels.attention import attention_decode
from mingcore_kernels.gemm import configs, linear
from mingcore_kernels.norm import norms
from tests.native import triton_process

OPS = ("rms_norm", "add_rms_norm", "layer_norm", "rope", "qkv_rope", "kv_write_", "attention_decode", "linear")
REFUSALS = (
    "heads are 512 wide",
    "k_cache overlaps itself",
    "cos is torch.float64",
    "rows have 20000 elements",
    "x is torch.float64",
    "a dense last dimension",
    "it takes one type",
)


@pytest.fixture(scope="module", params=("installed", pytest.param("oldest", marks=pytest.mark.slow)))
def triton_folder(request) -> Path | None:
    return triton_process.folder_of(request.param)


def run(cache: Path, folder: Path | None, *mode: str) -> list[dict]:
    timeout = 1500 if mode == ("compile",) else 280
    return triton_process.run("run_triton_small.py", cache, folder, *mode, timeout=timeout)


def check_interpreted(lines: list[dict], least: int) -> None:
    for op in OPS:
        passed = [line for line in lines if line.get("op") == op and "declined" not in line]
        assert len(passed) >= least, op
    refused = [line["refused"] for line in lines if "refused" in line]
    assert all(expected in got for expected, got in zip(REFUSALS, refused, strict=True)), refused


def test_some_interpreted_kernels_match_the_oracle(triton_folder, tmp_path):
    check_interpreted(run(tmp_path, triton_folder, "interpret", "few"), least=2)


@pytest.mark.slow
def test_interpreted_kernels_match_the_oracle(triton_folder, tmp_path):
    check_interpreted(run(tmp_path, triton_folder, "interpret"), least=7)


def check_binaries(lines: list[dict], exact: bool = False) -> None:
    triton_process.held("small", lines, exact=exact)
    for line in lines:
        usage = line["usage"]
        assert usage["STACK"] <= triton_process.MOST_STACK and usage["LOCAL"] == 0, line
        assert 0 < usage["REG"] <= 255, line
        assert line["shared"] <= configs.shared_bytes(line["sm"]), line
        if line["kernel"] in ("_attention_decode_kernel", "_linear_kernel"):
            if line["types"][0] != "*fp32":
                assert line["matrix"] and line["copies16"], line  # the matrix unit, wide copies


def test_compiled_kernels_neither_spill_nor_use_local_memory(triton_folder, tmp_path):
    lines = run(tmp_path, triton_folder, "compile", "few")
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
def test_every_tile_and_type_compiles(triton_folder, tmp_path):
    check_binaries(run(tmp_path, triton_folder, "compile"), exact=True)


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
