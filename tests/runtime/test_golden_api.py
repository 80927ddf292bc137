"""The public class on the golden model: the same seed gives the reference's very sound."""

import numpy as np
import pytest
import torch

from mingcore import InputError, MingAudio, Voice
from mingcore.runtime.speaking import Speaking
from mingcore.runtime.task import Patch
from mingcore.text.prompts import TTS_INSTRUCTION


@pytest.fixture(scope="module")
def ming(golden_with_stub):
    return MingAudio.from_pretrained(golden_with_stub(), device="cpu")


@pytest.fixture
def voice(golden):
    return Voice(golden("g_tts")["prompt_latents"][0].numpy().copy(), "hi.")


@pytest.mark.parametrize(
    ("run", "seed", "text", "seconds", "bias"),
    [
        ("six", 72, "hello abc", 0.6, None),
        ("stop", 73, "hello abc", None, [-50.0, 50.0]),
        ("nostop", 74, "abcd", 2.5, [50.0, -50.0]),
    ],
)
def test_the_reference_s_sound(tools, golden, ming, voice, monkeypatch, run, seed, text, seconds, bias):
    if bias:
        monkeypatch.setattr(ming.model.stop_head.linear, "bias", torch.tensor(bias))
    speech = ming.tts(text, voice, seed=seed, max_seconds=seconds, normalize=False)
    wanted = golden("g_tts")[f"{run}.wave_stream_flushed.sdpa"][0, 0]
    tools.close(torch.from_numpy(speech.samples), wanted)
    stats = speech.stats
    assert stats.ended_by == ("stop" if run == "stop" else "limit")
    assert stats.seed == seed and stats.patches == len(wanted) // 1600
    assert np.isclose(stats.audio_seconds, len(wanted) / 16000) and stats.segments == 1


def test_voice_latents_are_the_reference_s(tools, golden, ming):
    """The posterior's draw is the reference's too: golden h encodes with seed 91."""
    h = golden("h_asr")
    voice = ming.voice((h["waveform"][0].numpy(), 16000), "x", seed=91)
    noise = h["vae_tape.000.randn"].transpose(1, 2)
    mean, std = ming.model.vae.encode(h["waveform"])
    tools.close(torch.from_numpy(voice.latents), (mean + std * noise)[0, :50])


def test_a_checkpoint_without_voices_speaks_in_one_of_its_own(ming):
    """The prompt is one text and an open audio block; the first history is zeros (reference, 2025-11-27)."""
    assert ming.voices == []
    request = ming.speech_request("hello there", seed=3, max_seconds=0.5)
    task = Speaking(ming.model, request)
    segment = task.next_segment()
    t = ming.model.tokenizer
    special = [t.special(name, "tts") for name in ("<role>", "</role>", "<audio>")]
    human, assistant, text = (t.encode(x) for x in ("HUMAN", "ASSISTANT", TTS_INSTRUCTION + "hello there"))
    roles = [[special[0], *name, special[1]] for name in (human, assistant)]
    assert list(segment.prompt.ids) == [*roles[0], *text, *roles[1], special[2]]
    assert segment.prompt.spans == () and segment.audio_frames == 0
    started = task.prefill(segment).run()
    hidden, _ = ming.model.llm(ming.model.llm.embed(torch.tensor([segment.prompt.ids])))
    assert torch.equal(started.hidden, hidden[:, -1])
    assert started.history.shape == (1, 5, 64) and not started.history.any() and started.semantic.max_length == 0


def test_without_a_voice_alone_and_in_a_batch(ming, monkeypatch):
    """All segments share the voice of the first one."""
    monkeypatch.setattr(ming.model.stop_head.linear, "bias", torch.tensor([-50.0, 50.0]))
    text = "One two three. Four five six. " * 13
    options = {"seed": 5, "pause_seconds": 0.1}
    long, short = ming.speech_request(text, **options), "hello"
    task = Speaking(ming.model, long)
    assert len(long.texts) > 1
    alone = [ming.tts(text, **options).samples, ming.tts(short, **options).samples]
    for sound, batched in zip(alone, ming.tts_batch([text, short], **options), strict=True):
        np.testing.assert_array_equal(sound, batched.samples)
    assert not np.array_equal(alone[1], ming.tts(short, **{**options, "seed": 6}).samples)
    first = task.next_segment()
    task.prefill(first).run()
    rate = ming.sample_rate
    task.on_patch(Patch(0, torch.zeros(1, rate), last=True, stopped=True))
    second = task.next_segment()
    assert second.prompt.spans[0][1] == 10 and second.audio_frames == 50
    started = task.prefill(second).run()
    assert started.history.shape == (1, 5, 64) and started.history.any()


def test_a_checkpoint_without_tokenizer_says_so(golden_folder, voice):
    from mingcore import CheckpointError

    ming = MingAudio.from_pretrained(golden_folder, device="cpu")
    for call in (
        lambda: ming.tts("hello", voice),
        lambda: ming.transcribe((np.ones(3200, np.float32), 16000)),
        lambda: ming.edit((np.ones(3200, np.float32), 16000), "x"),
    ):
        with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
            call()
    # sound in and out needs none
    assert ming.encode((np.ones(3200, np.float32), 16000)).shape == (10, 64)


def test_a_voice_of_another_checkpoint_is_refused(ming, voice):
    other = Voice(voice.latents, voice.transcript, "0123456789abcdef")
    with pytest.raises(InputError, match=r"made with another checkpoint \(0123456789abcdef\)"):
        ming.tts("hello", other)
    own = ming.voice((np.ones(3200, np.float32), 16000), "hi.")
    assert len(own.checkpoint) == 16
    assert ming.tts("hello", own, max_seconds=0.1, steps=1).samples.size == 1600
