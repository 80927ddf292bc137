"""Kept results of every bench as rows of one shape, held to the ceilings of their machine.

A row names its op, case and dtype; µs with the 10th and 90th percentile; GB/s and TFLOP/s by the
op's own count of bytes and operations; its share of the roofline (the least time that the measured
ceilings allow, over the time taken); and how many times faster it is than the best baseline that
took turns with it. What a bench did not count is None, never an estimate.
"""

from __future__ import annotations

from typing import Any

Result = dict[str, Any]
Row = dict[str, Any]

# the kind of product whose ceiling an op of this dtype is held to: fp16 and int8 weights are
# widened, to float32 and at best to bfloat16
GEMM_OF = {"fp32": "fp32", "bf16": "bf16", "fp16": "fp32", "int8": "bf16", "int8_dyn": "int8"}
SECTIONS = {
    "moe": "experts",
    "flow": "flow sampler",
    "conv": "convolutions",
    "decoder": "codec",
    "conv_vae": "codec",
    "codecs": "codecs of transformers",
    "transformers": "experts in transformers",
    "ops": "every op",
}


def ceilings_of(found: dict[str, Result], device: str = "cpu") -> dict[str, Any] | None:
    """The best of every ceiling that any result saw: read and copy in GB/s, products in TFLOP/s
    with what reached it. None without a single one."""
    read, copy, gemms, threads = [], [], {}, None
    for result in found.values():
        seen = result.get("ceilings", {}).get(device)
        if seen is None:
            continue
        read.append(seen["read_gbs"])
        copy.append(seen["copy_gbs"])
        threads = seen["threads"]
        rates = [(kind, rate, "torch.mm") for kind, rate in seen["gemm_tflops"].items()]
        for kind, by_name in result.get("gemms", {}).items():
            rates += [(kind, rate["best"], name) for name, rate in by_name.items()]
        for kind, rate, name in rates:
            if rate > gemms.get(kind, {"tflops": 0.0})["tflops"]:
                gemms[kind] = {"tflops": rate, "way": name}
    if not read:
        return None
    return {"threads": threads, "read_gbs": max(read), "copy_gbs": max(copy), "gemms": gemms}


def rows_of(name: str, result: Result, ceilings: dict[str, Any] | None) -> list[Row]:
    """The rows of one kept result; `name` is its file's, without the ending."""
    make = _MAKERS.get(result["kind"])
    if make is None:
        return []
    section = SECTIONS[result["kind"]]
    rows = [{"section": section, "source": name, **row} for row in make(result)]
    return [_held(row, result, ceilings) for row in rows]


def _held(row: Row, result: Result, ceilings: dict[str, Any] | None) -> Row:
    """With its shares of the ceilings. The read ceiling is that of the same run, where it has one:
    a machine shared with others is not equally fast every hour."""
    us, nbytes, flops = row["us"], row["nbytes"], row["flops"]
    row["gbs"] = nbytes / us * 1e-3 if nbytes else None
    row["tflops"] = flops / us * 1e-6 if flops else None
    row["intensity"] = flops / nbytes if flops and nbytes else None
    shares = {"read_share": None, "gemm_share": None, "share": None, "bound": None}
    if ceilings is None or nbytes is None:
        return {**row, **shares}
    own = result.get("ceilings", {}).get("cpu")
    read = own["read_gbs"] if own else ceilings["read_gbs"]
    shares["read_share"] = row["gbs"] / read
    gemm = ceilings["gemms"].get(GEMM_OF.get(row["dtype"], ""))
    if gemm and flops:
        shares["gemm_share"] = row["tflops"] / gemm["tflops"]
    of_gemm = shares["gemm_share"] or 0.0
    shares["share"] = max(shares["read_share"], of_gemm)
    shares["bound"] = "bytes" if shares["read_share"] >= of_gemm else "operations"
    return {**row, **shares}


def _measured(result: Result) -> list[Row]:
    """Rows of measure.Row: the ops, the experts, the flow sampler."""
    keys = ("op", "case", "dtype", "device", "backend", "cache", "us", "us_p10", "us_p90", "nbytes")
    keys += ("flops", "speedup", "speedup_p10", "speedup_p90", "best", "others_us", "others_x")
    return [{key: row[key] for key in keys} | {"phases_ms": row.get("phases_ms")} for row in result["rows"]]


