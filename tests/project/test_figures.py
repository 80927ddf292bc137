"""Every figure of the tables of README and docs/ is one of a bench's results, to the last digit shown.

A new row of a table needs a line in SOURCES that says which kept result it is from; new results need new figures in
the tables: the test says which.
"""

import json
import re
from decimal import Decimal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"
KEPT = RESULTS / "amd-epyc-2-cores-avx512-vnni-bf16"
README = (ROOT / "README.md").read_text(encoding="utf-8")
BENCHMARKS = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
TRANSFORMERS = (ROOT / "docs" / "transformers.md").read_text(encoding="utf-8")
PRECISION = (ROOT / "docs" / "precision.md").read_text(encoding="utf-8")
UNITS = {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "%": 1e-2, "": 1.0}
NUMBER = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)(?:\s*(ms|µs|%|s)(?![\w]))?")


def kept(name: str) -> dict:
    return json.loads((KEPT / f"{name}.json").read_text())


def rows(name: str, **wanted) -> list[dict]:
    found = [r for r in kept(name)["rows"] if all(r[k] == v for k, v in wanted.items())]
    assert found, (name, wanted)
    return found


def end_to_end(dtype: str, weights: str = "") -> list[list[float]]:
    result = kept(f"end_to_end-mid-{dtype}{weights}")
    times = [[result[side]["patch_ms"]["median"] * 1e-3] for side in ("ours", "eager")]
    return [*times, [result["speedup"][key] for key in ("median", "p10", "p90")]]


def experts(tokens: int, other: str) -> list[list[float]]:
    case = f"real_balanced_t{tokens}"
    (row,) = rows("moe-real-cpu", case=case, dtype="bf16")
    (int8,) = rows("moe-real-cpu", case=case, dtype="int8")
    times = [[row["us"] * 1e-6, int8["us"] * 1e-6], [row["others_us"][other] * 1e-6]]
    return [*times, [row["others_x"][other]]]


def convolutions(other: str, *wanted: tuple[str, str]) -> list[list[float]]:
    found = [rows("conv-cpu", layer=layer, size=size)[0] for layer, size in wanted]
    times = [[r["us"] * 1e-6 for r in found], [r["others_us"][other] * 1e-6 for r in found]]
    return [*times, [r["faster"][other]["median"] for r in found]]


def smallest_and_largest(columns: list[list[float]]) -> list[list[float]]:
    return [[min(column), max(column)] for column in columns]


def decoder() -> list[list[float]]:
    (ours,), (eager,) = (rows("decoder-real", way=way) for way in ("ours bf16", "eager fp32"))
    return [[r["ms"]["median"] * 1e-3] for r in (ours, eager)] + [[ours["faster"]["median"]]]


def codecs() -> list[list[float]]:
    found = [rows("conv_vae-real", codec=codec, what="decode patch")[0] for codec in ("voxcpm", "vibevoice")]
    columns = ("ms", "eager_ms")
    return [*([r[key]["median"] * 1e-3 for r in found] for key in columns), [r["faster"]["median"] for r in found]]


def transformers(tokens: int) -> list[list[float]]:
    (row,) = rows("transformers-qwen3-cpu", tokens=tokens)
    ours, others = ("mingcore", "mingcore_int8"), ("grouped_mm", "batched_mm")
    times = [[row["us"][way]["median"] * 1e-6 for way in ways if way in row["us"]] for ways in (ours, others)]
    faster = row["speedup"]["mingcore"]
    return [*times, [faster[way]["median"] for way in others if way in faster]]


def recognitions(weights: str) -> list[list[float]]:
    (row,) = rows(f"text-mid-{weights}", batch=8)
    times = [[row[key]["median"]] for key in ("in_step_s", "in_turn_s")]
    return [*times, [row["speedup"]["median"]]]


