"""One report of everything that was measured on a machine, from what the benches kept.

`python bench/report.py [FOLDER]`, by default bench/results/<this machine>, reads the JSON files
there and writes results.json (every row in one shape, ceilings, targets, what is missing), report.html
(opens from disk: no network, no other file) and the roofline as roofline.svg and roofline.png,
where matplotlib is installed. It measures nothing: `make bench` does, then calls it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import report_html
import report_plot
import report_rows
import reporting
import targets
from mingcore.testing import machine

OURS = ("results",)  # written here, not read
PARTS = {  # what a complete report of a CPU has: kind of result, and what it is
    "ceilings": "ceilings: read, copy and products of every dtype",
    "moe": "the expert MLP",
    "flow": "the flow sampler",
    "conv": "streamed convolutions, overlap-add and spectrum head",
    "decoder": "the AudioVAE's decoder",
    "conv_vae": "whole convolutional codecs",
    "end_to_end": "speech end to end",
    "ops": "every op",
    "codecs": "codecs of transformers with our convolutions",
    "transformers": "experts of transformers with our kernels",
    "format_cost": "weight formats: what they cost in exactness",
}


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """name -> result of every kept file of a folder. SystemExit where there is none."""
    paths = sorted(path for path in folder.glob("*.json") if path.stem not in OURS)
    found = {path.stem: json.loads(path.read_text()) for path in paths}
    found = {name: result for name, result in found.items() if "machine" in result}
    if not found:
        raise SystemExit(f"report: no kept results in {folder}; `make bench` makes them")
    return found


def build(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The content of results.json."""
    ceilings = report_rows.ceilings_of(found)
    rows = []
    for name, result in found.items():
        rows += report_rows.rows_of(name, result, ceilings)
    by_kind = merged(found.values())
    # one for each format of weights, so no merging
    by_kind["speech"] = {"results": [r for r in found.values() if r["kind"] == "end_to_end"]}
    judged = targets.judge(by_kind, "cpu")
    held = [b.as_dict() for b in judged]
    for result in found.values():
        held += [_as_target(bar) for bar in result.get("bars", ())]
    newest = max(found.values(), key=lambda result: result["machine"]["time_utc"])
    return {
        "kind": "report",
        "machine": newest["machine"],
        "sources": [_source(name, result) for name, result in found.items()],
        "ceilings": ceilings,
        "end_to_end": [r for r in found.values() if r["kind"] == "end_to_end"],
        "formats": [r for r in found.values() if r["kind"] == "format_cost"],
        "rows": rows,
        "bars": held,
        "missing": missing(found, rows, judged),
    }


def merged(results: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """kind -> result, rows of later ones behind; so the targets find their row."""
    by_kind: dict[str, dict[str, Any]] = {}
    for result in sorted(results, key=lambda r: len(r.get("rows", ())), reverse=True):
        seen = by_kind.setdefault(result["kind"], result)
        if seen is not result and "rows" in seen:
            by_kind[result["kind"]] = {**seen, "rows": seen["rows"] + result["rows"]}
    return by_kind


def _as_target(bar: dict[str, Any]) -> dict[str, Any]:
    verdict, wanted = "pass" if bar["met"] else "fail", f">= {bar['at_least']}"
    return {"name": bar["bar"], "wanted": wanted, "value": bar["got"], "verdict": verdict}


def _source(name: str, result: dict[str, Any]) -> dict[str, Any]:
    where = result["machine"]
    return {
        "file": f"{name}.json",
        "kind": result["kind"],
        "commit": where["commit"],
        "time_utc": where["time_utc"],
        "versions": where["versions"],
        "threads": where["threads"],
    }


def missing(found: dict[str, dict], rows: list[dict], judged: list[targets.Judged]) -> list[str]:
    """What a reader might look for and not find, each with the reason."""
    notes = []
    kinds = {result["kind"] for result in found.values()}
    notes += [f"{what}: not measured" for kind, what in PARTS.items() if kind not in kinds]
    notes += [f"target “{b.name}”: not measured" for b in judged if b.value is None]
    for name, result in found.items():
        lacking = result.get("lacking") or ()
        notes += [f"{name}: {entry}: only the reference serves it here" for entry in lacking]
        if (result["machine"]["commit"] or "+").endswith("+"):
            notes.append(f"{name}: measured on a tree that differed from its commit, or had none")
    counted = {row["op"] for row in rows if row["share"] is not None}
    bare = sorted({row["op"] for row in rows} - counted)
    if bare:
        notes.append(
            f"share of the ceilings of {', '.join(bare)}: whole networks; their bytes and operations are not counted"
        )
    some = sum(row["share"] is None and row["op"] in counted for row in rows)
    if some:
        notes.append(f"share of the ceilings of {some} rows: their bytes are not counted")
    alone = sum(row["best"] is None for row in rows)
    if alone:
        notes.append(f"{alone} rows have no baseline in PyTorch")
    notes.append("GPU: not measured in this report; `make gpu` leaves one of its own")
    notes.append("released checkpoints: not measured; weights are random, of the named sizes")
    return notes


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="of the kept results")
    parser.add_argument("--out", type=Path, help="where the report goes; default: the same folder")
    options = parser.parse_args(arguments)
    folder = options.folder or reporting.RESULTS / machine.slug()
    out = options.out or folder
    content = build(load(folder))
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(content, indent=1) + "\n")
    (out / "report.html").write_text(report_html.page(content), encoding="utf-8")
    left = ["results.json", "report.html"]
    if report_plot.available():
        left += [path.name for path in report_plot.write(content, out)]
    else:
        print("roofline.png and roofline.svg: not made, matplotlib is not installed")
    for line in content["missing"]:
        print(line)
    rows, sources = len(content["rows"]), len(content["sources"])
    print(f"{rows} rows of {sources} results; {', '.join(left)} in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
