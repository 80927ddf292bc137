"""The targets of the design, and whether what was measured meets them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import decoder_graph
import measure
import reporting

STAGES = ("flow", "decode", "semantic", "llm")
Results = dict[str, dict[str, Any]]
Find = Callable[[Results], float | None]


@dataclass(frozen=True)
class Target:
    """One line of the design's table: what is wanted, and where to find it in the results."""

    name: str
    wanted: str
    find: Find
    limit: float
    more_is_better: bool = False
    device: str = "cuda"


@dataclass(frozen=True)
class Judged:
    """A target held against a value; no value: not measured."""

    name: str
    wanted: str
    value: float | None
    verdict: str

    @property
    def shown(self) -> str:
        return reporting.show(self.value)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _row(result: dict[str, Any] | None, **wanted: str) -> dict[str, Any] | None:
    """The row of a result with these columns, only where a kernel of ours and not the reference
    served it."""
    for row in (result or {}).get("rows", ()):
        if all(row[key] == value for key, value in wanted.items()):
            return row if row["backend"] != "reference" else None
    return None


def _speech(batch: int, key: str, *within: str) -> Find:
    """A figure of the end-to-end bench at the real size in bfloat16 on a GPU."""

    def find(found: Results) -> float | None:
        result = found.get("end_to_end") or {}
        wanted = (result.get("size"), result.get("weights"), result.get("device"))
        if wanted != ("ming-uniaudio-16b", "bf16", "cuda"):
            return None
        for row in result["batches"]:
            if row["batch"] == batch:
                value = row.get(key)
                for name in within:
                    value = (value or {}).get(name)
                return value
        return None

    return find


def _first_audio(found: Results) -> float | None:
    """Median of a request alone, after a 3 s voice prompt."""
    if _speech(1, "throughput")(found) is None:
        return None
    return found["end_to_end"]["first_audio_ms"]["p50"]


def _moe(T: int, key: str, device: str = "cuda") -> Find:
    """A column of the MoE bench at the real size, bfloat16, balanced."""

    def find(found: Results) -> float | None:
        row = _moe_row(found, T, "bf16", device)
        return row and row[key]

    return find


def _moe_row(found: Results, T: int, format: str, device: str) -> dict[str, Any] | None:
    case = f"real_balanced_t{T}"
    return _row(found.get("moe"), op="moe_mlp", case=case, dtype=format, device=device)


def _faster(T: int, other: str, format: str = "bf16") -> Find:
    """How many times faster than `other` on the CPU."""

    def find(found: Results) -> float | None:
        row = _moe_row(found, T, format, "cpu")
        return row and row["others_x"].get(other)

    return find


def _share_of_mm(T: int) -> Find:
    """Of the float32 rate of one large `torch.mm` on the same cores."""

    def find(found: Results) -> float | None:
        row = _moe_row(found, T, "bf16", "cpu")
        return row and row["tflops"] / found["moe"]["ceilings"]["cpu"]["gemm_tflops"]["fp32"]

    return find


def _flow(format: str, key: str, device: str, case: str = "real_11_b1") -> Find:
    """A column of the flow bench."""

    def find(found: Results) -> float | None:
        row = _row(found.get("flow"), case=case, dtype=format, device=device)
        return row and row[key]

    return find


def _conv(layer: str, size: str, key: str) -> Find:
    """A column of the convolutions' bench on a GPU; "torch": how many times faster than its ops."""

    def find(found: Results) -> float | None:
        for row in (found.get("conv") or {}).get("rows", ()):
            if (row["layer"], row["size"]) == (layer, size) and "read_share" in row:
                return row["faster"]["torch"]["median"] if key == "torch" else row[key]
        return None

    return find


def _decode(found: Results) -> float | None:
    """ms of one patch at the real size in a CUDA graph, by the first order of backends that was
    right and had kernels of ours."""
    for row in (found.get("decoder") or {}).get("rows", ()):
        real = (row.get("size"), row.get("device"), row.get("graph")) == ("real", "cuda", True)
        if real and row["backend"] != "reference":
            return row["ms"]
    return None


