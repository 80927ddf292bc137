"""The command `bench`; see `cli`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from . import terminal
from .options import Backend, Device, Dtype, Json, Quiet, Weights


def bench(
    checkpoint: Annotated[str | None, typer.Argument(help="bundled name, folder or hub id; by default tiny")] = None,
    random_weights: Annotated[
        str | None, typer.Option(help="instead: ming-uniaudio-16b, mid or tiny, its weights drawn here")
    ] = None,
    batch: Annotated[list[int] | None, typer.Option("--batch", "-b", help="requests at once; repeat it")] = None,
    seconds: Annotated[float | None, typer.Option(help="of sound that each request speaks")] = None,
    patches: Annotated[int | None, typer.Option(help="timed by stage and of the baseline")] = None,
    baseline: Annotated[bool, typer.Option(help="time the reference's structure in plain PyTorch as well")] = True,
    limit: Annotated[float | None, typer.Option(help="seconds after which nothing more is begun")] = None,
    plot: Annotated[Path | None, typer.Option(help="a chart of the stages, PNG")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="the result as JSON")] = None,
    device: Device = None,
    dtype: Dtype = None,
    weights: Weights = None,
    backend: Backend = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure speech here: first audio, patches by stage, gaps, throughput, memory.

    Against `testing/eager`, which takes turns with it patch by patch. On a machine that does
    something else as well the figures mean little.
    """
    from contextlib import nullcontext

    from ..audio.plot import require_matplotlib
    from ..benchmark.measure import Settings, measure
    from ..benchmark.subject import Subject
    from ..config.devices import as_device, as_dtype
    from ..ops import use_backend
    from . import bench_tables as show

    if plot is not None:
        require_matplotlib()  # before minutes of work
    subject = Subject.of(checkpoint, random_weights, as_device(device), as_dtype(dtype))
    settings = Settings(batch or None, seconds, patches, weights, baseline, limit or float("inf"))
    with use_backend(backend) if backend is not None else nullcontext():
        result = measure(subject, settings, lambda line: terminal.say(line, quiet or as_json))
    if out is not None:
        terminal.write_bytes(str(out), (json.dumps(result, indent=1) + "\n").encode())
    if plot is not None:
        terminal.write_bytes(str(plot), show.chart(result))
    if as_json:
        terminal.emit(result)
        return
    for table in show.tables(result):
        show.console().print(table)
    print("\n".join(show.lines(result)))
