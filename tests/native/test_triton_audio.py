"""Triton's overlap_add and spectrum_head without a GPU: against the oracle, and as binaries."""

from pathlib import Path

import pytest

pytest.importorskip("triton")

from mingcore_kernels.gemm import configs
from mingcore_kernels.spectrum import spectrum_head
from tests.native import triton_process


@pytest.fixture(scope="module", params=("installed", "oldest"))
def triton_folder(request) -> Path | None:
    return triton_process.folder_of(request.param)


def run(cache: Path, folder: Path | None, *mode: str) -> list[dict]:
    timeout = 280 if "few" in mode else 1200
    return triton_process.run("run_triton_audio.py", cache, folder, *mode, timeout=timeout)


def check_interpreted(lines: list[dict], cases: int, streams: int) -> None:
    for op in ("overlap_add", "overlap_add_", "spectrum_head", "spectrum_head_"):
        assert sum(line.get("op") == op for line in lines) >= cases, op
    assert sum("streamed" in line for line in lines) == 2 * streams
    refused = [line["refused"] for line in lines if "refused" in line]
    for said, expected in zip(refused, ("frames is torch.float64", "numerator is torch.float64", "a contiguous one")):
        assert expected in said
    assert len(refused) == 3


def check_binaries(lines: list[dict], exact: bool = False) -> None:
    triton_process.held("audio", lines, exact=exact)
    for line in lines:
        usage = line["usage"]
        assert usage["STACK"] == 0 and usage["LOCAL"] == 0 and 0 < usage["REG"] <= 255, line
        assert line["shared"] <= configs.shared_bytes(line["sm"]), line
        inverse = line["kernel"] == "_inverse_kernel"
        assert line["waits"] == (inverse and line["sm"] >= 90), line
        if inverse or line["types"][0] in ("*bf16", "*fp16"):
            assert line["matrix"], line
    kernels = {line["kernel"] for line in lines}
    assert kernels == {"_overlap_add_kernel", "_spectrum_kernel", "_inverse_kernel"}


def test_interpreted_kernels_match_the_oracle(tmp_path):
    check_interpreted(run(tmp_path, None, "interpret", "few"), 3, 1)


@pytest.mark.slow
def test_every_case_and_stream_interpreted(triton_folder, tmp_path):
    check_interpreted(run(tmp_path, triton_folder, "interpret"), 8, 7)


def test_compiled_kernels_neither_spill_nor_use_local_memory(triton_folder, tmp_path):
    check_binaries(run(tmp_path, triton_folder, "compile", "few"))


@pytest.mark.slow
def test_every_type_and_batch_compiles(triton_folder, tmp_path):
    check_binaries(run(tmp_path, triton_folder, "compile", "all"), exact=True)


def test_tiles_fill_the_processors():
    """At the real size; and one stream's few hops are in one tile, so that in place is safe."""
    for rows in (1, 2, 4, 8, 32):
        tile = spectrum_head.inverse(rows, 8, 320, 1280, 132)
        assert tile.block_t >= 8 and 80 <= rows * 10 * tile.splits <= 330
    assert spectrum_head.inverse(1, 503, 320, 1280, 132).splits > 1
    assert spectrum_head.inverse(1, 1, 8, 8, 132).splits == 1
