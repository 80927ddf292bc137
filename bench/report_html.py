"""report.html from the content of results.json: one file, from disk, without network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import report_svg
import reporting

TEMPLATE = Path(__file__).resolve().parent / "report_template.html"
STAGES = ("flow", "decode", "semantic", "llm")
PHASES = ("qkv", "rope", "attention", "out", "up", "down", "other")
PATCH_MS = 100.0
REPOSITORY_NOTE = (
    "µs are medians; × is how many times faster than the best baseline in PyTorch that took turns with "
    "ours, the median of the rounds' ratios, with its 10th and 90th percentile. “% roof” is the least "
    "time that the measured ceilings allow, over the time taken; “limit” says which ceiling that is."
)


def page(content: dict[str, Any]) -> str:
    """The whole document."""
    where = content["machine"]
    title = f"mingcore on {where['cpu']}, {where['cores']} cores"
    sections = [
        ("bars", "What was wanted", _targets(content["bars"])),
        ("ceilings", "Ceilings", _ceilings(content["ceilings"])),
        ("roofline", "Roofline", _roofline(content)),
        ("end-to-end", "Speech, end to end", _end_to_end(content["end_to_end"])),
    ]
    by_section: dict[str, list[dict[str, Any]]] = {}
    for row in content["rows"]:
        by_section.setdefault(row["section"], []).append(row)
    for name, rows in by_section.items():
        extra = _phases(rows) if name == "flow sampler" else ""
        sections.append((name.replace(" ", "-"), name.capitalize(), extra + _rows(name, rows)))
    sections += [
        ("formats", "Weight formats", _formats(content)),
        ("missing", "Not measured", _missing(content["missing"])),
        ("sources", "Where the figures are from", _sources(content)),
    ]
    links = "".join(f'<a href="#{key}">{escape(name)}</a>' for key, name, _ in sections)
    head = f"<h1>{escape(title)}</h1>{_machine(where)}<p>{REPOSITORY_NOTE}</p><nav>{links}</nav>"
    body = "".join(f'<section id="{key}"><h2>{escape(name)}</h2>{text}</section>' for key, name, text in sections)
    template = TEMPLATE.read_text(encoding="utf-8")
    return template.replace("{{title}}", escape(title)).replace("{{body}}", head + body)


def table(key: str, head: Sequence[str], rows: Sequence[Sequence[Any]], words: int = 1) -> str:
    """A table that sorts; the first `words` columns are text. A cell is a value, or a pair of what
    is shown and what it sorts by."""
    heads = "".join(
        f'<th scope="col" aria-sort="none"{_side(i, words)}><button type="button">{escape(h)}</button></th>'
        for i, h in enumerate(head)
    )
    lines = []
    for row in rows:
        lines.append("<tr>" + "".join(_cell(v, i, words) for i, v in enumerate(row)) + "</tr>")
    return (
        f'<div class="scroll"><table id="{key}"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _side(column: int, words: int) -> str:
    return ' class="w"' if column < words else ""


def _cell(value: Any, column: int, words: int) -> str:
    if isinstance(value, str):
        kind = f' class="{value}"' if value in ("pass", "fail") else _side(column, words)
        return f"<td{kind}>{escape(value)}</td>"
    shown = reporting.show(value)
    return f'<td data-v="{"" if value is None else repr(float(value))}">{escape(shown)}</td>'


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 1)


def _machine(where: dict[str, Any]) -> str:
    cache, memory = where["last_level_cache_bytes"] >> 20, where["memory_bytes"] / 2**30
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    isa = f", instructions: {where['isa']}" if where.get("isa") else ""
    text = (
        f"{where['cpu']}, {where['cores']} cores, {where['threads']} threads{isa}; "
        f"last cache {cache} MiB, memory {memory:.0f} GiB; {where['system']}; "
        f"Python {where['python']}, {versions}; "
        f"GPU: {where['gpu']['name'] if where['gpu'] else 'none'}"
    )
    return f'<p class="soft">{escape(text)}</p>'


def _targets(bars: list[dict[str, Any]]) -> str:
    counts = {v: sum(b["verdict"] == v for b in bars) for v in ("pass", "fail", "not measured")}
    text = f"<p>{', '.join(f'{n} {verdict}' for verdict, n in counts.items())}.</p>"
    rows = [(b["name"], b["value"], b["wanted"], b["verdict"]) for b in bars]
    return text + table("t-bars", ("target", "measured", "wanted", "verdict"), rows)


def _ceilings(ceilings: dict[str, Any] | None) -> str:
    if ceilings is None:
        return "<p>Not measured: <code>python bench/ceilings.py</code>.</p>"
    rows = [
        ("read", ceilings["read_gbs"], "GB/s", "streaming read of bfloat16 with FMA"),
        ("copy", ceilings["copy_gbs"], "GB/s", "read and written"),
    ]
    rows += [
        (f"{kind} product", gemm["tflops"], "TFLOP/s", f"a large one, fastest by {gemm['way']}")
        for kind, gemm in ceilings["gemms"].items()
    ]
    return (
        "<p>What 100 % means; the best that any kept run saw. float16 weights are held to the float32 product, "
        "int8 weights to the bfloat16 one.</p>" + table("t-ceilings", ("ceiling", "best", "unit", "how"), rows)
    )


def _roofline(content: dict[str, Any]) -> str:
    if content["ceilings"] is None:
        return "<p>Not measured: no ceilings.</p>"
    return report_svg.roofline(content["rows"], content["ceilings"])


def _weights(result: dict[str, Any]) -> str:
    """Of both sides, where they differ."""
    ours = result.get("weights", result["dtype"])
    name = f"{result['size']}, {result['dtype']}"
    return name if ours == result["dtype"] else f"{name}, ours {ours}"


def _end_to_end(results: list[dict[str, Any]]) -> str:
    results = [result for result in results if "eager" in result]
    if not results:
        return "<p>Not measured: <code>python bench/bench_e2e.py</code>.</p>"
    bars, rows = [], []
    for result in results:
        for side in ("ours", "eager"):
            stages = result[side]["stages_ms"]
            bars.append(
                (
                    f"{_weights(result)}: {side}".replace(", ours ", " → "),
                    {stage: stages[stage]["median"] for stage in STAGES},
                    result[side]["patch_ms"]["median"],
                )
            )
        parts = {stage: [result[s]["stages_ms"][stage]["median"] for s in ("ours", "eager")] for stage in STAGES}
        parts["patch"] = [result[side]["patch_ms"]["median"] for side in ("ours", "eager")]
        ratios = {**result["speedup_by_stage"], "patch": result["speedup"]}
        floors = result.get("floors")
        least = _floor_columns(floors) if floors else {}
        if floors:
            shown = {stage: floors["stages"][stage]["floor_ms"] for stage in STAGES}
            bars.insert(-1, (f"{_weights(result)}: floor".replace(", ours ", " → "), shown, floors["patch_ms"]))
        for stage, (ours, eager) in parts.items():
            ratio, columns = ratios[stage], least.get(stage, (None, None, "-"))
            rows.append((_weights(result), stage, ours, eager, ratio["median"], ratio["p10"], ratio["p90"], *columns))
        ours, eager = (result[side]["prompt_ms"] for side in ("ours", "eager"))
        rows.append((_weights(result), "prompt", ours, eager, eager / ours, *[None] * 4, "-"))
    head = ("weights", "stage", "ours ms", "eager ms", "×", "p10", "p90", "floor ms", "× floor", "limit")
    note = (
        "<p>One patch is 100 ms of sound. Eager is a port of the reference's structure in ordinary PyTorch. "
        f"Prompt: {escape(results[0]['prompt'])}.</p>"
    )
    note += "".join(_floor_note(result) for result in results if "floors" in result)
    return note + report_svg.stacked(bars, STAGES, PATCH_MS) + table("t-e2e", head, rows, words=2)


def _floor_columns(floors: dict[str, Any]) -> dict[str, tuple]:
    """Stage, and "patch", -> the least ms, how many times that was measured, and what limits."""
    stages = floors["stages"].items()
    found = {name: (s["floor_ms"], s["times"], s["bound"]) for name, s in stages}
    return {**found, "patch": (floors["patch_ms"], floors["times"], "-")}


def _floor_note(result: dict[str, Any]) -> str:
    """What a result's floors are made of."""
    floors = result["floors"]
    rates = ", ".join(f"{kind} {p['tflops']:.2f} TFLOP/s ({p['way']})" for kind, p in floors["products"].items())
    kept = "from memory" if floors["cold"] else "in the cache: bytes do not count"
    text = (
        f"Floors, {_weights(result)}: bytes over a read of {floors['read_gbs']:.0f} GB/s or "
        f"operations over the rate of one large product of the arithmetic that computes them "
        f"(16-bit and weights-only int8 weights: float32's), whichever is longer: {rates}. "
        f"A patch touches {floors['touched_bytes'] / 1e6:.0f} MB, the last level cache has "
        f"{floors['cache_bytes'] / 1e6:.0f}: {kept}."
    )
    other = floors.get("in_bf16")
    if other:
        text += (
            f" At bfloat16's rate of products they would be {other['patch_ms']:.0f} ms, of which "
            f"the patch takes {other['times']:.2f} times as much."
        )
    return f'<p class="soft">{escape(text)}</p>'


