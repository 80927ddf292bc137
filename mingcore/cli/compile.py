"""`mingcore compile`: the kernels of a model, for GPUs that are not here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from . import terminal
from .options import Dtype, Json, Quiet, Weights


def compile_kernels(
    model: Annotated[str, typer.Argument(help="checkpoint: bundled name, folder or hub id; or a config.json")] = "tiny",
    arch: Annotated[
        str, typer.Option(help="GPUs, with multiprocessors where not the usual: sm_90a,sm_80:104")
    ] = "sm_90a",
    out: Annotated[Path, typer.Option("--out", "-o", help="the bundle's folder")] = Path("bundle"),
    rows: Annotated[int, typer.Option(help="requests in a batch, at most")] = 8,
    tokens: Annotated[int, typer.Option(help="of a prompt and its voice, at most")] = 1024,
    steps: Annotated[str, typer.Option(help="of the flow sampler: 10, or several: 10,16")] = "10",
    dtype: Dtype = None,
    weights: Weights = None,
    jobs: Annotated[int | None, typer.Option(help="processes; by default one per core")] = None,
    cuda_compiler: Annotated[str, typer.Option(help="auto, nvcc or nvrtc")] = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compile every GPU kernel that a model can ask for, without a GPU, into a bundle.

    `--kernels` of the other commands and `from_pretrained(kernels=...)` then compile nothing.
    """
    counts = [part.strip() for part in steps.split(",")]
    if not all(count.isdecimal() for count in counts):
        raise InputError(f"--steps: must be numbers such as 10 or 10,16, got {steps!r}")
    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs: must be at least 1, got {jobs}")
    from ..aot.targets import parse
    from ..config.devices import as_dtype
    from ..runtime.locate import locate

    targets, dtype = parse(arch), as_dtype(dtype)
    try:
        from ..aot.build import build
    except ImportError as error:
        raise InputError(f"compile needs Triton and cuda-python (mingcore[gpu]): {error}") from None
    from ..aot.dry_run import Limits, ModelSpec

    path = Path(model)
    spec = ModelSpec.of(path if path.suffix == ".json" else locate(model))
    made = build(
        spec,
        targets,
        out,
        limits=Limits(rows, tokens, tuple(map(int, counts))),
        dtype=dtype,
        weights=weights,
        jobs=jobs,
        cuda_compiler=cuda_compiler,
        progress=_progress(quiet or as_json),
    )
    if as_json:
        terminal.emit(made.as_dict())
        return
    for op, reason in made.left.items():
        terminal.say(f"{op} (CUDA): {reason}", quiet)
    if made.spilled:
        terminal.say(f"spills registers: {', '.join(made.spilled)}", quiet)
    spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in made.seconds.items())
    terminal.say(
        f"{made.folder}: {made.triton} Triton kernels of {made.launches_seen} launches seen, "
        f"{made.cuda} CUDA kernels, {terminal.size(made.nbytes)} ({spent})",
        quiet,
    )


def _progress(quiet: bool):
    """Shows the stage and how much of it is done, on one line of a terminal."""
    if quiet or not sys.stderr.isatty():
        return lambda stage, done, total: None

    def show(stage: str, done: int, total: int) -> None:
        print(f"\r\x1b[K{stage}: {done} of {total}", end="", file=sys.stderr, flush=True)
        if done >= total:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    return show
