"""The streaming encoder: any split equals one-shot, rows are their own, memory is constant."""

import random

import pytest
import torch

from mingcore.errors import InputError
from mingcore.testing.compare import max_relative

LIMIT = 1e-5


def wave(B, L, seed=0):
    return 0.3 * torch.randn(B, L, generator=torch.Generator().manual_seed(seed))


def split(total, seed):
    """Random chunk lengths >= 0 that sum to `total`, none at either end of the scale favoured."""
    pick, sizes = random.Random(seed), []
    most = pick.choice((3, 40, 330, 2000, 20000)) if total < 3000 else pick.choice((330, 20000))
    while total > 0:
        sizes.append(0 if pick.random() < 0.15 else min(total, pick.randint(1, most)))
        total -= sizes[-1]
    return sizes + [0] * pick.randint(0, 1)


def streamed(vae, x, sizes):
    """Mean and deviation [2,B,T,C] by chunks; each frame must come as soon as it is whole."""
    state, parts, seen, frames = vae.new_encoder_state(x.shape[0]), [], 0, 0
    for i, chunk in enumerate(x.split(sizes, dim=1)):
        last = i + 1 == len(sizes)
        parts.append(torch.stack(vae.encode_stream(chunk, state, last)[:2]))
        seen, frames = seen + chunk.shape[1], frames + parts[-1].shape[2]
        assert frames == (-(-seen // 320) if last else seen // 320)
    return torch.cat(parts, dim=2)


@pytest.mark.parametrize("kind", ["sdpa", "fa2", "full"])
@pytest.mark.parametrize("seed", range(6))
def test_any_split_is_oneshot(vae_of_kind, kind, seed):
    vae = vae_of_kind(kind)
    L = random.Random(seed).choice((1, 319, 320, 321, 2560, 20011))
    x = wave(2, L, seed)
    whole = torch.stack(vae.encode(x))
    assert max_relative(streamed(vae, x, split(L, seed)), whole) <= LIMIT


def test_rows_are_independent(golden_model):
    """Another row, NaN even, changes not a bit of this one in the same stream."""
    vae, x = golden_model.vae, wave(3, 9000)
    sizes = split(9000, 7)
    together = streamed(vae, x, sizes)
    other = x.clone()
    other[1] = torch.nan
    beside = streamed(vae, other, sizes)
    for b in (0, 2):
        assert torch.equal(beside[:, b], together[:, b])
        assert max_relative(streamed(vae, x[b : b + 1], sizes)[:, 0], together[:, b]) <= LIMIT


def test_it_is_causal(golden_model):
    x = wave(1, 6400)
    changed = x.clone()
    changed[:, 3300:] += 1.0
    a, b = (torch.stack(golden_model.vae.encode(v)) for v in (x, changed))
    # sample 3300 lies in frame 10
    assert torch.equal(a[:, :, :10], b[:, :, :10]) and not torch.equal(a[:, :, 10], b[:, :, 10])


def test_memory_is_constant(golden_model):
    vae = golden_model.vae
    state, sizes, slots = vae.new_encoder_state(1), set(), None
    for i in range(300):
        vae.encode_stream(wave(1, 1601, i), state)
        sizes.add(state.nbytes)
        pointers = [t.data_ptr() for t in (*state.backbone.keys, state.tail, state.held)]
        slots = slots or pointers
        assert pointers == slots, "the state must stay where it is"
    assert len(sizes) == 1 and state.max_length == 300 * 1601 // 320


def test_empty_chunks_and_ends(golden_model):
    vae, x = golden_model.vae, wave(2, 640)
    state = vae.new_encoder_state(2)
    for _ in range(2):  # after a reset it is as new
        mean, std, _ = vae.encode_stream(x[:, :0], state)
        assert mean.shape == std.shape == (2, 0, 64)
        mean, _, _ = vae.encode_stream(x, state)
        assert max_relative(mean, vae.encode(x)[0]) <= LIMIT
        # everything was whole: nothing is left, and nothing is padded
        assert vae.encode_stream(x[:, :0], state, last=True)[0].shape == (2, 0, 64)
        with pytest.raises(InputError, match="last samples"):
            vae.encode_stream(x, state)
        state.reset()
    copy = state.clone()
    vae.encode_stream(x[:, :400], state)
    assert copy.max_length == 0 and copy.held.tolist() == [0, 0]


def rows_of(call, inputs, seed):
    """Each row's outputs when rows get what they please: 0 inputs, some, or all that is left.

    inputs: per row, a list of streams one after the other. call(chunk, last, valid) -> what came
    and how much of it is a row's; places beyond `valid` are NaN.
    """
    pick, B = random.Random(seed), len(inputs)
    rest = [[stream.clone() for stream in row] for row in inputs]
    done = [[[] for _ in row] for row in inputs]
    while any(rest):
        size = pick.choice((0, 1, 5, 7))
        size = size * 90 if inputs[0][0].dim() == 1 else size
        chunk = torch.full((B, size, *inputs[0][0].shape[1:]), torch.nan)
        valid, last = torch.zeros(B, dtype=torch.int64), torch.zeros(B, dtype=torch.bool)
        for b, row in enumerate(rest):
            if not row or pick.random() < 0.3:
                continue  # it sits out
            take = min(pick.randint(0, size), row[0].shape[0])
            chunk[b, :take], row[0] = row[0][:take], row[0][take:]
            valid[b], last[b] = take, row[0].shape[0] == 0
        out, emitted = call(chunk, last, valid)
        for b in range(B):
            own = int(emitted[b])
            assert not out[b, own:].any(), "what is no row's own is zeros"
            if rest[b]:
                done[b][len(inputs[b]) - len(rest[b])].append(out[b, :own])
                if last[b]:
                    rest[b].pop(0)
            else:
                assert own == 0
    return [[torch.cat(parts) for parts in row] for row in done]


@pytest.mark.parametrize("kind", ["sdpa", "fa2", "full"])
@pytest.mark.parametrize("seed", range(3))
def test_rows_at_different_places(vae_of_kind, kind, seed):
    """Rows of other lengths, that sit out, end and begin anew, are what they are alone."""
    vae = vae_of_kind(kind)
    lengths = ((3201, 640), (1,), (5000, 319), (2559, 1))
    inputs = [[wave(1, n, seed + n)[0] for n in row] for row in lengths]
    state = vae.new_encoder_state(4, block=3)  # a chunk takes several steps

    def call(chunk, last, valid):
        mean, std, _ = vae.encode_stream(chunk, state, last, valid=valid)
        return torch.cat((mean, std), dim=-1), state.emitted

    for row, streams in zip(inputs, rows_of(call, inputs, seed)):
        for x, got in zip(row, streams):
            assert max_relative(got, torch.cat(vae.encode(x[None]), dim=-1)[0]) <= LIMIT


@pytest.mark.parametrize("kind", ["sdpa", "fa2", "full"])
def test_rows_of_the_decoder_at_different_places(vae_of_kind, kind):
    vae, maker = vae_of_kind(kind), torch.Generator().manual_seed(1)
    inputs = [[torch.randn(n, 64, generator=maker) for n in row] for row in ((23, 4), (1,), (40,))]
    state = vae.new_decoder_state(3, block=3)

    def call(chunk, last, valid):
        return vae.decode(chunk, state, last, valid=valid)[0], state.emitted

    for row, streams in zip(inputs, rows_of(call, inputs, 5)):
        for z, got in zip(row, streams):
            assert max_relative(got, vae.decode(z[None])[0][0]) <= LIMIT


def test_a_row_that_is_reset(golden_model):
    """Reset rows begin anew; the others go on, whether or not rows are told apart again."""
    vae, x, y = golden_model.vae, wave(2, 3000), wave(2, 3000, 1)
    state = vae.new_encoder_state(2)
    first, _, _ = vae.encode_stream(x[:, :1000], state)
    state.reset([1])
    assert state.lengths.tolist() == [3, 0] and state.held.tolist() == [40, 0]
    after, _, _ = vae.encode_stream(torch.stack((x[0, 1000:], y[1, :2000])), state, last=True)
    assert state.emitted.tolist() == [7, 7] and after.shape[1] >= 7
    after = after[:, :7]
    whole = vae.encode(x[:1])[0]
    assert max_relative(torch.cat((first[:1], after[:1]), dim=1), whole) <= LIMIT
    assert max_relative(after[1:], vae.encode(y[1:, :2000])[0]) <= LIMIT
    with pytest.raises(InputError, match="last samples"):
        vae.encode_stream(x, state)


def test_refused(golden_model):
    vae, x = golden_model.vae, wave(2, 640)
    with pytest.raises(InputError, match="1 rows, the input has 2"):
        vae.encode_stream(x, vae.new_encoder_state(1))
    with pytest.raises(InputError, match=r"float \[B, L\]"):
        vae.encode(x[:, :0])
    with pytest.raises(InputError, match="int16"):
        vae.encode_stream(x.short())
    with pytest.raises(InputError, match=r"vae.encode_stream: valid must be \[B\] = \[2\]"):
        vae.encode_stream(x, valid=torch.tensor([1]))
    with pytest.raises(InputError, match="last must be bool"):
        vae.encode_stream(x, last=torch.tensor([1, 0]))
    with pytest.raises(InputError, match="vae.decode: valid must be int64"):
        vae.decode(torch.zeros(1, 5, 64), valid=torch.tensor([1.0]))
