"""The packed flow head: every format and layout holds what it was given, and bad arguments."""

import re

import pytest
import torch

import mingcore.ops as ops
from mingcore import InputError
from mingcore.ops._core import cases
from mingcore.ops._core.packing import FORMATS, QUANTISED, dequantise, quantise
from mingcore.testing.compare import max_relative

FORMATS_HERE = ("fp32", "bf16", "fp16", *QUANTISED)
BLOCKS = range(2, 6)


def weights(name="odd_sizes", dtype=torch.float32, **change):
    case = next(c for c in cases.for_op("pack_flow_head") if c.name == name)
    return {**case.make("cpu", dtype), **change}


def pack(*, backend=None, **given):
    return ops.pack_flow_head(**given, backend=backend)


@pytest.mark.parametrize("format", FORMATS_HERE)
@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("name", ["even", "odd_sizes"])
def test_what_is_packed_comes_back(name, backend, format):
    given = weights(name)
    head = pack(**given, format=format, backend=backend)
    native = backend is None and format != "fp8"
    assert head.layout == ("panels" if native else "rows") and head.format == format
    rows, plain = head.as_rows(), head.unpack()
    assert len(head.scales) == (7 if format in QUANTISED else 0)
    for i, w in enumerate(given["matrices"]):
        if format in QUANTISED and i in BLOCKS:
            stored, scale = quantise(w, format)
            assert torch.equal(rows.matrices[i].float(), stored.float())
            assert torch.equal(head.scales[i], scale)
            assert torch.equal(plain.matrices[i], dequantise(stored, scale))
        else:
            dtype = w.dtype if format in QUANTISED else FORMATS[format]
            assert torch.equal(rows.matrices[i], w.to(dtype))
            assert torch.equal(plain.matrices[i], w.to(dtype))
            assert format not in QUANTISED or head.scales[i].numel() == 0
    for a, b in zip((*head.biases, *head.norms), (*given["biases"], *given["norms"]), strict=True):
        assert torch.equal(a, b)
    L, _, H = given["matrices"][2].shape
    sizes = head.depth, head.hidden, head.width, head.channels, head.cond_size
    assert sizes == (L, H, *(given["matrices"][i].shape[1 - (i == 6)] for i in (4, 6, 0)))


@pytest.mark.parametrize("format", FORMATS_HERE)
@pytest.mark.parametrize("backend", [None, "reference"])
def test_views_multiply_as_the_whole(backend, format):
    head = pack(**weights("even"), format=format, backend=backend)
    plain = head.unpack()
    for i, (bias, k) in enumerate(zip(head.biases, head.inputs, strict=True)):
        x = torch.randn(3, k)
        for block in range(head.depth) if i in BLOCKS else (None,):
            w, b = (t if block is None else t[block] for t in (plain.matrices[i], bias))
            expected = torch.nn.functional.linear(x, w.float(), b)
            limit = 2e-2 if format == "int8_dyn" and i in BLOCKS else 1e-5
            got = ops.linear(x, *head.linear(i, block))
            assert max_relative(got, expected) <= limit
            if len(b) > 32:
                some = ops.linear(x, *head.linear(i, block, slice(32, None)))
                assert torch.equal(some, got[:, 32:])


def test_packing_in_place_holds_no_second_copy():
    given = weights("even", torch.bfloat16)
    before = [w.clone() for w in given["matrices"]]
    head = pack(**given, overwrite=True)
    for i in BLOCKS:
        assert head.matrices[i].data_ptr() == given["matrices"][i].data_ptr()
    assert all(torch.equal(a, b) for a, b in zip(head.as_rows().matrices, before))
    assert head.nbytes >= sum(w.nbytes for w in before)


def test_constants_are_kept():
    head = pack(**weights("even"))
    schedule = ops.FlowSchedule.make(4)
    assert head.times(schedule) is head.times(ops.FlowSchedule.make(4, temperature=0.0))
    assert head.rope(11)[0] is head.rope(11)[0]
    for n in range(100):
        head.rope(2 + n)
    assert len(head._cache) == 16
    midpoint = ops.FlowSchedule.make(4, solver="midpoint")
    assert head.times(midpoint).shape == (8, 64)
    assert torch.allclose(head.times(midpoint)[::2], head.times(schedule))


def test_the_time_embedding_by_its_formula():
    given = weights("even", torch.float64)
    head = pack(**given, backend="reference")
    t = torch.tensor([0.0, 0.3, 1.0])
    f = torch.exp(torch.arange(128, dtype=torch.float64) * -(torch.tensor(1e4).double().log() / 127))
    angles = 1000 * t.double()[:, None] * f
    e = torch.cat((angles.sin(), angles.cos()), dim=1)
    (w0, b0), (w1, b1) = given["time"]
    expected = torch.nn.functional.silu(e @ w0.T + b0) @ w1.T + b1
    # angles up to 1000 in float32
    assert max_relative(head.time_embedding(t), expected) < 2e-4


