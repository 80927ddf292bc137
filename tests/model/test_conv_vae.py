"""Convolutional VAEs against plain PyTorch in float64, and what a stream of theirs must hold."""

import random
from pathlib import Path

import pytest
import torch

from mingcore import ops
from mingcore.model.vae.conv import codec
from mingcore.testing import streaming
from mingcore.testing.compare import assert_within, max_relative
from tests.model.conv_subjects import NETWORK, every_variant, made


def piece(noise, vae, start, T):
    """The part of the noise that belongs to latents start..start + T."""
    rates = [1]
    for rate in vae.config.decoder_rates if noise else ():
        rates.append(rates[-1] * rate)
    return noise and [n[:, start * r : (start + T) * r] for n, r in zip(noise, rates[1:])]


def as_close(got, expected, oracle):
    """Within 1e-5 of one-shot, and no more than twice as far from float64 as one-shot is."""
    assert got.shape == expected.shape
    assert max_relative(got, expected) <= NETWORK
    assert_within(got, expected, oracle)


@every_variant
def test_equals_the_formula(subject):
    vae, T = subject.vae, 9
    samples, latents, noise = subject.samples(T * vae.hop_samples), subject.latents(T), None
    for got, plain, exact in zip(
        vae.encode(samples),
        subject.formula_encode(samples, torch.float32),
        subject.formula_encode(samples, torch.float64),
    ):
        assert_within(got, plain, exact)
        assert max_relative(got, exact) <= NETWORK
    noise = subject.noise(T)
    got, _ = subject.decode(latents, noise=noise)
    exact = subject.formula_decode(latents, torch.float64, noise)
    assert_within(got, subject.formula_decode(latents, torch.float32, noise), exact)
    assert max_relative(got, exact) <= NETWORK
    assert got.shape[-1] == T * vae.out_hop_samples


@every_variant
def test_samples_are_completed_with_zeros(subject):
    vae = subject.vae
    samples = subject.samples(3 * vae.hop_samples + 1)
    whole = torch.nn.functional.pad(samples, (0, vae.hop_samples - 1))
    assert torch.equal(vae.encode(samples)[0], vae.encode(whole)[0])
    assert vae.encode(samples)[0].shape == (2, 4, vae.latent_dim)


@every_variant
@pytest.mark.parametrize("seed", range(4))
def test_any_split_decodes_the_same(subject, seed):
    latents, noise, vae = subject.latents(11, seed), subject.noise(11), subject.vae
    expected, _ = subject.decode(latents, noise=noise)
    state, out, start, sizes = vae.new_decoder_state(2), [], 0, streaming.split(11, seed)
    bytes_at_first = state.nbytes
    for T in sizes:
        part = piece(noise, vae, start, T)
        y, state = subject.decode(latents[:, start : start + T], state, False, noise=part)
        assert y.shape[-1] == T * vae.out_hop_samples
        assert state.emitted.tolist() == [y.shape[-1]] * 2
        out.append(y)
        start += T
    assert state.nbytes == bytes_at_first
    assert state.lengths.tolist() == [11, 11]
    as_close(torch.cat(out, -1), expected, subject.formula_decode(latents, torch.float64, noise))


@every_variant
@pytest.mark.parametrize("seed", range(4))
def test_any_split_encodes_the_same(subject, seed):
    vae, L = subject.vae, 7 * subject.vae.hop_samples - seed
    samples = subject.samples(L, seed)
    whole = torch.nn.functional.pad(samples, (0, seed))
    exact = subject.formula_encode(whole, torch.float64)
    expected = vae.encode(samples)
    sizes = streaming.split(L, seed)
    state, out, start = None, [], 0
    for i, n in enumerate(sizes):
        chunk = samples[..., start : start + n]
        mean, std, state = vae.encode_stream(chunk, state, last=i == len(sizes) - 1)
        assert state.emitted.tolist() == [mean.shape[1]] * 2
        out.append((mean, std))
        start += n
    assert state.lengths.tolist() == [0, 0]
    for got, once, truth in zip(zip(*out), expected, exact):
        as_close(torch.cat(got, 1), once, truth)


@every_variant
@pytest.mark.parametrize("seed", range(2))
def test_rows_encode_at_their_own_pace(subject, seed):
    """Random numbers of samples per row and call, none in some; streams end row by row."""
    vae, pick, B, L = subject.vae, random.Random(seed), 3, 6 * subject.vae.hop_samples
    samples, state = subject.samples(L, seed, B), None
    at, begun, got, ends_at = [0] * B, [0] * B, [[] for _ in range(B)], [[] for _ in range(B)]
    while min(at) < L:
        size = pick.randint(1, 2 * vae.hop_samples)
        valid = [min(pick.choice((0, size, pick.randint(0, size))), L - a) for a in at]
        last = [n > 0 and (a + n == L or pick.random() < 0.2) for a, n in zip(at, valid)]
        chunk = torch.full_like(samples[..., :size], torch.nan)
        for b, n in enumerate(valid):
            chunk[b, ..., :n] = samples[b, ..., at[b] : at[b] + n]
        rows = {"last": torch.tensor(last), "valid": torch.tensor(valid)}
        mean, _, state = vae.encode_stream(chunk, state, **rows)
        for b, n in enumerate(state.emitted.tolist()):
            got[b].append(mean[b, :n])
            assert (mean[b, n:] == 0).all()
            at[b] += valid[b]
            if last[b]:
                ends_at[b].append((begun[b], at[b]))
                begun[b] = at[b]
    assert state.lengths.tolist() == [0] * B
    for b in range(B):
        alone = [vae.encode(samples[b : b + 1, ..., i:j])[0][0] for i, j in ends_at[b]]
        expected, mine = torch.cat(alone), torch.cat(got[b])
        assert mine.shape == expected.shape
        assert max_relative(mine, expected) <= NETWORK


