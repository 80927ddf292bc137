"""The roofline as files, PNG and SVG, by matplotlib where it is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

COLOURS = ("#2f6fb0", "#c2571a", "#3c8a4e", "#8a4fa3", "#8c6d1f")
ROOFS = (("fp32", "-"), ("bf16", "--"), ("int8", ":"))


def available() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def write(content: dict[str, Any], folder: Path) -> list[Path]:
    """roofline.png and roofline.svg of a report's content; without ceilings, none."""
    ceilings = content["ceilings"]
    rows = [r for r in content["rows"] if r["intensity"]]
    if ceilings is None or not rows:
        return []
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "mingcore"  # the same file from the same figures
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    low = min(r["intensity"] for r in rows) / 2
    high = max(r["intensity"] for r in rows) * 2
    read = ceilings["read_gbs"] * 1e-3  # TFLOP/s per FLOP/byte
    for kind, style in ROOFS:
        gemm = ceilings["gemms"].get(kind)
        if gemm is None:
            continue
        knee = gemm["tflops"] / read
        label = f"{kind} product: {gemm['tflops']:.2f} TFLOP/s ({gemm['way']})"
        axes.plot(
            [low, knee, max(high, knee)], [low * read, *[gemm["tflops"]] * 2], style, color="#444", lw=1.2, label=label
        )
    for colour, section in zip(COLOURS, sorted({r["section"] for r in rows})):
        mine = [r for r in rows if r["section"] == section]
        axes.scatter(
            [r["intensity"] for r in mine], [r["tflops"] for r in mine], s=16, alpha=0.75, color=colour, label=section
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="operations per byte (FLOP/B)",
        ylabel="TFLOP/s",
        title=f"{content['machine']['cpu']}, {ceilings['threads']} threads; read {ceilings['read_gbs']:.0f} GB/s",
    )
    axes.grid(True, which="major", alpha=0.25)
    axes.legend(fontsize=8)
    paths = [folder / "roofline.png", folder / "roofline.svg"]
    figure.savefig(paths[0], dpi=130, metadata={"Software": None})
    figure.savefig(paths[1], metadata={"Date": None})
    return paths
