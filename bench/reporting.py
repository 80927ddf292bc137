"""How benches speak: aligned tables, one JSON line last, results kept with their machine."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mingcore.testing import machine

RESULTS = Path(__file__).resolve().parent / "results"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns aligned, the first to the left, the others to the right; floats to 3-4 digits."""
    cells = [[str(h) for h in head], *([show(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = []
    for row in cells:
        first, *rest = (c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths)))
        lines.append("  ".join((first, *rest)).rstrip())
    lines.insert(1, "-" * max(len(line) for line in lines))
    return "\n".join(lines)


def show(value: Any) -> str:
    """One cell."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if value == 0:
            return "0"
        if abs(value) >= 100:
            return f"{value:.0f}"
        return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"
    return str(value)


def result(kind: str, **content: Any) -> dict[str, Any]:
    """A JSON-ready result that names its machine, versions and commit."""
    return {"kind": kind, "machine": machine.describe(), **content}


def keep(name: str, content: dict[str, Any], folder: Path | None = None) -> Path:
    """Write `content` to `folder`, by default bench/results/<machine>; returns the file."""
    folder = folder or RESULTS / machine.slug()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def kept(name: str, folder: Path) -> dict[str, Any] | None:
    """What `keep` wrote there, or None."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def joined(
    before: dict[str, Any] | None,
    content: dict[str, Any],
    keys: Sequence[str],
    order: Callable[[dict[str, Any]], Any] | None = None,
    same: Sequence[str] = ("layers",),
) -> dict[str, Any]:
    """A result with the rows of an earlier part of the same series, but for those with equal `keys`
    that it has itself. SystemExit when the machines, threads, commits, or one of `same` differ."""
    if before is None:
        return content
    for what in ("cpu", "threads", "gpu", "commit"):
        old, new = before["machine"][what], content["machine"][what]
        if old != new:
            raise SystemExit(f"--add to a result of another {what}: {old}, not {new}")
    for what in same:
        if before.get(what) != content.get(what):
            raise SystemExit(f"--add to a result of other {what}: {before[what]}, not {content[what]}")
    fresh = {tuple(row[key] for key in keys) for row in content["rows"]}
    old = [row for row in before["rows"] if tuple(row[key] for key in keys) not in fresh]
    seen = dict(content.get("ceilings", {}))
    for device, best in before.get("ceilings", {}).items():  # the highest that any part saw
        now = seen.get(device, best)
        higher = {key: max(best[key], now[key]) for key in ("read_gbs", "copy_gbs")}
        gemms = {k: max(v, now["gemm_tflops"][k]) for k, v in best["gemm_tflops"].items()}
        seen[device] = {**now, **higher, "gemm_tflops": gemms}
    rows = old + content["rows"]
    merged = {**content, "rows": sorted(rows, key=order) if order else rows}
    if seen:
        merged["ceilings"] = seen
    if isinstance(content.get("lacking"), dict):
        merged["lacking"] = {**before["lacking"], **content["lacking"]}
    return merged


def counts(text: str) -> tuple[int, ...]:
    """An option's numbers by comma, all >= 1."""
    found = tuple(map(int, text.split(",")))
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"must be >= 1, got {min(found)}")
    return found


def last_line(content: dict[str, Any]) -> None:
    """Print `content` as one line of JSON: the last line of every bench."""
    print(json.dumps(content, separators=(",", ":")), flush=True)
