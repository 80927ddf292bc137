"""The losses of both stages over the steps, learned and held out, as a picture.

    python examples/tiny_voice/plots.py OUT PICTURE.png

Needs matplotlib (`pip install "mingcore[plot]"`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

STAGES = ("codec", "speech")
NOT_LOSSES = ("step", "minutes", "validation", "std")


def draw(out: Path, picture: Path) -> None:
    """One row per stage, one panel per loss."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    logs = {stage: json.loads((out / f"{stage}.json").read_text()) for stage in STAGES}
    names = {stage: [n for n in log[0] if n not in NOT_LOSSES] for stage, log in logs.items()}
    columns = max(map(len, names.values()))
    figure, panels = pyplot.subplots(
        len(STAGES), columns, figsize=(3 * columns, 5), layout="constrained", squeeze=False
    )
    for row, (stage, log) in zip(panels, logs.items()):
        held_out = [line for line in log if "validation" in line]
        for panel, name in zip(row, names[stage]):
            panel.plot([line["step"] for line in log], [line[name] for line in log], lw=0.8)
            values = [line["validation"][name] for line in held_out]
            panel.plot([line["step"] for line in held_out], values, lw=1.6)
            panel.set_title(f"{stage}: {name}", fontsize=9)
            panel.set_yscale("log")
        for panel in row[len(names[stage]) :]:
            panel.set_visible(False)
    figure.legend(["learned", "held out, averaged weights"], loc="lower right")
    figure.savefig(picture, dpi=90)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="losses of the tiny voice's training")
    parser.add_argument("out", type=Path)
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    draw(args.out, args.picture)
