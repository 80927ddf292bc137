"""Charts of the report as inline SVG: nothing to load, sharp at any size, a hint on every mark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

WIDTH = 760
SHAPES = {"fp32": "circle", "bf16": "square", "fp16": "triangle", "int8": "diamond", "int8_dyn": "cross"}


def roofline(rows: Sequence[dict[str, Any]], ceilings: dict[str, Any]) -> str:
    """Rows by operations per byte and TFLOP/s, below the measured read and products; log scales.
    A colour is a section, a shape a dtype."""
    rows = [row for row in rows if row["intensity"] and row["tflops"]]
    if not rows:
        return "<p>No row has bytes and operations.</p>"
    height, left, right, top, bottom = 460, 66, 16, 14, 50
    read = ceilings["read_gbs"] * 1e-3
    roofs = {kind: gemm["tflops"] for kind, gemm in ceilings["gemms"].items()}
    xs = [row["intensity"] for row in rows]
    ys = [row["tflops"] for row in rows]
    x0, x1 = _decade(min(xs), down=True), _decade(max(*xs, *(v / read for v in roofs.values())))
    y0, y1 = _decade(min(ys), down=True), _decade(max(*ys, *roofs.values()))

    def px(x: float) -> float:
        return left + (WIDTH - left - right) * math.log(x / x0) / math.log(x1 / x0)

    def py(y: float) -> float:
        return height - bottom - (height - top - bottom) * math.log(y / y0) / math.log(y1 / y0)

    parts = []
    for value in _decades(x0, x1):
        parts.append(_line(px(value), top, px(value), height - bottom, "grid"))
        parts.append(_text(px(value), height - bottom + 20, f"{value:g}", "middle"))
    for value in _decades(y0, y1):
        parts.append(_line(left, py(value), WIDTH - right, py(value), "grid"))
        parts.append(_text(left - 8, py(value) + 5, f"{value:g}", "end"))
    parts.append(_text((left + WIDTH) / 2, height - 8, "operations per byte", "middle"))
    parts.append(
        f'<text class="t" transform="translate(16 {height / 2}) rotate(-90)" text-anchor="middle">TFLOP/s</text>'
    )
    start = max(x0, y0 / read)
    for i, (kind, roof) in enumerate(sorted(roofs.items(), key=lambda item: item[1])):
        knee = min(roof / read, x1)
        if i == len(roofs) - 1:
            parts.append(_line(px(start), py(start * read), px(knee), py(knee * read), "roof"))
        parts.append(_line(px(knee), py(roof), px(x1), py(roof), "roof"))
        parts.append(_text(px(x1) - 6, py(roof) - 5, f"{kind} {roof:.2f}", "end"))
    mid = math.sqrt(start * min(max(roofs.values(), default=start * read) / read, x1))
    parts.append(_text(px(mid) - 10, py(mid * read) - 10, f"read {read * 1e3:.0f} GB/s", "end"))
    colours = {section: i for i, section in enumerate(dict.fromkeys(r["section"] for r in rows))}
    for row in rows:
        title = (
            f"{row['op']} {row['case']} {row['dtype']}: {_time(row['us'])}, "
            f"{row['gbs']:.1f} GB/s, {row['tflops']:.3f} TFLOP/s, "
            f"{100 * row['share']:.0f} % of the roof"
        )
        shape = _shape(SHAPES.get(row["dtype"], "circle"), px(row["intensity"]), py(row["tflops"]))
        kind = f"p c{colours[row['section']]}"
        parts.append(f'<g class="{kind}">{shape}<title>{escape(title)}</title></g>')
    legend = _legend([(f"c{i}", section) for section, i in colours.items()])
    for kind in SHAPES:
        if any(row["dtype"] == kind for row in rows):
            key = f'<svg class="key p" viewBox="0 0 16 16">{_shape(SHAPES[kind], 8, 8)}</svg>'
            legend += f'<span class="legend"><span>{key}{kind}</span></span>'
    return _svg(height, parts, "Roofline: operations per second over operations per byte") + legend


def stacked(
    bars: Sequence[tuple[str, dict[str, float], float]], names: Sequence[str], mark: float | None = None
) -> str:
    """Horizontal bars of parts in ms, one after the other, with the whole in ms behind them;
    `mark` draws a line at so many ms."""
    left, row, top = 250, 34, 8
    height = top + row * len(bars) + 40
    most = max([sum(parts.values()) for _, parts, _ in bars] + [mark or 0.0])
    scale = (WIDTH - left - 90) / most
    parts = []
    for i, (label, stages, whole) in enumerate(bars):
        y, x = top + i * row, float(left)
        parts.append(_text(left - 8, y + 20, label, "end"))
        for j, name in enumerate(names):
            width = stages.get(name, 0.0) * scale
            title = escape(f"{label}: {name} {stages.get(name, 0.0):.1f} ms")
            parts.append(
                f'<rect class="b c{j}" x="{x:.1f}" y="{y + 4}" width="{width:.1f}" '
                f'height="{row - 10}"><title>{title}</title></rect>'
            )
            x += width
        parts.append(_text(x + 6, y + 20, f"{whole:.0f} ms", "start"))
    if mark is not None:
        x, y = left + mark * scale, top + row * len(bars)
        parts.append(_line(x, top, x, y + 6, "mark"))
        parts.append(_text(x, y + 24, f"{mark:g} ms: real time", "middle"))
    legend = _legend([(f"c{j}", name) for j, name in enumerate(names)])
    return _svg(height, parts, "Milliseconds by part") + legend


def _time(us: float) -> str:
    return f"{us:.1f} µs" if us < 1e3 else f"{us * 1e-3:.2f} ms"


def _decade(value: float, down: bool = False) -> float:
    exponent = math.log10(value)
    return 10.0 ** (math.floor(exponent) if down else math.ceil(exponent))


def _decades(low: float, high: float) -> list[float]:
    return [10.0**e for e in range(round(math.log10(low)), round(math.log10(high)) + 1)]


def _svg(height: float, parts: list[str], label: str) -> str:
    return (
        f'<div class="scroll"><svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg></div>'
    )


def _line(x0: float, y0: float, x1: float, y1: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="t" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _shape(kind: str, x: float, y: float) -> str:
    r = 5.0
    if kind == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r - 0.5}"/>'
    corners = {
        "square": ((-4, -4), (4, -4), (4, 4), (-4, 4)),
        "triangle": ((0, -r), (r, 4), (-r, 4)),
        "diamond": ((0, -6), (6, 0), (0, 6), (-6, 0)),
        "cross": (
            (-5, -2),
            (-2, -2),
            (-2, -5),
            (2, -5),
            (2, -2),
            (5, -2),
            (5, 2),
            (2, 2),
            (2, 5),
            (-2, 5),
            (-2, 2),
            (-5, 2),
        ),
    }[kind]
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon points="{points}"/>'


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    spans = (f'<span><i class="key b {kind}"></i>{escape(name)}</span>' for kind, name in entries)
    return f'<p class="legend">{"".join(spans)}</p>'
