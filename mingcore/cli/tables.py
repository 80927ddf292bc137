"""Tables of `mingcore info`, `doctor`, `roundtrip` and `precision`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from ..fidelity import RoundTrip
from .doctor import NO_GPU, is_unproven
from .terminal import count, size

if TYPE_CHECKING:
    from ..model.memory_plan import MemoryPlan
    from ..precision import Precision


def show_info(facts: Mapping[str, Any]) -> None:
    """Prints the result of `info.describe`."""
    console = Console(highlight=False)
    console.print(f"[bold]{facts['name']}[/]  ({facts['source']})")
    if facts["warning"]:
        console.print(f"[yellow]{facts['warning']}[/]")
    kinds = ", ".join(f"{dtype} {count(n)}" for dtype, n in facts["dtypes"].items())
    files = f"{facts['files']} file" + ("s" if facts["files"] > 1 else "")
    console.print(
        f"{count(facts['parameters'])} parameters, {count(facts['active_parameters'])} active; "
        f"{size(facts['bytes'])} in {files} ({kinds})"
    )
    table = table_of("part", "parameters", "bytes", "dimensions")
    dims = dict(facts["dims"])
    for row in facts["parts"]:
        # the LLM's dimensions are shown once, in its first row
        own = dims.pop("LLM" if row["part"].startswith("LLM") else row["part"], {})
        table.add_row(
            row["part"],
            count(row["parameters"]),
            size(row["bytes"]),
            ", ".join(f"{name} {value}" for name, value in own.items()),
        )
    console.print(table)
    rates = facts["rates"]
    console.print(
        f"sound {rates['sample_rate']} Hz; {rates['latents_per_second']:g} latents of "
        f"{rates['latent_dim']} and {rates['patches_per_second']:g} LLM tokens per second "
        f"(one patch is {rates['patch_ms']:g} ms)"
    )
    console.print(
        f"caches grow per second of sound by {size(rates['llm_cache_bytes_per_second'])} (LLM) and "
        f"{size(rates['semantic_cache_bytes_per_second'])} (semantic module), 16 bits per value"
    )
    voices = ", ".join(facts["voices"]) or "none"
    console.print(f"tokenizer: {'yes' if facts['tokenizer'] else 'none'}; voices: {voices}")


def show_doctor(facts: Mapping[str, Any]) -> None:
    """Prints the result of `doctor.examine`."""
    console = Console(highlight=False)
    cpu = facts["cpu"]
    console.print(f"[bold]mingcore {facts['mingcore']}[/], Python {facts['python']}, {facts['platform']}")
    native = f"kernels for {cpu['isa']}" if cpu["isa"] else "no native kernels"
    console.print(f"CPU: {cpu['name']}, {cpu['cores']} cores, {cpu['threads']} threads, {native}")
    for gpu in facts["gpus"]:
        console.print(f"GPU: {gpu['name']}, {gpu['architecture']}, {size(gpu['memory'])}, CUDA {gpu['cuda']}")
    if not facts["gpus"]:
        console.print("GPU: none that PyTorch can use")
    packages = (f"{name} {version or '[dim]missing[/]'}" for name, version in facts["packages"].items())
    console.print("packages: " + ", ".join(packages))
    for name, value in facts["environment"].items():
        console.print(f"{name}={value}")
    console.print(f"cache: {facts['cache']}")
    backends = list(next(iter(facts["ops"].values()), {}))
    table = table_of("op", *backends)
    for op, row in facts["ops"].items():
        table.add_row(op, *(_cell(row[b]) for b in backends))
    console.print(table)
    for name, reason in facts["backends"].items():
        if reason is not None:
            console.print(f"{name}: {reason}")
    for line in facts["advice"]:
        console.print(f"[yellow]{line}[/]")


def show_roundtrip(trip: RoundTrip) -> None:
    """Prints the distances and times of a round trip."""
    table = table_of("", "", "")
    rows = (
        ("sound", f"{trip.seconds:.2f} s", f"{trip.sample_rate} Hz, {trip.frames} frames"),
        ("log-spectral distance", f"{trip.log_spectral_distance:.2f} dB", "0 is equal"),
        ("SI-SNR", f"{trip.si_snr:.2f} dB", "inf is equal up to a factor"),
        ("encoding", f"{trip.encode_seconds:.3f} s", _speed(trip.encode_seconds, trip)),
        ("decoding", f"{trip.decode_seconds:.3f} s", _speed(trip.decode_seconds, trip)),
    )
    for row in rows:
        table.add_row(*row)
    table.show_header = False
    Console(highlight=False).print(table)


def show_plan(plan: MemoryPlan) -> None:
    """Prints what a model would take of memory."""
    console = Console(highlight=False)
    table = table_of("weights", "format", "bytes")
    for row in plan.weights:
        table.add_row(row.part, row.format, size(row.bytes))
    table.add_row("all weights", plan.formats.weights, size(plan.weights_bytes))
    console.print(table)
    names = ("requests", "minutes", "LLM cache", "semantic cache", "decoder", "workspace", "in all")
    table = table_of(*names, "fits")
    marks = {True: "[green]yes[/]", False: "[red]no[/]", None: "?"}
    for r in plan.requests:
        sizes = (r.llm_cache, r.semantic_cache, r.vae_states, r.workspace, plan.total(r))
        row = (str(r.batch), f"{r.minutes:g}", *map(size, sizes), marks[plan.fits(r)])
        table.add_row(*row)
    console.print(table)
    memory = plan.memory
    if memory is None:
        console.print(f"{plan.device}: not here, so what it has is not known")
    else:
        console.print(
            f"{plan.device}: {size(memory.available)} available of {size(memory.total)}; minutes "
            "are of one run: long texts are spoken in segments, whose caches start anew"
        )


def show_precision(found: Precision) -> None:
    """Prints the errors of a weight format."""
    table = table_of(f"{found.weights} against {found.reference}", "error", "")
    rows = (
        ("encoder: mean of the latents", found.encoding, ""),
        ("semantic module: unified embedding", found.unified, ""),
        ("decoder: sound", found.decoding, ""),
        ("language model: hidden states", found.hidden, "with the semantic module's"),
        ("flow head: velocity", found.velocity, "worst of the path, equal conditions"),
        ("flow head: latents", found.latents, "equal conditions"),
        ("flow head: latents, with all before them", found.latents_in_all, ""),
        ("text: logits", found.logits, ""),
    )
    for name, value, remark in rows:
        table.add_row(name, "-" if value is None else f"{100 * value:.2f} %", remark)
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"text: the likeliest token agrees in {100 * found.top1:.1f} % of {found.tokens}; "
        f"KL {found.kl_mean:.2g} nats in the mean, {found.kl_max:.2g} at most"
    )
    console.print(
        f"stop probability: {found.stop:.2g} at most; over {found.patches} patches of "
        f"{found.inputs}; errors are relative (L2)"
    )


def _speed(seconds: float, trip: RoundTrip) -> str:
    return f"real-time factor {seconds / trip.seconds:.3f}"


def _cell(reason: str | None) -> str:
    if reason is None:
        return "[green]yes[/]"
    if is_unproven(reason):
        return "[yellow]unproven[/]"
    return reason if reason == NO_GPU else "-"


def table_of(*columns: str) -> Table:
    """An empty table in the common style."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
