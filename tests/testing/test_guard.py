"""A kernel that is slower or wrong by one element is caught: shown on broken copies."""

import ctypes
import importlib
import sys
import time
from pathlib import Path

import pytest
import torch

from mingcore import _cpu

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def bench():
    """Modules of bench/ by name, imported anew."""
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(BENCH) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def slowed(call, every=5):
    """A copy that repeats its work at every fifth call: 20 % slower."""
    count = [0]

    def copy():
        count[0] += 1
        if count[0] % every == 0:
            call()
        return call()

    return copy


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear, fp32", "causal_conv1d, fp32"])
def test_a_kernel_slowed_by_a_fifth_is_caught_and_the_same_kernel_is_not(bench, name):
    guard = bench("guard")
    with torch.inference_mode():
        ours, other = guard.calls(name)
        kept = sorted(guard.ratio(ours, other) for _ in range(3))[1]
        assert guard.slower(kept, ours, other)[0] is False
        caught, seen = guard.slower(kept, slowed(ours), other)
    assert caught, (kept, seen)
    assert all(ratio > guard.LIMIT_RATIO * kept for ratio in seen)


def test_one_disturbed_run_acquits_and_three_convict(bench, monkeypatch):
    guard = bench("guard")

    def measured(*ratios):
        runs = iter(ratios)
        monkeypatch.setattr(guard, "ratio", lambda *_: next(runs))
        return guard.slower(1.0, None, None)

    assert measured(1.09) == (False, [1.09])
    assert measured(1.3, 1.11, 1.02) == (False, [1.3, 1.11, 1.02])
    assert measured(1.11, 1.2, 1.11) == (True, [1.11, 1.2, 1.11])


@pytest.mark.parametrize(
    ("name", "op", "out"), [("linear, fp32", "linear", 5), ("causal_conv1d, fp32", "causal_conv", 7)]
)
def test_a_kernel_that_is_wrong_by_one_element_is_caught(bench, monkeypatch, name, op, out):
    guard, right = bench("guard"), getattr(_cpu, op)
    assert all(map(callable, guard.calls(name)))

    def wrong(*arguments):
        right(*arguments)
        address, _, sizes, strides = arguments[out]
        last = sum((n - 1) * stride for n, stride in zip(sizes, strides))
        element = ctypes.c_float.from_address(address + 4 * last)
        element.value += 1e-3

    monkeypatch.setattr(_cpu, op, wrong)
    with pytest.raises(AssertionError, match=op):
        guard.calls(name)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_instructions_are_the_same_twice_and_show_a_fifth_more_in_every_kernel(bench):
    instructions = bench("instructions")
    if not instructions.available():
        pytest.skip("no valgrind here")
    once, again = (instructions.counted()["per_call"] for _ in range(2))
    assert set(once) == set(instructions.KERNELS) and min(once.values()) > 10_000
    assert again == {name: pytest.approx(count, rel=1e-4) for name, count in once.items()}
    more = instructions.counted(repeat_every=5)["per_call"]
    assert more == {name: pytest.approx(1.2 * count, rel=1e-3) for name, count in once.items()}
    kept = {"compiler": instructions.compiler(), "per_call": {k: n / 1.2 for k, n in once.items()}}
    assert {verdict for *_, verdict in instructions.judge(kept, 1.02)} == {"SLOWER"}


def test_every_kernel_has_a_call_whose_instructions_are_counted(bench):
    calls, called = bench("instruction_calls"), set()

    class Watched:
        def __getattr__(self, name):
            def call(*arguments):
                called.add(name)
                return getattr(_cpu, name)(*arguments)

            return call

    for make in calls.KERNELS.values():
        make(Watched())()
    others = {"read_probe", "ask_for_huge_pages", "thread_pool", "isa", "isas", "vnni", "bf16"}
    kernels = {name for name in vars(_cpu) if not name.startswith(("_", "set_"))} - others
    assert called == kernels


def test_instructions_are_judged_by_their_limit(bench, monkeypatch):
    instructions = bench("instructions")
    kept = {"compiler": instructions.compiler(), "isa": "avx2", "per_call": {"linear": 1000}}
    monkeypatch.setattr(instructions, "available", lambda: True)

    def verdict(now, **other):
        counts = {} if now is None else {"linear": now}
        monkeypatch.setattr(instructions, "counted", lambda *_, **__: {"per_call": counts})
        return instructions.judge({**kept, **other}, 1.02)[0][-1]

    assert instructions.compiler().startswith("gcc ")
    assert [verdict(n) for n in (900, 1000, 1019, 1021, 1200)] == ["pass"] * 3 + ["SLOWER"] * 2
    assert verdict(1200, compiler="gcc 1.0") == "not compared: another compiler"
    assert verdict(None) == "not judged: out of time"
    assert "not counted" in instructions.judge(None, 1.02)[0][-1]


def test_the_guard_without_kept_figures_says_so(bench, tmp_path, capsys):
    assert bench("guard").main(["--folder", str(tmp_path)]) == 2
    assert "nothing is kept for this machine" in capsys.readouterr().out
    assert bench("guard").main(["--folder", str(tmp_path), "--ci"]) == 0  # is no failure


def _said(capsys, what: str, verdict: str) -> bool:
    lines = capsys.readouterr().out.splitlines()
    return any(line.startswith(what) and line.endswith(verdict) for line in lines)


def test_more_instructions_convict_in_ci_too(bench, monkeypatch, tmp_path, capsys):
    guard, reporting, instructions = (bench(n) for n in ("guard", "reporting", "instructions"))
    kept = {"compiler": instructions.compiler(), "per_call": {"linear": 1000}}
    reporting.keep("guard", {"ratios": {}, "instructions": kept}, tmp_path)
    monkeypatch.setattr(instructions, "available", lambda: True)
    for count, status, verdict in ((1000, 0, "pass"), (1200, 1, "SLOWER")):
        counted = {"per_call": {"linear": count}}
        monkeypatch.setattr(instructions, "counted", lambda *_, **__: counted)  # noqa: B023
        assert guard.main(["--folder", str(tmp_path), "--ci"]) == status
        assert _said(capsys, "linear, instructions", verdict)


def test_in_ci_time_is_bounded_and_what_it_does_not_suffice_for_is_not_judged(bench, monkeypatch, tmp_path, capsys):
    guard, reporting = bench("guard"), bench("reporting")
    other = guard.CASES["linear, fp32"][1]
    ratios = {"linear, fp32": {"other": other, "ratio": 1.0}}
    kept = {"compiler": bench("instructions").compiler(), "per_call": {"linear": 1000}}
    reporting.keep("guard", {"ratios": ratios, "instructions": kept}, tmp_path)
    monkeypatch.setattr(guard, "ratio", lambda *_: 2.0)
    monkeypatch.setattr(bench("instructions"), "available", lambda: False)
    for seconds, verdict in ((0.0, guard.OUT_OF_TIME), (600.0, guard.SLOWER_IN_CI)):
        monkeypatch.setattr(guard, "CI_SECONDS", seconds)
        assert guard.main(["--folder", str(tmp_path), "--ci"]) == 0
        assert _said(capsys, "linear, fp32", verdict)
    assert guard.main(["--folder", str(tmp_path)]) == 1
    assert _said(capsys, "linear, fp32", "SLOWER")
    begin = time.monotonic()
    monkeypatch.setattr(bench("instructions"), "available", lambda: True)
    judged = bench("instructions").judge(kept, 1.02, time.monotonic())
    assert judged[0][-1] == guard.OUT_OF_TIME and time.monotonic() - begin < 30
