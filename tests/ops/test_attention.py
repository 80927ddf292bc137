"""Attention and kv_write_ on the CPU kernels."""

import pytest
import torch

from mingcore import _cpu, ops
from mingcore.errors import BackendError
from mingcore.ops._core.layouts import nan_poisoned, shifted, strided, transposed
from mingcore.testing import compare

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def arguments(S, Hq, Hkv, D, positions, dtype=torch.float32, seed=0, **more):
    d = torch.Generator().manual_seed(seed)
    positions = torch.as_tensor(positions, dtype=torch.int64)
    B, T = positions.shape
    caches = {name: torch.randn(B, S, Hkv, D, generator=d).to(dtype) for name in ("k_cache", "v_cache")}
    q = torch.randn(B, T, Hq, D, generator=d).to(dtype)
    return {"q": q, **caches, "positions": positions, **more}


def check(kwargs):
    with nan_poisoned():
        (got,) = compare.run("attention_decode", kwargs, backend="cpu")
    compare.check_op("attention_decode", kwargs, (got,))
    return got


def span(first, T):
    return list(range(first, first + T))


@pytest.mark.parametrize("dtype", DTYPES)
def test_head_sizes_and_groups(isa, dtype):
    for D in (1, 7, 16, 24, 33, 64, 80, 130):
        for Hq, Hkv, T in ((1, 1, 1), (3, 3, 2), (6, 2, 1), (4, 1, 1), (5, 1, 1), (7, 1, 2)):
            check(arguments(40, Hq, Hkv, D, [span(31, T)], dtype))


@pytest.mark.parametrize("last", (0, 126, 127, 128, 300, 511, 512, 1100))
def test_lengths_around_blocks_and_chunks(isa, last):
    check(arguments(1200, 4, 2, 16, [[last]]))
    check(arguments(1200, 2, 2, 8, [span(max(last - 4, 0), 5)], window=130))


