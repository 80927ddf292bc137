"""AsyncMingAudio: many concurrent requests on an event loop, isolated from each other."""

import asyncio
import gc
import inspect
import threading
import weakref

import numpy as np
import pytest

from mingcore import AsyncMingAudio, ClosedError, InputError

QUICK = {"steps": 2, "max_seconds": 0.4, "seed": 1}
LONG = {"steps": 2, "max_seconds": 600, "min_seconds": 600, "seed": 1, "pause_seconds": 0}


def serve(ming, talk, **options):
    """Runs `talk(engine)` on a loop of its own; afterwards no thread is left."""

    async def main():
        async with AsyncMingAudio(ming, **options) as engine:
            return await asyncio.wait_for(talk(engine), 120)

    result = asyncio.run(main())
    assert not [t for t in threading.enumerate() if t.name == "mingcore"]
    return result


def occupied(engine) -> int:
    return sum(sequence is not None for sequence in engine._worker._engine._scheduler.rows)


async def until(condition) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_requests_of_all_kinds_at_once(ming, sound):
    audio = (sound, 16000)

    async def talk(engine):
        return await asyncio.gather(
            *(engine.tts(text, **QUICK | {"seed": i}) for i, text in enumerate("abcd")),
            engine.transcribe(audio, max_new_tokens=3),
            engine.edit(audio, "louder", max_new_tokens=2, **QUICK),
            engine.voice(audio, "hum"),
            engine.encode(audio),
            engine.decode(ming.encode(audio)),
        )

    *spoken, text, edited, voice, latents, again = serve(ming, talk, slots=2)
    for i, speech in enumerate(spoken):
        assert np.array_equal(speech.samples, ming.tts("abcd"[i], **QUICK | {"seed": i}).samples)
    assert text.text == ming.transcribe(audio, max_new_tokens=3).text
    wanted = ming.edit(audio, "louder", max_new_tokens=2, **QUICK)
    assert edited.text == wanted.text and np.array_equal(edited.samples, wanted.samples)
    assert np.array_equal(voice.latents, ming.voice(audio, "hum").latents)
    assert np.array_equal(latents, ming.encode(audio))
    assert np.array_equal(again.samples, ming.decode(latents).samples)


@pytest.mark.slow
@pytest.mark.parametrize("slots", [64, 24])
def test_sixty_four_at_once(ming, slots):
    """Each result equals that of the request alone, with a slot for each and with some waiting for a slot."""
    several = [QUICK | {"seed": i, "max_seconds": 0.1 + 0.1 * (i % 4)} for i in range(64)]

    async def talk(engine):
        return await asyncio.gather(*(engine.tts(f"{i}", **o) for i, o in enumerate(several)))

    spoken = serve(ming, talk, slots=slots, slot_seconds=2)
    for i, (speech, options) in enumerate(zip(spoken, several)):
        assert np.array_equal(speech.samples, ming.tts(f"{i}", **options).samples), i


def test_streams_equal_the_whole(ming):
    async def talk(engine):
        return [chunk async for chunk in engine.tts_stream("Hello.", **QUICK)]

    chunks = serve(ming, talk)
    assert [c.samples.size for c in chunks] == [1120, 1600, 1600, 2080]
    whole = ming.tts("Hello.", **QUICK)
    assert np.array_equal(np.concatenate([c.samples for c in chunks]), whole.samples)
    assert chunks[-1].stats.ended_by == "limit"


def test_a_consumer_that_stops_reading_stalls_nobody(ming):
    async def talk(engine):
        stalled = engine.tts_stream("Hello.", **LONG)
        await anext(stalled)
        others = await asyncio.gather(*(engine.tts("Hello.", **QUICK) for _ in range(3)))
        ahead = stalled._sink._put_count - stalled._sink._taken_count
        # and it goes on where it was
        more = [await anext(stalled) for _ in range(6)]
        await stalled.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(stalled)
        await until(lambda: occupied(engine) == 0)
        return others, ahead, more

    others, ahead, more = serve(ming, talk, slots=2, ahead=3)
    assert ahead == 3 and all(c.samples.size == 1600 for c in more)
    wanted = ming.tts("Hello.", **QUICK).samples
    assert all(np.array_equal(speech.samples, wanted) for speech in others)


