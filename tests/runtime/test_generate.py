"""The loop's own rules: limits, flushing, growth, cancelling, and what it leaves out."""

import gc
import weakref

import pytest
import torch

from mingcore.errors import InputError
from mingcore.runtime import prefill
from mingcore.runtime.noise import SeededNoise
from mingcore.runtime.params import FlowParams, PatchLimits
from mingcore.runtime.sampling import SamplingNoise, TextPlan, choose
from mingcore.runtime.single import generate_patches, generate_tokens
from mingcore.text.prompts import Prompt

LATENTS = torch.randn(1, 15, 64, generator=torch.Generator().manual_seed(5))


def start(model, *, expected: int = 32, latents: torch.Tensor = LATENTS) -> prefill.PrefillResult:
    n = latents.shape[1] // 5
    prompt = Prompt((503, 34, 504, 500, *[501] * n), ((4, n),))
    voice = prefill.embed_audio(model, latents, expected_patches=expected)
    hidden, llm = prefill.prefill(model, prompt, [voice.projected], audio_router=False, expected_tokens=expected)
    return prefill.PrefillResult(hidden[:, -1], llm, voice.semantic, latents[:, -5:])


def run(model, least: int, most: int, *, flow=None, seed: int = 1, **options):
    flow = flow or FlowParams(steps=2)
    context = start(model, **options)
    return list(generate_patches(model, context, SeededNoise(seed), flow, PatchLimits(least, most)))


@pytest.fixture
def always_stops(model, monkeypatch):
    monkeypatch.setattr(model.stop_head.linear, "bias", torch.tensor([-50.0, 50.0]))
    return model


@pytest.fixture
def never_stops(model, monkeypatch):
    monkeypatch.setattr(model.stop_head.linear, "bias", torch.tensor([50.0, -50.0]))
    return model


@pytest.mark.parametrize("least", [1, 2, 5])
def test_stops_at_the_minimum(always_stops, least):
    patches = run(always_stops, least, 40)
    assert len(patches) == least and patches[-1].stopped and patches[-1].last
    assert sum(p.samples.shape[1] for p in patches) == 1600 * least


@pytest.mark.parametrize("most", [1, 2, 7])
def test_the_limit_flushes_too(never_stops, most):
    patches = run(never_stops, 1, most)
    assert len(patches) == most and patches[-1].last and not patches[-1].stopped
    streamed = torch.cat([p.samples for p in patches], dim=1)
    whole, _ = never_stops.vae.decode(torch.cat([p.latents for p in patches], dim=1))
    assert streamed.shape[1] == 1600 * most
    torch.testing.assert_close(streamed, whole, rtol=0, atol=1e-6)


def test_same_seed_same_bits(never_stops):
    one, two, other = (run(never_stops, 1, 4, seed=s) for s in (7, 7, 8))
    assert all(torch.equal(a.samples, b.samples) for a, b in zip(one, two))
    assert not torch.equal(one[0].latents, other[0].latents)


def test_caches_that_grow_change_nothing(never_stops):
    wide, narrow = (run(never_stops, 1, 30, expected=e) for e in (64, 0))
    for a, b in zip(wide, narrow):
        torch.testing.assert_close(a.latents, b.latents, rtol=0, atol=2e-5)


def test_the_stop_head_counts_only_where_the_run_may_end(never_stops):
    patches = run(never_stops, 4, 9)
    assert [p.stop_probability is not None for p in patches] == [False] * 3 + [True] * 6


def test_the_text_head_rests_while_audio_is_made(never_stops, monkeypatch):
    def refuse(hidden):
        raise AssertionError("the text head was asked")

    monkeypatch.setattr(never_stops.llm, "logits", refuse)
    assert len(run(never_stops, 1, 3)) == 3


@pytest.mark.parametrize("flow", [FlowParams(steps=1), FlowParams(2, guidance=0), FlowParams(3, temperature=0)])
def test_sampler_settings(never_stops, flow):
    patches = run(never_stops, 1, 2, flow=flow)
    assert all(torch.isfinite(p.samples).all() for p in patches)
    default = run(never_stops, 1, 2)
    assert not torch.equal(patches[0].latents, default[0].latents)


