"""Figures of a request: they count the engine's time alone."""

import json
import time

import torch

from mingcore.runtime.stats import Meter, Stats


def test_the_clock_rests_while_the_consumer_works():
    meter = Meter(torch.device("cpu"))
    time.sleep(0.02)
    meter.count_audio(1600, 16000)
    meter.pause()
    time.sleep(0.3)
    meter.resume()
    meter.count_audio(1600, 16000)
    meter.pause()
    stats = meter.stats
    assert 0.02 <= stats.time_to_first_audio <= stats.compute_seconds < 0.25
    assert stats.audio_seconds == 0.2 and stats.peak_memory_bytes > 2**20
    assert stats.real_time_factor == stats.compute_seconds / 0.2


def test_as_data_and_as_a_line():
    stats = Stats(seed=7, audio_seconds=2.0, compute_seconds=1.0, patches=20, text_tokens=3)
    assert json.loads(json.dumps(stats.as_dict()))["real_time_factor"] == 0.5
    line = str(stats)
    assert "2.00 s of audio in 1.00 s" in line and "0.500" in line and "seed 7" in line
    assert Stats().real_time_factor is None and "real-time" not in str(Stats())