def _conv(result: Result) -> list[Row]:
    rows = []
    for row in result["rows"]:
        ratio = row["faster"][row["best"]]
        rows.append(
            {
                "op": "causal_conv" if row["layer"].startswith(("vox", "vibe")) else row["layer"],
                "case": f"{row['layer']} {row['size']}",
                "dtype": "fp32",
                "device": result["device"],
                "backend": "cpu",
                "cache": result["cache"],
                "us": row["us"],
                "us_p10": None,
                "us_p90": None,
                "nbytes": row["gbs"] * row["us"] * 1e3,
                "flops": row["gflops"] * row["us"] * 1e3,
                "speedup": ratio["median"],
                "speedup_p10": ratio["p10"],
                "speedup_p90": ratio["p90"],
                "best": row["best"],
                "others_us": row["others_us"],
                "others_x": {name: r["median"] for name, r in row["faster"].items()},
                "phases_ms": None,
            }
        )
    return rows


def _whole(case: str, dtype: str, ms: dict[str, float | None], ratio: dict[str, float], best: str) -> Row:
    """A whole network: several ops, whose bytes and operations nobody counted."""
    us, us_p10, us_p90 = (None if ms[name] is None else 1e3 * ms[name] for name in ("median", "p10", "p90"))
    return {
        "op": "codec",
        "case": case,
        "dtype": dtype,
        "device": "cpu",
        "backend": "cpu",
        "cache": "in order",
        "us": us,
        "us_p10": us_p10,
        "us_p90": us_p90,
        "nbytes": None,
        "flops": None,
        "speedup": ratio["median"],
        "speedup_p10": ratio["p10"],
        "speedup_p90": ratio["p90"],
        "best": best,
        "others_us": {},
        "others_x": {best: ratio["median"]},
        "phases_ms": None,
    }


def _decoder(result: Result) -> list[Row]:
    eager = "eager fp32"
    return [
        _whole(
            f"AudioVAE {result['size']}: decode patch",
            row["way"].removeprefix("ours "),
            row["ms"],
            row["faster"],
            eager,
        )
        for row in result["rows"]
        if row.get("way", "").startswith("ours ")
    ]


def _conv_vae(result: Result) -> list[Row]:
    return [
        _whole(f"{row['codec']}: {row['what']}", "fp32", row["ms"], row["faster"], "eager fp32")
        for row in result["rows"]
    ]


def _codecs(result: Result) -> list[Row]:
    """Codecs of transformers, ours in the place of their convolutions: whole calls of both."""
    rows = []
    for row in result["rows"]:
        ms = {"median": row["ours_ms"], "p10": None, "p90": None}
        ratio = {"median": row["x"], "p10": row["x_p10"], "p90": row["x_p90"]}
        rows.append(_whole(f"{row['codec']}: {row['what']}", "fp32", ms, ratio, "transformers"))
    return rows


def _transformers(result: Result) -> list[Row]:
    """One layer of experts in a model of transformers. Bytes are those that its bench counted, for
    bfloat16; operations are those of moe_mlp (mingcore/ops/moe/cases.py)."""
    sizes, rows = result["dims"], []
    for row in result["rows"]:
        others = {name: t["median"] for name, t in row["us"].items() if not name.startswith("mingcore")}
        best = min(others, key=others.get)
        for name, ratios in row["speedup"].items():
            dtype = name.removeprefix("mingcore").lstrip("_") or "bf16"
            us, ratio = row["us"][name], ratios[best]
            read = row["gbs_bf16"] * us["median"] * 1e3 if dtype == "bf16" else None
            products = 6 * row["tokens"] * sizes["K"] * sizes["H"] * sizes["I"]
            rows.append(
                {
                    "op": "moe_mlp",
                    "case": f"{result['size']} t{row['tokens']}",
                    "dtype": dtype,
                    "device": "cpu",
                    "backend": "cpu",
                    "cache": "in order",
                    "us": us["median"],
                    "us_p10": us["p10"],
                    "us_p90": us["p90"],
                    "nbytes": read,
                    "flops": products,
                    "speedup": ratio["median"],
                    "speedup_p10": ratio["p10"],
                    "speedup_p90": ratio["p90"],
                    "best": best,
                    "others_us": others,
                    "others_x": {other: ratio["median"] for other, ratio in ratios.items()},
                    "phases_ms": None,
                }
            )
    return rows


_MAKERS = {
    "ops": _measured,
    "moe": _measured,
    "flow": _measured,
    "conv": _conv,
    "decoder": _decoder,
    "conv_vae": _conv_vae,
    "codecs": _codecs,
    "transformers": _transformers,
}
