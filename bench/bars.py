"""The bars of the design, and whether what was measured meets them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import measure
import reporting

Results = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Bar:
    """One line of the design's table: what is wanted, and where to find it in the results."""

    name: str
    wanted: str
    find: Callable[[Results], float | None]
    limit: float
    more_is_better: bool = False


@dataclass(frozen=True)
class Judged:
    """A bar held against a value; no value: not measured."""

    name: str
    wanted: str
    value: float | None
    verdict: str

    @property
    def shown(self) -> str:
        return reporting.show(self.value)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _op(op: str, case: str, key: str) -> Callable[[Results], float | None]:
    """A column of an op's row, only where a kernel of ours and not the reference served it."""

    def find(found: Results) -> float | None:
        for row in found.get("ops", {}).get("rows", ()):
            if (row["op"], row["case"], row["device"]) == (op, case, "cuda"):
                return row[key] if row["backend"] != "reference" else None
        return None

    return find


def _nothing(found: Results) -> float | None:
    """No bench measures this yet."""
    return None


def _moe(case: str, key: str) -> Callable[[Results], float | None]:
    return _op("moe_mlp", case, key)


BARS = (
    Bar("moe_mlp T=1, us", "<= 45", _moe("real_t1", "us"), 45),
    Bar("moe_mlp T=32, share of read", ">= 0.80", _moe("real_t32", "read_share"), 0.80, True),
    Bar("moe_mlp T=64, share of read", ">= 0.85", _moe("real_t64", "read_share"), 0.85, True),
    Bar("moe_mlp T=128, share of read", ">= 0.85", _moe("real_t128", "read_share"), 0.85, True),
    Bar("moe_mlp T=4096, TFLOP/s", ">= 500", _moe("real_t4096", "tflops"), 500, True),
    Bar("flow_sample 8x1024, 10 steps, us", "<= 900", _op("flow_sample", "real_b1", "us"), 900),
    Bar("one patch, everything, ms", "<= 5", _nothing, 5),
    Bar("first audio after the prompt, ms", "<= 30", _nothing, 30),
    Bar("throughput B=32, audio s/s", ">= 180", _nothing, 180, True),
    Bar("throughput B=64, audio s/s", ">= 250", _nothing, 250, True),
)


def judge(found: Results) -> list[Judged]:
    """Every bar, with "pass", "fail" or "not measured"."""
    judged = []
    for bar in BARS:
        value = bar.find(found)
        if value is None:
            verdict = "not measured"
        else:
            good = value >= bar.limit if bar.more_is_better else value <= bar.limit
            verdict = "pass" if good else "fail"
        judged.append(Judged(bar.name, bar.wanted, value, verdict))
    return judged


def table_of(kind: str, result: dict[str, Any] | None) -> str | None:
    """A result's own table, made again from its JSON; None without one."""
    if result is None:
        return None
    if kind == "ops":
        return reporting.table(measure.HEAD, [measure.Row(**r).cells() for r in result["rows"]])
    if kind == "end_to_end":
        rows = [
            (stage, spread["median"], result["eager"]["stages_ms"][stage]["median"])
            for stage, spread in result["ours"]["stages_ms"].items()
        ]
        rows.append(("patch", *(result[s]["patch_ms"]["median"] for s in ("ours", "eager"))))
        return reporting.table((f"stage, {result['size']}", "ours ms", "eager ms"), rows)
    flat = [(k, v) for k, v in result.items() if isinstance(v, float)]
    return reporting.table(("probe", "value"), flat)