BAD_HEADS = [
    (lambda w: {"matrices": w["matrices"][:6]}, "matrices must be the seven (cond, x, qkv,"),
    (lambda w: {"biases": w["biases"][:6]}, "biases must be one for each of cond, x,"),
    (lambda w: {"norms": w["norms"][:2]}, "norms must be three or all five of norm1, norm2"),
    (lambda w: {"time": w["time"][:1]}, "time must be the two layers"),
    (lambda w: {"heads": 5}, "heads must be so many that H = 36 makes heads of even width, got 5"),
    (lambda w: {"heads": 4}, "heads must be so many that H = 36 makes heads of even width, got 4"),
    (lambda w: {"heads": 0}, "heads must be >= 1, got 0"),
    (lambda w: {"rope_heads": 4}, "rope_heads must be None or in 0..3, got 4"),
    (lambda w: {"format": "int4"}, "format must be one of fp32, bf16"),
    (
        lambda w: {"matrices": [*w["matrices"][:3], torch.ones(3, 36, 35), *w["matrices"][4:]]},
        "out must be [N, K] or [L, N, K] = [3, 36, 36], got [3, 36, 35]",
    ),
    (lambda w: {"matrices": [*w["matrices"][:6], w["matrices"][6].half()]}, "final must be float32, got float16"),
    (lambda w: {"biases": [*w["biases"][:6], torch.ones(8)]}, "bias of final must be [N] or [L, N] = [7], got [8]"),
    (
        lambda w: {"norms": [w["norms"][0], w["norms"][1], torch.ones(35)]},
        "final_norm must be [L, H], [H] or [L, D] = [36], got [35]",
    ),
    (lambda w: {"time": [w["time"][1], w["time"][1]]}, "time[0] must be [H, K] = [36, 256], got [36, 36]"),
    (
        lambda w: {"format": "int8", "matrices": [m * torch.inf for m in w["matrices"]]},
        "every weight must be finite, to be int8",
    ),
]


@pytest.mark.parametrize(("change", "message"), BAD_HEADS, ids=[m[:40] for _, m in BAD_HEADS])
def test_heads_that_do_not_fit(change, message):
    given = weights()
    with pytest.raises(InputError, match=re.escape(f"pack_flow_head: {message}")):
        pack(**{**given, **change(given)})


def arguments(**change):
    case = next(c for c in cases.for_op("flow_sample") if c.name == "b3")
    return {**case.make(), **change}


BAD_CALLS = [
    ({"head": 3}, "head must be a PackedFlowHead (ops.pack_flow_head), got int"),
    ({"schedule": 10}, "schedule must be a FlowSchedule, got int"),
    ({"noise": torch.ones(3, 3, 5, 16)}, "noise must be [S+1, B, P, C] = [5, B, P, 16], got [3,"),
    ({"noise": torch.ones(6, 3, 5, 16)}, "noise must be [S+1, B, P, C]"),
    ({"noise": torch.ones(5, 3, 5, 15)}, "noise must be [S+1, B, P, C]"),
    ({"noise": torch.ones(5, 3, 5, 16).half()}, "noise must be float32 (or float64), got float16"),
    ({"noise": torch.ones(5, 0, 5, 16)}, "B must be >= 1, got 0"),
    ({"noise": torch.ones(5, 3, 0, 16)}, "P must be >= 1, got 0"),
    ({"condition": torch.ones(3, 47)}, "condition must be [B, Hc] = [3, 48], got [3, 47]"),
    ({"condition": torch.ones(3, 48).int()}, "condition must be float32, bfloat16, float16 or"),
    ({"history": torch.ones(2, 5, 16)}, "history must be [B, N, C] = [3, N, 16], got [2, 5, 16]"),
    ({"history": torch.ones(3, 5, 15)}, "history must be [B, N, C]"),
    ({"history": torch.ones(3, 5, 16).int()}, "history must be float32, bfloat16, float16 or"),
    ({"history": torch.ones(3, 5, 16, device="meta")}, "history must be on cpu, where the first"),
    ({"guidance": torch.ones(2)}, "guidance must be [B] = [3], got [2]"),
    ({"guidance": torch.ones(3).double()}, "guidance must be float32, got float64"),
    ({"noise_scale": torch.ones(3, 1)}, "noise_scale must be [B] = [3], got [3, 1]"),
    ({"noise_scale": torch.ones(3, device="meta")}, "noise_scale must be on cpu"),
]


@pytest.mark.parametrize(("change", "message"), BAD_CALLS, ids=[m[:40] for _, m in BAD_CALLS])
def test_calls_that_do_not_fit(change, message):
    with pytest.raises(InputError, match=re.escape(f"flow_sample: {message}")):
        ops.flow_sample(**arguments(**change))


def test_noise_that_is_read_must_be_there():
    def noisy_to_the_end(t, noise_scale):
        return [ops.Evaluation(a, b - a, True, 0.5) for a, b in zip(t, t[1:])]  # noqa: RUF007

    schedule = ops.FlowSchedule.make(4, solver=noisy_to_the_end)
    assert schedule.draws == 5
    given = arguments(schedule=schedule)
    out = ops.flow_sample(**given)
    given["noise"][4] += 1
    torch.testing.assert_close(ops.flow_sample(**given), out + 0.5)
    with pytest.raises(InputError, match="noise must be"):
        ops.flow_sample(**{**given, "noise": given["noise"][:4]})
