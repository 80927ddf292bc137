"""moe_decode without a GPU: emulated, its resources, its reasons to decline. test_compiled.py compiles
it.
"""

import re
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("cuda.bindings")

from mingcore.errors import BackendError
from mingcore.ops._core import launch
from mingcore.ops.moe import MOE_MLP
from mingcore.ops.moe import cuda as cuda_moe
from tests.ops.support import unsupported_reason


@pytest.mark.parametrize("capability, blocks", [(90, (3, 1)), (80, (2,))])
def test_emulated(workers, tmp_path, capability, blocks):
    """Any shape and format; words of the barrier; a block that is lost."""
    with workers.new_emulator(tmp_path / "log", capability) as emulator:
        _, lines = emulator.logged("tests.ops.scenarios.moe_emulated:run", every=blocks)
    launched = [line.split() for line in lines if line[:4] == "coop"]
    assert {int(line[1]) for line in launched} == set(blocks)
    assert {line[2] for line in launched} == {"256"}
    large = capability >= 90
    expected = {cuda_moe.shared_bytes(format, large) for format in ("bf16", "int8")}
    assert {int(line[3]) for line in launched} == expected


@pytest.mark.parametrize("format", cuda_moe._FORMATS)
def test_shared_memory_is_there(format):
    assert cuda_moe.shared_bytes(format, True) <= 227 * 1024
    assert cuda_moe.shared_bytes(format, False) <= 163 * 1024


def test_ptx_has_matrix_products_and_asynchronous_copies(tmp_path, monkeypatch):
    monkeypatch.setenv("MINGCORE_CACHE", str(tmp_path))
    ptx = launch.compiled("moe_decode", 999).decode()
    kernels = re.split(r"\.visible \.entry ", ptx)[1:]
    assert len(kernels) == 7
    for kernel in kernels:
        name = kernel[: kernel.index("(")]
        products = re.findall(r"mma\.sync\S*f32\.(\w+)\.\w+\.f32", kernel)
        kind = {"bfloat16": {"bf16"}, "float16": {"f16"}, "float32": set()}[name.split("_")[2]]
        assert set(products) == kind, name
        assert kernel.count("cp.async.cg") >= 20 and "ld.shared.v4" in kernel, name
        assert ".local" not in kernel and ".f64" not in kernel, name


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_the_resources_that_the_kernel_file_states(tmp_path):
    source = launch.source("moe_decode")
    command = ["nvcc", "-O3", "-std=c++17", "-cubin", "-arch=sm_90", "-Xptxas", "-v"]
    command += [f"-I{launch.include_folder(source)}", "-o", tmp_path / "cubin", source]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    used = [int(n) for n in re.findall(r"Used (\d+) registers", done.stderr)]
    text = source.read_text()
    lowest, highest = map(int, re.search(r"of (\d+) to (\d+) registers", text).groups())
    assert len(used) == 7 and lowest <= min(used) and max(used) <= highest, used
    sizes = {cuda_moe.shared_bytes(f, True) for f in ("bf16", "int8")}
    sizes |= {cuda_moe.shared_bytes("bf16", False)}
    assert all(f"{size:,}" in text for size in sizes), sizes


def operands(T=3, K=2, E=4, H=64, I=32, shared=16, dtype=torch.bfloat16, stored=None):
    def matrix(*shape):
        return torch.zeros(shape, dtype=stored or dtype)

    pair = (matrix(2 * shared, H), matrix(H, shared)) if shared else (None, None)
    x, weights = torch.zeros(T, H, dtype=dtype), torch.zeros(T, K)
    ids = torch.zeros(T, K, dtype=torch.int32)
    return [x, matrix(E, 2 * I, H), matrix(E, H, I), weights, ids, *pair, *[None] * 4, "rows"]


def reason(args, format):
    return unsupported_reason(MOE_MLP, "cuda", (*args, format), any_device=True)


@pytest.fixture
def any_device(monkeypatch):
    """Reasons without a GPU: the architecture is granted, the operands are looked at."""
    there = SimpleNamespace(shared_memory_per_block_optin=232448)
    monkeypatch.setattr(launch, "unavailable_reason", lambda op, device: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: there)
    return there


