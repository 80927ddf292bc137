"""The commands `encode`, `decode` and `roundtrip`; see `cli`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from . import terminal
from .options import (
    Adapter,
    Audio,
    Backend,
    Device,
    Dtype,
    FilterOut,
    Format,
    Json,
    Model,
    Quiet,
    Revision,
    Sample,
    Seed,
    Strict,
    Subtype,
    Weights,
    loaded,
    report,
    save,
)


def encode(
    audio: Audio,
    model: Model = "tiny",
    out: FilterOut = None,
    format: Annotated[
        str | None, typer.Option(help="of headerless samples: s16le or f32le; else a header says")
    ] = None,
    rate: Annotated[int, typer.Option(help="of headerless samples, in Hz")] = 16000,
    channels: Annotated[int, typer.Option(help="of headerless samples, interleaved")] = 1,
    sample: Sample = False,
    seed: Seed = None,
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
    """Turn AUDIO into latents, 50 frames of 64 per second, as safetensors.

    A WAV stream or headerless samples on standard input are encoded as they come.
    """
    from ..audio.files import require_other_file
    from . import pipes

    target = pipes.output(audio, out, "latents.safetensors")
    require_other_file(audio, target)
    which = {"adapter": adapter, "revision": revision, "strict": strict}
    with loaded(model, device, dtype, backend, quiet or as_json, target, "pcm", weights=weights, **which) as ming:
        frames = pipes.encode(
            ming, audio, target, format=format, rate=rate, channels=channels, sample=sample, seed=seed
        )
        width = ming.model.config.latent_dim
    if as_json:
        data = {"out": target, "frames": frames, "channels": width}
        terminal.emit(data, stdout_taken=target == "-")
    else:
        terminal.say(f"{frames} frames of {width}: {target}", quiet or target == "-")


def decode(
    latents: Annotated[str, typer.Argument(help='a file made by `encode`; "-" reads stdin')],
    model: Model = "tiny",
    out: FilterOut = None,
    format: Format = None,
    subtype: Subtype = "int16",
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
    """Turn latents, as `encode` writes them, back into sound.

    From standard input they are decoded as they come; wav and pcm go to standard output at once.
    """
    from ..audio.files import require_other_file
    from ..audio.latents import load_latents
    from . import pipes

    target = pipes.output(latents, out, "decoded.wav")
    require_other_file(latents, target)
    frames = None if latents == "-" else load_latents(latents)
    which = {"adapter": adapter, "revision": revision, "strict": strict}
    with loaded(
        model, device, dtype, backend, quiet or as_json, target, format, subtype, weights=weights, **which
    ) as ming:
        if frames is not None:
            result = save([ming.decode(frames)], ming.sample_rate, target, format, subtype)
        else:
            result = pipes.decode(ming, target, format, subtype)
    report(result, target, as_json, quiet)


def roundtrip(
    audio: Audio,
    model: Model = "tiny",
    out: Annotated[str | None, typer.Option("--out", "-o", help="also write the reconstruction to this file")] = None,
    plot: Annotated[str | None, typer.Option(help="a PNG of both spectrograms; needs mingcore[plot]")] = None,
    sample: Sample = False,
    seed: Seed = None,
    format: Format = None,
    subtype: Subtype = "int16",
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
    """Encode and decode AUDIO and report the distances of the result from it, in dB."""
    from ..audio.files import check_writable, require_other_file, write_audio
    from ..audio.plot import require_matplotlib, spectrograms
    from .tables import show_roundtrip

    if plot is not None:
        if Path(plot).suffix.lower() != ".png":
            raise InputError(f"plot {plot!r}: must end in .png")
        require_matplotlib()
        check_writable(plot, "pcm")
    if out == "-":
        raise InputError("output: standard output has the report; name a file")
    for each in (out, plot):
        require_other_file(audio, each)
    which = {"adapter": adapter, "revision": revision, "strict": strict}
    with loaded(
        model, device, dtype, backend, quiet or as_json, out, format, subtype, weights=weights, **which
    ) as ming:
        trip = ming.roundtrip(audio, sample=sample, seed=seed)
    if out is not None:
        write_audio(out, trip.reconstruction, trip.sample_rate, format=format, subtype=subtype)
    if plot is not None:
        terminal.write_bytes(plot, spectrograms(trip))
    found = {"audio": audio, "out": out, "plot": plot} | trip.as_dict()
    if as_json:
        terminal.emit(found)
    else:
        show_roundtrip(trip)