@every_variant
def test_rows_decode_at_their_own_pace(subject):
    vae, pick, T = subject.vae, random.Random(7), 8
    latents, noise = subject.latents(T), subject.noise(T)
    expected, _ = subject.decode(latents, noise=noise)
    rates = [t.shape[1] // T for t in noise or ()]
    state, at, got = None, [0, 0], [[], []]
    while min(at) < T:
        size = pick.randint(1, 4)
        valid = [min(pick.choice((0, size, 1)), T - a) for a in at]
        chunk = torch.full((2, size, vae.latent_dim), torch.nan)
        part = [torch.zeros(2, size * r) for r in rates] if noise else None
        for b, n in enumerate(valid):
            chunk[b, :n] = latents[b, at[b] : at[b] + n]
            for mine, all_of_it, r in zip(part or (), noise or (), rates):
                mine[b, : n * r] = all_of_it[b, at[b] * r : (at[b] + n) * r]
        y, state = subject.decode(chunk, state, False, torch.tensor(valid), part)
        for b, n in enumerate(valid):
            assert state.emitted[b] == n * vae.out_hop_samples
            got[b].append(y[b, ..., : state.emitted[b]])
            assert (y[b, ..., state.emitted[b] :] == 0).all()
            at[b] += n
    for b in range(2):
        assert max_relative(torch.cat(got[b], -1), expected[b]) <= NETWORK


@every_variant
def test_the_past_does_not_see_the_future(subject):
    """A change reaches no earlier output and no other row."""
    vae, T, at = subject.vae, 8, 5
    latents, noise = subject.latents(T), subject.noise(T)
    changed = latents.clone()
    changed[1, at:] += 1
    before, after = (subject.decode(z, noise=noise)[0] for z in (latents, changed))
    first = at * vae.out_hop_samples
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1, ..., :first], after[1, ..., :first])
    assert not torch.equal(before[1, ..., first:], after[1, ..., first:])
    samples = subject.samples(T * vae.hop_samples)
    changed = samples.clone()
    changed[1, ..., at * vae.hop_samples :] += 1
    before, after = vae.encode(samples)[0], vae.encode(changed)[0]
    assert torch.equal(before[0], after[0]) and torch.equal(before[1, :at], after[1, :at])
    assert not torch.equal(before[1, at:], after[1, at:])


@every_variant
def test_an_empty_chunk_changes_nothing(subject):
    vae = subject.vae
    _, _, state = vae.encode_stream(subject.samples(2 * vae.hop_samples + 1))
    kept = state.clone()
    mean, _, state = vae.encode_stream(subject.samples(0), state)
    assert mean.shape == (2, 0, vae.latent_dim) and state.emitted.tolist() == [0, 0]
    same_state(state, kept)
    _, state = subject.decode(subject.latents(3), None, False, noise=subject.noise(3))
    kept = state.clone()
    y, state = subject.decode(subject.latents(0), state, False, noise=subject.noise(0))
    assert y.shape[-1] == 0 and state.emitted.tolist() == [0, 0]
    same_state(state, kept)
    assert vae.encode(subject.samples(0))[0].shape[1] == 0


def same_state(a, b):
    assert a.seen == b.seen and len(a.layers) == len(b.layers)
    for mine, theirs in zip(a.layers, b.layers):
        assert torch.equal(mine.context, theirs.context)
        assert torch.equal(mine.lengths, theirs.lengths) and mine.offset == theirs.offset


@every_variant
def test_long_inputs_go_by_blocks(subject, monkeypatch):
    vae, T = subject.vae, 7
    samples, latents = subject.samples(T * vae.hop_samples + 1), subject.latents(T)
    noise, valid = subject.noise(T), torch.tensor([T, 4])
    mean, _ = vae.encode(samples)
    y, _ = subject.decode(latents, noise=noise)
    counts = valid * vae.hop_samples + 1
    mine, _, apart = vae.encode_stream(samples, valid=counts)
    monkeypatch.setattr(codec, "BLOCK", 3)
    assert max_relative(vae.encode(samples)[0], mean) <= NETWORK
    assert max_relative(subject.decode(latents, noise=noise)[0], y) <= NETWORK
    got, state = subject.decode(latents, None, False, valid, noise)
    assert state.emitted.tolist() == (valid * vae.out_hop_samples).tolist()
    for b, n in enumerate(state.emitted):
        assert max_relative(got[b, ..., :n], y[b, ..., :n]) <= NETWORK
        assert (got[b, ..., n:] == 0).all()
    blocks, _, state = vae.encode_stream(samples, valid=counts)
    assert torch.equal(state.emitted, apart.emitted) and torch.equal(state.lengths, counts)
    for b, n in enumerate(state.emitted):
        assert max_relative(blocks[b, :n], mine[b, :n]) <= NETWORK
        assert (blocks[b, n:] == 0).all()


