"""The text-to-speech loop against the reference: golden g, every tensor of it."""

import pytest
import torch

from mingcore.audio.files import resample
from mingcore.runtime import prefill
from mingcore.runtime.params import FlowParams, PatchLimits
from mingcore.runtime.single import generate_patches
from mingcore.text.prompts import Prompt, tts_prompt

TEXTS = {"six": "hello abc", "stop": "hello abc", "nostop": "abcd"}
BIAS = {"stop": 50.0, "nostop": -50.0, "e2e16000": 50.0, "e2e24000": 50.0}


@pytest.fixture
def biased(model, monkeypatch):
    """Runs were recorded with the stop head's bias replaced."""

    def apply(run: str):
        if run in BIAS:
            bias = torch.tensor([-BIAS[run], BIAS[run]])
            monkeypatch.setattr(model.stop_head.linear, "bias", bias)
        return model

    return apply


def context_of(model, prompt: Prompt, latents: torch.Tensor, expected: int = 4):
    voice = prefill.embed_audio(model, latents, expected_patches=expected)
    hidden, llm = prefill.prefill(model, prompt, [voice.projected], audio_router=False, expected_tokens=expected)
    context = prefill.PrefillResult(hidden[:, -1], llm, voice.semantic, latents[:, -5:])
    return context, voice


@pytest.mark.parametrize("run", ["six", "stop", "nostop"])
def test_loop(tools, biased, golden_models, run):
    g = tools.Recorded("g_tts")
    model = biased(run)
    count = len(g.tensors[f"{run}.latents"])
    latents = prefill.whole_patches(model, g["prompt_latents"])
    assert latents.shape == (1, 15, 64)
    prompt = tts_prompt(model.tokenizer, TEXTS[run], "hi.", 3)
    if run != "nostop":
        assert list(prompt.ids) == g["input_ids"].tolist()
    context, voice = context_of(model, prompt, latents)
    tape = tools.Tape(g, f"{run}.")
    # the reference ends by its bound, ours by the limit; `stop` has room to run on
    limits = PatchLimits(18, count + 20 if run == "stop" else count)
    patches = list(generate_patches(model, context, tape, FlowParams(), limits))

    assert len(patches) == count and tape.is_over
    assert [p.stopped for p in patches] == g[f"{run}.yielded_last"].bool().tolist()
    assert [p.last for p in patches] == [False] * (count - 1) + [True]
    tools.close(torch.stack([p.latents for p in patches]), g[f"{run}.latents"])
    tools.close(torch.stack([p.history for p in patches]), g[f"{run}.history"])
    conditions = torch.stack([p.condition for p in patches])
    tools.close(conditions[:, :, None], g[f"{run}.z_diff"])
    tools.close(model.stop_head(conditions[:, 0]), g[f"{run}.stop_prob"])
    for p, wanted in zip(patches, g[f"{run}.stop_prob"]):
        assert (p.stop_probability is None) == (p.index < 17)
        if p.stop_probability is not None:
            tools.close(p.stop_probability, wanted[None])

    # embeddings fed back: the voice's, then each patch's but the last (nostop was resumed once)
    tools.close(voice.projected[0, :, None], g[f"{run}.proj.00"])
    state = prefill.embed_audio(model, latents).semantic
    for i in range(1, len(g.names(f"{run}.proj."))):
        embedding, state = model.vae.unify(patches[i - 1].latents, state)
        tools.close(model.pool(embedding), g[f"{run}.proj.{i:02d}"])

    check_waves(tools, g, golden_models, run, patches)
    unread = set(g.names(f"{run}.")) - g.seen
    assert not unread, unread


def check_waves(tools, g, golden_models, run: str, patches) -> None:
    streamed = torch.cat([p.samples for p in patches], dim=1)
    sizes = [p.samples.shape[1] for p in patches]
    assert sizes == [1120] + [1600] * (len(patches) - 2) + [2080]
    tools.close(streamed, g[f"{run}.wave_oneshot.sdpa"][:, 0])
    tools.close(streamed, g[f"{run}.wave_stream_flushed.sdpa"][:, 0])
    # the reference flushes only when the model stopped
    official = g[f"{run}.wave_stream_official.sdpa"][:, 0]
    assert official.shape[1] == streamed.shape[1] - (0 if run == "stop" else 480)
    tools.close(streamed[:, : official.shape[1]], official)
    latents = torch.cat([p.latents for p in patches], dim=1)
    for window in ("fa2", "full"):
        if f"{run}.wave_oneshot.{window}" not in g.names():
            continue
        vae = golden_models(window).vae
        whole, _ = vae.decode(latents)
        tools.close(whole, g[f"{run}.wave_oneshot.{window}"][:, 0])
        state, parts = vae.new_decoder_state(1), latents.split(5, dim=1)
        chunks = [vae.decode(p, state, i + 1 == len(parts))[0] for i, p in enumerate(parts)]
        tools.close(torch.cat(chunks, 1), g[f"{run}.wave_stream_flushed.{window}"][:, 0])
        official = g[f"{run}.wave_stream_official.{window}"][:, 0]
        tools.close(torch.cat(chunks, 1)[:, : official.shape[1]], official)


@pytest.mark.parametrize("rate", [16000, 24000])
def test_from_a_waveform(tools, biased, rate):
    run = f"e2e{rate}"
    g = tools.Recorded("g_tts")
    model = biased(run)
    waveform = g[f"{run}.prompt_loaded"]
    if rate == 24000:
        resampled = g[f"{run}.prompt_resampled"]
        # soxr is another resampler: as long, and the same sound
        ours = torch.from_numpy(resample(waveform[0].numpy(), rate, 16000))
        assert ours.shape == resampled[0].shape
        assert torch.corrcoef(torch.stack([ours, resampled[0]]))[0, 1] > 0.95
        waveform = resampled
    tape = tools.Tape(g, f"{run}.")
    latents = prefill.posterior_latents(model, waveform, tape)
    assert latents.shape == (1, 50, 64)
    prompt = tts_prompt(model.tokenizer, "abcdef", "hi.", 10)
    context, _ = context_of(model, prompt, latents)
    patches = list(generate_patches(model, context, tape, FlowParams(), PatchLimits(18, 40)))
    assert len(patches) == 18 and patches[-1].stopped and tape.is_over
    tools.close(torch.cat([p.samples for p in patches], dim=1), g[f"{run}.wave"])
    unread = set(g.names(f"{run}.")) - g.seen
    assert not unread, unread


def test_nothing_of_the_file_is_left_out(tools):
    g = tools.Recorded("g_tts")
    runs = ("six.", "stop.", "nostop.", "e2e16000.", "e2e24000.")
    assert [k for k in g.names() if not k.startswith(runs)] == ["input_ids", "prompt_latents"]
