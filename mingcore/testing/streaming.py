"""Checks for tests of ops with a stream's state, on any backend: chunked equals one-shot.

A call of an op is a mapping of its keyword arguments without `state`, `valid` and `last`. Its input is split along
time and the outputs are concatenated, row by row by `state.emitted`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import ops

INPUT = {
    "causal_conv1d": ("x", 2),
    "causal_conv_transpose1d": ("x", 2),
    "overlap_add": ("frames", 1),
    "spectrum_head": ("hidden", 1),
}
LIMIT = 1e-6  # chunked against one-shot: max |a - b| / max |b|


def once(op: str, call: dict[str, Any], backend: str | None = None) -> Tensor:
    """The one-shot result, end of the stream included."""
    return _run(op, call, backend, None, True)[0]


def chunked(op: str, call: dict[str, Any], sizes: Sequence[int], backend: str | None = None) -> Tensor:
    """Chunk by chunk; the last of `sizes` ends the stream."""
    name, dim = INPUT[op]
    state, out = None, []
    for i, chunk in enumerate(call[name].split(list(sizes), dim)):
        piece, state = _run(op, {**call, name: chunk}, backend, state, i == len(sizes) - 1)
        assert (state.emitted == piece.shape[-1]).all(), "emitted must be the length, rows alike"
        out.append(piece)
    assert (state.lengths == 0).all(), "after the last chunk lengths must be 0"
    return torch.cat(out, dim=-1)


def in_place(op: str, call: dict[str, Any], sizes: Sequence[int], backend: str | None = None) -> Tensor:
    """`chunked` by the in-place op, into outputs filled with NaN."""
    name, dim = INPUT[op]
    state, shape, out = None, None, []
    for i, chunk in enumerate(call[name].split(list(sizes), dim)):
        last = i == len(sizes) - 1
        rest = {key: value for key, value in call.items() if key != name}
        # output and state have the shapes of the allocating op's
        shape, fresh = _run(op, {**call, name: chunk}, backend, state, last)
        if state is None:
            state = fresh.clone()
            state.reset()
        piece = torch.full_like(shape, torch.nan)
        getattr(ops, op + "_")(chunk, piece, **rest, state=state, last=last, backend=backend)
        out.append(piece)
    return torch.cat(out, dim=-1)


def by_rows(op: str, call: dict[str, Any], seed: int, backend: str | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """Rows that advance independently (`valid`, `last` per row): the outputs of each row, and the one-shot results.

    Each call gives every row a random number of inputs, possibly none, and streams end at random positions; inputs
    beyond a row's own are NaN.
    """
    name, dim = INPUT[op]
    x, pick = call[name], random.Random(seed)
    B, L = x.shape[0], x.shape[dim]
    at, starts, state = [0] * B, [0] * B, None
    got: list[list[Tensor]] = [[] for _ in range(B)]
    streams: list[list[tuple[int, int]]] = [[] for _ in range(B)]
    while min(at) < L:
        size = min(pick.randint(1, 7), L)
        valid = [min(pick.choice((0, size, pick.randint(0, size))), L - a) for a in at]
        ends = [n > 0 and (a + n == L or pick.random() < 0.15) for a, n in zip(at, valid)]
        chunk = torch.full_like(x.narrow(dim, 0, size), torch.nan)
        for b, n in enumerate(valid):
            chunk[b].narrow(dim - 1, 0, n).copy_(x[b].narrow(dim - 1, at[b], n))
        rows = {"valid": torch.tensor(valid, device=x.device), "last": torch.tensor(ends, device=x.device)}
        piece, state = _run(op, {**call, name: chunk}, backend, state, **rows)
        for b, n in enumerate(state.emitted.tolist()):
            got[b].append(piece[b, ..., :n])
            assert (piece[b, ..., n:] == 0).all(), "beyond emitted there must be zeros"
            at[b] += valid[b]
            if ends[b]:
                streams[b].append((starts[b], at[b]))
                starts[b] = at[b]
    expected = []
    for b in range(B):
        pieces = [x[b : b + 1].narrow(dim, start, end - start) for start, end in streams[b]]
        outs = [once(op, {**call, name: piece}, backend)[0] for piece in pieces]
        expected.append(torch.cat(outs, dim=-1))
    return [torch.cat(pieces, dim=-1) for pieces in got], expected


def split(total: int, seed: int) -> list[int]:
    """Random chunk lengths >= 0 that sum to `total`."""
    pick, sizes = random.Random(seed), []
    max_size = pick.choice((1, 3, 8, max(total, 1)))
    while total > 0:
        sizes.append(0 if pick.random() < 0.1 else min(total, pick.randint(1, max_size)))
        total -= sizes[-1]
    return sizes or [0]


def assert_same(got: Tensor, expected: Tensor, what: str) -> None:
    """Raise AssertionError when the shapes or, beyond `LIMIT`, the values differ."""
    assert got.shape == expected.shape, f"{what}: {list(got.shape)}, not {list(expected.shape)}"
    if got.numel():
        error = (got - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
        assert error <= LIMIT, f"{what}: differs by {error:.2e}"


def _run(op, call, backend, state, last, valid=None):
    rows = {} if valid is None else {"valid": valid}
    return getattr(ops, op)(**call, state=state, last=last, **rows, backend=backend)
