"""Triton's flow sampler without a GPU: against the oracle, and as binaries."""

import pytest

pytest.importorskip("triton")

from mingcore_kernels.flow import configs as flow_configs
from mingcore_kernels.gemm import configs
from tests.ops.runners import triton

SCENARIOS = "tests.ops.scenarios.flow_triton"


@pytest.mark.parametrize(("version", "count"), (("installed", 15), ("oldest", 3)))
def test_interpreted_sampler_matches_the_oracle(version, count, workers):
    lines = workers.interpreter(version)(f"{SCENARIOS}:interpret", few=count == 3)
    done = [line["case"] for line in lines if "case" in line]
    assert len(done) == count, done
    refused = [line["refused"] for line in lines if "refused" in line]
    assert "quantises activations" in refused[0] and "it takes one type" in refused[1]


def check_binaries(lines: list[dict], exact: bool = False) -> None:
    triton.held("flow_sample", lines, exact=exact)
    for line in lines:
        usage = line["usage"]
        assert usage["STACK"] <= triton.MAX_STACK and usage["LOCAL"] == 0, line
        assert 0 < usage["REG"] <= 255, line
        assert line["shared"] <= configs.shared_bytes(line["sm"]), line
        # a launch that starts early touches nothing before the one in front of it is complete
        assert (line["waits"] == 1) == (line["sm"] >= 90) and line["early"] == 0, line
        if line["kernel"] == "_flow_product_kernel" and line["types"][0] != "*fp32":
            assert line["matrix"] and line["copies16"], line  # the matrix unit, copies in bulk


@pytest.mark.parametrize(("version", "mode"), (("installed", ""), ("oldest", "few")))
def test_compiled_kernels_neither_spill_nor_use_local_memory(version, mode, workers):
    lines = workers.compiler(version)(f"{SCENARIOS}:compile_all", mode=mode)
    check_binaries(lines)
    ends = {"_flow_embed_kernel", "_flow_step_out_kernel"}
    kernels = {line["kernel"] for line in lines}
    assert kernels >= {"_flow_product_kernel", "_flow_attention_kernel"} | (set() if mode == "few" else ends)


@pytest.mark.slow
@pytest.mark.timeout(1600)
@pytest.mark.parametrize("version", triton.VERSIONS)
def test_every_format_and_batch_compiles(version, workers):
    lines = workers.compiler(version)(f"{SCENARIOS}:compile_all", mode="all", timeout_s=1500)
    check_binaries(lines, exact=True)


@pytest.mark.parametrize("capability", (80, 86, 89, 90, 100, 120))
@pytest.mark.parametrize("kind", flow_configs.KINDS)
def test_every_choice_is_valid(kind, capability):
    for rows in (1, 10, 22, 33, 74, 176, 704, 2368, 20000):
        for columns, depth in ((3072, 1024), (1024, 4096), (4096, 1024), (36, 52), (7, 13)):
            for processors in (1, 132):
                config = flow_configs.choose(
                    kind, rows=rows, columns=columns, depth=depth, processors=processors, capability=capability
                )
                assert flow_configs.why_invalid(config, kind, capability) is None
                assert config.parts == 1 or depth % config.parts == 0


def test_a_choice_prints_itself():
    config = flow_configs.choose("16", rows=22, columns=4096, depth=1024)
    assert str(config) in flow_configs.__doc__


def test_the_real_shapes_fill_the_processors():
    for columns, depth in ((3072, 1024), (1024, 1024), (4096, 1024), (1024, 4096)):
        config = flow_configs.choose("16", rows=22, columns=columns, depth=depth)
        assert 90 <= columns // config.block_n * config.parts <= 132, config


def test_the_predicate_names_what_is_wrong():
    good = {"block_m": 32, "block_n": 32, "block_k": 64, "split": 4, "parts": 1}
    for change, expected in (
        ({"block_n": 24}, "powers of two"),
        ({"split": 1, "block_n": 8}, "16 is the least"),
        ({"split": 2}, "2 shares for 4 warps"),
        ({"parts": 3}, "3 parts"),
        ({"block_m": 256, "split": 4, "block_n": 256}, "sums per thread"),
        ({"stages": 12}, "bytes of tiles"),
    ):
        config = flow_configs.Config(**{**good, "warps": 4, "stages": 3, **change})
        assert expected in flow_configs.why_invalid(config, "16", 90)
