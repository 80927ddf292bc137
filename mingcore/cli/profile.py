"""The command `profile`; see `cli`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from . import terminal
from .options import (
    Adapter,
    Backend,
    Device,
    Dtype,
    Guidance,
    Json,
    MaxTokens,
    Model,
    Quiet,
    Revision,
    Seed,
    Steps,
    Strict,
    Weights,
    loaded,
)

if TYPE_CHECKING:
    from ..api.ming_audio import MingAudio
    from ..profiling import Profile, Stage

TASKS = ("tts", "asr")
SENTENCE = "One two three four five."


def profile(
    request: Annotated[str | None, typer.Argument(help="tts: a text; asr: an audio file", metavar="TEXT|AUDIO")] = None,
    task: Annotated[str, typer.Option(help="tts or asr")] = "tts",
    model: Model = "tiny",
    out: Annotated[
        str, typer.Option("--out", "-o", help="the trace; compressed where it ends in .gz")
    ] = "profile.json",
    seed: Seed = 0,
    steps: Steps = 10,
    guidance: Guidance = 2.0,
    max_seconds: Annotated[float, typer.Option(help="tts: of sound, at most")] = 2.0,
    max_tokens: MaxTokens = 64,
    device: Device = None,
    dtype: Dtype = None,
    weights: Weights = None,
    adapter: Adapter = None,
    revision: Revision = None,
    strict: Strict = True,
    backend: Backend = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show where the time of a request goes, by stage, and write a trace for ui.perfetto.dev.

    The request runs three times: counting bytes, as it is, and under torch.profiler.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # PyTorch's profiler would log to standard error
    from ..profiling import perfetto
    from ..profiling import profile as run
    from ..runtime.params import draw_seed
    from ..testing.machine import describe

    if task not in TASKS:
        raise InputError(f"--task: must be one of {', '.join(TASKS)}, got {task!r}")
    if task == "asr" and request is None:
        raise InputError("AUDIO: is missing; --task asr takes an audio file")
    seed = draw_seed(seed)
    perfetto.check_writable(out)
    which = {"adapter": adapter, "revision": revision, "strict": strict}
    with loaded(model, device, dtype, backend, quiet or as_json, weights=weights, **which) as ming:
        if task == "tts":
            text = SENTENCE if request is None else terminal.read_text(request)
            options = {"steps": steps, "guidance": guidance, "max_seconds": max_seconds}
            make = _request(ming.tts_stream, text, seed=seed, **options)
        else:
            sound = _read(ming, request)
            make = _request(ming.transcribe_stream, sound, seed=seed, max_new_tokens=max_tokens)
        found = run(ming, make)
    facts = {"task": task, "model": model, "weights": ming.model.weights, "seed": seed}
    facts["machine"] = describe()
    perfetto.write(found, out, facts)
    if as_json:
        terminal.emit({**facts, "trace": out, **found.as_dict()})
        return
    show(found, facts)
    terminal.say(f"{out}: open it in https://ui.perfetto.dev", quiet)


def _request(method: Any, what: Any, **options: Any) -> Callable[[MingAudio], Iterable[Any]]:
    """The request as a function of the MingAudio that runs it. Wrong options raise here, once."""
    method(what, **options)
    return lambda ming: getattr(ming, method.__name__)(what, **options)


def _read(ming: MingAudio, audio: str) -> tuple[Any, int]:
    """Samples and their rate, read once: the request runs three times, standard input cannot."""
    from ..audio.files import read_audio

    rate = ming.model.config.sample_rate
    return read_audio(audio, rate), rate


def show(found: Profile, facts: dict[str, Any]) -> None:
    """Prints the stages as a table."""
    from rich.console import Console

    from .tables import table_of

    on_gpu = any(stage.device_ms is not None for stage in found.stages)
    columns = ["stage", "calls", "ms", "share", "ours", "gap", "of it PyTorch", "launches"]
    columns += ["GPU ms", "GPU gap"] * on_gpu + ["MB", "GB/s"]
    table = table_of(*columns)
    for column in table.columns[1:]:
        column.justify = "right"
    total = sum(stage.ms for stage in found.stages)
    rows = [_row(stage, total, on_gpu) for stage in found.stages]
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False)
    console.print(
        f"[bold]{facts['task']}[/] of {facts['model']} ({facts['weights']}) on {found.device}: "
        f"{1e3 * found.seconds:.0f} ms as it is, {1e3 * found.profiled_seconds:.0f} ms profiled, "
        "which the table is of"
    )
    console.print(table)
    console.print(
        "gap: nothing of ours ran; launches: kernels on a GPU, calls of ours and of PyTorch's "
        "operators on a CPU; MB: the least that the ops can move"
    )


def _row(stage: Stage, total_ms: float, on_gpu: bool) -> list[str]:
    times = (stage.ours_ms, stage.gap_ms, stage.torch_ms)
    row = [stage.stage, str(stage.calls), f"{stage.ms:.2f}", f"{100 * stage.ms / total_ms:.1f} %"]
    row += [f"{ms:.2f}" for ms in times] + [str(stage.launches)]
    if on_gpu:
        row += [f"{stage.device_ms:.2f}", f"{stage.device_gap_ms:.2f}"]
    counted = stage.nbytes > 0
    return [*row, *((f"{stage.nbytes / 1e6:.1f}", f"{stage.gbs:.2f}") if counted else ("-", "-"))]