def test_closing_frees_the_state(never_stops, monkeypatch):
    states = []
    vae, llm = never_stops.vae, never_stops.llm
    for owner, name in ((vae, "new_semantic_state"), (vae, "new_decoder_state"), (llm, "new_state")):
        make = getattr(owner, name)

        def remember(*args, make=make, **kwargs):
            state = make(*args, **kwargs)
            states.append(weakref.ref(state))
            return state

        monkeypatch.setattr(owner, name, remember)
    flow, limits = FlowParams(steps=1), PatchLimits(1, 20)
    patches = generate_patches(never_stops, start(never_stops), SeededNoise(0), flow, limits)
    next(patches)
    gc.disable()
    try:
        assert len(states) == 3 and all(s() is not None for s in states)
        patches.close()
        assert all(s() is None for s in states), "closing must not wait for the collector"
    finally:
        gc.enable()


def test_speaks_on_beyond_the_reference_s_4096_frames(never_stops):
    latents = torch.randn(1, 4090, 64, generator=torch.Generator().manual_seed(9))
    context = start(never_stops, latents=latents)
    semantic = context.semantic
    patches = list(generate_patches(never_stops, context, SeededNoise(0), FlowParams(steps=1), PatchLimits(1, 4)))
    made = torch.cat([p.latents for p in patches[:3]], dim=1)
    assert semantic.max_length == 4105
    embedding, _ = never_stops.vae.unify(patches[3].latents, semantic)
    whole, _ = never_stops.vae.unify(torch.cat([latents, made, patches[3].latents], dim=1))
    error = (embedding - whole[:, -5:]).abs().max() / whole.abs().max()
    assert error <= 1e-5
    assert all(torch.isfinite(p.samples).all() for p in patches)


def write(model, max_tokens: int, *, temperature: float = 0.0, stops=(), seed: int = 0) -> list[int]:
    draws = SamplingNoise(seed, model.config.llm.vocab_size, temperature, model.llm.device)
    return list(generate_tokens(model, start(model), TextPlan(max_tokens, temperature, stops), draws))


def test_text_sampling(model):
    greedy = write(model, 8)
    assert greedy == write(model, 8, seed=1)
    hot = write(model, 8, temperature=5.0, seed=1)
    assert hot == write(model, 8, temperature=5.0, seed=1)
    assert hot != greedy and hot != write(model, 8, temperature=5.0, seed=2)
    # nearly cold is the likeliest again
    assert write(model, 8, temperature=1e-4, seed=3) == greedy


def test_tokens_are_drawn_as_pytorch_draws_them():
    """The same token for the same seed as torch.multinomial; rows drawn at once as each alone."""
    logits = 3 * torch.randn(6, 301, generator=torch.Generator().manual_seed(1))
    temperature = torch.tensor([0.7, 0.0, 2.0, 0.0, 1.0, 30.0])
    draws, wanted = [], []
    for row in range(6):
        one, t = logits[row : row + 1], float(temperature[row])
        draws.append(SamplingNoise(row, 301, t, one.device)())
        if t == 0:
            wanted.append(int(one.argmax()))
        else:
            generator = torch.Generator().manual_seed(row)
            chance = torch.softmax(one / t, -1)
            wanted.append(int(torch.multinomial(chance, 1, generator=generator)))
        assert int(choose(one, t, draws[-1])) == wanted[-1]
    draws = torch.cat([torch.ones(1, 301) if d is None else d for d in draws])
    assert choose(logits, temperature[:, None], draws).tolist() == wanted
    assert len(set(wanted)) > 3


def test_text_ends_at_a_stop_token(model):
    tokens = write(model, 8, temperature=5.0)
    at = tokens.index(tokens[5])
    assert write(model, 8, temperature=5.0, stops=(tokens[5],)) == tokens[: at + 1]


def test_audio_and_placeholders_must_agree(model):
    prompt = Prompt((503, 500, 501, 501), ((2, 2),))
    audio = torch.zeros(1, 3, 256)
    with pytest.raises(InputError, match="2 placeholders, got 3 patches"):
        prefill.embed_prompt(model, prompt, [audio])
    with pytest.raises(InputError, match="1 audio blocks, got 0"):
        prefill.embed_prompt(model, prompt, [])


def test_whole_patches_cuts_and_refuses(model):
    assert prefill.whole_patches(model, torch.zeros(1, 17, 64)).shape == (1, 15, 64)
    with pytest.raises(InputError, match="at least one patch of 5 frames, got 4"):
        prefill.whole_patches(model, torch.zeros(1, 4, 64))


@pytest.mark.parametrize(("samples", "patches"), [(1, 0), (1280, 0), (1281, 1), (1600, 1), (16037, 10), (16000, 10)])
def test_patches_of_a_waveform(samples, patches):
    assert prefill.audio_patches(samples, 320, 5) == patches
