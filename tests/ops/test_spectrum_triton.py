"""Triton's overlap_add and spectrum_head without a GPU: against the oracle, and as binaries."""

import pytest

pytest.importorskip("triton")

from mingcore_kernels.gemm import configs
from mingcore_kernels.spectrum import spectrum_head
from tests.ops.runners import triton

SCENARIOS = "tests.ops.scenarios.spectrum_triton"
REFUSALS = ("frames is torch.float64", "numerator is torch.float64", "a contiguous one")


def test_streams_and_refusals_interpreted(workers):
    worker = workers.interpreter("installed")
    lines = worker(f"{SCENARIOS}:streams", seed=0, T=6)
    assert [line["streamed"] for line in lines] == ["overlap_add", "spectrum_head"]
    refused = [line["refused"] for line in worker(f"{SCENARIOS}:refused")]
    assert all(expected in reason for reason, expected in zip(refused, REFUSALS, strict=True)), refused


@pytest.mark.slow
@pytest.mark.parametrize("version", triton.VERSIONS)
def test_every_stream_and_awkward_input_interpreted(version, workers):
    worker = workers.interpreter(version)
    streamed = [line for seed in range(7) for line in worker(f"{SCENARIOS}:streams", seed=seed, T=10)]
    assert len(streamed) == 2 * 7
    assert len(worker(f"{SCENARIOS}:awkward")) == 5
    refused = [line["refused"] for line in worker(f"{SCENARIOS}:refused")]
    assert all(expected in reason for reason, expected in zip(refused, REFUSALS, strict=True)), refused


def check_binaries(lines: list[dict], exact: bool = False) -> None:
    triton.held("audio", lines, exact=exact)
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


@pytest.mark.parametrize("version", triton.VERSIONS)
def test_compiled_kernels_neither_spill_nor_use_local_memory(version, workers):
    check_binaries(workers.compiler(version)(f"{SCENARIOS}:compile_all", mode="few"))


@pytest.mark.slow
@pytest.mark.timeout(1600)
@pytest.mark.parametrize("version", triton.VERSIONS)
def test_every_type_and_batch_compiles(version, workers):
    lines = workers.compiler(version)(f"{SCENARIOS}:compile_all", mode="all", timeout_s=1200)
    check_binaries(lines, exact=True)


def test_tiles_fill_the_processors():
    """At the real size; and one stream's few hops are in one tile, so that in place is safe."""
    for rows in (1, 2, 4, 8, 32):
        tile = spectrum_head.inverse(rows, 8, 320, 1280, 132)
        assert tile.block_t >= 8 and 80 <= rows * 10 * tile.splits <= 330
    assert spectrum_head.inverse(1, 503, 320, 1280, 132).splits > 1
    assert spectrum_head.inverse(1, 1, 8, 8, 132).splits == 1
