"""Long sound: flat memory and no stall by default, and the options that bound a single run."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mingcore import InputError, MingAudio, ops
from mingcore.model.context import ContextCache, ContextState
from mingcore.ops._core.packing import dequantise, quantise_activations
from mingcore.precision import measure_context
from mingcore.runtime.params import AS_REFERENCE, ContextParams, FlowParams
from mingcore.runtime.speaking import Speaking, SpeechRequest
from mingcore.runtime.task import Patch
from mingcore.testing.compare import relative_l2

MIB = 1 << 20


@pytest.fixture(scope="module")
def ming() -> MingAudio:
    return MingAudio.from_pretrained("tiny", device="cpu")


def as_held(x: torch.Tensor) -> torch.Tensor:
    """What 8 bits keep of x [..., D]."""
    stored, scale = quantise_activations(x.reshape(-1, x.shape[-1]))
    return dequantise(stored, scale).view(x.shape)


def caches(B, S, heads, D, window=None):
    shape = (B, S, heads, D)
    plain = torch.zeros(shape), torch.zeros(shape)
    scales = torch.zeros(B, S, heads, 1), torch.zeros(B, S, heads, 1)
    stored = (torch.zeros(shape, dtype=torch.int8) for _ in range(2))
    return plain, ContextCache(*stored, *scales, window)


@pytest.mark.parametrize("window", [None, 1, 7, 40])
@pytest.mark.parametrize(("S", "heads", "kv_heads", "D"), [(64, 4, 4, 32), (48, 6, 2, 20)])
def test_attention_over_8_bits_is_that_over_what_they_hold(window, S, heads, kv_heads, D):
    plain, cache = caches(2, S, kv_heads, D, window)
    starts = torch.tensor([0, 3])
    for T in (9, 1, 5, 5, 30, 5, 17, 2):  # goes round the ring
        k, v = torch.randn(2, 2, T, kv_heads, D)
        q = torch.randn(2, T, heads, D)
        at = starts[:, None] + torch.arange(T)
        at[1, T // 2] = -1 if T > 2 else at[1, T // 2]
        starts = starts + T
        cache.write_(k, v, at)
        ops.kv_write_(*plain, as_held(k), as_held(v), at)
        kept = dequantise(cache.keys, cache.key_scale[..., 0])
        assert torch.equal(kept, plain[0])
        wanted = ops.attention_decode(q, *plain, at, window=window, backend="reference")
        got = cache.attend(q, at)
        assert got.shape == wanted.shape and got.dtype == q.dtype
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=2e-6)


def test_a_window_is_the_same_in_a_ring_and_in_one_shot(ming):
    semantic = ming.model.vae.semantic
    latents = torch.randn(1, 90, 64)
    # whole: fresh, by attention_prefill; patch by patch: over a ring that wraps
    whole = semantic.new_state(1, 90, window=13)
    with torch.no_grad():
        wanted = semantic(latents, whole)
        ring = semantic.new_state(1, 5, window=13)
        got = torch.cat([semantic(part, ring) for part in latents.split(5, dim=1)], dim=1)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert ring.keys[0].shape[1] == 12 + 5 and ring.max_length == 90


def test_states_grow_clone_and_are_refused(ming):
    vae = ming.model.vae
    state = vae.new_semantic_state(1, 30, format="int8")
    full = vae.new_semantic_state(1, 30)
    assert isinstance(state, ContextState) and not isinstance(full, ContextState)
    latents = torch.randn(1, 200, 64)
    with torch.no_grad():
        parts = [vae.unify(part, state)[0] for part in latents.split(5, dim=1)]
        copy = state.clone()
        wanted, _ = vae.unify(latents, full)
        assert 1e-5 < relative_l2(torch.cat(parts, 1), wanted) < 0.012
        a, b = (vae.unify(latents[:, :5], s)[0] for s in (state, copy))
    assert torch.equal(a, b) and state.capacity >= 205
    assert state.nbytes < 0.32 * full.nbytes * state.capacity / full.capacity
    with pytest.raises(InputError, match="format must be None or int8, got 'int4'"):
        vae.new_semantic_state(1, 8, format="int4")
    with pytest.raises(InputError, match="window must be at least one frame, got 0"):
        vae.new_semantic_state(1, 8, window=0)
    for bad in ({"keep": 1}, {"seconds": 0}, {"seconds": "x"}, {"format": "fp8"}):
        with pytest.raises(InputError, match=next(iter(bad))):
            ContextParams(**bad)


TEXT = "Hello, this is Ming. Good morning. The weather is good today."


def spoken(ming, **options) -> np.ndarray:
    options = {"seed": 3, "max_seconds": 6, "pause_seconds": 0, "steps": 2} | options
    return ming.tts(" ".join([TEXT] * 12), **options).samples


def test_by_default_segments_start_anew(ming):
    """Each segment is what it would be alone: the noise goes on, nothing else does."""
    model = ming.model
    latents, transcript = ming._voice_latents(None)
    texts = ((TEXT, 4.0), ("Other words.", 2.0))

    def contexts(texts, context=AS_REFERENCE):
        request = SpeechRequest(texts, latents, transcript, FlowParams(2), 0, context=context)
        speaking = Speaking(model, request)
        made = []
        while (segment := speaking.next_segment()) is not None:
            made.append(speaking.prefill(segment).run())
            speaking.on_patch(Patch(0, torch.zeros(1, 0), True, False, torch.zeros(1, 5, 64)))
        return made

    both, second = contexts(texts), contexts(texts[1:])
    assert torch.equal(both[1].hidden, second[0].hidden)
    assert both[1].semantic.max_length == second[0].semantic.max_length == latents.shape[1]
    assert torch.equal(both[1].semantic.keys[0], second[0].semantic.keys[0])
    kept = contexts(texts, ContextParams(keep=True))
    assert kept[0].semantic is kept[1].semantic
    assert kept[1].semantic.max_length == latents.shape[1] + 2 * 5


def test_options_change_what_is_heard(ming):
    plain = spoken(ming)
    assert np.array_equal(plain, spoken(ming))
    assert np.array_equal(plain, spoken(ming, context_seconds=600))
    narrow = spoken(ming, context_seconds=0.5)
    assert len(narrow) and not np.array_equal(plain[: len(narrow)], narrow[: len(plain)])
    eight = spoken(ming, context_format="int8", max_seconds=1)
    first = plain[:8000]
    assert np.linalg.norm(eight[:8000] - first) < 0.2 * np.linalg.norm(first)
    segments, kept = (spoken(ming, max_seconds=60, keep_context=k) for k in (False, True))
    assert not np.array_equal(segments[: len(kept)], kept[: len(segments)])
    sound = (plain[:16000], 16000)
    for options in ({"context_seconds": 2}, {"context_format": "int8"}):
        edited = ming.edit(sound, "shout", seed=0, max_seconds=2, steps=1, **options)
        assert edited.samples.size


def test_what_options_cost(golden_folder):
    cost = measure_context(golden_folder, context_format="int8", seconds=8)
    assert 1e-5 < cost.error < 1.5e-3 and cost.bytes < 0.3 * cost.reference_bytes
    assert cost.seconds == 8 and 0.01 < cost.kept < 1
    same = measure_context(golden_folder, context_seconds=8, seconds=8)
    assert same.error == 0
    window = measure_context(golden_folder, context_seconds=1, seconds=8)
    assert 0.01 < window.error < 0.5 and window.bytes < same.bytes
    assert window.as_dict()["error"] == window.error


def resident() -> int:
    with open("/proc/self/status") as lines:
        return next(int(x.split()[1]) << 10 for x in lines if x.startswith("VmRSS"))


def speak_long(ming, seconds: float, **options) -> tuple[list[int], list[float], float]:
    """Resident bytes every 100 chunks, seconds between chunks, seconds of sound."""
    text = " ".join([TEXT] * int(4 * seconds))
    sizes, gaps, made = [], [], 0
    begun = time.perf_counter()
    for i, chunk in enumerate(ming.tts_stream(text, seed=1, steps=1, max_seconds=seconds, **options)):
        now = time.perf_counter()
        gaps.append(now - begun)
        begun = now
        made += len(chunk.samples)
        if i % 100 == 0:
            sizes.append(resident())
    return sizes, gaps, made / ming.sample_rate


def check_flat(sizes: list[int], gaps: list[float], growth: int) -> None:
    settled = sizes[len(sizes) // 4 :]
    assert settled[-1] - settled[0] < growth, [s / MIB for s in settled]
    # a stall would be a patch that takes longer the later it comes
    parts = np.array_split(np.array(gaps), 4)
    assert np.median(parts[-1]) < 2 * np.median(parts[1]), [np.median(p) for p in parts]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_minute_in_flat_memory(ming):
    sizes, gaps, seconds = speak_long(ming, 60)
    assert 59 < seconds <= 60.01
    check_flat(sizes, gaps, 8 * MIB)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("options", [{}, {"keep_context": True, "context_seconds": 20, "context_format": "int8"}])
def test_hours_in_flat_memory(ming, options):
    """Two hours by default; half an hour of one context, in a window of 8 bits."""
    wanted = 1800 if options else 7200
    sizes, gaps, seconds = speak_long(ming, wanted, **options)
    assert wanted - 60 < seconds <= wanted + 0.01
    check_flat(sizes, gaps, 8 * MIB)


def test_hours_of_one_run_keep_a_window(ming):
    """The semantic state of a run that does not end: what is left is the LLM's, by its nature."""
    model = ming.model
    state = ContextParams(seconds=2, format="int8").state(model, 3600 * 50)
    before = state.nbytes
    with torch.no_grad():
        for _ in range(40):
            model.vae.unify(torch.randn(1, 255, 64), state)
    assert state.nbytes == before < MIB and state.max_length == 40 * 255
