"""State: chunked equals one-shot, rows are independent, the past does not see the future."""

import pytest
import torch

from mingcore.errors import InputError
from mingcore.model.vae.backbone import Backbone
from mingcore.model.vae.semantic import Semantic
from mingcore.testing.compare import max_relative

KINDS = ("sdpa", "fa2", "full")


def close(a, b, limit=1e-5):
    assert max_relative(a, b) <= limit


def latents(B, T, seed=0):
    return torch.randn(B, T, 64, generator=torch.Generator().manual_seed(seed))


def samples(B, L, seed=0):
    return 0.3 * torch.randn(B, L, generator=torch.Generator().manual_seed(seed))


def embeds(llm, B, T, seed=0):
    ids = torch.randint(0, 480, (B, T), generator=torch.Generator().manual_seed(seed))
    return llm.embed(ids)


def decode_in(vae, z, sizes):
    state, chunks, start = None, [], 0
    for size in sizes:
        last = start + size >= z.shape[1]
        out, state = vae.decode(z[:, start : start + size], state, last=last)
        chunks.append(out)
        start += size
    return torch.cat(chunks, dim=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [[1] * 40, [1, 39], [33, 7], [5] * 8, [2, 3, 35]])
def test_decode_chunked_is_oneshot(vae_of_kind, kind, sizes):
    vae, z = vae_of_kind(kind), latents(2, 40)
    close(decode_in(vae, z, sizes), vae.decode(z)[0])


def test_decode_flushes_without_latents(golden_model):
    vae, z = golden_model.vae, latents(2, 12)
    first, state = vae.decode(z, last=False)
    rest, state = vae.decode(z[:, :0], state, last=True)
    assert rest.shape == (2, 480)
    close(torch.cat((first, rest), dim=1), vae.decode(z)[0])
    with pytest.raises(InputError, match="last latents"):
        vae.decode(z, state)
    state.reset()
    assert torch.equal(vae.decode(z, state)[0], vae.decode(z)[0])


def test_decoding_moves_no_tensor_of_the_state(golden_model):
    """Every step reads and writes the same addresses: a graph of one step carries a stream on."""
    vae, z = golden_model.vae, latents(2, 250)
    state = vae.new_decoder_state(2)

    def places():
        kv, overlap = state.backbone, state.overlap
        tensors = (*kv.keys, *kv.values, kv.lengths, *vars(overlap).values())
        return [(t.data_ptr(), t.nbytes) for t in tensors if isinstance(t, torch.Tensor)]

    for _ in range(2):  # a reset keeps them too
        before = [*places(), state.nbytes]
        parts = []
        for i in range(0, 250, 5):
            parts.append(vae.decode(z[:, i : i + 5], state, last=i == 245)[0])
            assert [*places(), state.nbytes] == before
        close(torch.cat(parts, dim=1), vae.decode(z)[0])
        state.reset()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [[100, 7000, 1, 319, 12000], [3200] * 6 + [220], [19419, 1]])