def test_reset_and_clone():
    vae = made("vibevoice").vae
    z = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(0))
    fresh, state = vae.decode(z, last=False)
    branch = state.clone()
    again, state = vae.decode(z, state, last=True)
    assert not torch.equal(again, fresh)
    assert torch.equal(vae.decode(z, branch, last=False)[0], again)
    assert torch.equal(vae.decode(z, state, last=False)[0], fresh)  # `last` ended it
    state.reset([1])
    mixed, _ = vae.decode(z, state, last=False)
    assert torch.equal(mixed[0], again[0]) and torch.equal(mixed[1], fresh[1])
    state.reset()
    assert torch.equal(vae.decode(z, state)[0], fresh)


@pytest.mark.parametrize("name", ["voxcpm", "voxcpm2-concat", "vibevoice"])
def test_reference_backend_and_16_bit_weights(subject):
    vae, z, noise = subject.vae, subject.latents(5), subject.noise(5)
    samples = subject.samples(4 * vae.hop_samples)
    exact = subject.formula_decode(z, torch.float64, noise)
    mean = vae.encode(samples)[0]
    with ops.use_backend("reference"):
        kept = type(vae).from_state_dict(subject.tensors, subject.config)
        more = {**subject.options, "noise": noise} if subject.vox else {}
        assert max_relative(kept.decode(z, **more)[0], exact) <= NETWORK
        assert max_relative(kept.encode(samples)[0], mean) <= NETWORK
    narrow = type(vae).from_state_dict(subject.tensors, subject.config, dtype=torch.bfloat16)
    assert max_relative(narrow.decode(z, **more)[0], exact) < 0.05
    assert max_relative(narrow.encode(samples)[0], mean) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", ["voxcpm", "vibevoice"])
def test_thirty_minutes(subject):
    """At 25 latents a second: memory flat, and the end sounds as a stream that began late."""
    vae, count, patch = subject.vae, 30 * 60 * 25, 4
    motif, state, resident, tail = subject.latents(100, B=1), vae.new_decoder_state(1), [], []
    bytes_at_first = state.nbytes
    for i in range(0, count, patch):
        y, state = vae.decode(motif[:, i % 100 : i % 100 + patch], state, last=False)
        if i % 4000 == 0:
            resident.append(resident_bytes())
        if i >= count - 100:
            tail.append(y)
    assert state.nbytes == bytes_at_first and state.lengths.tolist() == [count]
    assert max(resident[1:]) - resident[1] < 4 << 20, resident
    fresh, _ = vae.decode(torch.cat((motif, motif), 1))
    n = 100 * vae.out_hop_samples
    assert max_relative(torch.cat(tail, -1), fresh[:, n:]) <= NETWORK


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.gpu
@every_variant
@pytest.mark.parametrize("backend", ["triton,reference", "cuda,triton,reference"])
def test_on_a_gpu(subject, backend):
    """One-shot and streamed against the formula in float64."""
    samples, latents, noise = subject.samples(40 * 6), subject.latents(9), subject.noise(9)
    with ops.use_backend(backend):
        vae = type(subject.vae).from_state_dict(subject.tensors, subject.config, device="cuda")
        more = {**subject.options, "noise": noise} if subject.vox else {}
        once, _ = vae.decode(latents, **more)
        state, out = None, []
        for i in range(0, 9, 3):
            if subject.vox:
                more["noise"] = piece(noise, vae, i, 3)
            y, state = vae.decode(latents[:, i : i + 3], state, last=False, **more)
            out.append(y)
        mean, _ = vae.encode(samples)
    plain = subject.formula_decode(latents, torch.float32, noise)
    exact = subject.formula_decode(latents, torch.float64, noise)
    assert_within(once.cpu(), plain, exact)
    assert_within(torch.cat(out, -1).cpu(), plain, exact)
    assert max_relative(mean, subject.vae.encode(samples)[0]) <= NETWORK


@pytest.mark.slow
@pytest.mark.parametrize("name", ["voxcpm", "vibevoice"])
def test_a_streamed_step_compiles_as_one_graph(subject):
    """Whatever the state has seen: no break, no recompilation without end."""
    vae, z = subject.vae, subject.latents(4)
    torch.compiler.reset()
    step = torch.compile(lambda z, state: vae.decode(z, state, last=False)[0], fullgraph=True, backend="eager")
    state, plain = vae.new_decoder_state(2), vae.new_decoder_state(2)
    for _ in range(4):
        expected, _ = vae.decode(z, plain, last=False)
        assert torch.equal(step(z, state), expected)
    assert state.seen == plain.seen == 16
