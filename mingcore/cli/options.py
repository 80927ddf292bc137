"""Shared by the commands: options, loading a checkpoint, saving and reporting results."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from . import terminal

if TYPE_CHECKING:
    from ..api.ming_audio import MingAudio
    from ..precision import Precision

Text = Annotated[str, typer.Argument(help='what to say; "-" reads standard input')]
Audio = Annotated[str, typer.Argument(help='an audio file; "-" reads standard input')]
Model = Annotated[str, typer.Option("--model", "-m", help="checkpoint: bundled name, folder or hub id")]
Checkpoint = Annotated[str, typer.Argument(help="bundled name, folder or hub id")]
Out = Annotated[
    str | None,
    typer.Option(
        "--out", "-o", help='output file; "-" is standard output; by default a new file of the command\'s name'
    ),
]
Format = Annotated[str | None, typer.Option(help="wav, flac or pcm; by default the output's suffix")]
Subtype = Annotated[str, typer.Option(help="int16 or float32 samples")]
Seed = Annotated[int | None, typer.Option(help="the same seed gives the same sound")]
Steps = Annotated[int, typer.Option(help="Euler steps per patch")]
Guidance = Annotated[float, typer.Option(help="classifier-free guidance; 0 halves the work")]
Temperature = Annotated[float, typer.Option(help="of the flow sampler's noise")]
FilterOut = Annotated[
    str | None, typer.Option("--out", "-o", help='file; "-" is standard output, as by default from "-"')
]
Stream = Annotated[
    bool, typer.Option("--stream", help="write while it is made: raw pcm to standard output, or to the file of --out")
]
Sample = Annotated[bool, typer.Option("--sample", help="one draw of the posterior instead of its mean")]
MaxTokens = Annotated[int, typer.Option(help="of text, at most")]
MinSeconds = Annotated[float | None, typer.Option(help="do not end before")]
MaxSeconds = Annotated[float | None, typer.Option(help="end at the latest after")]
Language = Annotated[str | None, typer.Option(help="zh or en; detected when not given")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; a GPU if there is one")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16: of weights that are not quantised")]
Weights = Annotated[str | None, typer.Option(help="of the large matrices: fp32, fp16, bf16, int8, int8_dyn or fp8")]
Kernels = Annotated[str | None, typer.Option(help="a bundle that `compile` made for this GPU: compile nothing")]
Retries = Annotated[
    int, typer.Option(help="speak again, with the next seed, what is silent, cut short, endless or clipped")
]
Lexicon = Annotated[str | None, typer.Option(help="pronunciations: JSON, or lines of a word, a tab and its spelling")]
Adapter = Annotated[
    list[str] | None, typer.Option(help="a LoRA adapter (PEFT), folder or hub id, to merge in; repeat it")
]
Revision = Annotated[str | None, typer.Option(help="of a hub id: a branch, a tag or a commit")]
Strict = Annotated[
    bool, typer.Option("--strict/--no-strict", help="refuse a checkpoint with tensors that are not used")
]
Backend = Annotated[
    str | None, typer.Option(help="of every op: reference, cpu, triton, cuda, flash, or several in order")
]
ContextSeconds = Annotated[float | None, typer.Option(help="sliding window of the audio context; by default all of it")]
ContextFormat = Annotated[str | None, typer.Option(help="int8: cache the audio context in 8 bits")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress, no remarks")]


@contextmanager
def loaded(
    model: str,
    device: str | None,
    dtype: str | None,
    backend: str | None,
    quiet: bool,
    target: str | None = None,
    container: str | None = None,
    subtype: str = "int16",
    *,
    weights: str | None = None,
    kernels: str | None = None,
    adapter: list[str] | None = None,
    revision: str | None = None,
    strict: bool = True,
    task: str | None = None,
) -> Iterator[MingAudio]:
    """The loaded checkpoint, with the chosen backend; `target` is checked before anything is loaded.

    container: of `target`; None: by its suffix. At the end the warning of the checkpoint's card, if there is one for
    `task`, is printed.
    """
    from ..api import info as facts
    from ..api.ming_audio import MingAudio
    from ..audio.files import check_writable
    from ..ops import use_backend

    if target is not None:
        check_writable(target, container, subtype)
    with use_backend(backend) if backend is not None else nullcontext():
        ming = MingAudio.from_pretrained(
            model,
            device=device,
            dtype=dtype,
            weights=weights,
            kernels=kernels,
            adapter=adapter or None,
            revision=revision,
            strict=strict,
        )
        yield ming
    warning = None if ming.folder is None else facts.card_warning(ming.folder, task)
    if warning:
        terminal.say(f"note: {model}: {warning}", quiet)


def measured(
    checkpoint: str,
    weights: str,
    audio: str | None,
    text: str | None,
    device: str | None,
    dtype: str | None,
    backend: str | None,
) -> Precision:
    """`precision.measure` with the arguments of the command line."""
    from ..audio.files import read_audio
    from ..config.devices import as_device, as_dtype
    from ..config.model_config import MingConfig
    from ..ops import use_backend
    from ..precision import measure
    from ..runtime.locate import locate

    device, dtype = as_device(device), as_dtype(dtype)
    folder = locate(checkpoint)
    samples = None
    if audio is not None:
        samples = read_audio(audio, MingConfig.from_folder(folder).sample_rate)
    with use_backend(backend) if backend is not None else nullcontext():
        return measure(folder, weights, device=device, dtype=dtype, samples=samples, text=text)


def output(out: str | None, name: str, stream: bool, format: str | None) -> tuple[str, str | None]:
    """(target, container) of a command that speaks: `out`, else standard output of a stream, else a new file."""
    from ..audio.files import free_name

    if out is None:
        out = "-" if stream else free_name(name)
    if out == "-" and sys.stdout.isatty():
        raise InputError("output: standard output is a terminal; name a file with --out")
    return out, format or ("pcm" if stream and out == "-" else None)


def save(chunks: Iterable[Any], rate: int, target: str, container: str | None, subtype: str) -> dict[str, Any]:
    """Writes chunks of speech as they are made -> {"out", "sample_rate", "seconds", "text", "stats"}."""
    from ..audio.files import AudioWriter

    samples, text, last = 0, [], None
    with AudioWriter(target, rate, format=container, subtype=subtype) as writer:
        for last in chunks:
            writer.write(last.samples)
            samples += len(last.samples)
            if last.text:
                text.append(last.text)
    return {
        "out": target,
        "sample_rate": rate,
        "seconds": samples / rate,
        "text": "".join(text) if text else None,
        "stats": last.stats if last is not None else None,
    }


def report(result: dict[str, Any], target: str, as_json: bool, quiet: bool) -> None:
    """Prints the result of `save`; JSON goes to standard output unless that carries the audio."""
    stats = result["stats"]
    if as_json:
        data = result | {"stats": stats.as_dict() if stats is not None else None}
        terminal.emit(data, stdout_taken=target == "-")
        return
    if result["text"] is not None:
        print(result["text"], file=sys.stderr if target == "-" else sys.stdout, flush=True)
    if target != "-":
        terminal.say(f"{target}: {stats if stats is not None else ''}", quiet)
