"""The result of `mingcore bench` as tables, and its stages as a chart."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any

from ..benchmark.lockstep import STAGES
from .terminal import size

PATCH_MS = 100.0
COLOURS = {"flow": "#2f6fb0", "decode": "#c2571a", "semantic": "#3c8a4e", "llm": "#8a4fa3"}


def tables(result: Mapping[str, Any]) -> list[Any]:
    """rich tables: latency and throughput of requests; the stages of a patch."""
    return [_requests(result), *([_stages(result)] if _sides(result) else [])]


def lines(result: Mapping[str, Any]) -> list[str]:
    """What the tables do not show; the first line names the measurement."""
    first, where = result["first_audio_ms"], result["machine"]
    gpu = where["gpu"]
    found = [
        f"{result['size']}{', random weights' * result['random_weights']}, {result['weights']}, on "
        f"{gpu['name'] if gpu and result['device'] != 'cpu' else where['cpu']}; "
        f"prompt: {result['prompt']}",
        f"first audio of a request alone: {first['p50']:.1f} ms, p95 {first['p95']:.1f} ms, of {first['count']}",
    ]
    if "speedup" in result:
        ratio = result["speedup"]
        found.append(
            f"{ratio['median']:.2f} times as fast as the eager baseline in {result['dtype']} "
            f"({ratio['p10']:.2f} to {ratio['p90']:.2f}, {ratio['rounds']} patches in turns)"
        )
    if result.get("floors", {}).get("times"):
        found.append(_floors(result))
    return found + [f"left out: {line}" for line in result["left_out"]]


def _floors(result: Mapping[str, Any]) -> str:
    """The floors of the stages, and the rates and bytes that they follow from."""
    found = result["floors"]
    rates = ", ".join(
        f"{kind} {product['tflops']:.2f} TFLOP/s ({product['way']})" for kind, product in found["products"].items()
    )
    where = "from memory" if found["cold"] else "in the cache, so that bytes do not count"
    bound = ", ".join(
        f"{name} {stage['times']:.2f} ({stage['bound']})" for name, stage in found["stages"].items() if stage["times"]
    )
    other = found.get("in_bf16")
    return (
        f"a patch takes {found['times']:.2f} times its stages' floors, {found['patch_ms']:.1f} ms: "
        f"{bound}; read {found['read_gbs']:.0f} GB/s, products {rates}; a patch touches "
        f"{size(round(found['touched_bytes']))}, {where}"
        + (
            f"; were products with narrow weights bfloat16's, {other['times']:.2f} times {other['patch_ms']:.1f} ms"
            if other and other["times"]
            else ""
        )
    )


def console() -> Any:
    """The console of the tables; 120 columns wide where standard output is no terminal."""
    from rich.console import Console

    made = Console(highlight=False, soft_wrap=True)
    return made if made.is_terminal else Console(highlight=False, soft_wrap=True, width=120)


def _requests(result: Mapping[str, Any]) -> Any:
    from rich.table import Table

    names = (
        "at once",
        "first audio",
        "patch p50",
        "p95",
        "p99",
        "RTF",
        "longest gap",
        "late",
        "sound s/s",
        "peak memory",
    )
    table = Table(*(_column(name) for name in names), box=None)
    for row in result["batches"]:
        patch, peak = row["patch_ms"], row["peak_memory_bytes"]
        table.add_row(
            str(row["batch"]),
            f"{row['first_audio_ms']['p50']:.0f} ms",
            *(f"{patch[p]:.1f}" for p in ("p50", "p95", "p99")),
            f"{row['real_time_factor']:.3f}",
            f"{row['gap_ms']['max']:.0f}",
            str(row["underruns"]),
            f"{row['throughput']:.2f}",
            "-" if peak is None else size(peak),
        )
    return table


def _stages(result: Mapping[str, Any]) -> Any:
    from rich.table import Table

    table = Table(*(_column(n) for n in ("at once", "ms", *STAGES, "patch", "x")), box=None)
    for batch, side, found in _sides(result):
        ratio = found.get("speedup")
        table.add_row(
            str(batch),
            side,
            *(f"{found[side]['stages_ms'][stage]['median']:.2f}" for stage in STAGES),
            f"{found[side]['patch_ms']['median']:.1f}",
            f"{ratio['median']:.2f}" if ratio and side == "ours" else "",
        )
        if side == "ours" and "floors" in found:
            floors = found["floors"]
            table.add_row(
                "",
                "floor",
                *(f"{floors['stages'][stage]['floor_ms']:.2f}" for stage in STAGES),
                f"{floors['patch_ms']:.1f}",
                "",
            )
    return table


def _column(name: str) -> Any:
    from rich.table import Column

    return Column(name, justify="left" if name == "ms" else "right")


def _sides(result: Mapping[str, Any]) -> list[tuple[int, str, Mapping[str, Any]]]:
    return [
        (row["batch"], side, row["stages"])
        for row in result["batches"]
        if "stages" in row
        for side in ("ours", "eager")
        if side in row["stages"]
    ]


def chart(result: Mapping[str, Any]) -> bytes:
    """A PNG: for each number of requests a stacked bar of the stages of each side, and of the floors of ours.

    Raises InputError, naming the extra, where matplotlib is missing.
    """
    from ..audio.plot import require_matplotlib

    require_matplotlib()
    from matplotlib.figure import Figure

    sides = _sides(result)
    count = len(sides) + sum(side == "ours" and "floors" in found for _, side, found in sides)
    figure = Figure(figsize=(9, 1.6 + 0.42 * max(count, 1)), layout="constrained")
    axes = figure.subplots()
    stacks = []
    for batch, side, found in sides:
        took = {stage: found[side]["stages_ms"][stage]["median"] for stage in STAGES}
        stacks.append((f"{side}, {batch} at once", took))
        if side == "ours" and "floors" in found:
            floors = found["floors"]["stages"]
            floor = {stage: floors[stage]["floor_ms"] for stage in STAGES}
            stacks.append((f"floor, {batch} at once", floor))
    labels = [label for label, _ in stacks]
    starts = [0.0] * len(stacks)
    for stage in STAGES:
        widths = [took[stage] for _, took in stacks]
        axes.barh(labels, widths, left=starts, color=COLOURS[stage], label=stage, height=0.7)
        starts = [start + width for start, width in zip(starts, widths)]
    for label, end in zip(labels, starts):
        axes.text(end, label, f" {end:.3g} ms", va="center", fontsize=8)
    if max(starts, default=0.0) > 0.5 * PATCH_MS:
        axes.axvline(PATCH_MS, color="#444", lw=1, ls="--", label="real time")
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds per patch of 100 ms, medians")
    axes.set_title(lines(result)[0], fontsize=9, loc="left")
    axes.legend(fontsize=8, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    axes.margins(x=0.12)
    file = BytesIO()
    figure.savefig(file, format="png", dpi=130, metadata={"Software": None})
    return file.getvalue()
