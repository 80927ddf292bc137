"""Every task of the public class on the bundled checkpoint."""

import gc
import json
import weakref

import numpy as np
import pytest
import soundfile
import torch

from mingcore import InputError, MingAudio, Speech, Transcript, Voice
from mingcore.text import edits, prompts

QUICK = {"steps": 2, "max_seconds": 0.5}


@pytest.fixture
def never_stops(ming, monkeypatch):
    monkeypatch.setattr(ming.model.stop_head.linear, "bias", torch.tensor([50.0, -50.0]))
    return ming


@pytest.fixture
def always_stops(ming, monkeypatch):
    monkeypatch.setattr(ming.model.stop_head.linear, "bias", torch.tensor([-50.0, 50.0]))
    return ming


@pytest.fixture
def voice(ming, sound) -> Voice:
    return ming.voice((sound, 16000), transcript="hum")


def test_speech(ming, tmp_path):
    speech = ming.tts("Hello.", seed=1, **QUICK)
    assert isinstance(speech, Speech) and speech.samples.dtype == np.float32
    assert speech.samples.shape == (8000,) and speech.sample_rate == 16000 == ming.sample_rate
    assert np.isfinite(speech.samples).all() and speech.samples.std() > 0 and speech.text is None
    stats = speech.stats
    assert (stats.seed, stats.patches, stats.segments) == (1, 5, 1)
    assert stats.audio_seconds == speech.seconds == 0.5 and stats.ended_by == "limit"
    assert 0 < stats.time_to_first_audio < stats.compute_seconds
    assert stats.real_time_factor == stats.compute_seconds / 0.5
    assert stats.peak_memory_bytes > 2**20 and stats.prompt_tokens > 20
    json.dumps(stats.as_dict())
    for suffix in ("wav", "flac"):
        speech.save(tmp_path / f"a.{suffix}")
        assert soundfile.info(tmp_path / f"a.{suffix}").frames == 8000
    speech.save(tmp_path / "a.raw")
    assert (tmp_path / "a.raw").stat().st_size == 16000


def test_a_stream_is_the_whole(ming, voice):
    chunks = list(ming.tts_stream("Hello there.", voice, seed=3, **QUICK))
    assert [c.samples.size for c in chunks] == [1120, 1600, 1600, 1600, 2080]
    whole = ming.tts("Hello there.", voice, seed=3, **QUICK)
    assert np.array_equal(np.concatenate([c.samples for c in chunks]), whole.samples)
    assert all(c.stats is chunks[0].stats for c in chunks)


def test_same_seed_same_bits(ming):
    one, two, other = (ming.tts("Hello.", seed=s, **QUICK).samples for s in (5, 5, 6))
    assert np.array_equal(one, two) and not np.array_equal(one, other)
    drawn = [ming.tts("Hello.", **QUICK) for _ in range(2)]
    assert drawn[0].stats.seed != drawn[1].stats.seed
    again = ming.tts("Hello.", seed=drawn[0].stats.seed, **QUICK)
    assert np.array_equal(again.samples, drawn[0].samples)


def test_settings_matter(ming):
    base = ming.tts("Hello.", seed=1, **QUICK).samples
    for change in (
        {"steps": 3},
        {"guidance": 0},
        {"guidance": 3.0},
        {"temperature": 0},
        {"sigma": 0.5},
        {"noise": "per_request"},
    ):
        other = ming.tts("Hello.", seed=1, **(QUICK | change)).samples
        assert not np.array_equal(base, other), change
    assert not np.array_equal(base, ming.tts("Hallo.", seed=1, **QUICK).samples)


def test_durations(always_stops, never_stops):
    assert never_stops.tts("a", seed=0, steps=1, max_seconds=0.3).seconds == pytest.approx(0.3)
    assert never_stops.tts("a", seed=0, steps=1, max_seconds=0.01).seconds == pytest.approx(0.1)
    # the default limit follows the text: 4 × 0.066 s + 5 s
    assert never_stops.tts("a", seed=0, steps=1).seconds == pytest.approx(5.2)


