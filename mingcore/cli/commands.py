"""`mingcore`: the command line over `mingcore.api`.

Results go to standard output or a file, messages to standard error. Bad input is one line and exit status 2, an
interrupt 130, a closed pipe 141. The commands import what they need, so `mingcore --help` loads no PyTorch.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import __version__
from ..env import let_idle_threads_sleep
from ..errors import InputError, MingError
from . import bench as bench_command
from . import codec as codec_commands
from . import compile as compile_command
from . import profile as profile_command
from . import terminal
from .options import (
    Adapter,
    Audio,
    Backend,
    Checkpoint,
    ContextFormat,
    ContextSeconds,
    Device,
    Dtype,
    Format,
    Guidance,
    Json,
    Kernels,
    Language,
    Lexicon,
    MaxSeconds,
    MaxTokens,
    MinSeconds,
    Model,
    Out,
    Quiet,
    Retries,
    Revision,
    Seed,
    Steps,
    Stream,
    Strict,
    Subtype,
    Temperature,
    Text,
    Weights,
    loaded,
    output,
    report,
    save,
)

FAILED, BAD_INPUT, INTERRUPTED, CLOSED_PIPE = 1, 2, 130, 141

app = typer.Typer(
    help="Ming-UniAudio: speak, transcribe and edit audio, on one GPU or a plain CPU.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def tts(
    text: Text,
    model: Model = "tiny",
    out: Out = None,
    voice: Annotated[
        str | None, typer.Option(help="a recording, a voice file (.safetensors) or a name; see `info`")
    ] = None,
    transcript: Annotated[str, typer.Option(help="what the recording of --voice says")] = "",
    stream: Stream = False,
    normalize: Annotated[bool, typer.Option(help="numbers, dates, units in words")] = True,
    language: Language = None,
    lexicon: Lexicon = None,
    retries: Retries = 0,
    keep_context: Annotated[bool, typer.Option("--keep-context", help="keep the audio context over segments")] = False,
    seed: Seed = None,
    steps: Steps = 10,
    guidance: Guidance = 2.0,
    temperature: Temperature = 1.5,
    min_seconds: MinSeconds = None,
    max_seconds: MaxSeconds = None,
    context_seconds: ContextSeconds = None,
    context_format: ContextFormat = None,
    format: Format = None,
    subtype: Subtype = "int16",
    device: Device = None,
    dtype: Dtype = None,
    weights: Weights = None,
    kernels: Kernels = None,
    adapter: Adapter = None,
    revision: Revision = None,
    strict: Strict = True,
    backend: Backend = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Speak TEXT, in the checkpoint's voice or in that of a recording."""
    from ..audio.files import require_other_file
    from ..text.lexicon import read_lexicon

    words = terminal.read_text(text)
    pronunciations = None if lexicon is None else read_lexicon(lexicon)
    if stream and retries:
        raise InputError("--retries: a stream cannot take back what it gave; leave out --stream")
    target, container = output(out, "speech.wav", stream, format)
    require_other_file(voice, target)
    which = {"adapter": adapter, "revision": revision, "strict": strict}
    with loaded(
        model,
        device,
        dtype,
        backend,
        quiet or as_json,
        target,
        container,
        subtype,
        weights=weights,
        kernels=kernels,
        **which,
    ) as ming:
        speaker: Any = voice
        if voice is not None and voice not in ming.voices and Path(voice).suffix != ".safetensors":
            if voice != "-" and not os.path.exists(voice):
                raise ming.no_voice(voice, "no such file")
            speaker = ming.voice(voice, transcript)
        elif transcript:
            raise InputError("--transcript: belongs to a recording given by --voice")
        with terminal.progress("speaking", quiet, max_seconds) as progress:
            options = {
                "seed": seed,
                "steps": steps,
                "guidance": guidance,
                "temperature": temperature,
                "min_seconds": min_seconds,
                "max_seconds": max_seconds,
                "normalize": normalize,
                "language": language,
                "pronunciations": pronunciations,
                "keep_context": keep_context,
                "context_seconds": context_seconds,
                "context_format": context_format,
                "progress": progress,
            }
            if retries:
                chunks = [ming.tts(words, speaker, retries=retries, **options)]
            else:
                chunks = ming.tts_stream(words, speaker, **options)
            result = save(chunks, ming.sample_rate, target, container, subtype)
    report(result, target, as_json, quiet)


