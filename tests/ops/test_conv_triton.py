"""Triton's convolutions without a GPU: against the oracle, as streams, and as binaries."""

import pytest

pytest.importorskip("triton")

from mingcore_kernels.conv import configs as conv_configs
from mingcore_kernels.gemm import configs
from tests.ops.runners import triton

SCENARIOS = "tests.ops.scenarios.conv_triton"


@pytest.mark.parametrize("version", ("installed", pytest.param("oldest", marks=pytest.mark.slow)))
def test_refusals_interpreted(version, workers):
    refused = [line["refused"] for line in workers.interpreter(version)(f"{SCENARIOS}:refused")]
    for expected, got in zip(("gradient", "float64", "overlaps itself"), refused, strict=True):
        assert expected in got


@pytest.mark.slow
@pytest.mark.timeout(1600)
@pytest.mark.parametrize("op", ("causal_conv1d", "causal_conv_transpose1d"))
@pytest.mark.parametrize(("version", "seeds"), (("installed", 40), ("oldest", 3)))
def test_random_streams_interpreted(op, version, seeds, workers):
    worker = workers.interpreter(version)
    lines = worker(f"{SCENARIOS}:streams", op=op, seeds=list(range(seeds)), timeout_s=1500)
    assert sum("stream" in line for line in lines) == seeds


def check_binaries(lines: list[dict], exact: bool = False) -> None:
    assert lines
    triton.held("causal_conv", lines, exact=exact)
    for line in lines:
        usage = line["usage"]
        assert usage["STACK"] == 0 and usage["LOCAL"] == 0 and 0 < usage["REG"] <= 255, line
        assert line["shared"] <= configs.shared_bytes(line["sm"]), line
        if line["kernel"] == "_conv_dense_kernel" and line["types"][0] != "*fp32":
            assert line["matrix"], line


@pytest.mark.parametrize("version", ("installed", pytest.param("oldest", marks=pytest.mark.slow)))
def test_compiled_kernels_neither_spill_nor_use_local_memory(version, workers):
    lines = workers.compiler(version)(f"{SCENARIOS}:compile_all", mode="few")
    check_binaries(lines)
    kernels = {line["kernel"] for line in lines}
    assert kernels == {"_conv_dense_kernel", "_conv_direct_kernel", "_conv_state_kernel"}


@pytest.mark.slow
@pytest.mark.timeout(1600)
@pytest.mark.parametrize(("version", "mode"), (("installed", "all"), ("oldest", "")))
def test_the_layers_of_two_codecs_compile(version, mode, workers):
    lines = workers.compiler(version)(f"{SCENARIOS}:compile_all", mode=mode, timeout_s=1500)
    check_binaries(lines, exact=True)


@pytest.mark.parametrize("capability", (80, 86, 89, 90, 100, 120))
@pytest.mark.parametrize("kind", conv_configs.KINDS)
def test_every_choice_is_valid(kind, capability):
    for rows in (1, 7, 96, 960, 6144, 20000):
        for times in (0, 1, 4, 17, 40, 256, 5000, 240000):
            for batch in (1, 3, 64):
                for single in (False, True):
                    config = conv_configs.choose(
                        kind, rows=rows, times=times, batch=batch, single=single, capability=capability
                    )
                    assert conv_configs.why_invalid(config, kind, capability) is None


def test_the_table_is_valid_where_it_was_made_for():
    for kind in conv_configs.KINDS:
        for config in conv_configs.candidates(kind):
            assert conv_configs.why_invalid(config, kind, 90) is None, config


def test_choices_print_themselves():
    assert str(conv_configs.choose("16", rows=960, times=256)) in conv_configs.__doc__
    direct = conv_configs.choose_direct(channels=192, times=1280, taps=7, stride=1)
    assert str(direct) in conv_configs.__doc__


def test_the_real_layers_fill_the_processors():
    for rows, times in ((6144, 4), (3072, 32), (960, 256), (192, 1280), (192, 80000), (1024, 2000)):
        config = conv_configs.choose("16", rows=rows, times=times)
        tiles = -(-rows // config.block_m) * -(-times // config.block_t)
        assert tiles >= conv_configs.ENOUGH * conv_configs.PROCESSORS, config


def test_the_predicate_names_what_is_wrong():
    good = {"block_m": 64, "block_t": 32, "block_k": 64, "warps": 4, "stages": 3}
    for change, expected in (
        ({"block_m": 24}, "powers of two"),
        ({"block_t": 8}, "from 16 on"),
        ({"block_m": 256, "block_t": 256}, "sums per thread"),
        ({"stages": 40}, "bytes of tiles"),
        ({"warps": 3}, "3 warps"),
    ):
        reason = conv_configs.why_invalid(conv_configs.Config(**{**good, **change}), "16", 90)
        assert expected in reason
