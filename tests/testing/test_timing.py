"""Timing of known sleeps; rotation; the description of the machine; the read probe."""

import re
import time

import pytest
import torch

from mingcore import _cpu
from mingcore.testing import machine, timing
from mingcore.testing.roofline import Ceilings, ceilings


def sleeper(seconds, log=None, name=""):
    def call():
        if log is not None:
            log.append(name)
        time.sleep(seconds)

    return call


def test_sleeps_are_timed_in_turns():
    log = []
    calls = {n: sleeper(s, log, n) for n, s in (("long", 9e-3), ("short", 3e-3))}
    measured = timing.interleaved(calls, rounds=5, sample_s=1e-4, warmup=1)
    assert 9e-3 <= measured.time_s("long").median < 30e-3
    assert 3e-3 <= measured.time_s("short").median < 20e-3
    ratio = measured.speedup("short", over="long")
    assert 1.5 < ratio.median < 4 and ratio.low <= ratio.median <= ratio.high
    assert measured.fastest == "short"
    # after one warm-up each, the order is reversed in every other round
    assert log[2:] == ["long", "short", "short", "long"] * 2 + ["long", "short"]


def test_samples_repeat_short_calls_and_keep_to_the_budget():
    calls = []
    timing.interleaved({"short": lambda: calls.append(1)}, rounds=3, sample_s=5e-3, warmup=1)
    assert len(calls) > 100
    began = time.perf_counter()
    measured = timing.interleaved({"a": sleeper(0.02)}, rounds=1000, budget_s=0.1, sample_s=0)
    assert time.perf_counter() - began < 2
    assert 3 <= len(measured.samples["a"]) < 20


def test_spread():
    spread = timing.Spread.of([5.0, 1.0, 2.0, 3.0, 4.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0])
    assert (spread.median, spread.low, spread.high, spread.rounds) == (6.0, 2.0, 10.0, 11)
    assert spread.scaled(2).high == 20.0
    with pytest.raises(ValueError, match="must not be empty"):
        timing.Spread.of([])
    with pytest.raises(ValueError, match="must not be empty"):
        timing.interleaved({})


def test_rotation_visits_every_set_and_whole_rotations_are_timed():
    seen = []
    call = timing.rotate(lambda x: seen.append(x), [(1,), (2,), (3,)])
    timing.interleaved({"a": call}, rounds=3, sample_s=1e-3, warmup=1)
    counts = [seen[1:].count(x) for x in (1, 2, 3)]
    assert max(counts) - min(counts) <= 1 and min(counts) > 3
    named = timing.rotate(lambda *, a, b: a + b, [{"a": 1, "b": 2}, {"a": 3, "b": 4}])
    assert [named(), named(), named()] == [3, 7, 3]
    with pytest.raises(ValueError, match="must not be empty"):
        timing.rotate(print, [])


@pytest.mark.parametrize(
    ("set_bytes", "cache_bytes", "expected"),
    [(1 << 20, 8 << 20, 33), (32 << 20, 8 << 20, 1), (40 << 20, 8 << 20, 1), (16, 8 << 20, 512)],
)
def test_enough_sets_to_leave_the_cache(set_bytes, cache_bytes, expected):
    assert timing.sets_for(set_bytes, cache_bytes) == expected
    assert timing.sets_for(1 << 20, 8 << 20, limit_bytes=5 << 20) == 5


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with timing.threads(before + 1) as n:
        assert n == before + 1 == torch.get_num_threads()
    assert torch.get_num_threads() == before
    with timing.threads(None) as n:
        assert n == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_graphs_need_a_gpu():
    with pytest.raises(RuntimeError, match="needs a CUDA device"):
        timing.graph_interleaved({"a": print})


@pytest.mark.gpu
def test_graph_times_are_device_times():
    a = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    b = torch.randn(1024, 1024, device="cuda", dtype=torch.bfloat16)
    measured = timing.graph_interleaved({"large": lambda: a @ a, "small": lambda: b @ b})
    assert measured.speedup("small", over="large").median > 8
    waiting = timing.events_interleaved({"wait": lambda: (b @ b).sum().item()}, rounds=3)
    assert waiting.time_s("wait").median > 0


def test_machine_is_described():
    said = machine.describe()
    assert said["cpu"] and said["cores"] >= 1 and said["threads"] == torch.get_num_threads()
    assert said["versions"]["torch"] == torch.__version__
    assert 1 << 18 <= said["last_level_cache_bytes"] <= 1 << 31
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", machine.slug())
    assert said["commit"] is None or re.fullmatch(r"[0-9a-f]{12}\+?", said["commit"])


def test_ceilings_are_plausible_and_measured_once():
    found = ceilings("cpu", quick=True)
    assert found is ceilings("cpu", quick=True)
    assert 0.5 < found.read_gbs < 2000 and 0.5 < found.copy_gbs < 4000
    assert 1e-3 < found.gemm_tflops["fp32"] < 50
    known = Ceilings("cpu", 1, 100.0, 80.0, {"fp32": 2.0}, 1 << 25)
    assert known.floor_s(10**9) == pytest.approx(0.01)
    assert known.floor_s(10**6, flops=10**12) == pytest.approx(0.5)


@pytest.mark.parametrize("isa", _cpu.isas())
@pytest.mark.parametrize("num_threads", [1, 2])
def test_read_probe_reads_everything(isa, num_threads):
    first = _cpu.isa()
    x = torch.zeros(3 << 18, dtype=torch.bfloat16)
    try:
        _cpu.set_isa(isa)
        assert _cpu.read_probe(x.data_ptr(), x.nbytes, num_threads) == 0
        for place in (0, 262143, 262144, len(x) - 1):
            x[place] = 1.0
            assert _cpu.read_probe(x.data_ptr(), x.nbytes, num_threads) != 0, place
            x[place] = 0.0
    finally:
        _cpu.set_isa(first)


def test_read_probe_complains():
    x = torch.zeros(64, dtype=torch.bfloat16)
    for arguments, said in (
        ((0, 64, 1), "data must be an address"),
        ((x.data_ptr(), -1, 1), "bytes must be >= 0"),
        ((x.data_ptr(), 64, 0), "threads must be"),
    ):
        with pytest.raises(ValueError, match=f"read_probe: {said}"):
            _cpu.read_probe(*arguments)
