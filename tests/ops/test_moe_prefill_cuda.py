"""moe_prefill without a GPU: emulated, what it is compiled to, its reasons to decline.
test_compiled.py compiles it.
"""

import re
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("cuda.bindings")

from mingcore.ops._core import launch
from mingcore.ops.moe import MOE_MLP, cuda_prefill
from tests.ops.support import unsupported_reason


def test_emulated(workers, tmp_path):
    """Copies as late as they may be, products that read twice, descriptors decoded."""
    with workers.new_emulator(tmp_path / "log") as emulator:
        _, lines = emulator.logged("tests.ops.scenarios.moe_prefill_emulated:run", every=[3, 1])
    lines = [line.split() for line in lines]
    launched = [line[1:] for line in lines if line[0] == "launch"]
    products = [line for line in launched if line[1] == str(cuda_prefill.THREADS)]
    assert len(launched) == 2 * len(products) >= 60
    assert {line[0] for line in products} == {"3", "1"}
    assert {line[2] for line in products} == {str(cuda_prefill.SHARED_BYTES)}
    maps = [line for line in lines if line[0] == "map"]
    assert len(maps) < 2 * len(products) / 2  # one per weight, however often it is used
    assert ["attribute", "8", str(cuda_prefill.SHARED_BYTES)] in lines


def test_shared_memory_is_there():
    assert cuda_prefill.SHARED_BYTES <= 227 * 1024


def test_the_registers_of_a_block_are_enough():
    source = launch.source("moe_prefill").read_text()
    consumers = int(re.search(r"setmaxnreg_inc<(\d+)>", source)[1])
    producers = int(re.search(r"setmaxnreg_dec<(\d+)>", source)[1])
    threads = cuda_prefill.THREADS
    at_launch = 65536 // threads // 8 * 8
    assert 128 * producers + (threads - 128) * consumers <= at_launch * threads


def operands(T=64, K=2, E=4, H=64, I=32, shared=16, dtype=torch.bfloat16, stored=None):
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
    monkeypatch.setattr(launch, "unavailable_reason", lambda op, device: None)


def test_what_it_takes(any_device):
    for T in (64, 65, 4096):
        assert reason(operands(T=T), "bf16") is None
    assert reason(operands(T=60, K=9), "bf16") is None
    assert reason(operands(dtype=torch.float16, shared=0), "fp16") is None
    assert reason(operands(E=256, H=8, I=8), "bf16") is None


@pytest.mark.parametrize(
    "change, format, expected",
    [
        ({"dtype": torch.float32}, "fp32", "it takes bf16 with bfloat16, fp16 with float16"),
        ({"stored": torch.int8}, "int8", "the format is int8"),
        ({"H": 36}, "bf16", "H is 36; in bf16 it takes multiples of 8"),
        ({"I": 20}, "bf16", "I is 20; in bf16 it takes multiples of 8"),
        ({"shared": 12}, "bf16", "Is is 12; in bf16 it takes multiples of 8"),
        ({"E": 257, "H": 8, "I": 8}, "bf16", "257 experts; it takes up to 256"),
        ({"I": 0}, "bf16", r"gate_up is \[4, 0, 64\]; it takes no empty experts"),
    ],
)
def test_what_it_declines(any_device, change, format, expected):
    assert re.search(expected, reason(operands(**change), format))


def test_other_gpus_are_declined(monkeypatch):
    monkeypatch.setattr(launch.torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(
        cuda_prefill.launch,
        "unavailable_reason",
        lambda op, device, real=launch.unavailable_reason.__wrapped__: real(op, SimpleNamespace(type="cuda")),
    )
    assert reason(operands(), "bf16") == "T is 64, T * K 128; its kernel is made for sm_90a; this GPU is sm_80"
