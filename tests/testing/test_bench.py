"""The benches run from beginning to end, say what they should, and stop on a wrong result."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bench_decoder
import decoder_graph
import gpu
import measure
import probes
import run
import sanitize
import sweeps
import targets
from mingcore import ops
from mingcore.ops._core.cases import Draw, for_op
from mingcore.ops._core.op import implementations
from mingcore.ops.gemm.cases import takes_prepacked
from mingcore.ops.moe.cases import ROUTINGS
from mingcore.testing.roofline import ceilings

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"


def start(*command, **environment):
    path = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))
    # pytest-benchmark measures nothing where it finds the mark of a parallel pytest
    ours = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env={**ours, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )


def last_json(output: str) -> dict:
    return json.loads(output.strip().splitlines()[-1])


def test_end_to_end_serves_compares_and_breaks_down(tmp_path):
    done = start(
        BENCH / "bench_e2e.py",
        "--size",
        "tiny",
        "--patches",
        3,
        "--batches",
        "1,3",
        "--seconds",
        0.3,
        "--out",
        tmp_path,
        "--plot",
        tmp_path / "stages.png",
    )
    assert done.returncode == 0, done.stderr
    said = last_json(done.stdout)
    assert said["kind"] == "end_to_end" and said["machine"]["versions"]["torch"]
    assert said["random_weights"] and said["left_out"] == []
    assert "137 tokens, 3 s of voice" in said["prompt"] and said["first_audio_ms"]["p50"] > 0
    assert [row["batch"] for row in said["batches"]] == [1, 3]
    for row in said["batches"]:
        B, patches = row["batch"], row["patches"]
        assert row["first_audio_ms"]["count"] == B and patches == B + 8
        assert row["gap_ms"]["count"] == B * (patches - 1)
        patch = row["patch_ms"]
        assert 0 < patch["p50"] <= patch["p95"] <= patch["p99"] <= patch["max"]
        assert patch["max"] <= row["gap_ms"]["max"] and patch["count"] >= 7
        assert row["steady_throughput"] > 0 and row["peak_memory_bytes"] > 1 << 20
        found = row["stages"]
        for side in ("ours", "eager"):
            assert set(found[side]["stages_ms"]) == {"flow", "decode", "semantic", "llm"}
            assert all(s["median"] > 0 for s in found[side]["stages_ms"].values())
        assert found["speedup"]["rounds"] == 3
    # the first batch's, where older results have them
    assert said["speedup"] == said["batches"][0]["stages"]["speedup"]
    assert json.loads((tmp_path / "end_to_end-tiny-fp32.json").read_text()) == said
    assert "times as fast as the eager baseline" in done.stdout
    assert (tmp_path / "stages.png").read_bytes().startswith(b"\x89PNG")


def test_ops_bench_prints_a_table_and_json(tmp_path):
    done = start(
        "-m",
        "pytest",
        "bench",
        "-q",
        "-p",
        "no:cacheprovider",
        "--benchmark-only",
        "--quick",
        "--size",
        "odd",
        "-k",
        "linear or moe_mlp or flow_step or silu_mul or overlap_add",
        "--keep",
        tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = last_json(done.stdout)
    rows = {(r["op"], r["case"], r["dtype"]): r for r in said["rows"]}
    linear = rows["linear", "odd_sizes", "fp32"]
    assert linear["backend"] == "cpu" and linear["us"] > 0
    assert linear["others_us"].keys() == {"F.linear", "oneDNN prepacked"}
    assert linear["speedup_p10"] <= linear["speedup"] <= linear["speedup_p90"]
    assert rows["moe_mlp", "odd_sizes", "fp32"]["best"] == "loop over the experts hit"
    assert said["ceilings"]["cpu"]["read_gbs"] > 0.5
    assert "100 % on cpu: read" in done.stdout
    assert json.loads((tmp_path / "ops-odd.json").read_text()) == said


def test_runner_measures_named_ops_against_named_baselines(tmp_path, capsys):
    common = ["--quick", "--budget", "0.02", "--keep", str(tmp_path), "--case", "odd_sizes"]
    ours = ["--op", "rms_norm,silu_mul", "--dtype", "fp32", "--backend", "reference", "--against", "none"]
    assert run.main([*common, *ours]) == 0
    rows = last_json(capsys.readouterr().out)["rows"]
    assert [(r["op"], r["dtype"], r["backend"], r["best"]) for r in rows] == [
        ("rms_norm", "fp32", "reference", None),
        ("silu_mul", "fp32", "reference", None),
    ]
    assert run.main([*common, "--add", "--op", "moe_mlp", "--dtype", "bf16", "--against", "all experts"]) == 0
    said = last_json(capsys.readouterr().out)
    assert json.loads((tmp_path / "ops-odd_sizes.json").read_text()) == said
    *_, moe = said["rows"]
    assert len(said["rows"]) == 3 and (moe["op"], moe["dtype"], moe["backend"]) == ("moe_mlp", "bf16", "cpu")
    assert moe["others_us"].keys() == {"loop over all experts", "einsum over all experts"}
    for wrong in (
        ["--op", "no_such_op"],
        ["--op", "linear", "--sweep", "moe"],
        ["--add"],
        ["--sweep", "flow", "--tokens", "5"],
    ):
        with pytest.raises(SystemExit) as error:
            run.parsed(wrong)
        assert error.value.code == 2
    with pytest.raises(SystemExit, match="--case must be a tag or a name"):
        run.main(["--quick", "--op", "linear", "--case", "nothing"])


@pytest.mark.slow
def test_ops_bench_is_compared_with_an_earlier_run():
    folder = ROOT / ".benchmarks" / "test"  # pytest-benchmark takes none outside of where it runs
    run = ["-m", "pytest", "bench", "-q", "-p", "no:cacheprovider", "--benchmark-only", "--quick"]
    run += ["--size", "odd", "-k", "silu_mul", "--benchmark-columns=median"]
    run += [f"--benchmark-storage={folder}"]
    try:
        assert start(*run, "--benchmark-save=before").returncode == 0
        done = start(*run, "--benchmark-compare=0001")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("(NOW)", "(0001_before)"):
        assert f"test_cpu[silu_mul-odd_sizes-fp32] {name}" in done.stdout
    assert "machine_info is different" not in done.stdout + done.stderr


def test_ops_bench_does_not_time_what_is_wrong(monkeypatch):
    case = next(c for c in for_op("silu_mul") if c.name == "mid_expert")

    def rows():
        point = measure.ops_point(case, torch.float32, quick=True)
        return point.rows(ceilings(quick=True), quick=True)

    (row,) = rows()
    assert row.backend == "cpu" and row.nbytes == 6 * 704 * 3 * 4
    right = ops.silu_mul

    def wrong(gate_up, *, backend=None):
        return gate_up[:, :704].clone() if backend is None else right(gate_up, backend=backend)

    monkeypatch.setattr(ops, "silu_mul", wrong)
    with pytest.raises(AssertionError, match="silu_mul: error"):
        rows()
    monkeypatch.setattr(measure, "check_op", lambda op, kwargs: None)
    monkeypatch.setattr(measure, "timed_on_cpu", lambda *_: pytest.fail("timed what is wrong"))
    with pytest.raises(AssertionError, match="silu_mul-mid_expert: ours differs"):
        rows()


def test_moe_sweep_measures_every_format_routing_and_baseline(tmp_path):
    done = start(
        BENCH / "run.py",
        "--sweep",
        "moe",
        "--size",
        "tiny",
        "--tokens",
        "1,7",
        "--quick",
        "--formats",
        "bf16,fp32",
        "--keep",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    said = last_json(done.stdout)
    rows = {(r["case"], r["dtype"]): r for r in said["rows"]}
    assert len(rows) == len(said["rows"]) == 2 * 3 * 2
    one = rows["tiny_one_t7", "bf16"]
    assert one["backend"] == "cpu" and one["us"] > 0 and one["others_us"]["ours fp32"] > 0
    baselines = (
        "loop over the experts hit, bf16",
        "loop over all experts, bf16",
        "F.grouped_mm, bf16",
        "bmm of gathered experts, bf16",
        "einsum over all experts, bf16",
        "loop over the experts hit, fp32",
        "loop over all experts, fp32",
    )
    assert set(one["others_us"]) == set(one["others_x"]) == {"ours fp32", *baselines}
    assert one["best"] in baselines
    # 2 of 8 experts, the shared one, x and the result, and the routing
    small = 2 * 7 * 64 * 2 + 7 * 2 * 8
    assert one["nbytes"] == 2 * 3 * 64 * (2 * 48 + 96) + small
    assert rows["tiny_balanced_t7", "bf16"]["nbytes"] == 2 * 3 * 64 * (8 * 48 + 96) + small
    assert json.loads((tmp_path / "moe-tiny-cpu.json").read_text()) == said
    assert "share of read" in done.stdout and said["ceilings"]["cpu"]["read_gbs"] > 0.5


def test_sweep_adds_parts_of_one_series():
    def part(read_gbs, commit="c", layers=2, **us):
        rows = [{"case": c, "dtype": "bf16", "us": t, "gbs": 5.0} for c, t in us.items()]
        machine = {"commit": commit, "cpu": "x", "threads": 2, "gpu": None}
        gemms = {"fp32": 1.0 / read_gbs}
        ceilings = {"cpu": {"read_gbs": read_gbs, "copy_gbs": 1.0, "gemm_tflops": gemms}}
        head = {"machine": machine, "device": "cpu", "layers": layers, "ceilings": ceilings}
        return {"kind": "moe", **head, "rows": rows, "lacking": {}}

    first = part(10.0, mid_zipf_t16=3.0, mid_balanced_t1=4.0)
    assert run.added(None, first) is first
    both = run.added(first, part(8.0, mid_one_t1=1.0, mid_balanced_t1=2.0))
    assert [(r["case"], r["us"]) for r in both["rows"]] == [
        ("mid_balanced_t1", 2.0),
        ("mid_one_t1", 1.0),
        ("mid_zipf_t16", 3.0),
    ]
    assert both["ceilings"]["cpu"]["gemm_tflops"]["fp32"] == 1.0 / 8
    for other in (part(9.0, commit="d"), part(9.0, layers=4)):
        with pytest.raises(SystemExit, match="--add to a result of"):
            run.added(first, other)


def test_moe_sweep_times_nothing_that_is_wrong(monkeypatch):
    layers = sweeps.Layers("tiny", "cpu", 2, ("bf16",))
    tokens = layers.tokens(5, "zipf", 0)
    packed = layers.packed["bf16"][0]
    good = ops.moe_mlp(**tokens, experts=packed)
    sweeps.check_last(packed, tokens, good)
    with pytest.raises(AssertionError, match="moe_mlp: error"):
        sweeps.check_last(packed, tokens, good * 1.03)
    monkeypatch.setattr(ops, "moe_mlp", lambda x, **_: x)
    monkeypatch.setattr(sweeps, "serving", lambda op, kwargs: ("cpu", ""))
    monkeypatch.setattr(measure, "timed_on_cpu", lambda *_: pytest.fail("timed what is wrong"))
    with pytest.raises(AssertionError, match="zipf T=5: ours bf16 differs from the loop"):
        point, _ = sweeps.moe_point(layers, 5, "zipf", None)
        point.rows(None, quick=True, budget_s=0.1)


def test_what_would_hold_up_the_others_is_timed_apart(monkeypatch):
    calls = {name: lambda: None for name in ("ours bf16", "loop a", "F.b", "einsum c")}
    took_s = {"ours bf16": 1e-3, "loop a": 5e-3, "F.b": 30e-3, "einsum c": 9.0}
    measured, apart_us = measure.timed_on_cpu(calls, took_s, 20.0, True, 1.0)
    assert set(measured.samples) == {"ours bf16", "loop a"}
    assert apart_us["einsum c"] == 9e6 and apart_us["F.b"] < 1e4

    def graphs(rest, budget_s):
        return measure.interleaved(rest, rounds=3, budget_s=budget_s)

    monkeypatch.setattr(measure, "graph_interleaved", graphs)
    monkeypatch.setattr(measure, "events_interleaved", measure.interleaved)
    measured, apart_us = measure.timed_on_gpu(calls, False, 0.1)
    assert set(measured.samples) == {"ours bf16", "F.b", "einsum c"} and set(apart_us) == {"loop a"}
    del calls["loop a"]
    measured, apart_us = measure.timed_on_gpu(calls, True, 0.1)
    assert set(measured.samples) == {"ours bf16", "F.b, CUDA graph", "einsum c, CUDA graph"}
    assert set(apart_us) == {"F.b, no graph", "einsum c, no graph"}


def test_flow_sweep_measures_every_format_baseline_and_phase(tmp_path):
    common = ("--sweep", "flow", "--size", "tiny", "--quick", "--budget", "0.2", "--reference", "--keep", tmp_path)
    done = start(BENCH / "run.py", *common, "--tokens", "11", "--batches", "1")
    assert done.returncode == 0, done.stderr
    formats = ("--formats", "bf16", "--against", "none", "--no-phases", "--add")
    done = start(BENCH / "run.py", *common, "--batches", "3", "--tokens", "37", *formats)
    assert done.returncode == 0, done.stderr
    said = last_json(done.stdout)
    assert json.loads((tmp_path / "flow-tiny-cpu.json").read_text()) == said
    rows = {(r["case"], r["dtype"]): r for r in said["rows"]}
    assert set(rows) == {
        *(("tiny_11_b1", f) for f in ("fp32", "bf16", "fp16", "int8", "int8_dyn")),
        ("tiny_37_b3", "bf16"),
    }
    row = rows["tiny_11_b1", "bf16"]
    assert {f"{name}, {d}" for name in ("eager", "hoisted") for d in ("fp32", "bf16")} < set(row["others_us"])
    for d, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        assert (f"hoisted and prepacked, {d}" in row["others_us"]) == takes_prepacked(dtype)
    phases = row["phases_ms"]
    assert {"qkv", "attention", "out", "up", "down", "other"} < set(phases)
    assert phases["sum"] == pytest.approx(sum(v for k, v in phases.items() if k != "sum"))


def test_flow_sweep_times_nothing_that_is_wrong(monkeypatch):
    heads = sweeps.Heads("tiny", "cpu", ("bf16",))
    right = ops.flow_sample

    def wrong(head, schedule, condition, history, noise, *rest, backend=None, **options):
        out = right(head, schedule, condition, history, noise, *rest, backend=backend, **options)
        return out if backend == "reference" else out * 1.01

    monkeypatch.setattr(ops, "flow_sample", wrong)
    monkeypatch.setattr(measure, "timed_on_cpu", lambda *_: pytest.fail("timed what is wrong"))
    monkeypatch.setattr(sweeps, "serving", lambda op, kw: ("cpu", ""))
    point, _ = sweeps.flow_point(heads, 2, 11, wanted=(), reference=True)
    with pytest.raises(AssertionError, match="bf16: .* from the reference"):
        point.rows(None, quick=True)


def test_conv_sweep_measures_layers_and_adds(tmp_path):
    common = ("--sweep", "conv", "--budget", "0.02", "--keep", tmp_path)
    done = start(BENCH / "run.py", *common, "--case", "mixer_32,overlap", "--lengths", "patch")
    assert done.returncode == 0, done.stderr
    done = start(BENCH / "run.py", *common, "--case", "spectrum,frame", "--lengths", "10s", "--add")
    assert done.returncode == 0, done.stderr
    said = last_json(done.stdout)
    assert json.loads((tmp_path / "conv-cpu.json").read_text()) == said
    assert {(r["layer"], r["size"]): r["faster"].keys() for r in said["rows"]} == {
        ("overlap_add", "patch"): {"F.fold"},
        ("vibe_mixer_32", "patch"): {"torch"},
        ("spectrum_head", "10s"): {"irfft, F.fold", "torch.istft"},
        ("frame_embed", "10s"): {"F.linear", "F.conv1d"},
    }
    assert [bar["bar"] for bar in said["bars"]] == ["overlap_add patch: x F.fold"]


def test_conv_sweep_times_nothing_that_is_wrong(monkeypatch):
    right = ops.causal_conv1d
    monkeypatch.setattr(ops, "causal_conv1d", lambda *args, **kw: (right(*args, **kw)[0] * 1.01, None))
    monkeypatch.setattr(measure, "timed_on_cpu", lambda *_: pytest.fail("timed what is wrong"))
    options = run.parsed(["--sweep", "conv", "--case", "mixer_32", "--lengths", "10s"])
    (point,) = sweeps.conv_points(options, {})
    with pytest.raises(AssertionError, match="vibe_mixer_32 10s: torch differs by"):
        point.row(quick=True, budget_s=0.1)


def test_decoder_bench_times_nothing_that_is_wrong_or_moves_its_state(monkeypatch):
    def measure():
        config, tensors = bench_decoder.decoder_only("tiny")
        return decoder_graph.measure(tensors, config, options)

    options = argparse.Namespace(device="cpu", size="tiny", quick=True, budget=0.01)
    step = decoder_graph.Stream.step

    def wrong(self):
        step(self)
        if self.order != "reference":
            self.samples *= 1.01

    def moving(self):
        step(self)
        if self.order != "reference":
            self.state = self.state.clone()

    def stale(stream):
        """As the replays of a graph whose step goes on from an old state."""
        old = stream.state.overlap.numerator.clone()

        def replay():
            stream.state.overlap.numerator.copy_(old)
            step(stream)

        return replay

    rows, lacking = measure()
    assert [row["backend"] for row in rows] == ["cpu", "reference"] and not lacking
    assert rows[0]["ms"] > 0 and rows[0]["served"]["spectrum_head_"] == "cpu"
    for name, fault in (("step", wrong), ("step", moving), ("captured", stale)):
        with monkeypatch.context() as patch:
            patch.setattr(decoder_graph if name == "captured" else decoder_graph.Stream, name, fault)
            rows, lacking = measure()
        assert [row["order"] for row in rows] == ["reference"]
        said = "AssertionError: " + ("the state's tensors moved" if fault is moving else "cpu,ref")
        assert lacking["cpu,reference"].startswith(said)


def test_routings_are_what_their_names_say():
    for name, routing in ROUTINGS.items():
        ids = routing(Draw("cpu", torch.float32, 0), 64, 6, 64)
        assert ids.shape == (64, 6) and all(row.unique().numel() == 6 for row in ids), name
        counts = ids.flatten().bincount(minlength=64)
        spread = counts.max() - counts.min()
        assert {"balanced": spread <= 1, "zipf": 15 < spread < 64, "one": spread == 64}[name]
        assert name != "one" or (counts > 0).sum() == 6


def test_limits_of_the_gpu_runner_add_up():
    assert sum(part.limit_s for part in gpu.parts(False)) <= gpu.TOTAL_S


def test_gpu_runner_walks_through_on_a_cpu(tmp_path):
    done = start(BENCH / "gpu.py", "--dry-run", OUT=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    said = last_json(done.stdout)
    names = {part["name"] for part in said["parts"] if part["status"] == "ok"}
    assert names >= {"build", "gpu tests", "probes", "moe", "flow", "conv", "decoder", "ops"}
    last = said["parts"][-1]
    assert last["name"] == "sanitizer" and len(said["parts"]) == 10
    if shutil.which("compute-sanitizer") is None:
        assert last["status"] == "skipped: sanitizer: not run: no compute-sanitizer here"
        assert len(names) == 9
    assert {b["verdict"] for b in said["bars"]} == {"not measured"}
    files = {f.name for f in tmp_path.iterdir()}
    assert files == {"report.txt", "gpu.json", "log.txt"}
    kept = json.loads((tmp_path / "gpu.json").read_text())
    assert {"ops", "end_to_end", "decoder"} <= set(kept["results"])
    assert "moe_mlp T=1, us" in (tmp_path / "report.txt").read_text()


FAKE_SANITIZER = """#!/bin/sh
# a stand-in: runs the command, and says what the real one would
while [ "${1#--}" != "$1" ]; do shift 2; done
"$@"
echo "========= ERROR SUMMARY: ${ERRORS:-0} errors"
[ "${ERRORS:-0}" = 0 ] || exit 9
"""


@pytest.fixture
def fake_sanitizer(tmp_path):
    program = tmp_path / "compute-sanitizer"
    program.write_text(FAKE_SANITIZER)
    program.chmod(0o755)
    return program


def test_sanitizer_runs_every_kernel(fake_sanitizer):
    path = f"{fake_sanitizer.parent}{os.pathsep}{os.environ['PATH']}"
    names = ("silu_mul:cpu", "linear:cpu")
    done = start(BENCH / "sanitize.py", "--device", "cpu", "--kernels", ",".join(names), PATH=path)
    assert done.returncode == 0, done.stdout + done.stderr
    said = last_json(done.stdout)
    assert [each["tool"] for each in said["tools"]] == ["memcheck", "racecheck"]
    for each in said["tools"]:
        ran, counts = zip(*(line.split() for line in each["ran"]))
        assert ran == names and all(int(n) > 0 for n in counts)
        assert each["errors"] == 0 and not each["stopped"] and each["failed"] is None


def test_sanitizer_errors_fail(fake_sanitizer, monkeypatch, capsys):
    monkeypatch.setenv("ERRORS", "2")
    monkeypatch.setattr(sanitize, "tool", lambda: str(fake_sanitizer))
    monkeypatch.setattr(sanitize, "TOOLS", ("memcheck",))
    monkeypatch.setattr(sanitize.sys, "executable", "true")  # nothing below it
    assert sanitize.main(["--kernels", "linear:cuda"]) == 1
    said = last_json(capsys.readouterr().out)
    (found,) = said["tools"]
    assert found["errors"] == 2 and found["failed"] is None and found["ran"] == []
    monkeypatch.setattr(sanitize, "tool", lambda: None)
    assert sanitize.main([]) == sanitize.SKIPPED


def test_sanitizer_is_run_over_every_gpu_kernel():
    names = sanitize.kernels()
    assert len(names) == len(set(names)) > 20
    first_triton = next(i for i, name in enumerate(names) if name.endswith(":triton"))
    assert all(name.endswith(":triton") for name in names[first_triton:])
    here = {f"{e.op}:{e.backend}" for e in implementations() if e.backend in ("cuda", "triton")}
    assert set(names) == here


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_runner_without_a_gpu_says_so_in_one_line(tmp_path):
    done = start(BENCH / "gpu.py", OUT=str(tmp_path))
    assert done.returncode == 2
    (line,) = done.stdout.splitlines()
    assert "nothing to measure here" in line and "finds no GPU" in line
    assert not list(tmp_path.iterdir())


def test_gpu_runner_goes_on_after_a_part_that_fails_or_hangs(tmp_path, monkeypatch):
    python = sys.executable
    parts = [
        gpu.Part("build", [python, "-c", "import sys; print('boom'); sys.exit(3)"], 30),
        gpu.Part("hang", [python, "-c", "import time; time.sleep(100)"], 6),
        gpu.Part("ops", [python, "-c", 'print(\'{"kind":"other","x":1}\')'], 30),
    ]
    monkeypatch.setattr(gpu, "parts", lambda dry: parts)
    monkeypatch.setenv("OUT", str(tmp_path))
    assert gpu.main(["--dry-run"]) == 1
    assert [p.status for p in parts] == ["status 3", "stopped after 6 s", "ok"]
    assert 5 < parts[1].seconds < 30
    kept = json.loads((tmp_path / "gpu.json").read_text())
    assert kept["results"]["other"]["x"] == 1
    assert "boom" in (tmp_path / "log.txt").read_text()


def test_gpu_runner_zips_records_and_judges_targets(tmp_path):
    records = tmp_path / "cache" / "verified"
    records.mkdir(parents=True)
    (records / "silu_mul.json").write_text("{}")
    out = tmp_path / "out"
    out.mkdir()
    files = gpu.leave(out, records, [], {"kind": "gpu"}, "report")
    assert {f.name for f in files} == {"report.txt", "gpu.json", "log.txt", "verified.zip"}

    def moe(T, backend="triton", device="cuda", format="bf16", **row):
        case = f"real_balanced_t{T}"
        head = {"op": "moe_mlp", "case": case, "dtype": format, "device": device}
        ceilings = {"cpu": {"gemm_tflops": {"fp32": 0.2}}}
        return {"moe": {"rows": [{**head, "backend": backend, **row}], "ceilings": ceilings}}

    def verdict(found, name, device="cuda"):
        return next(b.verdict for b in targets.judge(found, device) if b.name.startswith(name))

    assert verdict(moe(1, us=44.0), "moe_mlp T=1,") == "pass"
    assert verdict(moe(1, us=46.0), "moe_mlp T=1,") == "fail"
    assert verdict(moe(32, read_share=0.79), "moe_mlp T=32") == "fail"
    assert verdict(moe(4096, tflops=501.0), "moe_mlp T=4096") == "pass"
    assert verdict(moe(1, backend="reference", us=1.0), "moe_mlp T=1,") == "not measured"
    assert verdict(moe(1, device="cpu", us=1.0), "moe_mlp T=1,") == "not measured"
    half = moe(1, "cpu", "cpu", "int8", others_x={"ours bf16": 1.75})
    assert verdict(half, "moe_mlp T=1, int8", "cpu") == "pass"
    assert verdict(half, "moe_mlp T=1, x F.grouped_mm", "cpu") == "not measured"
    faster = {"loop over the experts hit, bf16": 1.29, "F.grouped_mm, bf16": 1.31}
    row = moe(1, "cpu", "cpu", read_share=0.9, others_x=faster)
    assert verdict(row, "moe_mlp T=1, share", "cpu") == "pass"
    assert verdict(row, "moe_mlp T=1, x F.grouped_mm", "cpu") == "pass"
    assert verdict(row, "moe_mlp T=1, x loop over the experts hit", "cpu") == "fail"
    assert verdict(moe(512, "cpu", "cpu", tflops=0.15), "moe_mlp T=512", "cpu") == "pass"
    assert verdict(moe(512, "cpu", "cpu", tflops=0.13), "moe_mlp T=512", "cpu") == "fail"
    assert verdict({}, "first audio") == "not measured"

    def flow(format="bf16", device="cuda", backend="cuda", **row):
        head = {"op": "flow_sample", "case": "real_11_b1", "dtype": format, "device": device}
        return {"flow": {"rows": [{**head, "backend": backend, **row}]}}

    assert verdict(flow(us=899.0), "flow_sample 8x1024") == "pass"
    assert verdict(flow(us=901.0), "flow_sample 8x1024") == "fail"
    assert verdict(flow(us=1.0, backend="reference"), "flow_sample 8x1024") == "not measured"

    def decoder(**other):
        row = {"backend": "cuda+triton", "size": "real", "device": "cuda", "graph": True, "ms": 0.3}
        return {"decoder": {"rows": [{**row, **other}]}}

    assert verdict(decoder(), "decode of one patch") == "pass"
    assert verdict(decoder(ms=0.41), "decode of one patch") == "fail"
    for other in ({"backend": "reference"}, {"graph": False}, {"size": "mid"}, {"device": "cpu"}):
        assert verdict(decoder(**other), "decode of one patch") == "not measured"
    others = {"eager, fp32": 3.1, "hoisted, fp32": 1.5, "hoisted and prepacked, fp32": 1.3}
    row = flow("bf16", "cpu", "cpu", others_x=others)
    assert verdict(row, "flow_sample bf16, x eager", "cpu") == "pass"
    assert verdict(row, "flow_sample bf16, x best", "cpu") == "fail"
    assert verdict(row, "flow_sample int8_dyn", "cpu") == "not measured"


def test_probes_compile_without_a_gpu():
    if probes.nvcc() is None:
        pytest.skip("no nvcc here")
    done = start(BENCH / "probes.py", "--compile-only", "90a")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("compiled for sm_90a") == len(probes.SOURCES)
    older = start(BENCH / "probes.py", "--compile-only", "80")
    assert older.returncode == 0, older.stderr


def test_every_probe_that_is_launched_exists():
    text = "".join((BENCH / "probes" / f"{name}.cu").read_text() for name in probes.SOURCES)
    for name in (*probes.EXCHANGES, "nothing", "read_loads", "read_bulk"):
        assert f" {name}(" in text, name