UNIT_LAYERS = [(f"vox_unit_{width}", "patch") for width in (96, 192, 384, 768)]
# how a row of a table begins -> figures of its cells, in the order in which they are shown; a
# shown row may leave the last ones of a cell out
SOURCES = {
    "one patch of 100 ms at size `mid`, float32": lambda: end_to_end("fp32"),
    "the same with bfloat16 weights": lambda: end_to_end("bf16"),
    "the same with int8 weights, against float32": lambda: end_to_end("fp32", "-int8"),
    "the same with int8_dyn weights, against float32": lambda: end_to_end("fp32", "-int8_dyn"),
    "8 recordings of 3 s, 32 tokens of text each, in step at `mid`, int8_dyn": lambda: recognitions("int8_dyn"),
    "the same 8 recordings, float32": lambda: recognitions("fp32"),
    "`moe_mlp` at the real size, 1 token": lambda: experts(1, "loop over the experts hit, bf16"),
    "the same, 16 tokens": lambda: experts(16, "loop over the experts hit, bf16"),
    "the same, 512 tokens": lambda: experts(512, "F.grouped_mm, bf16"),
    "a Qwen3-MoE layer in transformers": lambda: transformers(1),
    "the same Qwen3-MoE layer, 512 tokens": lambda: transformers(512),
    "one patch through the AudioVAE's decoder": decoder,
    "`overlap_add` with envelope": lambda: convolutions("F.fold", ("overlap_add", "patch"), ("overlap_add", "10s")),
    "a residual unit of VoxCPM's codec": lambda: smallest_and_largest(convolutions("torch", *UNIT_LAYERS)),
    "one patch through VoxCPM's whole decoder": codecs,
}


def shown_rows(text: str, head: str = "| | ours |") -> list[list[str]]:
    """The cells of the table that begins with `head`, which is left out."""
    lines = [line.strip() for line in text.splitlines()]
    start = next(i for i, line in enumerate(lines) if line.startswith(head))
    found = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def figures(cell: str) -> list[tuple[str, float]]:
    """Numbers of a cell with the unit's factor; a number before "to" or "(" takes the next unit."""
    found = [(m[1], m[2] or "") for m in NUMBER.finditer(cell)]
    units = [unit for _, unit in found]
    for i in range(len(units) - 2, -1, -1):
        units[i] = units[i] or units[i + 1]
    return [(number, UNITS[unit]) for (number, _), unit in zip(found, units)]


def agrees(shown: str, factor: float, value: float) -> bool:
    """Whether the value rounds to what is shown; whole tens and hundreds count as exact."""
    half = 0.5 * 10.0 ** Decimal(shown).as_tuple().exponent * factor
    return abs(float(shown) * factor - value) <= half * (1 + 1e-9)


def wrong_figures(text: str) -> list[str]:
    """The figures of the table that are not in the results."""
    found = []
    for name, *cells in shown_rows(text):
        source = next((make for start, make in SOURCES.items() if name.startswith(start)), None)
        if source is None:
            found.append(f"{name}: no kept result is named for it")
            continue
        # figures in the name belong to "ours", behind it
        int8 = re.search(r"\(int8: ([^)]*)\)", name)
        cells[0] += f" ({int8[1]})" if int8 else ""
        for cell, values in zip(cells, source(), strict=True):
            stated = figures(cell)
            if not stated or len(stated) > len(values):
                found.append(f"{name}: {cell}: figures {stated}, kept {values}")
            for (shown, factor), value in zip(stated, values):
                if not agrees(shown, factor, value):
                    found.append(f"{name}: {cell}: {shown} is {value / factor:.4g} in the results")
    return found


@pytest.mark.parametrize("text, rows", [(README, 5), (BENCHMARKS, 15)], ids=["README", "benchmarks"])
def test_every_figure_is_one_that_was_kept(text, rows):
    assert len(shown_rows(text)) >= rows
    assert not wrong_figures(text), "\n".join(wrong_figures(text))


def test_every_kept_result_named_here_is_shown():
    names = [name for name, *_ in shown_rows(BENCHMARKS)]
    assert not [start for start in SOURCES if not any(name.startswith(start) for name in names)]


@pytest.mark.parametrize("row", range(15))
def test_a_figure_that_was_not_measured_is_found(row):
    """One digit changed in any row, or a row that nobody measured."""
    name, ours, *_ = shown_rows(BENCHMARKS)[row]
    shown = NUMBER.search(ours)[1]
    other = str(Decimal(shown) + Decimal((0, (2,), Decimal(shown).as_tuple().exponent)))
    changed = BENCHMARKS.replace(f"| {name} | {shown}", f"| {name} | {other}")
    assert changed != BENCHMARKS and len(wrong_figures(changed)) == 1
    renamed = BENCHMARKS.replace(f"| {name} |", "| a row that nobody measured |")
    assert wrong_figures(renamed) == ["a row that nobody measured: no kept result is named for it"]


