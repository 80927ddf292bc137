"""Chunked = one-shot, causality, rows of their own: the ops with a state, on every CPU backend."""

import random

import pytest
import torch

from mingcore.ops._core import backends
from mingcore.ops._core.op import OPS
from mingcore.testing import streaming
from tests.ops.support import Draw

BACKENDS = ["reference", *(["cpu"] if backends.load("cpu", "conv") is None else [])]
ACTS = (None, "silu", "elu", "gelu", "gelu_tanh", "tanh", "snake")
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def serves(op: str, backend: str) -> bool:
    family = getattr(OPS[op], "op", OPS[op]).family  # of the op in whose place `op` writes
    return backends.load(backend, family) is None and backend in OPS[op].implementations


def conv_call(op: str, seed: int, batch: int = 2, length: int | None = None) -> dict:
    """A random convolution: any kernel, stride, dilation, groups and activation."""
    pick, draw = random.Random(f"{op} {seed}"), Draw(torch.float32, seed)
    groups = pick.choice((1, 1, 1, 2, 6))
    C, N = groups * pick.choice((1, 2, 7)), groups * pick.choice((1, 1, 3, 9))
    k, stride = pick.choice((1, 2, 3, 7, 10)), pick.choice((1, 1, 2, 3, 5, 8))
    transposed = "transpose" in op
    dilation = pick.choice((1, 1, 2, 9, 27)) if not transposed else pick.choice((1, 1, 2))
    L = length or pick.choice((1, 5, 31, 90))
    weight = draw(*((C, N // groups, k) if transposed else (N, C // groups, k)))
    call = {"x": draw(batch, C, L), "weight": weight, "bias": draw(N), "stride": stride}
    call |= {"dilation": dilation, "groups": groups}
    for name, snake, n in (("activation_before", "snake_before", C), ("activation", "snake", N)):
        call[name] = pick.choice(ACTS)
        if call[name] == "snake":
            call[snake] = (draw(n).abs() + 0.3, draw(n).abs())
    reach = (k - 1) * dilation
    if transposed:
        call["trim_right"] = pick.choice((None, pick.randint(0, max(reach + 1 - stride, 0))))
    else:
        call["left_pad"] = pick.choice((None, None, pick.randint(0, reach)))
        call["pad_mode"] = pick.choice(("zeros", "replicate"))
    return call


def overlap_call(op: str, seed: int, batch: int = 2, length: int | None = None) -> dict:
    pick, draw = random.Random(f"{op} {seed}"), Draw(torch.float32, seed)
    size, hop = pick.choice(((16, 4), (12, 4), (24, 5), (20, 20), (10, 8), (18, 3), (14, 1)))
    T = length or pick.choice((1, 2, 9, 40))
    call = {"window": 0.3 + torch.hann_window(size), "hop": hop}
    if op == "overlap_add":
        return {"frames": draw(batch, T, size), **call}
    weight, bias = draw.weight(size + 2, 11), draw(size + 2)
    return {"hidden": draw(batch, T, 11), "weight": weight, "bias": bias, **call}


def any_call(op: str, seed: int, **sizes) -> dict:
    return (conv_call if "conv" in op else overlap_call)(op, seed, **sizes)


CALLS = [(op, seed) for op in streaming.INPUT for seed in range(40 if "conv" in op else 14)]


@every_backend
@pytest.mark.parametrize(("op", "seed"), CALLS)
def test_any_split_gives_the_same(op, seed, backend):
    if not serves(op, backend):
        pytest.skip(f"{backend} has no {op}")
    call = any_call(op, seed)
    name, dim = streaming.INPUT[op]
    expected = streaming.once(op, call, backend)
    forms = ((streaming.chunked, 3), (streaming.in_place, 1))
    for run, again in forms[: 1 + serves(op + "_", backend)]:
        for i in range(again):
            sizes = streaming.split(call[name].shape[dim], 10 * seed + i)
            streaming.assert_same(run(op, call, sizes, backend), expected, f"{sizes}")


@every_backend
@pytest.mark.parametrize(("op", "seed"), CALLS[::2])
def test_rows_go_their_own_way(op, seed, backend):
    if not serves(op, backend):
        pytest.skip(f"{backend} has no {op}")
    got, expected = streaming.by_rows(op, any_call(op, seed, batch=3, length=23), seed, backend)
    for b, (mine, alone) in enumerate(zip(got, expected, strict=True)):
        streaming.assert_same(mine, alone, f"row {b}")


@every_backend
@pytest.mark.parametrize("op", streaming.INPUT)
@pytest.mark.parametrize("seed", range(6))
def test_the_past_does_not_see_the_future(op, seed, backend):
    """A change of one row's input reaches no earlier output and no other row."""
    if not serves(op, backend):
        pytest.skip(f"{backend} has no {op}")
    call = any_call(op, seed, length=20)
    name, dim = streaming.INPUT[op]
    x, at = call[name], 12
    changed = x.clone()
    changed[1].narrow(dim - 1, at, 20 - at).add_(1.0)
    head = streaming._run(op, {**call, name: x.narrow(dim, 0, at)}, backend, None, False)[0]
    before = streaming._run(op, call, backend, None, False)[0]
    after = streaming._run(op, {**call, name: changed}, backend, None, False)[0]
    assert torch.equal(before[0], after[0])
    settled = head.shape[-1]
    assert torch.equal(before[1, ..., :settled], after[1, ..., :settled])
    assert not torch.equal(before[1], after[1]) or settled == before.shape[-1]


@every_backend
@pytest.mark.parametrize("op", streaming.INPUT)
def test_an_empty_chunk_changes_nothing(op, backend):
    if not serves(op, backend):
        pytest.skip(f"{backend} has no {op}")
    call = any_call(op, 3, length=9)
    name, dim = streaming.INPUT[op]
    _, state = streaming._run(op, call, backend, None, False)
    empty = {**call, name: call[name].narrow(dim, 0, 0)}
    out, after = streaming._run(op, empty, backend, state, False)
    assert out.shape[-1] == 0 and (after.emitted == 0).all()
    assert torch.equal(after.lengths, state.lengths)
    carried = "context" if "conv" in op else "numerator"
    assert torch.equal(getattr(after, carried), getattr(state, carried))
    out, after = streaming._run(op, empty, backend, None, True)
    assert (after.emitted == 0).all() and (out == 0).all()


@pytest.mark.parametrize("op", streaming.INPUT)
def test_a_reset_row_begins_anew(op):
    call = any_call(op, 5, length=9)
    first, state = streaming._run(op, call, "reference", None, False)
    copy = state.clone()
    state.reset()
    again, _ = streaming._run(op, call, "reference", state, False)
    assert torch.equal(again, first)
    copy.reset([1])
    mixed, after = streaming._run(op, call, "reference", copy, False)
    n = int(after.emitted[1])
    assert torch.equal(mixed[1, ..., :n], first[1]) and n == first.shape[-1]
    assert copy.nbytes == sum(t.nbytes for t in vars(copy).values() if isinstance(t, torch.Tensor))