@app.command()
def asr(
    audio: Annotated[list[str], typer.Argument(help='audio files; "-" reads standard input')],
    model: Model = "tiny",
    instruction: Annotated[
        str | None, typer.Option(help="a question about the audio; by default: transcribe it")
    ] = None,
    language: Language = None,
    hotwords: Annotated[str | None, typer.Option(help="words that AUDIO may hold: A,B")] = None,
    max_tokens: MaxTokens = 512,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token")] = 0.0,
    seed: Seed = None,
    sample: Annotated[
        bool | None,
        typer.Option("--sample/--no-sample", help="sample the latents; by default only with --seed, else their mean"),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    weights: Weights = None,
    kernels: Kernels = None,
    adapter: Adapter = None,
    revision: Revision = None,
    strict: Strict = True,
    backend: Backend = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Transcribe AUDIO, or answer an instruction about it; text is printed as it comes.

    Several files run as a batch: a line each, file and text, or with --json an object each.
    """
    if audio.count("-") > 1:
        raise InputError("AUDIO: standard input can be read once only")
    options = {
        "instruction": instruction,
        "language": language,
        "hotwords": None if hotwords is None else hotwords.split(","),
        "max_new_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
        "sample": sample,
    }
    which = {"adapter": adapter, "revision": revision, "strict": strict}
    with loaded(model, device, dtype, backend, quiet or as_json, weights=weights, kernels=kernels, **which) as ming:
        parts = []
        if len(audio) > 1:
            _print_transcripts(audio, ming.transcribe_batch(audio, errors="return", **options), as_json)
            return
        for part in ming.transcribe_stream(audio[0], **options):
            parts.append(part)
            if not as_json:
                print(part.text, end="", flush=True)
        if not as_json:
            print(flush=True)  # before the notes that come when the model goes
    if as_json:
        text = "".join(part.text for part in parts)
        found = parts[-1].language
        terminal.emit({"text": text, "language": found, "stats": parts[-1].stats.as_dict()})
        return
    terminal.say(str(parts[-1].stats), quiet)


def _print_transcripts(names: list[str], results: list, as_json: bool) -> None:
    """A line for each of `names`; raises InputError behind the last when some results are errors."""
    failed = 0
    for name, result in zip(names, results):
        if isinstance(result, BaseException):
            failed += 1
            line = {"audio": name, "error": str(result)}
            terminal.say(f"{name}: {result}", False)
        else:
            line = {"audio": name, "text": result.text, "language": result.language, "stats": result.stats.as_dict()}
            if not as_json:
                print(name, " ".join(result.text.split()), sep="\t", flush=True)
        if as_json:
            print(json.dumps(line, ensure_ascii=False), flush=True)
    if failed:
        raise InputError(f"AUDIO: {failed} of {len(names)} could not be transcribed")


@app.command()
def edit(
    audio: Audio,
    instruction: Annotated[str, typer.Argument(help='what to change; "-" reads standard input')],
    model: Model = "tiny",
    out: Out = None,
    stream: Stream = False,
    reasoning: Annotated[
        bool | None,
        typer.Option(
            "--reasoning/--no-reasoning", help="write the new text before speaking it; by default by the kind of edit"
        ),
    ] = None,
    prefix: Annotated[bool, typer.Option(help="begin the instruction as in training")] = True,
    max_tokens: MaxTokens = 512,
    seed: Seed = None,
    steps: Steps = 10,
    guidance: Guidance = 2.0,
    temperature: Temperature = 1.5,
    min_seconds: MinSeconds = None,
    max_seconds: MaxSeconds = None,
    context_seconds: ContextSeconds = None,
    context_format: ContextFormat = None,
    format: Format = None,
    subtype: Subtype = "int16",
    device: Device = None,
    dtype: Dtype = None,
    weights: Weights = None,
    kernels: Kernels = None,
    adapter: Adapter = None,
    revision: Revision = None,
    strict: Strict = True,
    backend: Backend = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Change AUDIO as the instruction says; prints the text that the edit speaks."""
    from ..audio.files import require_other_file

    if audio == instruction == "-":
        raise InputError("AUDIO and INSTRUCTION cannot both be standard input")
    change = terminal.read_text(instruction)
    target, container = output(out, "edited.wav", stream, format)
    require_other_file(audio, target)
    which = {"adapter": adapter, "revision": revision, "strict": strict}
    with loaded(
        model,
        device,
        dtype,
        backend,
        quiet or as_json,
        target,
        container,
        subtype,
        weights=weights,
        kernels=kernels,
        task="edit",
        **which,
    ) as ming:
        with terminal.progress("editing", quiet, max_seconds) as progress:
            chunks = ming.edit_stream(
                audio,
                change,
                seed=seed,
                steps=steps,
                guidance=guidance,
                temperature=temperature,
                min_seconds=min_seconds,
                max_seconds=max_seconds,
                max_new_tokens=max_tokens,
                reasoning=reasoning,
                prefix=prefix,
                context_seconds=context_seconds,
                context_format=context_format,
                progress=progress,
            )
            result = save(chunks, ming.sample_rate, target, container, subtype)
    report(result, target, as_json, quiet)


@app.command()
def voice(
    audio: Audio,
    model: Model = "tiny",
    out: Annotated[str, typer.Option("--out", "-o", help="the voice file, .safetensors")] = "voice.safetensors",
    transcript: Annotated[str, typer.Option(help="what the recording says")] = "",
    seed: Annotated[int, typer.Option(help="the same seed gives the same voice")] = 0,
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
    """Make a voice file of AUDIO, for `tts --voice FILE`: encoded once, used often."""
    from ..audio.files import require_other_file

    if Path(out).suffix != ".safetensors":
        raise InputError(f"output {out!r}: must end in .safetensors")
    require_other_file(audio, out)
    which = {"adapter": adapter, "revision": revision, "strict": strict}
    with loaded(model, device, dtype, backend, quiet or as_json, out, "pcm", weights=weights, **which) as ming:
        made = ming.voice(audio, transcript, seed=seed)
        made.save(out)
        seconds = len(made.latents) * ming.model.config.hop_samples / ming.sample_rate
    if as_json:
        terminal.emit({"out": out, "seconds": seconds, "transcript": made.transcript})
    else:
        terminal.say(f"{out}: {seconds:.1f} s of voice", quiet)


for _command in (codec_commands.encode, codec_commands.decode, codec_commands.roundtrip):
    app.command()(_command)
app.command()(profile_command.profile)
app.command()(bench_command.bench)


@app.command()
def info(
    checkpoint: Checkpoint = "tiny",
    plan: Annotated[bool, typer.Option("--plan", help="what it would take of memory, instead")] = False,
    batch: Annotated[list[int] | None, typer.Option(help="with --plan: requests at once")] = None,
    minutes: Annotated[
        list[float] | None, typer.Option(help="with --plan: of audio in the caches of a request")
    ] = None,
    context_seconds: ContextSeconds = None,
    context_format: ContextFormat = None,
    weights: Weights = None,
    device: Device = None,
    dtype: Dtype = None,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Describe a checkpoint, or plan its memory, by reading headers only."""
    from ..api import info as facts
    from .tables import show_info, show_plan

    if plan:
        made = facts.plan(
            checkpoint,
            device=device,
            dtype=dtype,
            weights=weights,
            batches=batch or (1, 8, 64),
            minutes=minutes or (1, 10, 60),
            context_seconds=context_seconds,
            context_format=context_format,
            revision=revision,
        )
        if as_json:
            terminal.emit(made.as_dict())
        else:
            show_plan(made)
        return
    found = facts.describe(checkpoint, revision)
    if as_json:
        terminal.emit(found)
    else:
        show_info(found)


@app.command()
def precision(
    checkpoint: Checkpoint = "tiny",
    weights: Annotated[str, typer.Option(help="the format to look at: fp16, bf16, int8, int8_dyn or fp8")] = "int8",
    audio: Annotated[str | None, typer.Option(help="a recording; by default the checkpoint's voice")] = None,
    text: Annotated[str | None, typer.Option(help="what the recording says")] = None,
    device: Device = None,
    dtype: Dtype = None,
    backend: Backend = None,
    as_json: Json = False,
) -> None:
    """Measure the error of a weight format: the checkpoint in it against itself, on real inputs.

    Layer by layer from the file, so that a checkpoint that does not fit in memory can be measured.
    """
    from .options import measured
    from .tables import show_precision

    found = measured(checkpoint, weights, audio, text, device, dtype, backend)
    if as_json:
        terminal.emit(found.as_dict())
    else:
        show_precision(found)


app.command("compile")(compile_command.compile_kernels)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Show what this machine offers and which kernels would run on it; says when to `verify`."""
    from .doctor import examine
    from .tables import show_doctor

    found = examine()
    if as_json:
        terminal.emit(found)
    else:
        show_doctor(found)


@app.command()
def verify(
    ops: Annotated[list[str] | None, typer.Argument(help="which; by default all")] = None,
    backend: Annotated[str | None, typer.Option(help="triton or cuda; by default both")] = None,
    timeout: Annotated[float, typer.Option(help="seconds for the whole run")] = 600.0,
    folder: Annotated[Path | None, typer.Option(help="where records go; by default the user's cache")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run the GPU kernels' tests on this GPU and record those that pass; status 1 if any failed.

    Kernels with a record are selected automatically from then on; without one a GPU kernel runs only if it is named.
    """
    from dataclasses import asdict

    from ..ops._core.verify import run as prove

    results = prove(
        ops or None,
        None if backend is None else [backend],
        timeout_s=timeout,
        folder=folder,
        progress=None if as_json else lambda result: print(result, flush=True),
    )
    if as_json:
        terminal.emit({"kernels": [asdict(result) for result in results]})
    passed = sum(result.passed for result in results)
    terminal.say(f"{passed} of {len(results)} kernels proven on this GPU", quiet or as_json)
    if passed < len(results):
        raise typer.Exit(FAILED)


@app.callback(invoke_without_command=True)
def top(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="print the version")] = False
) -> None:
    if version:
        print(f"mingcore {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: list[str] | None = None) -> None:
    """Runs one command and exits with its status."""
    let_idle_threads_sleep()
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Runs one command -> its exit status."""
    terminal.replace_closed_streams()
    usage_error = typer.BadParameter.__mro__[2]  # Click's base class of usage errors
    try:
        status = app(args=arguments, prog_name="mingcore", standalone_mode=False)
        sys.stdout.flush()
    except MingError as error:
        terminal.say(f"mingcore: {error}")
        return BAD_INPUT
    except usage_error as error:
        hint = ""
        if type(error).__name__ == "NoSuchOption":
            hint = "; a text that begins with a dash goes behind --, as in: tts -- '-5 degrees'"
        terminal.say(f"mingcore: {error.format_message()}{hint}")
        return BAD_INPUT
    except BrokenPipeError:
        terminal.silence_stdout()
        return CLOSED_PIPE
    except OSError as error:
        terminal.say(f"mingcore: {terminal.os_error(error)}")
        terminal.silence_stdout()
        return BAD_INPUT
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except SystemExit as error:
        # Typer raises SystemExit for a closed pipe
        if isinstance(error.__context__, BrokenPipeError):
            terminal.silence_stdout()
            return CLOSED_PIPE
        raise
    return status if isinstance(status, int) else 0