@pytest.mark.parametrize("S", (6, 37, 200))
def test_rings_at_random_places(isa, S):
    d = torch.Generator().manual_seed(S)
    for window in (None, 1, S // 2, S - 4):
        first = torch.randint(0, 5 * S, (3,), generator=d)
        positions = first[:, None] + torch.arange(5)
        positions[1, :2] = -1
        check(arguments(S, 4, 2, 24, positions, window=window))


def test_many_query_rows_behind_a_cache(isa, threads):
    """More query rows than one task takes, each with its own view of the keys."""
    kwargs = arguments(700, 3, 1, 20, [span(520, 90), [-1] * 10 + span(0, 80)], window=200)
    check(kwargs)


@pytest.mark.parametrize("window", (None, 33))
def test_prompts(isa, threads, window):
    """Query rows in several tasks, keys in several blocks; slices of one tensor."""
    for T, Hq, Hkv, D in ((150, 4, 2, 24), (70, 5, 1, 64), (9, 3, 3, 5)):
        qkv = torch.randn(2, T, Hq + 2 * Hkv, D, generator=torch.Generator().manual_seed(T))
        q, k, v = qkv.split((Hq, Hkv, Hkv), 2)
        kwargs = {"q": q, "k": k, "v": v, "window": window}
        with nan_poisoned():
            got = compare.run("attention_prefill", kwargs, backend="cpu")
        compare.check_op("attention_prefill", kwargs, got)


def test_the_same_bits_on_any_number_of_threads_and_in_any_batch(isa):
    """One KV head and many keys: with threads the keys are split, without they are not."""
    kwargs = arguments(9000, 2, 1, 128, [[8700], [3000], [40]], torch.bfloat16)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        results.append(ops.attention_decode(**kwargs, backend="cpu"))
    for row in range(3):
        alone = {k: v[row : row + 1] for k, v in kwargs.items()}
        assert torch.equal(ops.attention_decode(**alone, backend="cpu")[0], results[0][row])
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    compare.check_op("attention_decode", kwargs, (results[0],))


def test_large_scores_do_not_overflow(isa):
    kwargs = arguments(600, 2, 1, 16, [[599]], scale=60.0)
    check(kwargs)
    kwargs["k_cache"][:, :550] = kwargs["k_cache"][:, 550:551]  # the largest comes late
    check(kwargs)


def test_slices_and_views_are_read_where_they_are(isa):
    plain = arguments(30, 4, 2, 24, [span(20, 3)])
    expected = ops.attention_decode(**plain, backend="cpu")
    qkv = torch.full((1, 3, 8, 24), float("nan"))
    qkv[:, :, :4] = plain["q"]
    by_head = {n: plain[n].transpose(1, 2).contiguous().transpose(1, 2) for n in ("k_cache", "v_cache")}
    longer = {n: torch.cat((plain[n], torch.full_like(plain[n], float("nan"))), 1)[:, :30] for n in by_head}
    for views in (
        {"q": qkv[:, :, :4]},
        by_head,
        longer,
        {n: strided(plain[n]) for n in ("q", "k_cache", "v_cache")},
        {n: shifted(plain[n]) for n in ("q", "k_cache", "v_cache")},
        {n: transposed(plain[n]) for n in ("q", "k_cache", "v_cache")},
        {"positions": torch.stack((plain["positions"],) * 2, -1)[..., 0]},
    ):
        got = ops.attention_decode(**{**plain, **views}, backend="cpu")
        assert torch.equal(got, expected)


def test_slots_that_no_query_sees_are_not_read(isa):
    kwargs = arguments(64, 4, 2, 16, [[40], [-1]])
    expected = check(kwargs)
    for name in ("k_cache", "v_cache"):
        kwargs[name][0, 41:] = kwargs[name][1] = float("nan")
    assert torch.equal(ops.attention_decode(**kwargs, backend="cpu"), expected)
    assert not expected[1].any()


def written(kwargs, backend):
    return compare.run("kv_write_", kwargs, backend=backend)


@pytest.mark.parametrize("dtype", DTYPES)
def test_writing_equals_the_reference(isa, threads, dtype):
    d = torch.Generator().manual_seed(3)
    for B, T, S, heads, D in ((1, 1, 4, 2, 8), (3, 5, 7, 3, 5), (2, 40, 16, 1, 3), (2, 300, 512, 4, 64)):
        first = torch.randint(0, 3 * S, (B, 1), generator=d)
        kwargs = arguments(S, heads, heads, D, first + torch.arange(T), dtype)
        kwargs["positions"][0, 0] = -1
        kwargs["positions"] = kwargs["positions"][:, torch.randperm(T, generator=d)]
        k, v = kwargs.pop("q"), torch.randn(B, T, heads, D, generator=d).to(dtype)
        for layout in (torch.Tensor.contiguous, strided, transposed):
            kwargs.update(k=layout(k), v=layout(v))
            for a, b in zip(written(kwargs, "cpu"), written(kwargs, "reference")):
                assert torch.equal(a, b)


def test_writing_leaves_the_rest_of_the_buffer(isa):
    kwargs = arguments(6, 2, 2, 5, [[3, 4], [-1, -1]])
    k, v = kwargs.pop("q"), torch.randn(2, 2, 2, 5)
    buffers = [torch.full((2, 9, 3, 8), 7.0) for _ in range(2)]
    caches = [buffer[:, 2:8, :2, 1:6] for buffer in buffers]
    ops.kv_write_(*caches, k, v, kwargs["positions"], backend="cpu")
    for cache, new, buffer in zip(caches, (k, v), buffers):
        assert torch.equal(cache[0, 3:5], new[0])
        cache[0, 3:5] = 7.0
        assert (buffer == 7).all()


def test_refusals():
    kwargs = arguments(6, 2, 2, 5, [[3]])
    k = kwargs.pop("q")
    cache, fine = transposed(kwargs["k_cache"]), kwargs["v_cache"]
    with pytest.raises(BackendError, match="k_cache has strides"):
        ops.kv_write_(cache, fine, k, k, kwargs["positions"], backend="cpu")
    with pytest.raises(BackendError, match="v_cache overlaps itself"):
        overlapping = fine[:, :1].expand(1, 6, 2, 5)
        ops.kv_write_(fine, overlapping, k, k, kwargs["positions"], backend="cpu")
    eight = {name: transposed(kwargs[name].to(torch.int8)) for name in ("k_cache", "v_cache")}
    eight |= {name: torch.ones(1, 6, 2, 1) for name in ("k_scale", "v_scale")}
    with pytest.raises(BackendError, match="int8 caches are strided within a head"):
        ops.attention_decode(k, **eight, positions=kwargs["positions"], backend="cpu")
    double = {n: t.double() for n, t in kwargs.items() if n != "positions"}
    with pytest.raises(BackendError, match="q is torch.float64"):
        ops.attention_decode(k.double(), **double, positions=kwargs["positions"], backend="cpu")


def test_bindings_name_what_does_not_fit():
    from mingcore.ops._core.cpu import array

    cache, q, at = torch.zeros(1, 6, 2, 4), torch.zeros(1, 1, 4, 4), torch.zeros(1, 1).long()
    c, q, at = array(cache), array(q), array(at)
    with pytest.raises(ValueError, match="positions must be int64"):
        _cpu.attention_decode(q, c, c, array(torch.zeros(1, 1)), 0, 1.0, None, None, q, 1)
    with pytest.raises(ValueError, match="attention_decode: q must be of a multiple of Hkv = 2"):
        three = array(torch.zeros(1, 1, 3, 4))
        _cpu.attention_decode(three, c, c, at, 0, 1.0, None, None, three, 1)
    with pytest.raises(ValueError, match="k_cache must be of S >= 1 slots"):
        empty = array(torch.zeros(1, 0, 2, 4))
        _cpu.attention_decode(q, empty, empty, at, 0, 1.0, None, None, q, 1)
    scales = torch.ones(1, 6, 2, 1)
    with pytest.raises(ValueError, match="k_cache must be int8, as v_cache, where there are"):
        _cpu.attention_decode(q, c, c, at, 0, 1.0, array(scales), array(scales), q, 1)
    eight, short = cache.to(torch.int8), array(scales[:, :5])
    eight = array(eight)
    with pytest.raises(ValueError, match="k_scale must be S = 6 in dimension 1"):
        _cpu.attention_decode(q, eight, eight, at, 0, 1.0, short, short, q, 1)
    with pytest.raises(ValueError, match="kv_write_: k must be Hkv = 2"):
        _cpu.kv_write(c, c, q, q, at, 1)
