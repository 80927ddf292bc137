"""The routing and expert kernels of Triton without a GPU: against the oracle, and as binaries."""

import pytest

pytest.importorskip("triton")

from mingcore_kernels.gemm import configs
from tests.ops.runners import triton

SCENARIOS = "tests.ops.scenarios.moe_triton"


@pytest.mark.parametrize("version", triton.VERSIONS)
def test_interpreted_experts_match_the_oracle(version, workers):
    """Any number of tokens, experts twice in one token, addresses past 2^31 elements."""
    lines = workers.interpreter(version)(f"{SCENARIOS}:interpret")
    counts = [sum(line.get("op") == op for line in lines) for op in ("grouped_gemm", "moe_mlp")]
    assert counts == [1, 9]
    assert "it takes one type" in lines[-1]["refused"]


def check_binaries(lines: list[dict], exact: bool = False) -> None:
    triton.held("moe_mlp", lines, exact=exact)
    for line in lines:
        usage = line["usage"]
        assert usage["STACK"] == 0 and usage["LOCAL"] == 0 and 0 < usage["REG"] <= 255, line
        assert line["shared"] <= configs.shared_bytes(line["sm"]), line


@pytest.mark.parametrize("version", triton.VERSIONS)
def test_compiled_kernels_neither_spill_nor_use_local_memory(version, workers):
    lines = workers.compiler(version)(f"{SCENARIOS}:compile_all")
    check_binaries(lines)
    assert {line["kernel"] for line in lines} >= {
        "_route_topk_kernel",
        "_sort_by_expert_kernel",
        "_grouped_gemm_kernel",
        "_row_gate_up_kernel",
        "_row_down_kernel",
        "_sum_slots_kernel",
        "_quantise_rows_kernel",
    }
    for line in lines:
        if line["kernel"] == "_grouped_gemm_kernel" and line["types"][0] != "*fp32":
            assert line["matrix"] and line["copies16"], line  # the matrix unit, copies in bulk
        if line["kernel"] == "_row_gate_up_kernel":
            assert line["loads16"] >= 4, line
    large = [line for line in lines if line["sm"] == 90 and line["blocks"][0] == 128]
    assert large and all(line["matrix"] == "wgmma" for line in large), large


@pytest.mark.slow
@pytest.mark.parametrize("version", triton.VERSIONS)
def test_every_format_and_number_of_tokens_compiles(version, workers):
    lines = workers.compiler(version)(f"{SCENARIOS}:compile_all", everything=True)
    check_binaries(lines, exact=True)


@pytest.mark.parametrize("capability", (80, 86, 89, 90, 100, 120))
@pytest.mark.parametrize("kind", configs.KINDS)
@pytest.mark.parametrize("product", configs.PRODUCTS)
def test_every_choice_is_valid(product, kind, capability):
    for rows in (1, 16, 17, 33, 64, 65, 384, 4096):
        for depths in ((2048,), (1408, 2816), (37, 43), (704,)):
            config = configs.choose(product, kind, rows=rows, depths=depths, capability=capability)
            assert configs.unsupported_reason(config, product, kind, capability) is None
            if depths == (704,):
                assert 704 % config.block_k == 0


def test_a_choice_prints_itself():
    config = configs.choose("gate_up", "16", rows=1.9, depths=(2048,), capability=90)
    assert str(config) == "Config(block_m=16, block_n=32, block_k=128, warps=4, stages=4)"
    assert "block_k=128" in configs.__doc__ and str(config) in configs.__doc__


def test_the_predicate_names_what_is_wrong():
    for config, expected in (
        (configs.Config(16, 24, 64, 4, 2), "powers of two"),
        (configs.Config(16, 32, 64, 3, 2), "3 warps"),
        (configs.Config(128, 128, 128, 8, 4), "bytes of tiles"),
        (configs.Config(256, 256, 64, 4, 2), "sums per thread"),
        (configs.Config(16, 32, 16, 4, 2), "at least 32"),
    ):
        kind = "w8" if config.block_k == 16 else "16"
        assert expected in configs.unsupported_reason(config, "gate_up", kind, 90)
