"""Recognitions in step against one after the other: seconds for all of them, the same text.

`python bench/bench_text.py --size mid --batches 4,8`. Weights are random (as in bench_e2e.py), so
the text is noise, and as long as it may be. The last line is JSON.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

import reporting
from mingcore.benchmark.subject import SHAPES, Subject
from mingcore.config.devices import as_device, as_dtype
from mingcore.model.formats import WEIGHTS
from mingcore.runtime.engine import Engine
from mingcore.runtime.params import TextParams
from mingcore.runtime.understanding import UnderstandRequest
from mingcore.runtime.work import results
from mingcore.testing.timing import interleaved

AUDIO_SECONDS = 3


class Listener:
    """An outlet that takes everything."""

    def __init__(self) -> None:
        self.text, self.error = "", None

    def room(self) -> int:
        return 1 << 30

    def put(self, piece) -> None:
        self.text += piece.text

    def end(self, error: BaseException | None) -> None:
        self.error = error


def requests(model, count: int, tokens: int) -> list[UnderstandRequest]:
    """Noise to listen to, of `AUDIO_SECONDS`; temperature 1, so that texts differ."""
    size = AUDIO_SECONDS * model.config.sample_rate
    made = []
    for seed in range(count):
        sound = torch.randn(1, size, generator=torch.Generator().manual_seed(seed))
        sound = (0.1 * sound).to(model.llm.device)
        made.append(UnderstandRequest(sound, "What is this?", None, TextParams(tokens, 1.0), seed))
    return made


def together(engine: Engine, asked: list[UnderstandRequest]) -> list[str]:
    listeners = [Listener() for _ in asked]
    for one, listener in zip(asked, listeners):
        engine.submit(one, listener)
    while engine.tick():
        pass
    for listener in listeners:
        if listener.error is not None:
            raise listener.error
    return [listener.text for listener in listeners]


def in_turn(model, asked: list[UnderstandRequest]) -> list[str]:
    return ["".join(p.text for p in results(model, one)) for one in asked]


def measured(model, batch: int, tokens: int, rounds: int) -> dict:
    """Right first, then timed in turns."""
    asked = requests(model, batch, tokens)
    engine = Engine(model, batch, seconds=1)
    same = together(engine, asked) == in_turn(model, asked)
    if model.llm.device.type == "cpu" and not same:
        raise AssertionError(f"{batch} recognitions in step give other texts than one by one")
    ways = {"in step": lambda: together(engine, asked), "in turn": lambda: in_turn(model, asked)}
    times = interleaved(ways, rounds=rounds)
    engine.close()
    return {
        "batch": batch,
        "tokens": tokens,
        "same_text": same,
        "in_step_s": times.time_s("in step").as_dict(),
        "in_turn_s": times.time_s("in turn").as_dict(),
        "speedup": times.speedup("in step", "in turn").as_dict(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(SHAPES), default="mid")
    parser.add_argument("--dtype", help="default: the device's")
    parser.add_argument("--weights", choices=WEIGHTS, help="of the large matrices; default --dtype")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batches", default="4,8", help="recognitions at once")
    parser.add_argument("--tokens", type=int, default=32, help="of each text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder of the result; default bench/results/...")
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    dtype = as_dtype(options.dtype)
    model = Subject.of(None, options.size, as_device(options.device), dtype).load(options.weights)
    rows = []
    for batch in map(int, options.batches.split(",")):
        rows.append(measured(model, batch, options.tokens, options.rounds))
        row = rows[-1]
        step, turn, speedup = (row[key] for key in ("in_step_s", "in_turn_s", "speedup"))
        print(
            f"{batch} recognitions of {AUDIO_SECONDS} s, {options.tokens} tokens each: "
            f"in step {step['median']:.2f} s, in turn {turn['median']:.2f} s, "
            f"{speedup['median']:.2f} x ({speedup['p10']:.2f} to {speedup['p90']:.2f})"
        )
    result = reporting.result("text", size=options.size, weights=model.weights, device=options.device, rows=rows)
    if not options.no_save:
        name = f"text-{options.size}-{model.weights}"
        print(f"kept in {reporting.keep(name, result, options.out)}")
    reporting.last_line(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