def _formats(content: dict[str, Any]) -> str:
    """What a format costs in exactness, and a patch's time in it."""
    if not content["formats"]:
        return "<p>Not measured: <code>python bench/format_cost.py --keep</code>.</p>"
    times: dict[str, float] = {}
    for result in content["end_to_end"]:
        if result["size"] == "mid" and "ours" in result:
            kept = result.get("weights", result["dtype"])
            times[kept] = result["ours"]["patch_ms"]["median"]
    rows = []
    for result in content["formats"]:
        for name, error in {"fp32": 0.0, **result["relative_l2"]}.items():
            rows.append((f"{result['size']}", name, 100 * error, times.get(name)))
    note = (
        "<p>Error: of moe_mlp's result with random weights in that format, relative (L2) to float32's. "
        "Patch: the speech loop at size mid with its weights in that format.</p>"
    )
    head = ("size", "format", "error %", "ms per patch")
    return note + table("t-formats", head, rows, words=2)


def _phases(rows: list[dict[str, Any]]) -> str:
    """Where the sampler's time goes, for one request with a patch of history."""
    found: dict[str, tuple[str, dict[str, float], float]] = {}
    for row in rows:
        if row["phases_ms"] and row["case"] == "real_11_b1":
            whole = row["us"] * 1e-3
            found.setdefault(row["dtype"], (row["dtype"], row["phases_ms"], whole))
    if not found:
        return ""
    note = (
        "<p>Parts of one call for one request, timed apart, so that they add up to more than the call, whose "
        "time is behind the bar.</p>"
    )
    return note + report_svg.stacked(list(found.values()), PHASES)