def _flow_x(format: str, *others: str) -> Find:
    """How many times faster than the fastest of `others` that was measured, on the CPU."""

    def find(found: Results) -> float | None:
        row = _row(found.get("flow"), case="real_11_b1", dtype=format, device="cpu")
        times = row and [row["others_x"][name] for name in others if name in row["others_x"]]
        return min(times) if times else None

    return find


def _flow_target(name: str, limit: float, find: Find) -> Target:
    return Target(f"flow_sample {name}", f">= {limit}", find, limit, True, "cpu")


def _above_floors(weights: str, *within: str) -> Find:
    """How many times the sum of its stages' floors a patch of one request takes at size mid."""

    def find(found: Results) -> float | None:
        for result in found.get("speech", {}).get("results", ()):
            if (result["size"], result["weights"], result["device"]) == ("mid", weights, "cpu"):
                value = result.get("floors")
                for name in (*within, "times"):
                    value = (value or {}).get(name)
                return value
        return None

    return find


def _floor_target(name: str, *where: str) -> Target:
    name = f"one patch at mid, {name}, x its stages' floors"
    return Target(name, "<= 1.5", _above_floors(*where), 1.5, device="cpu")


def _moe_target(name: str, limit: float, find: Find) -> Target:
    return Target(f"moe_mlp {name}", f">= {limit}", find, limit, True, "cpu")


HOISTED = ("hoisted and prepacked, fp32", "hoisted, fp32")
TARGETS = (
    Target("moe_mlp T=1, us", "<= 45", _moe(1, "us"), 45),
    Target("moe_mlp T=32, share of read", ">= 0.80", _moe(32, "read_share"), 0.80, True),
    Target("moe_mlp T=64, share of read", ">= 0.85", _moe(64, "read_share"), 0.85, True),
    Target("moe_mlp T=128, share of read", ">= 0.85", _moe(128, "read_share"), 0.85, True),
    Target("moe_mlp T=4096, TFLOP/s", ">= 500", _moe(4096, "tflops"), 500, True),
    Target("flow_sample 8x1024, 10 steps, us", "<= 900", _flow("bf16", "us", "cuda"), 900),
    Target("decode of one patch in a graph, ms", "<= 0.4", _decode, 0.4),
    Target("depthwise convolution, share of read", ">= 0.80", _conv("vibe_mixer_256", "60s", "read_share"), 0.80, True),
    Target(
        "transposed convolution, share of read", ">= 0.80", _conv("vox_up_192_to_96", "60s", "read_share"), 0.80, True
    ),
    Target("dense convolution, 10 s, x cuDNN", ">= 1", _conv("vox_down_512_to_1024", "10s", "torch"), 1.0, True),
    Target("one patch, everything, ms", "<= 5", _speech(1, "patch_ms", "p50"), 5),
    Target("one patch, x eager", ">= 25", _speech(1, "stages", "speedup", "median"), 25, True),
    Target("first audio after the prompt, ms", "<= 30", _first_audio, 30),
    Target("throughput B=32, audio s/s", ">= 180", _speech(32, "throughput"), 180, True),
    Target("throughput B=64, audio s/s", ">= 250", _speech(64, "throughput"), 250, True),
    _moe_target("T=1, share of read", 0.85, _moe(1, "read_share", "cpu")),
    _moe_target("T=1, x F.grouped_mm", 1.3, _faster(1, "F.grouped_mm, bf16")),
    _moe_target("T=1, x loop over the experts hit", 1.3, _faster(1, "loop over the experts hit, bf16")),
    _moe_target("T=1, x loop over all experts", 2.0, _faster(1, "loop over all experts, bf16")),
    _moe_target("T=1, x loop over all, float32", 3.0, _faster(1, "loop over all experts, fp32")),
    _moe_target("T=1, int8 x ours in bf16", 1.7, _faster(1, "ours bf16", "int8")),
    _flow_target("bf16, x eager float32", 3.0, _flow_x("bf16", "eager, fp32")),
    _flow_target("bf16, x best PyTorch in float32", 1.4, _flow_x("bf16", *HOISTED)),
    _flow_target("int8_dyn x ours in bf16", 1.4, _flow_x("int8_dyn", "ours bf16")),
    _moe_target("T=512, share of a float32 torch.mm", 0.7, _share_of_mm(512)),
    _floor_target("fp32", "fp32"),
    _floor_target("bf16", "bf16"),
    _floor_target("bf16 at bfloat16's rate of products", "bf16", "in_bf16"),
    _floor_target("int8", "int8"),
    _floor_target("int8_dyn", "int8_dyn"),
)


