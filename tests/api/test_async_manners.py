"""Streams and engines that are not closed, cancelled, shared or blocked: nothing hangs, aborts or ends in silence."""

import asyncio
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mingcore import AsyncMingAudio, MingAudio

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def ming():
    return MingAudio.from_pretrained("tiny", device="cpu")


START = f"""
import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "kernels")!r}]
import asyncio, torch
torch.set_num_threads(1)
from mingcore import AsyncMingAudio
engine = AsyncMingAudio.from_pretrained("tiny", device="cpu", slots=2)
async def chunks(n):
    async for chunk in engine.tts_stream("one two three four five six seven", max_seconds=60, min_seconds=60):
        n -= 1
        if n == 0:
            break
"""
ENDS = {
    "a break out of a stream": "asyncio.run(chunks(3))",
    "an error in main": "asyncio.run(chunks(2)); raise SystemExit(3)",
    "nothing asked": "pass",
    "a loop that is closed before": "loop = asyncio.new_event_loop(); loop.run_until_complete(chunks(2)); loop.close()",
    "a task that still runs": (
        "async def main():\n    task = asyncio.ensure_future(chunks(99))\n    await asyncio.sleep(0.5)\n"
        "asyncio.run(main())"
    ),
}


@pytest.mark.parametrize("end", ENDS)
def test_an_engine_that_is_not_closed(end):
    """The thread is joined before the interpreter goes: no abort, and no wait for a minute of speech."""
    done = subprocess.run(
        [sys.executable, "-c", START + ENDS[end]], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert done.returncode == (3 if "SystemExit" in ENDS[end] else 0), done.stderr
    assert "Fatal" not in done.stderr and "terminate" not in done.stderr


def test_a_blocked_source_holds_up_itself_alone(ming):
    class Blocking:
        """A file that never gives anything until it is told to."""

        gate = threading.Event()

        def read(self, *_):
            self.gate.wait(60)
            return b""

    async def main():
        async with AsyncMingAudio(ming, slots=2) as engine:
            blocked = [asyncio.ensure_future(engine.transcribe(Blocking())) for _ in range(3)]
            await asyncio.sleep(0.1)
            speech = await asyncio.wait_for(engine.tts("one two", max_seconds=0.5, seed=1), 60)
            assert not any(task.done() for task in blocked)
            Blocking.gate.set()
            errors = await asyncio.gather(*blocked, return_exceptions=True)
            assert all(isinstance(error, Exception) for error in errors)
            return speech

    assert np.array_equal(asyncio.run(main()).samples, ming.tts("one two", max_seconds=0.5, seed=1).samples)


def test_a_stream_goes_on_after_a_wait_that_timed_out(ming, monkeypatch):
    original = ming.speech_request

    def slow(*args, **options):
        time.sleep(0.3)
        return original(*args, **options)

    async def main():
        async with AsyncMingAudio(ming, slots=2) as engine:
            monkeypatch.setattr(ming, "speech_request", slow)
            stream, got, timeouts = engine.tts_stream("one two", max_seconds=0.5, seed=1), [], 0
            while True:
                try:
                    got.append((await asyncio.wait_for(anext(stream), 0.02)).samples)
                except asyncio.TimeoutError:
                    timeouts += 1
                except StopAsyncIteration:
                    return np.concatenate(got), timeouts

    samples, timeouts = asyncio.run(main())
    monkeypatch.undo()
    assert timeouts > 3
    assert np.array_equal(samples, ming.tts("one two", max_seconds=0.5, seed=1).samples)


def test_an_error_before_the_first_piece_is_not_lost(ming):
    async def main():
        async with AsyncMingAudio(ming, slots=2) as engine:
            stream = engine.tts_stream("")
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(anext(stream), 0)
            with pytest.raises(Exception, match="text: is empty"):
                await asyncio.wait_for(anext(stream), 60)
            with pytest.raises(StopAsyncIteration):
                await anext(stream)

    asyncio.run(main())


def test_a_stream_has_one_consumer(ming):
    async def main():
        async with AsyncMingAudio(ming, slots=2) as engine:
            stream = engine.tts_stream("one two", max_seconds=0.5, seed=1)
            found = await asyncio.wait_for(asyncio.gather(anext(stream), anext(stream), return_exceptions=True), 60)
            assert isinstance(found[1], RuntimeError) and "another consumer" in str(found[1])
            assert len(found[0].samples) and [chunk async for chunk in stream]

    asyncio.run(main())


def test_a_stream_that_is_closed_while_it_starts_ends(ming):
    async def main():
        async with AsyncMingAudio(ming, slots=2, requests=1) as engine:
            stream = engine.tts_stream("one two " * 50, max_seconds=0.5)
            first = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            await stream.aclose()
            with pytest.raises(StopAsyncIteration):
                await asyncio.wait_for(first, 60)
            # its place is free again
            assert len((await asyncio.wait_for(engine.tts("one", max_seconds=0.2), 60)).samples)

    asyncio.run(main())


def test_time_to_first_audio_counts_the_text(ming, monkeypatch):
    from mingcore.text import normalize

    original = normalize.spoken_segments

    def slow(*args, **options):
        time.sleep(0.4)
        return original(*args, **options)

    monkeypatch.setattr(normalize, "spoken_segments", slow)
    assert ming.tts("one", max_seconds=0.2).stats.time_to_first_audio > 0.4
