"""flash-attn for prefill, against a stub with the interface that its documentation gives.

The package needs a GPU and cannot be had here: these tests show which call it gets and what is done
with the answer, not that the package computes.
"""

import math
import sys
import types

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import mingcore.ops as ops
from mingcore import BackendError
from mingcore.ops._core import backends, cases, op
from mingcore.ops.attention import ATTENTION_PREFILL
from mingcore.testing import compare

from .support import flat_arguments


def flash_attn_func(
    q,
    k,
    v,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
):
    """The documented contract in plain PyTorch: q [B, T, Hq, D], k and v [B, S, Hkv, D]; masks are
    aligned to the bottom right; query i sees keys from i + S - T - left to i + S - T + right."""
    assert dropout_p == 0.0 and softcap == 0.0 and alibi_slopes is None and not return_attn_probs
    T, S = q.shape[1], k.shape[1]
    left, right = window_size
    if causal:
        right = 0 if right < 0 else min(right, 0)
    key, query = torch.arange(S), torch.arange(T)[:, None] + S - T
    seen = torch.ones(T, S, dtype=torch.bool)
    if left >= 0:
        seen &= key >= query - left
    if right >= 0:
        seen &= key <= query + right
    k, v = (t.repeat_interleave(q.shape[2] // k.shape[2], dim=2).double() for t in (k, v))
    scale = softmax_scale or 1 / math.sqrt(q.shape[3])
    dots = torch.einsum("bthd,bshd->bhts", q.double(), k) * scale
    weights = dots.masked_fill(~seen, -math.inf).softmax(-1).nan_to_num(0.0)
    return torch.einsum("bhts,bshd->bthd", weights, v).to(q.dtype)


@pytest.fixture
def flash(clean_ops, monkeypatch):
    """The backend's implementation, loaded with the stub in place of the package."""
    stub = types.ModuleType("flash_attn")
    stub.flash_attn_func = flash_attn_func
    monkeypatch.setitem(sys.modules, "flash_attn", stub)
    monkeypatch.delitem(sys.modules, "mingcore.ops.attention.flash", raising=False)
    ATTENTION_PREFILL.implementations.pop("flash", None)
    backends._load_errors.pop(("flash", "attention"), None)
    assert backends.load("flash", "attention") is None
    yield ATTENTION_PREFILL.implementations["flash"]
    sys.modules.pop("mingcore.ops.attention.flash", None)


@pytest.mark.parametrize("case", cases.for_op("attention_prefill"), ids=lambda case: case.id)
def test_the_stub_gets_the_call_that_the_contract_needs(flash, case):
    for dtype in (torch.float16, torch.bfloat16):
        kwargs = case.make("cpu", dtype, seed=1)
        got = flash.function(**flat_arguments("attention_prefill", kwargs))
        assert got.is_contiguous()
        compare.check_op("attention_prefill", kwargs, (got,))


def on_gpu(D=64, dtype=torch.bfloat16, T=4, **options):
    q, k = (torch.empty(1, T, heads, D, dtype=dtype, device="cuda") for heads in (4, 2))
    return {"q": q, "k": k, "v": k, "causal": True, "window": 0, "scale": 0.125, **options}


def test_what_it_cannot_serve(flash, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    with FakeTensorMode():
        assert flash.reason(on_gpu()) is None
        assert flash.reason(on_gpu(window=1)) is None
        assert "float32" in flash.reason(on_gpu(dtype=torch.float32))
        assert "260 wide" in flash.reason(on_gpu(260))
        assert "10 wide" in flash.reason(on_gpu(10))
        assert "window is 3 without causal" in flash.reason(on_gpu(causal=False, window=3))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
        assert "sm_80" in flash.reason(on_gpu())
    q = torch.zeros(1, 2, 2, 8, dtype=torch.float16)
    with pytest.raises(BackendError, match="q is on cpu; it takes tensors on a GPU"):
        ops.attention_prefill(q, q, q, backend="flash")
    assert ops.attention_prefill(q, q, q, backend="flash,reference").shape == q.shape


def test_it_serves_prefill_on_a_gpu_unasked_and_by_name(flash, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    sdpa = ATTENTION_PREFILL.implementations["reference"]
    monkeypatch.setattr(op, "unproven", lambda e, _: "no" if e.backend in ("cuda", "triton") else None)
    with FakeTensorMode():
        for names, expected in ((None, flash), ("flash", flash), ("flash,reference", flash), ("reference", sdpa)):
            with ops.use_backend(names):
                assert ATTENTION_PREFILL.select(None, on_gpu()) is expected
        assert ATTENTION_PREFILL.select(None, on_gpu(dtype=torch.float32)) is sdpa


def test_without_the_package_the_reason_names_it(clean_ops, monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    monkeypatch.delitem(sys.modules, "mingcore.ops.attention.flash", raising=False)
    ATTENTION_PREFILL.implementations.pop("flash", None)
    backends._load_errors.pop(("flash", "attention"), None)
    q = torch.zeros(1, 2, 2, 8)
    with pytest.raises(BackendError, match="the flash backend cannot be loaded: .*flash_attn"):
        ops.attention_prefill(q, q, q, backend="flash")
    assert "cannot be loaded" in ops.why_not("attention_prefill", "flash", q, q, q, True, 0, 1.0)
    assert ops.attention_prefill(q, q, q).shape == q.shape
