"""Speech end to end: `mingcore bench` as a kept result, with the eager baseline in turns.

`python bench/bench_e2e.py --size mid --dtype fp32`. Weights are random, drawn on the device (the
bundled checkpoint's are read); `ming-uniaudio-16b` is the real shape. The last line is JSON.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import reporting
from mingcore.benchmark.measure import BATCHES, Settings, measure
from mingcore.benchmark.subject import SHAPES, Subject
from mingcore.cli import bench_tables as show
from mingcore.config.devices import as_device, as_dtype
from mingcore.errors import MingError
from mingcore.model.formats import WEIGHTS
from mingcore.testing.timing import threads

DTYPES = ("fp32", "bf16")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=["checkpoint", *SHAPES], default="mid")
    parser.add_argument("--dtype", choices=DTYPES, help="of the baseline; default: the device's")
    parser.add_argument("--weights", choices=WEIGHTS, help="of our large matrices; default --dtype")
    parser.add_argument("--device", choices=list(BATCHES), default="cpu")
    parser.add_argument("--batches", help="requests at once, such as 1,4,8")
    parser.add_argument("--seconds", type=float, help="of sound that each request speaks")
    parser.add_argument("--patches", type=int, help="timed by stage and of the baseline")
    parser.add_argument("--limit", type=float, default=float("inf"), help="of the whole, in s")
    parser.add_argument("--no-baseline", action="store_true")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--plot", type=Path, help="the stages as a PNG")
    parser.add_argument("--out", type=Path, help="folder of the result; default bench/results/...")
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args(arguments)
    try:
        batches = options.batches and [int(n) for n in options.batches.split(",")]
        settings = Settings(
            batches, options.seconds, options.patches, options.weights, not options.no_baseline, options.limit
        )
        random = None if options.size == "checkpoint" else options.size
        subject = Subject.of(None, random, as_device(options.device), as_dtype(options.dtype))
        with threads(options.threads):
            result = measure(subject, settings, lambda line: print(line, file=sys.stderr))
    except MingError as error:
        raise SystemExit(f"bench_e2e: {error}") from None
    for table in show.tables(result):
        show.console().print(table)
    print("\n".join(show.lines(result)))
    if options.plot:
        options.plot.write_bytes(show.chart(result))
    if not options.no_save:
        print(f"kept in {reporting.keep(name_of(result), result, options.out)}")
    reporting.last_line(result)
    return 0


def name_of(result: dict) -> str:
    """end_to_end-SIZE-DTYPE, and the format of our weights where it is another."""
    name = f"end_to_end-{result['size']}-{result['dtype']}"
    return name if result["weights"] == result["dtype"] else f"{name}-{result['weights']}"


if __name__ == "__main__":
    sys.exit(main())