@pytest.mark.parametrize("how", ["cancel", "close", "forget", "break"])
def test_what_is_cancelled_frees_its_slot(ming, how):
    async def talk(engine):
        if how == "cancel":
            task = asyncio.create_task(engine.tts("Hello.", **LONG))
            await until(lambda: occupied(engine) == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        elif how == "break":
            async for _ in engine.tts_stream("Hello.", **LONG):
                break
        else:
            stream = engine.tts_stream("Hello.", **LONG)
            await anext(stream)
            assert occupied(engine) == 1
            if how == "close":
                await stream.aclose()
            del stream
        # the only slot is free for the next
        speech = await engine.tts("Hello.", **QUICK)
        assert occupied(engine) == 0
        await until(lambda: engine._open._value == 1)
        return speech

    speech = serve(ming, talk, slots=1, requests=1)
    assert np.array_equal(speech.samples, ming.tts("Hello.", **QUICK).samples)


def test_cancelled_before_it_began(ming):
    async def talk(engine):
        first = engine.tts_stream("Hello.", **LONG)
        await anext(first)
        waiting = [asyncio.create_task(engine.tts("Hello.", **QUICK)) for _ in range(3)]
        await asyncio.sleep(0.05)
        for task in waiting[:2]:
            task.cancel()
        await first.aclose()
        done = await asyncio.gather(*waiting, return_exceptions=True)
        never = engine.tts_stream("Hello.", **LONG)
        await never.aclose()
        await until(lambda: engine._open._value == 2)
        return done

    done = serve(ming, talk, slots=1, requests=2)
    assert [isinstance(d, asyncio.CancelledError) for d in done] == [True, True, False]


def test_errors_are_of_their_own_request(ming, tmp_path):
    def fails(seconds):
        raise OSError("no disk")

    async def talk(engine):
        return await asyncio.gather(
            engine.tts("Hello.", **QUICK),
            engine.tts("Hello.", voice=tmp_path / "gone.safetensors", **QUICK),
            engine.tts(" ", **QUICK),
            engine.tts("Hello.", progress=fails, **QUICK),
            engine.transcribe("gone.wav"),
            engine.tts("Hello.", **QUICK),
            return_exceptions=True,
        )

    good, *bad, last = serve(ming, talk, slots=2)
    assert np.array_equal(good.samples, last.samples)
    assert [type(error) for error in bad] == [InputError, InputError, OSError, InputError]
    assert "gone.safetensors" in str(bad[0]) and "no such file" in str(bad[0])


def test_closing_ends_what_is_left(ming):
    async def main():
        engine = AsyncMingAudio(ming, slots=1)
        rows = weakref.ref(engine._worker._engine.runner.state)
        tasks = [asyncio.create_task(engine.tts("Hello.", **LONG)) for _ in range(2)]
        await until(lambda: occupied(engine) == 1)
        await engine.aclose()
        await engine.aclose()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        with pytest.raises(ClosedError, match="is closed"):
            await engine.tts("Hello.", **QUICK)
        return done, rows

    done, rows = asyncio.run(main())
    assert [type(error) for error in done] == [ClosedError, ClosedError]
    gc.collect()
    assert rows() is None


def test_an_engine_that_breaks_leaves_nobody_waiting(ming, caplog):
    def breaks():
        raise OSError("the device is gone")

    async def talk(engine):
        engine._worker._engine.step = breaks
        with pytest.raises(ClosedError, match="the engine failed \\(OSError: the device is gone"):
            await engine.tts("Hello.", **QUICK)
        with pytest.raises(ClosedError):
            await engine.tts("Hello.", **QUICK)

    serve(ming, talk)
    assert "the engine failed" in caplog.text


def test_a_loop_that_is_gone_holds_no_slot(ming):
    engines = []

    async def main():
        engine = AsyncMingAudio(ming, slots=1, ahead=1)
        engines.append((engine, engine.tts_stream("Hello.", **LONG)))
        await anext(engines[0][1])

    asyncio.run(main())
    (engine, stream), worker = engines.pop(), None
    worker = engine._worker
    del stream
    worker.close()
    worker.join()
    assert worker._engine is None


def test_the_streams_take_what_the_request_takes(ming):
    names = list(inspect.signature(ming.tts_stream).parameters)
    assert names[:3] == ["text", "voice", "seed"] and "guidance" in names


def test_bad_options(ming):
    for options in ({"slots": 0}, {"ahead": 0}, {"requests": 0}):
        with pytest.raises(InputError, match=next(iter(options))):
            AsyncMingAudio(ming, **options)