def test_minimum_duration(always_stops):
    for least, seconds in ((None, 1.8), (0, 0.1), (0.25, 0.3), (2.2, 2.2)):
        speech = always_stops.tts("a", seed=0, steps=1, min_seconds=least)
        assert speech.seconds == pytest.approx(seconds) and speech.stats.ended_by == "stop"
    # longer than the text would ever be allowed by default
    long = always_stops.tts("a", seed=0, steps=1, min_seconds=6.0)
    assert long.seconds == pytest.approx(6.0)


LONG = "This is one sentence of a long text that is spoken in several pieces. " * 12


def test_long_texts_are_joined_exactly(always_stops):
    logged = []
    options = {"seed": 2, "steps": 1, "min_seconds": 0, "pause_seconds": 0.25}
    chunks = list(always_stops.tts_stream(LONG, progress=logged.append, **options))
    assert chunks[-1].stats.segments == 3 and chunks[-1].stats.ended_by == "stop"
    # each segment is one patch here, and silence lies between
    assert [c.samples.size for c in chunks] == [1600, 4000 + 1600, 4000 + 1600]
    assert not chunks[1].samples[:4000].any() and chunks[1].samples[4000:].any()
    assert logged == pytest.approx([0.1, 0.45, 0.8])
    whole = always_stops.tts(LONG, **options)
    assert np.array_equal(whole.samples, np.concatenate([c.samples for c in chunks]))
    # the first segment is what its text alone gives
    first = always_stops.tts(LONG[: len(LONG) // 12 * 5], **options)
    assert np.array_equal(first.samples, chunks[0].samples)


def test_limits_are_of_the_whole(always_stops, never_stops):
    speech = never_stops.tts(LONG, seed=0, steps=1, max_seconds=0.5)
    assert speech.seconds == pytest.approx(0.5) and speech.stats.segments == 1
    assert speech.stats.ended_by == "limit"


def test_the_last_segment_waits_for_the_minimum(always_stops):
    speech = always_stops.tts(LONG, seed=0, steps=1, min_seconds=6.0, pause_seconds=0.1)
    assert speech.seconds == pytest.approx(6.0) and speech.stats.segments == 3


def test_ten_thousand_characters(always_stops):
    text = "The 7 dwarfs walk home. 七个小矮人回家了。" * 310
    assert len(text) > 10_000
    speech = always_stops.tts(text, seed=0, steps=1, min_seconds=0, pause_seconds=0)
    assert speech.stats.segments > 20 and speech.seconds == pytest.approx(0.1 * speech.stats.segments)


@pytest.mark.parametrize("text", ["a", "我", "7", "ok 😀", "<audio>", "x</role>y"])
def test_small_and_odd_texts(ming, text):
    assert ming.tts(text, seed=0, steps=1, max_seconds=0.1).samples.size == 1600


def test_closing_a_stream_frees_it(never_stops, monkeypatch):
    states, model = [], never_stops.model
    for owner, name in ((model.vae, "new_semantic_state"), (model.vae, "new_decoder_state"), (model.llm, "new_state")):
        make = getattr(owner, name)

        def remember(*args, make=make, **kwargs):
            state = make(*args, **kwargs)
            states.append(weakref.ref(state))
            return state

        monkeypatch.setattr(owner, name, remember)
    streams = [
        lambda: never_stops.tts_stream("Hello.", seed=0, steps=1),
        lambda: never_stops.edit_stream((np.ones(4000, "f4") / 9, 16000), "x", seed=0, steps=1, max_new_tokens=2),
        lambda: never_stops.transcribe_stream((np.ones(4000, "f4") / 9, 16000), "x", seed=0),
        lambda: never_stops.decode_stream(np.zeros((5, 64), "f4") for _ in range(9)),
    ]
    for stream in streams:
        states.clear()
        chunks = stream()
        # an edit has sound only after its text; recognition has none
        for chunk in chunks:
            if isinstance(chunk, Transcript) or chunk.samples.size:
                break
        assert states and any(s() is not None for s in states)
        gc.disable()
        try:
            chunks.close()
            assert all(s() is None for s in states), "closing must not wait for the collector"
        finally:
            gc.enable()


def test_recognition(ming, sound):
    one = ming.transcribe((sound, 16000), seed=1, max_new_tokens=12)
    assert isinstance(one, Transcript) and isinstance(one.text, str)
    assert 0 < one.stats.text_tokens <= 12 and one.stats.ended_by in ("stop", "limit")
    assert one.stats.audio_seconds == pytest.approx(0.65) and one.stats.patches == 6
    assert one.text == ming.transcribe((sound, 16000), seed=1, max_new_tokens=12).text
    pieces = list(ming.transcribe_stream((sound, 16000), seed=1, max_new_tokens=12))
    assert "".join(p.text for p in pieces) == one.text and pieces[-1].stats.text_tokens <= 12
    asked = ming.transcribe((sound, 16000), "Who speaks?", seed=1, max_new_tokens=12)
    assert asked.stats.prompt_tokens != one.stats.prompt_tokens
    known = ming.transcribe((sound, 16000), language="zh", seed=1, max_new_tokens=12)
    assert known.language == "Chinese"
    assert known.stats.prompt_tokens == one.stats.prompt_tokens + 1  # its name


def test_recognition_is_deterministic_unless_sampled(ming, sound, monkeypatch):
    drawn = []
    encode = type(ming.model.vae).sample_posterior

    def spy(self, *args):
        drawn.append(1)
        return encode(self, *args)

    monkeypatch.setattr(type(ming.model.vae), "sample_posterior", spy)
    for options, count in (({}, 0), ({"seed": 1}, 1), ({"sample": True}, 1), ({"seed": 1, "sample": False}, 0)):
        drawn.clear()
        ming.transcribe((sound, 16000), max_new_tokens=2, **options)
        assert len(drawn) == count, options
    drawn.clear()
    ming.transcribe_batch([(sound, 16000)] * 2, max_new_tokens=2)
    assert not drawn
    texts = {ming.transcribe((sound, 16000), max_new_tokens=12).text for _ in range(3)}
    assert len(texts) == 1


@pytest.mark.parametrize(
    "given, name",
    [("zh-CN", "Chinese"), ("Chinese", "Chinese"), ("EN_us", "English"), ("yue", "Canton"), ("粤语", "Canton")]
    + [("川渝", "川渝"), (" 湖南 ", "湖南"), ("minnan", "闽南"), ("上海话", "上海"), ("Klingon", "Klingon")],
)
def test_languages(ming, sound, given, name):
    pieces = list(ming.transcribe_stream((sound, 16000), language=given, max_new_tokens=2))
    assert {piece.language for piece in pieces} == {name}


def test_hotwords(ming, sound):
    audio = (sound, 16000)
    plain = ming.transcribe(audio, max_new_tokens=2)
    hot = ming.transcribe(audio, max_new_tokens=2, hotwords=["Ming", " 上海 "])
    words = ming.model.tokenizer.encode(
        prompts.ASR_INSTRUCTION + " This audio may contains the following words or phrases:Ming,上海"
    )
    extra = len(words) - len(ming.model.tokenizer.encode(prompts.ASR_INSTRUCTION))
    assert hot.stats.prompt_tokens == plain.stats.prompt_tokens + extra > plain.stats.prompt_tokens
    assert ming.transcribe(audio, max_new_tokens=2, hotwords=[]).stats.prompt_tokens == plain.stats.prompt_tokens
    for wrong in ("Ming", ["a", ""], ["a,b"], [1], 3):
        with pytest.raises(InputError, match="hotwords"):
            ming.transcribe(audio, hotwords=wrong)


def test_speech_is_audio(ming, sound):
    speech = Speech(sound, 16000)
    assert ming.transcribe(speech, max_new_tokens=8).text == ming.transcribe((sound, 16000), max_new_tokens=8).text
    assert np.array_equal(ming.encode(speech), ming.encode((sound, 16000)))
    slow = ming.encode(Speech(sound, 8000))
    assert np.array_equal(slow, ming.encode((sound, 8000))) and len(slow) > len(ming.encode(speech))


def test_recognition_takes_the_audio_router(ming, sound, monkeypatch):
    masks = []
    llm = type(ming.model.llm)
    forward = llm.forward

    def spy(self, *args, audio_mask=None, **kwargs):
        masks.append(None if audio_mask is None else audio_mask.sum().item())
        return forward(self, *args, audio_mask=audio_mask, **kwargs)

    monkeypatch.setattr(llm, "forward", spy)
    ming.transcribe((sound, 16000), seed=1, max_new_tokens=3)
    assert masks[0] == 6 and set(masks[1:]) == {None}
    masks.clear()
    ming.tts("a", seed=1, steps=1, max_seconds=0.2)
    ming.edit((sound, 16000), "x", seed=1, max_new_tokens=2, steps=1, max_seconds=0.2)
    assert set(masks) == {None}


def test_edit(ming, sound):
    options = {"seed": 4, "steps": 1, "max_seconds": 0.4, "max_new_tokens": 60}
    chunks = list(ming.edit_stream((sound, 16000), "insert 'a'", **options))
    texts = [c for c in chunks if c.text is not None]
    sounds = [c for c in chunks if c.samples.size]
    assert texts and sounds and chunks == texts + sounds, "text comes first"
    whole = ming.edit((sound, 16000), "insert 'a'", **options)
    assert whole.text == "".join(c.text for c in texts)
    assert np.array_equal(whole.samples, np.concatenate([c.samples for c in sounds]))
    assert whole.samples.size == 6400 and whole.stats.patches == 4
    plain = ming.edit((sound, 16000), "insert 'a'", reasoning=False, **options)
    assert plain.stats.prompt_tokens == whole.stats.prompt_tokens - 1


def test_edits_are_asked_as_in_training(ming, sound):
    request = ming.edit_request((sound, 16000), "insert 'a'")
    assert request.instruction == edits.PREFIX + "insert 'a'" and request.reasoning
    assert not ming.edit_request((sound, 16000), "denoise the audio").reasoning
    assert ming.edit_request((sound, 16000), "denoise the audio", reasoning=True).reasoning
    assert not ming.edit_request((sound, 16000), "insert 'a'", reasoning=False).reasoning
    assert ming.edit_request((sound, 16000), "insert 'a'", prefix=False).instruction == "insert 'a'"


@pytest.mark.parametrize("given", ["{}x", "<prompt>{}x\n</prompt>", "  {}x"], ids=["plain", "marked", "blank"])
def test_a_prefix_is_added_once(given):
    for prefix in (edits.PREFIX, edits.PREFIX.upper(), edits.PREFIX.replace(" ", "  ")):
        assert edits.with_prefix(given.format(prefix)) == f"{prefix}x"
        assert edits.without_prefix(given.format(prefix)) == "x"


@pytest.mark.parametrize(
    "instruction, kind",
    [(f"{edits.PREFIX}denoise the audio", "acoustic"), ("adjusts the speed to 1.3.", "acoustic")]
    + [("shifts the pitch by 3 steps.", "acoustic"), ("change the emotion to happy", "acoustic")]
    + [("adjusts the volume to 0.5", "acoustic"), ("add rain to the background", "acoustic"), ("降噪", "acoustic")]
    + [
        ("remove the background noise", "acoustic"),
        ("把语速加快到1.5倍", "acoustic"),
        ("换成四川话", "acoustic"),
        ("把情感改成高兴", "acoustic"),
    ]
    + [("insert 'background music' at the end", "content"), ("substitute 'a' with 'b'", "content")]
    + [("delete the third word", "content"), ("在结尾插入“音乐”", "content"), ("把“音量”替换为“语速”", "content")]
    + [("say it again", "content")],
)
def test_kinds_of_edits(instruction, kind):
    assert edits.kind_of(instruction) == kind


def test_edit_minimum_and_limit(always_stops, sound):
    options = {"seed": 0, "steps": 1, "max_new_tokens": 2}
    edited = always_stops.edit((sound, 16000), "x", **options)
    assert edited.stats.patches == 17 and edited.stats.ended_by == "stop"
    assert always_stops.edit((sound, 16000), "x", min_seconds=0, **options).stats.patches == 1


def test_edit_speaks_even_if_the_text_never_asks(never_stops, sound, caplog):
    options = {"seed": 0, "steps": 1, "max_new_tokens": 1}
    edited = never_stops.edit((sound, 16000), "x", **options)
    assert "ended without <gen_audio>" in caplog.text
    # twice the input and ten seconds more
    assert edited.seconds == pytest.approx(11.3) and edited.stats.ended_by == "limit"


def test_encode_and_decode(ming, sound):
    latents = ming.encode((sound, 16000))
    assert latents.shape == (33, 64) and latents.dtype == np.float32
    assert np.array_equal(latents, ming.encode((sound, 16000)))
    drawn = ming.encode((sound, 16000), sample=True, seed=1)
    assert not np.array_equal(latents, drawn)
    assert np.array_equal(drawn, ming.encode((sound, 16000), sample=True, seed=1))
    speech = ming.decode(latents)
    assert speech.samples.shape == (33 * 320,) and speech.stats.audio_seconds == 0.66
    for other in (latents[None], torch.from_numpy(latents), latents.astype("f8")):
        assert np.array_equal(ming.decode(other).samples, speech.samples)
    parts = [latents[:1], latents[1:9], latents[9:]]
    chunks = list(ming.decode_stream(iter(parts)))
    streamed = np.concatenate([c.samples for c in chunks])
    # nothing of one frame alone is final; 480 samples wait for the end
    assert [c.samples.size for c in chunks] == [9 * 320 - 480, 24 * 320, 480]
    assert np.abs(streamed - speech.samples).max() < 1e-5
    one = list(ming.decode_stream([latents]))
    assert sum(c.samples.size for c in one) == speech.samples.size


def test_voices(ming, voice, tmp_path):
    assert "default" in ming.voices
    by_default = ming.tts("Hello.", seed=1, **QUICK).samples
    assert np.array_equal(by_default, ming.tts("Hello.", "default", seed=1, **QUICK).samples)
    own = ming.tts("Hello.", voice, seed=1, **QUICK).samples
    assert not np.array_equal(own, by_default)
    path = tmp_path / "me.safetensors"
    voice.save(path)
    loaded = Voice.load(path)
    assert np.array_equal(loaded.latents, voice.latents) and loaded.transcript == "hum"
    assert loaded.checkpoint == voice.checkpoint != ""
    for given in (path, str(path), loaded):
        assert np.array_equal(ming.tts("Hello.", given, seed=1, **QUICK).samples, own)
    assert voice.latents.shape == (30, 64)


def test_voice_is_sampled_once(ming, sound):
    one, two, other = (ming.voice((sound, 16000), seed=s).latents for s in (0, 0, 1))
    assert np.array_equal(one, two) and not np.array_equal(one, other)


def test_loading_options(sound):
    ming = MingAudio.from_pretrained("tiny", device="cpu", dtype="bf16")
    assert ming.model.dtype == torch.bfloat16 and ming.device.type == "cpu"
    assert ming.tts("a", seed=0, steps=1, max_seconds=0.2).samples.size == 3200
    for options, message in (
        ({"device": "tpu"}, "device: "),
        ({"device": "meta"}, "must be cpu, cuda or a GPU"),
        ({"device": "cuda:99"}, "is not here"),
        ({"dtype": "int8"}, "dtype: must be one of"),
        ({"dtype": torch.int8}, "dtype: must be one of"),
        ({"device": 3.5}, "device: "),
    ):
        with pytest.raises(InputError, match=message):
            MingAudio.from_pretrained("tiny", **options)


def test_long_audio_is_announced(ming, caplog, monkeypatch):
    monkeypatch.setattr("mingcore.api.codec.LONG_AUDIO_SECONDS", 0.2)
    ming.encode((np.ones(4000, "f4") / 9, 16000))
    assert "processed whole" in caplog.text