def test_encode_chunked_is_oneshot(vae_of_kind, kind, sizes):
    vae, wave = vae_of_kind(kind), samples(2, sum(sizes))
    state, parts = None, []
    for i, chunk in enumerate(wave.split(sizes, dim=1)):
        mean, std, state = vae.encode_stream(chunk, state, last=i + 1 == len(sizes))
        parts.append(torch.stack((mean, std)))
    close(torch.cat(parts, dim=2), torch.stack(vae.encode(wave)))
    assert state.lengths.tolist() == [-(-sum(sizes) // 320)] * 2
    with pytest.raises(InputError, match="last samples"):
        vae.encode_stream(wave, state)


def test_encode_stream_may_end_on_a_whole_frame(golden_model):
    vae, wave = golden_model.vae, samples(1, 640)
    mean, _, state = vae.encode_stream(wave, None)
    assert mean.shape == (1, 2, 64) and state.offset == 0
    close(mean, vae.encode(wave)[0])


def test_long_inputs_are_the_same_in_blocks(vae_of_kind, monkeypatch):
    """A long input is cut into blocks; the size of a block changes nothing."""
    wave, z = samples(1, 320 * 300), latents(1, 300)
    lengths = []
    for module in (Backbone, Semantic):

        def counted(self, x, *rest, call=module.__call__):
            lengths.append(x.shape[1])
            return call(self, x, *rest)

        monkeypatch.setattr(module, "__call__", counted)
    for kind in KINDS:
        vae = vae_of_kind(kind)
        whole = vae.encode(wave)[0], vae.unify(z)[0], vae.decode(z)[0]
        lengths.clear()
        with monkeypatch.context() as patch:
            patch.setattr("mingcore.model.vae.model.BLOCK", 37)
            blocks = vae.encode(wave)[0], vae.unify(z)[0], vae.decode(z)[0]
        assert len(lengths) >= 3 * 9 and max(lengths) == 37, lengths
        for a, b in zip(blocks, whole):
            close(a, b)


def test_llm_chunked_is_oneshot(golden_model):
    llm = golden_model.llm
    x = embeds(llm, 2, 150)
    whole, _ = llm(x)
    state, parts = llm.new_state(2, 8), []
    for chunk in x.split([1, 7, 64, 1, 1, 76], dim=1):
        out, state = llm(chunk, state)
        parts.append(out)
    close(torch.cat(parts, dim=1), whole)
    assert state.lengths.tolist() == [150, 150] and state.capacity >= 150


def test_batch_is_three_singles(golden_model):
    m = golden_model
    x, z, wave = embeds(m.llm, 3, 19), latents(3, 23), samples(3, 5000)
    mask = torch.randint(0, 2, (3, 19))
    cond, noise = torch.randn(3, 256), torch.randn(11, 3, 5, 64)
    guidance = torch.tensor([2.0, 0.0, 3.5])
    runs = {
        "llm": lambda r: m.llm(x[r], audio_mask=mask[r])[0],
        "encode": lambda r: torch.cat(m.vae.encode(wave[r]), dim=-1),
        "unify": lambda r: m.vae.unify(z[r])[0],
        "decode": lambda r: m.vae.decode(z[r])[0],
        "pool": lambda r: m.pool(z[r, :20]),
        "stop": lambda r: m.stop_head(cond[r]),
        "flow": lambda r: m.flow.sample(cond[r], z[r, :5], noise[:, r], guidance=guidance[r]),
    }
    for name, run in runs.items():
        together = run(slice(0, 3))
        for b in range(3):
            error = max_relative(run(slice(b, b + 1)), together[b : b + 1])
            assert error <= 1e-5, (name, b, error)


def test_rows_of_different_lengths(golden_model):
    """Left padding by attention_mask: each row is what it is alone, then and later."""
    llm, lengths = golden_model.llm, [9, 4, 1]
    x, more = embeds(llm, 3, 9), embeds(llm, 3, 6, seed=1)
    mask = torch.tensor([[0] * (9 - n) + [1] * n for n in lengths])
    out, state = llm(x, attention_mask=mask)
    assert state.lengths.tolist() == lengths
    later, state = llm(more[:, :5], state)
    last, state = llm(more[:, 5:], state)
    for b, n in enumerate(lengths):
        alone, own = llm(x[b : b + 1, 9 - n :])
        close(out[b : b + 1, 9 - n :], alone)
        alone, own = llm(more[b : b + 1], own)
        close(torch.cat((later, last), dim=1)[b : b + 1], alone)


def test_masked_tokens_leave_no_trace(golden_model):
    llm = golden_model.llm
    x = embeds(llm, 1, 8)
    mask = torch.tensor([[1, 1, 0, 1, 0, 0, 1, 1]])
    other = torch.where(mask[..., None] > 0, x, torch.randn_like(x))
    a, _ = llm(x, attention_mask=mask)
    b, _ = llm(other, attention_mask=mask)
    kept = mask[0] > 0
    close(a[:, kept], b[:, kept], 1e-6)
    close(a[:, kept], llm(x[:, kept])[0])


@pytest.mark.parametrize("kind", KINDS)
def test_causality(golden_model, vae_of_kind, kind):
    """What comes later changes nothing before, and does change what is at its place."""
    vae, llm = vae_of_kind(kind), golden_model.llm
    z, wave, x = latents(1, 30), samples(1, 30 * 320), embeds(llm, 1, 30)
    runs = {
        "encode": (lambda w: vae.encode(w)[0], wave, 320, 20),
        "unify": (lambda z: vae.unify(z)[0], z, 1, 20),
        "backbone": (lambda z: vae.decoder.backbone_out(z, vae.new_decoder_state(1, 30).backbone), z, 1, 20),
        "llm": (lambda x: llm(x)[0], x, 1, 20),
    }
    for name, (run, given, per_frame, t) in runs.items():
        changed = given.clone()
        changed[:, t * per_frame :] += 0.5
        a, b = run(given), run(changed)
        # experts see groups of another size, so the LLM's sums may differ in their last bit
        assert max_relative(a[:, :t], b[:, :t]) <= (1e-6 if name == "llm" else 0.0), name
        assert not torch.equal(a[:, t], b[:, t]), name
    changed = z.clone()
    changed[:, 20:] += 0.5
    a, b = vae.decode(z)[0], vae.decode(changed)[0]
    reach = 20 * 320 - 480  # frame 20 starts here, after the trim
    assert torch.equal(a[:, :reach], b[:, :reach])


def test_window_is_what_the_config_says(vae_of_kind):
    """One layer sees W (sdpa) or W + 1 (flash attention) frames; two layers reach twice as far."""
    z = latents(1, 40)
    for kind, visible in (("sdpa", 8), ("fa2", 9)):
        vae = vae_of_kind(kind)

        def run(z, vae=vae):
            return vae.decoder.backbone_out(z, vae.new_decoder_state(1, 40).backbone)

        reach = 2 * (visible - 1)
        for t, seen in ((39 - reach, True), (39 - reach - 1, False)):
            changed = z.clone()
            changed[:, t] += 0.5
            assert torch.equal(run(z)[:, 39], run(changed)[:, 39]) != seen, (kind, t)


def test_beyond_82_seconds(golden_model):
    """Past 4096 frames: chunks still equal the whole, and the decoder's state does not grow."""
    vae, T = golden_model.vae, 4300
    z = latents(1, T, seed=3)
    state = vae.new_semantic_state(1, 100)
    _, state = vae.unify(z[:, : T - 10], state)
    tail = [vae.unify(z[:, i : i + 5], state)[0] for i in (T - 10, T - 5)]
    whole = vae.unify(z)[0]
    assert whole.isfinite().all()
    close(torch.cat(tail, dim=1), whole[:, -10:])

    stream, sizes, chunks = None, set(), []
    for i in range(0, T, 25):
        chunk, stream = vae.decode(z[:, i : i + 25], stream, last=i + 25 >= T)
        chunks.append(chunk)
        sizes.add(stream.nbytes)
    assert len(sizes) == 1
    out = torch.cat(chunks, dim=1)
    assert out.shape == (1, T * 320)
    close(out, vae.decode(z)[0])
    # a window has no memory beyond its reach: the end alone sounds the same
    tail_only = vae.decoder.backbone_out(z[:, -40:], vae.new_decoder_state(1, 40).backbone)
    state = vae.new_decoder_state(1, 256).backbone
    whole = torch.cat([vae.decoder.backbone_out(part, state) for part in z.split(256, 1)], dim=1)
    close(tail_only[:, -20:], whole[:, -20:], 1e-4)


def test_encoder_beyond_82_seconds(golden_model):
    vae = golden_model.vae
    wave = samples(1, 320 * 4200)
    mean, std = vae.encode(wave)
    tail, _ = vae.encode(wave[:, -320 * 60 :])
    assert mean.shape == (1, 4200, 64) and std.isfinite().all()
    close(tail[:, -20:], mean[:, -20:], 1e-4)


def test_growth_keeps_what_was_stored(golden_model):
    llm = golden_model.llm
    x = embeds(llm, 1, 140)
    small, large = llm.new_state(1, 1), llm.new_state(1, 500)
    before = small.nbytes
    for t in range(0, 140, 10):
        a, small = llm(x[:, t : t + 10], small)
        b, large = llm(x[:, t : t + 10], large)
        assert torch.equal(a, b)
    assert small.capacity == 256 and small.nbytes > before
    assert large.capacity == 512


def test_clone_and_reset(golden_model):
    vae, z = golden_model.vae, latents(2, 10)
    _, state = vae.unify(z[:, :5])
    branch = state.clone()
    a, _ = vae.unify(z[:, 5:], state)
    b, _ = vae.unify(z[:, 5:], branch)
    assert torch.equal(a, b)
    assert branch.lengths.data_ptr() != state.lengths.data_ptr()

    state.reset([1])
    assert state.lengths.tolist() == [10, 0] and state.max_length == 10
    out, _ = vae.unify(z[:, :5], state)
    close(out[1:], vae.unify(z[1:, :5])[0])
    state.reset()
    assert state.max_length == 0
    assert torch.equal(vae.unify(z, state)[0], vae.unify(z)[0])


def test_decoder_clone_is_independent(golden_model):
    vae, z = golden_model.vae, latents(1, 10)
    _, state = vae.decode(z[:, :5], last=False)
    branch = state.clone()
    a, _ = vae.decode(z[:, 5:], state)
    b, _ = vae.decode(z[:, 5:], branch)
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: m.vae.encode(torch.zeros(0)), r"vae.encode: samples must be float \[B, L\]"),
        (lambda m: m.vae.encode(torch.zeros(1, 0)), "samples must be float"),
        (lambda m: m.vae.encode(torch.zeros(1, 9, dtype=torch.int16)), "got torch.int16"),
        (lambda m: m.vae.unify(torch.zeros(1, 5, 63)), r"latents must be \[B, T, 64\]"),
        (lambda m: m.vae.unify(torch.zeros(2, 5, 64), m.vae.new_semantic_state(1, 5)), "1 rows"),
        (lambda m: m.vae.decode(torch.zeros(1, 0, 64)), r"got \[1, 0, 64\]"),
        (lambda m: m.vae.decode(torch.zeros(3, 5, 64), m.vae.new_decoder_state(2)), "2 rows"),
        (lambda m: m.llm(torch.zeros(1, 3, 255)), r"llm: embeds must be \[B, T, 256\]"),
        (lambda m: m.llm(torch.zeros(1, 3, 256), audio_mask=torch.ones(1, 2)), "audio_mask"),
        (lambda m: m.llm(torch.zeros(1, 3, 256), positions=torch.ones(2, 1, 3)), "positions"),
        (lambda m: m.llm(torch.zeros(2, 3, 256), m.llm.new_state(1, 3)), "1 rows"),
        (lambda m: m.llm.new_state(1, 0), "must be positive"),
        (lambda m: m.pool(torch.zeros(1, 7, 64)), r"\[B, 5 \* n, 64\]"),
        (lambda m: m.vae.sample_posterior(*torch.zeros(3, 1, 5, 64)[:2], torch.zeros(1, 64, 5)), "noise must be"),
    ],
)
def test_shapes_that_do_not_fit(golden_model, call, message):
    with pytest.raises(InputError, match=message):
        call(golden_model)