def judge(found: Results, device: str = "cuda") -> list[Judged]:
    """Every target of a device, with "pass", "fail" or "not measured"."""
    judged = []
    for target in TARGETS:
        if target.device != device:
            continue
        value = target.find(found)
        if value is None:
            verdict = "not measured"
        else:
            good = value >= target.limit if target.more_is_better else value <= target.limit
            verdict = "pass" if good else "fail"
        judged.append(Judged(target.name, target.wanted, value, verdict))
    return judged


# what a layer must reach over PyTorch's separate ops: part of a name, length, baseline, factor
CONV_TARGETS = (
    ("overlap_add", "patch", "F.fold", 3.0),
    ("overlap_add", "10s", "F.fold", 3.0),
    ("unit", "patch", "torch", 2.0),
    ("unit", "10s", "torch", 1.2),
    ("unit", "60s", "torch", 1.2),
)


def judged_conv(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every target of CONV_TARGETS with the rows that it is about, and whether they reach it."""
    found = []
    for part, length, baseline, factor in CONV_TARGETS:
        for row in rows:
            if part in row["layer"] and row["size"] == length:
                got = row["faster"][baseline]["median"]
                what = f"{row['layer']} {length}: x {baseline}"
                found.append({"bar": what, "at_least": factor, "got": got, "met": got >= factor})
    return found


def table(judged: Iterable[Judged]) -> str:
    rows = [(t.name, t.shown, t.wanted, t.verdict) for t in judged]
    return reporting.table(("target", "measured", "wanted", "verdict"), rows)


def _cells(row: dict[str, Any]) -> tuple[Any, ...]:
    return measure.Row(**{k: v for k, v in row.items() if k != "phases_ms"}).cells()


def table_of(kind: str, result: dict[str, Any] | None) -> str | None:
    """A result's own table, made again from its JSON; None without one."""
    if result is None:
        return None
    if kind in ("ops", "moe", "flow"):
        return reporting.table(measure.HEAD, [_cells(row) for row in result["rows"]])
    if kind == "decoder":
        return decoder_graph.table(result["rows"])
    if kind == "conv":
        return reporting.table(
            ("layer", "size", "us", "GB/s", "GFLOP/s", "x torch"),
            [
                (r["layer"], r["size"], r["us"], r["gbs"], r["gflops"], r["faster"].get("torch", {}).get("median"))
                for r in result["rows"]
            ],
        )
    if kind == "end_to_end":
        return _speech_table(result)
    flat = [(k, v) for k, v in result.items() if isinstance(v, float)]
    return reporting.table(("probe", "value"), flat)


def _speech_table(result: dict[str, Any]) -> str:
    rows = []
    for row in result["batches"]:
        stages = row.get("stages", {})
        mine = stages.get("ours", {}).get("stages_ms", {})
        rows.append(
            (
                row["batch"],
                row["first_audio_ms"]["p50"],
                *(row["patch_ms"][p] for p in ("p50", "p99")),
                row["gap_ms"]["max"],
                row["underruns"],
                row["throughput"],
                row["peak_memory_bytes"],
                *(mine[stage]["median"] if mine else None for stage in STAGES),
                stages.get("eager", {}).get("patch_ms", {}).get("median"),
            )
        )
    head = (
        f"{result['size']}, at once",
        "first ms",
        "p50 ms",
        "p99",
        "gap max",
        "late",
        "s/s",
        "bytes",
        *STAGES,
        "eager ms",
    )
    return "\n".join((reporting.table(head, rows), *map(str, result["left_out"])))
