"""Measure ops over the cases of their families: right first, then timed in turns with their baselines.

    python bench/run.py --op linear,moe_mlp --case real --dtype bf16 --against best
    python bench/run.py --sweep moe --size real --tokens 1,8,512 --keep FOLDER --add
    python bench/run.py --sweep flow --size real --batches 1,4
    python bench/run.py --sweep conv --case unit,up --lengths patch,10s

A row says µs, the share of the read ceiling, and how many times faster than the best baseline, paired by
round. Sweeps: "moe", the expert MLP over tokens and routings, weights rotating over several layers so that
none stay in a cache; bytes count the experts that were hit. "flow", the whole sampler of one patch over
batches, and where its time goes. "conv", layers of two codecs, streamed and in one shot. The targets
follow, and one line of JSON last. --keep FOLDER writes it there; with --add to what an earlier run of the
same commit kept, so that a long series can be made in parts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

import flow_baselines
import flow_phases
import measure
import reporting
import sweeps
import targets
from codec_layers import LENGTHS
from mingcore import ops
from mingcore.ops._core.cases import Case, for_op, ops_with_cases
from mingcore.testing.roofline import Ceilings, ceilings
from mingcore.testing.timing import threads

Content = dict[str, Any]
DTYPES = {name: dtype for dtype, name in measure.SHORT.items()}
KEYS = {
    "ops": ("op", "case", "dtype", "device", "cache"),
    "moe": ("case", "dtype"),
    "flow": ("case", "dtype"),
    "conv": ("layer", "size"),
}
ORDER = {"moe": sweeps.moe_order, "flow": sweeps.flow_order}
# float32 by contract, whatever the network's type
ALWAYS_FLOAT = ("overlap_add",)


def chosen_cases(names: Collection[str] | None, wanted: str, quick: bool = False) -> list[Case]:
    """The cases of some ops (None: all but the packing ones and the sampler, which has a sweep) by tag or name."""
    found = []
    for op in names or [op for op in ops_with_cases() if not op.startswith("pack_") and op != "flow_sample"]:
        every = for_op(op, large=not quick)
        found += [case for case in every if wanted in case.tags or wanted == case.name]
    return found


def ops_content(options: argparse.Namespace, ceiling: Ceilings) -> Content:
    device, wanted = options.device, options.case or "mid"
    rows = []
    for case in chosen_cases(options.op, wanted, options.quick):
        for name in options.dtype or (("fp32", "bf16") if device == "cpu" else ("bf16",)):
            if case.op in ALWAYS_FLOAT and name != "fp32" and options.dtype is None and device == "cpu":
                continue
            dtype = torch.float32 if case.op in ALWAYS_FLOAT else DTYPES[name]
            common = {"device": device, "cold": not options.warm_cache, "quick": options.quick}
            point = measure.ops_point(case, dtype, **common, wanted=options.against or "best")
            rows += point.rows(ceiling, quick=options.quick, budget_s=options.budget)
            progress(f"{case.id} {name}")
    if not rows:
        raise SystemExit(f"run: --case must be a tag or a name of a case of these ops, got {wanted!r}")
    return reporting.result(
        "ops", size=wanted, ceilings={device: ceiling.as_dict()}, rows=[row.as_dict() for row in rows]
    )


def moe_content(options: argparse.Namespace, ceiling: Ceilings) -> Content:
    rows, lacking = [], {}
    for point, why in sweeps.moe_points(options, ceiling):
        lacking.update(why)
        if point.ours:
            rows += point.rows(ceiling, quick=options.quick, budget_s=options.budget)
        progress(f"{point.case}: {len(point.ours)} formats")
    dims = sweeps.SIZES[options.size]
    return _sweep(options, ceiling, dims, [row.as_dict() for row in rows], lacking, layers=options.layers)


def flow_content(options: argparse.Namespace, ceiling: Ceilings) -> Content:
    heads = sweeps.Heads(options.size, options.device, options.formats or sweeps.FORMATS["flow"][options.device])
    rows, lacking = [], {}
    for point, why in sweeps.flow_points(options, heads):
        lacking.update(why)
        found = point.rows(ceiling, quick=options.quick, budget_s=options.budget) if point.ours else []
        for row, ours in zip(found, point.ours.values()):
            rows.append(row.as_dict())
            if options.phases:
                rows[-1]["phases_ms"] = flow_phases.phases_ms(ours.sets[0], options.budget, options.quick)
        progress(f"{point.case}: {len(found)} formats")
    return _sweep(options, ceiling, heads.dims, rows, lacking, steps=heads.steps, guidance=heads.guidance)


def _sweep(
    options: argparse.Namespace, ceiling: Ceilings, dims: dict, rows: list, lacking: dict, **more: Any
) -> Content:
    head = {"size": options.size, "device": options.device, "dims": dims, **more}
    return reporting.result(
        options.sweep, **head, ceilings={options.device: ceiling.as_dict()}, rows=rows, lacking=lacking
    )


def conv_content(options: argparse.Namespace, ceiling: Ceilings | None) -> Content:
    lacking: sweeps.Lacking = {}
    rows = []
    for each in sweeps.conv_points(options, lacking):
        rows.append(each.row(quick=options.quick, budget_s=options.budget))
        if options.device == "cuda":
            rows[-1]["read_share"] = rows[-1]["gbs"] / ceiling.read_gbs
        progress(f"{rows[-1]['layer']} {rows[-1]['size']}")
    head = {"device": options.device, "threads": torch.get_num_threads(), "cache": "warm"}
    return reporting.result("conv", **head, rows=rows, lacking=list(lacking))


MAKE = {"ops": ops_content, "moe": moe_content, "flow": flow_content, "conv": conv_content}


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def name_of(kind: str, options: argparse.Namespace) -> str:
    """Of the kept file, without its ending."""
    if kind == "ops":
        return f"ops-{options.case or 'mid'}"
    return f"conv-{options.device}" if kind == "conv" else f"{kind}-{options.size}-{options.device}"


def added(before: Content | None, content: Content) -> Content:
    """A result with the rows of an earlier part, where it has none itself, all held to the highest ceiling
    that any part saw. SystemExit when the parts do not belong together."""
    kind = content["kind"]
    joined = reporting.joined(before, content, KEYS[kind], order=ORDER.get(kind))
    if kind == "flow":
        best = joined["ceilings"][content["device"]]["read_gbs"]
        joined["rows"] = [{**row, "read_share": row["gbs"] / best} for row in joined["rows"]]
    return joined


def main(arguments: list[str] | None = None) -> int:
    options = parsed(arguments)
    kind = options.sweep or "ops"
    backend = ops.use_backend(options.backend) if options.backend else nullcontext()
    with threads(options.threads), torch.inference_mode(), backend:
        needs = kind != "conv" or options.device == "cuda"
        content = MAKE[kind](options, ceilings(options.device, quick=options.quick) if needs else None)
    name = name_of(kind, options)
    if options.add:
        content = added(reporting.kept(name, options.keep), content)
    if kind == "conv":
        content["bars"] = targets.judged_conv(content["rows"]) if options.device == "cpu" else []
    show(kind, content, options.device)
    if options.keep:
        print(f"kept in {reporting.keep(name, content, options.keep)}")
    reporting.last_line(content)
    return 0


def show(kind: str, content: Content, device: str) -> None:
    if content["rows"]:
        print(f"{targets.table_of(kind, content)}\n")
    if kind in ("moe", "flow"):
        print(f"{baselines_table(content)}\n")
    lacking = content.get("lacking", ())
    for name in lacking:
        why = f" ({lacking[name]})" if isinstance(lacking, dict) else ""
        print(f"{name}: not measured, only the reference serves it here{why}")
    for ceiling in content.get("ceilings", {}).values():
        rate = ceiling["gemm_tflops"]["fp32" if device == "cpu" else "bf16"]
        print(
            f"100 % on {device}: read {ceiling['read_gbs']:.1f} GB/s (copy {ceiling['copy_gbs']:.1f} GB/s, "
            f"{ceiling['threads']} threads), torch.mm {rate:.3f} TFLOP/s"
        )
    if kind in ("moe", "flow"):
        print(targets.table(t for t in targets.judge({kind: content}, device) if t.name.startswith(kind)))
    for each in content.get("bars", ()):
        print(f"{'met ' if each['met'] else 'MISSED'} {each['bar']} >= {each['at_least']}: {each['got']:.2f}")


def baselines_table(content: Content) -> str:
    """ms of ours and of every baseline, a column per case; of the sampler where its time goes, too."""
    cases: dict[str, dict[str, float]] = {}
    ceiling = content["ceilings"][content["device"]]
    for row in content["rows"]:
        times = cases.setdefault(row["case"], {})
        times[f"ours {row['dtype']}"] = row["us"] / 1e3
        times.update({name: us / 1e3 for name, us in row["others_us"].items()})
        if content["kind"] == "flow":
            times[f"floor {row['dtype']}"] = floor_ms(row, ceiling)
    names = dict.fromkeys(name for times in cases.values() for name in times)
    body = [(name, *(times.get(name) for times in cases.values())) for name in names]
    tables = [reporting.table(("ms", *cases), body)]
    phased = [row for row in content["rows"] if "phases_ms" in row]
    if phased:
        head = ("ms by phase", "format", *phased[0]["phases_ms"], "one call", "% floor")
        lines = []
        for row in phased:
            share = round(100 * floor_ms(row, ceiling) / (row["us"] / 1e3))
            lines.append((row["case"], row["dtype"], *row["phases_ms"].values(), row["us"] / 1e3, share))
        tables.append(reporting.table(head, lines))
    return "\n\n".join(tables)


def floor_ms(row: dict[str, Any], ceiling: dict[str, Any]) -> float:
    """The least time: bytes at the read probe's rate, or operations at that of one large product:
    float32 on a CPU, bfloat16 on a GPU."""
    rate = ceiling["gemm_tflops"]["fp32" if row["device"] == "cpu" else "bf16"]
    return 1e3 * max(row["nbytes"] / ceiling["read_gbs"] / 1e9, row["flops"] / rate / 1e12)


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--op", type=_names(ops_with_cases()), help="by comma; default: all")
    parser.add_argument("--sweep", choices=[kind for kind in MAKE if kind != "ops"], help="instead of --op")
    parser.add_argument("--case", help='a tag or name, default "mid"; of --sweep conv: parts of layers\' names')
    parser.add_argument("--dtype", type=_names(DTYPES), help="with --op; default: fp32,bf16, on a GPU bf16")
    parser.add_argument("--formats", type=_names(sweeps.BYTES), help="of our weights, with --sweep moe and flow")
    parser.add_argument("--against", help="best, all, none, or baselines by comma; default: the usual ones")
    parser.add_argument("--backend", help="for all that is ours, as in MINGCORE_BACKEND")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--size", choices=list(sweeps.SIZES), default="real", help="of --sweep moe and flow")
    parser.add_argument("--tokens", type=reporting.counts, help="of --sweep moe; of flow: 11, 37 or both")
    parser.add_argument("--routing", type=_names(sweeps.ROUTINGS), default=tuple(sweeps.ROUTINGS))
    parser.add_argument("--layers", type=int, default=4, help="that weights of --sweep moe rotate over")
    parser.add_argument("--batches", type=reporting.counts, help="of --sweep flow")
    parser.add_argument("--no-phases", dest="phases", action="store_false", help="with --sweep flow")
    parser.add_argument("--reference", action="store_true", help="--sweep flow: also what only it serves")
    parser.add_argument("--lengths", type=_names(LENGTHS), default=tuple(LENGTHS), help="of --sweep conv")
    parser.add_argument("--compile", action="store_true", help="--sweep conv: torch.compile as a baseline")
    parser.add_argument("--warm-cache", action="store_true", help="with --op: one input set")
    parser.add_argument("--budget", type=float, help="seconds per point; default 1, of --sweep flow 5")
    parser.add_argument("--threads", type=int, help="of the CPU")
    parser.add_argument("--quick", action="store_true", help="few rounds: does it all run")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where the result goes")
    parser.add_argument("--add", action="store_true", help="to what is kept there")
    options = parser.parse_args(arguments)
    if options.op and options.sweep:
        parser.error("--op and --sweep: name only one")
    if options.add and options.keep is None:
        parser.error("--add needs --keep FOLDER")
    if options.sweep == "flow":
        _check_flow(parser, options)
    options.budget = options.budget or (5.0 if options.sweep == "flow" else 1.0)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("run: no GPU here that PyTorch can use")
    return options


def _check_flow(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    against = (options.against or "best").split(",")
    for name, given, allowed in (
        ("--size", [options.size], ("real", "tiny")),
        ("--tokens", options.tokens or (), sweeps.FLOW_TOKENS),
        ("--against", against, (*flow_baselines.NAMES, "none", "best", "all")),
    ):
        if unknown := [x for x in given if x not in allowed]:
            parser.error(f"{name} must be of {', '.join(map(str, allowed))}, got {unknown[0]}")


def _names(known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        for name in text.split(","):
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return tuple(text.split(","))

    return parse


if __name__ == "__main__":
    sys.exit(main())
