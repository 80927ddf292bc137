"""Attention and its cache against loops in float64, the cache against the whole history."""

import pytest
import torch

from mingcore.ops._core.layouts import shifted, strided
from mingcore.ops.attention import reference as attention
from tests.ops import slow
from tests.ops.support import DTYPES, Draw, check, reference


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 1, 3, 50])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (3, 1)])
def test_prefill_causal(dtype, window, heads, kv_heads):
    draw = Draw(dtype)
    q, k, v = draw(2, 7, heads, 5), draw(2, 7, kv_heads, 5), draw(2, 7, kv_heads, 5)
    got = reference("attention_prefill")(q, k, v, window=window)
    assert got.dtype == dtype and got.is_contiguous()
    check(got, slow.attention_prefill(q, k, v, window=window), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("S", [1, 4, 9])
def test_prefill_not_causal(dtype, S):
    draw = Draw(dtype)
    q, k, v = draw(2, 4, 4, 6), draw(2, S, 2, 6), draw(2, S, 2, 6)
    got = reference("attention_prefill")(strided(q), strided(k), v, causal=False, scale=0.7)
    check(got, slow.attention_prefill(q, k, v, causal=False, scale=0.7), dtype)


def write_history(draw: Draw, S: int, chunks: list[list[list[int]]], heads: int, width: int):
    """Write chunks of positions [B][T] one after the other; the caches and what was written."""
    B = len(chunks[0])
    k_cache, v_cache = (torch.zeros(B, S, heads, width, dtype=draw.dtype) for _ in range(2))
    history = [{} for _ in range(B)]
    for chunk in chunks:
        positions = torch.tensor(chunk)
        k, v = draw(B, positions.shape[1], heads, width), draw(B, positions.shape[1], heads, width)
        out = reference("kv_write_")(k_cache, v_cache, strided(k), shifted(v), positions)
        assert out is None
        for b in range(B):
            for t, p in enumerate(chunk[b]):
                if p >= 0:
                    history[b][p] = (k[b, t], v[b, t])
    return k_cache, v_cache, history


CHUNKS = {
    "one_row": [[[0, 1, 2]], [[3]], [[4]], [[5, 6]]],
    "one_token": [[[0]]],
    "ragged_rows": [[[0, 1, 2], [0, -1, -1], [-1, 0, 1]], [[3, 4], [1, 2], [2, -1]]],
    "an_idle_row": [[[0, 1], [0, 1]], [[2, 3], [-1, -1]]],
    "wraps": [[[0, 1, 2, 3, 4]], [[5, 6, 7]], [[8, 9, 10]]],
    "wraps_ragged": [[[0, 1, 2, 3, 4, 5], [0, 1, 2, -1, -1, -1]], [[6, 7, 8], [3, 4, 5]], [[9, 10, 11], [6, 7, 8]]],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CHUNKS)
@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("S", [9, 12, 20])
def test_decode_sees_what_the_history_holds(dtype, name, window, S):
    draw, chunks = Draw(dtype), CHUNKS[name]
    k_cache, v_cache, history = write_history(draw, S, chunks, heads=2, width=4)
    positions = torch.tensor(chunks[-1])
    q = draw(*positions.shape, 4, 4)
    got = reference("attention_decode")(strided(q), k_cache, v_cache, positions, window=window)
    assert got.dtype == dtype and got.is_contiguous() and not got.isnan().any()
    expected = slow.attention_history(q, history, positions, window, slots=S)
    check(got, expected, dtype)
    assert (got[positions < 0] == 0).all()
    on_device = attention._decode_masked(q, k_cache, v_cache, positions, window or 0, 0.5)
    check(on_device, expected, dtype)  # what GPU tensors take


def test_decode_with_a_scale():
    draw = Draw(torch.float32)
    k_cache, v_cache, history = write_history(draw, 8, [[[0, 1, 2]]], heads=1, width=4)
    q, positions = draw(1, 1, 2, 4), torch.tensor([[2]])
    got = reference("attention_decode")(q, k_cache, v_cache, positions, scale=0.2)
    check(got, slow.attention_history(q, history, positions, scale=0.2), torch.float32)


def test_decode_of_nothing_is_zero():
    draw = Draw(torch.float32)
    for T in (1, 3):
        positions = torch.full((2, T), -1)
        args = draw(2, T, 4, 8), draw(2, 6, 2, 8), draw(2, 6, 2, 8), positions
        assert (reference("attention_decode")(*args) == 0).all()


def test_decode_is_independent_of_unused_slots():
    draw = Draw(torch.float32)
    k_cache, v_cache, _ = write_history(draw, 10, [[[0, 1, 2, 3], [0, 1, -1, -1]]], 2, 4)
    q, positions = draw(2, 1, 2, 4), torch.tensor([[3], [1]])
    before = reference("attention_decode")(q, k_cache, v_cache, positions)
    for row, used in ((0, 4), (1, 2)):
        k_cache[row, used:] = 1e4
        v_cache[row, used:] = -1e4
    assert torch.equal(before, reference("attention_decode")(q, k_cache, v_cache, positions))


def test_rows_of_a_batch_equal_single_rows():
    draw, chunks = Draw(torch.float32), CHUNKS["wraps_ragged"]
    k_cache, v_cache, _ = write_history(draw, 10, chunks, heads=2, width=4)
    positions = torch.tensor(chunks[-1])
    q = draw(2, 3, 4, 4)
    whole = reference("attention_decode")(q, k_cache, v_cache, positions, window=6)
    for b in range(2):
        one = slice(b, b + 1)
        args = q[one], k_cache[one], v_cache[one], positions[one]
        check(reference("attention_decode")(*args, window=6), whole[one].double(), torch.float32)


def test_kv_write_touches_nothing_else():
    draw = Draw(torch.float32)
    k_cache, v_cache = draw(2, 6, 1, 3), draw(2, 6, 1, 3)
    before = k_cache.clone()
    k, v = draw(2, 2, 1, 3), draw(2, 2, 1, 3)
    reference("kv_write_")(k_cache, v_cache, k, v, torch.tensor([[7, -1], [-1, -1]]))
    assert torch.equal(k_cache[0, 1], k[0, 0]) and torch.equal(v_cache[0, 1], v[0, 0])
    before[0, 1] = k[0, 0]
    assert torch.equal(k_cache, before)


def test_kv_write_of_more_than_a_ring_keeps_the_newest():
    draw = Draw(torch.float32)
    k_cache, v_cache = torch.zeros(1, 4, 1, 2), torch.zeros(1, 4, 1, 2)
    k, v = draw(1, 11, 1, 2), draw(1, 11, 1, 2)
    reference("kv_write_")(k_cache, v_cache, k, v, torch.arange(3, 14).unsqueeze(0))
    for position in range(10, 14):
        assert torch.equal(k_cache[0, position % 4], k[0, position - 3])


def test_kv_write_without_reading_back():
    """The path for GPU tensors gives what the path for CPU tensors gives."""
    draw = Draw(torch.float32)
    for S in (3, 5, 9):
        positions = torch.tensor([[4, 5, 6, 7], [-1, 3, -1, 4], [-1, -1, -1, -1], [2, 1, -1, 0]])
        caches, k, v = [draw(4, S, 2, 3) for _ in range(2)], draw(4, 4, 2, 3), draw(4, 4, 2, 3)
        expected = [cache.clone() for cache in caches]
        attention.kv_write_(*expected, k, v, positions)
        attention._kv_write_on_device(*caches, k, v, positions)
        assert torch.equal(caches[0], expected[0]) and torch.equal(caches[1], expected[1])