def test_times_of_experts_in_transformers_are_those_that_were_kept():
    """Where a way has no time for a number of tokens, the table says so."""
    head = "| tokens |"
    ways = re.findall(r"`(\w+)`", next(line for line in TRANSFORMERS.splitlines() if line.startswith(head)))
    found = shown_rows(TRANSFORMERS, head)
    assert len(ways) == 6 and len(found) == len(kept("transformers-qwen3-cpu")["rows"])
    for tokens, *cells in found:
        (row,) = rows("transformers-qwen3-cpu", tokens=int(tokens))
        for way, cell in zip(ways, cells, strict=True):
            shown, times = figures(cell), row["us"].get(way)
            assert (cell == "not measured") == (times is None) == (not shown), (tokens, way)
            assert not shown or agrees(*shown[0], times["median"] * 1e-6), (tokens, way, cell)


def test_times_of_codecs_in_transformers_are_those_that_were_kept():
    """A row is one half of a codec, or both, the decoder first."""
    found = shown_rows(TRANSFORMERS, "| | transformers |")
    assert len(found) == 6
    for name, theirs, ours, faster in found:
        halves = re.findall(r"encoder|decoder", name)
        made = rows("codecs-cpu", codec=re.match(r"\w+", name)[0].lower())
        picked = [next(r for r in made if r["what"].startswith(half)) for half in halves]
        columns = [[r["theirs_ms"] * 1e-3 for r in picked], [r["ours_ms"] * 1e-3 for r in picked]]
        ratios = [r["x"] for r in picked]
        columns.append(ratios if len(picked) > 1 else [*ratios, picked[0]["x_p10"], picked[0]["x_p90"]])
        for cell, values in zip((theirs, ours, faster), columns, strict=True):
            shown = figures(cell)
            assert len(shown) == len(values), (name, cell)
            assert all(agrees(*pair, value) for pair, value in zip(shown, values)), (name, cell, values)


def test_floors_are_those_that_were_kept():
    text = " ".join(BENCHMARKS.split())
    factors = re.search(r"A patch takes (.*?) times the sum of its stages' floors", text)[1]
    shown = {name: figure for figure, name in re.findall(r"([\d.]+) \((\w+)\)", factors)}
    files = {"float32": "fp32", "bfloat16": "bf16", "int8": "fp32-int8", "int8_dyn": "fp32-int8_dyn"}
    assert shown.keys() == files.keys()
    for name, figure in shown.items():
        kept_times = kept(f"end_to_end-mid-{files[name]}")["floors"]["times"]
        assert agrees(figure, 1.0, kept_times), (name, figure, kept_times)
    other = kept("end_to_end-mid-bf16")["floors"]["in_bf16"]
    floor, times = re.search(r"floor would be (\d+) ms, of which it takes ([\d.]+)", text).groups()
    assert agrees(floor, 1.0, other["patch_ms"]) and agrees(times, 1.0, other["times"])


def test_what_formats_cost_is_what_was_kept():
    head, shares = re.search(r"^\| (bf16 \|.*) \|\n.*\n\| (.*) \|$", PRECISION, re.M).groups()
    shown = dict(zip(head.split(" | "), re.findall(r"([\d.]+) %", shares), strict=True))
    errors = kept("format_cost-real")["relative_l2"]
    assert shown.keys() == errors.keys()
    for name, figure in shown.items():
        assert agrees(figure, 1e-2, errors[name]), (name, figure, errors[name])


def test_spills_are_those_that_were_kept():
    text = " ".join(BENCHMARKS.split())
    shown = re.search(r"(\d+) of (\d+) Triton launches put (\d+) to (\d+) bytes", text).groups()
    content = json.loads((RESULTS / "triton_resources.json").read_text()).values()
    stacks = [launch["usage"]["STACK"] for op in content for launch in op["launches"]]
    spills = [n for n in stacks if n]
    assert list(map(int, shown)) == [len(spills), len(stacks), min(spills), max(spills)]


def test_kept_results_name_machine_versions_and_commit():
    paths = [p for p in RESULTS.rglob("*.json") if p.stem != "results"]
    assert len(paths) >= 10
    for path in paths:
        result = json.loads(path.read_text())
        if "machine" not in result:  # of a compiler, not of a machine
            continue
        where = result["machine"]
        assert where["cpu"] and where["versions"]["torch"] and where["commit"], path
        assert result["kind"] and where["time_utc"] and "python" in where, path