def test_what_it_takes(any_device):
    for format, stored in (("bf16", torch.bfloat16), ("int8", torch.int8)):
        for T in (0, 1, 63):
            assert reason(operands(T=T, stored=stored), format) is None
    assert reason(operands(dtype=torch.float32), "fp32") is None
    assert reason(operands(shared=0, stored=torch.float8_e4m3fn), "fp8") is None


@pytest.mark.parametrize(
    "change, format, expected",
    [
        ({"T": 60, "K": 9, "stored": torch.int8}, "int8", "int8 .* it takes bf16 with bfloat16"),
        ({"H": 36}, "bf16", "H is 36; in bf16 it takes multiples of 8"),
        ({"I": 20}, "bf16", "I is 20; in bf16 it takes multiples of 8"),
        ({"shared": 24, "stored": torch.int8}, "int8", "Is is 24; in int8 .* multiples of 16"),
        ({"stored": torch.int8}, "int8_dyn", "the format is int8_dyn"),
        ({"dtype": torch.float32, "stored": torch.bfloat16}, "bf16", "x is torch.float32"),
        ({"dtype": torch.float64}, "fp64", "x is torch.float64; it takes float32, bfloat16"),
    ],
)
def test_what_it_declines(any_device, change, format, expected):
    assert re.search(expected, reason(operands(**change), format))


def test_awkward_operands_are_declined(any_device):
    args = operands()
    panels = [*args[:-1], "panels"]
    assert "'panels'; it takes 'rows'" in reason(panels, "bf16")
    apart = [args[0], args[1][:, :, ::2].expand(4, 64, 32), *args[2:]]
    assert "gate_up has strides" in reason(apart, "bf16")
    odd = [*args[:2], torch.zeros(4 * 64 * 32 + 1, dtype=torch.bfloat16)[1:].view(4, 64, 32)]
    assert "down does not begin at an" in reason([*odd, *args[3:]], "bf16")
    double = [*args[:3], args[3].double(), *args[4:]]
    assert "weights is torch.float64" in reason(double, "bf16")
    trained = [args[0], args[1].requires_grad_(), *args[2:]]
    assert "gate_up requires a gradient" in reason(trained, "bf16")
    any_device.shared_memory_per_block_optin = 101376
    assert "this GPU has 101376" in reason(operands(), "bf16")


def test_the_busiest_block_has_the_fewest_rows():
    assert [cuda_moe.rows_per_unit(H, 132) for H in (2048, 1024, 1536, 64)] == [16, 8, 16, 8]


def test_launches_that_may_overlap_have_words_of_their_own(monkeypatch):
    state = SimpleNamespace(stream=1, capture=0)
    fake = torch.cuda
    monkeypatch.setattr(fake, "synchronize", lambda device: None)
    monkeypatch.setattr(fake, "current_stream", lambda device: SimpleNamespace(cuda_stream=state.stream))
    monkeypatch.setattr(fake, "is_current_stream_capturing", lambda: state.capture > 0)
    answer = lambda stream: (launch.driver.CUresult.CUDA_SUCCESS, 1, state.capture)  # noqa: E731
    monkeypatch.setattr(launch.driver, "cuStreamGetCaptureInfo", answer)
    monkeypatch.setattr(launch, "_torch", lambda device: torch.device("cpu"))
    monkeypatch.setattr(launch, "_barriers", {})
    launch._all_barrier_words.cache_clear()
    state.capture = 1
    with pytest.raises(BackendError, match="once before capturing"):
        launch.barrier_words("a", 0)
    seen = {}
    for op, stream, capture in [("a", 1, 0), ("a", 1, 5), ("a", 1, 6), ("a", 2, 5), ("b", 1, 0)]:
        state.stream, state.capture = stream, capture
        words = launch.barrier_words(op, 0)
        assert words.data_ptr() == launch.barrier_words(op, 0).data_ptr()
        assert words.tolist() == [0] * 16
        seen[op, stream, capture] = words.data_ptr()
    assert len(set(seen.values())) == 5
    monkeypatch.setattr(launch, "BARRIERS", 5)
    state.stream = 3
    with pytest.raises(BackendError, match="more than 5"):
        launch.barrier_words("a", 0)
    launch._all_barrier_words.cache_clear()
