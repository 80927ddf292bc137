"""Recognitions in step against one after the other: seconds for all of them, the same text.

`python bench/bench_text.py --size mid --batches 4,8`. Weights are random (as in bench_e2e.py), so
the text is noise, and as long as it may be. The last line is JSON.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

import reporting
from mingcore.api.ming_audio import MingAudio
from mingcore.benchmark.subject import SHAPES, Subject
from mingcore.config.devices import as_device, as_dtype
from mingcore.model.formats import WEIGHTS
from mingcore.testing.timing import interleaved

AUDIO_SECONDS = 3


def requests(ming: MingAudio, count: int, tokens: int) -> list[dict[str, Any]]:
    """Noise to transcribe, of `AUDIO_SECONDS`; temperature 1, so that texts differ."""
    rate = ming.model.config.sample_rate
    made = []
    for seed in range(count):
        noise = 0.1 * torch.randn(AUDIO_SECONDS * rate, generator=torch.Generator().manual_seed(seed))
        audio = (noise.numpy(), rate)
        options = {"instruction": "What is this?", "max_new_tokens": tokens, "temperature": 1.0, "seed": seed}
        made.append({"audio": audio, **options})
    return made


def measured(ming: MingAudio, batch: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Right first, then timed in turns."""
    asked = requests(ming, batch, tokens)

    def together() -> list[str]:
        return [found.text for found in ming.transcribe_batch(asked, slots=batch)]

    def in_turn() -> list[str]:
        return [ming.transcribe(**one).text for one in asked]

    same = together() == in_turn()
    if ming.model.llm.device.type == "cpu" and not same:
        raise AssertionError(f"{batch} recognitions in step give other texts than one by one")
    times = interleaved({"in step": together, "in turn": in_turn}, rounds=rounds)
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
    ming = MingAudio(model)
    rows = []
    for batch in map(int, options.batches.split(",")):
        rows.append(measured(ming, batch, options.tokens, options.rounds))
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