def _rows(section: str, rows: list[dict[str, Any]]) -> str:
    key = f"t-{section.replace(' ', '-')}"
    head = (
        "case",
        "op",
        "dtype",
        "cache",
        "µs",
        "GB/s",
        "% read",
        "TFLOP/s",
        "% GEMM",
        "% roof",
        "limit",
        "×",
        "p10",
        "p90",
        "best baseline",
    )
    cells = [
        (
            r["case"],
            r["op"],
            r["dtype"],
            r["cache"],
            r["us"],
            r["gbs"],
            _percent(r["read_share"]),
            r["tflops"],
            _percent(r["gemm_share"]),
            _percent(r["share"]),
            r["bound"],
            r["speedup"],
            r["speedup_p10"],
            r["speedup_p90"],
            r["best"],
        )
        for r in rows
    ]
    search = f'<label>Only rows with: <input type="search" data-table="{key}"></label>'
    return search + table(key, head, cells, words=4)


def _missing(lines: list[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _sources(content: dict[str, Any]) -> str:
    rows = [
        (s["file"], s["kind"], s["commit"] or "none", s["time_utc"], s["threads"], s["versions"]["torch"])
        for s in content["sources"]
    ]
    note = "<p>A + behind a commit: the tree differed from it.</p>"
    return note + table("t-sources", ("file", "kind", "commit", "time", "threads", "torch"), rows, words=4)
