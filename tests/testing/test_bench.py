"""The benches run from beginning to end, say what they should, and stop on a wrong result."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"


def start(*command, **environment):
    path = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )


def last_json(output: str) -> dict:
    return json.loads(output.strip().splitlines()[-1])


@pytest.fixture
def bench_modules(monkeypatch):
    """bench/ is a folder of scripts: its modules import each other by name."""
    monkeypatch.syspath_prepend(str(BENCH))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(BENCH) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_end_to_end_compares_and_breaks_down(tmp_path):
    done = start(
        BENCH / "end_to_end.py", "--size", "tiny", "--patches", 3, "--warm", 1,
        "--checkpoint", tmp_path / "model", "--out", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = last_json(done.stdout)
    assert said["kind"] == "end_to_end" and said["machine"]["versions"]["torch"]
    assert set(said["ours"]["stages_ms"]) == {"flow", "decode", "semantic", "llm"}
    assert said["eager"]["stages_ms"]["llm: text head alone"]["median"] > 0
    stages = sum(s["median"] for s in said["ours"]["stages_ms"].values())
    assert 0.3 < stages / said["ours"]["patch_ms"]["median"] < 3
    assert said["speedup"]["rounds"] == 3
    assert json.loads((tmp_path / "end_to_end-tiny-fp32.json").read_text()) == said
    assert "real-time factor" in done.stdout


def test_end_to_end_stops_when_the_two_differ(bench_modules, tmp_path, monkeypatch):
    import end_to_end

    monkeypatch.setattr(
        end_to_end.Ours, "unify", lambda self, latents: 1.5 * original(self, latents)
    )
    with pytest.raises(SystemExit, match="latents of patch 1 differ by"):
        end_to_end.main(
            ["--size", "tiny", "--patches", "2", "--no-save", "--checkpoint", str(tmp_path)]
        )


def original(self, latents):
    embedding, self.semantic = self.model.vae.unify(latents, self.semantic)
    return self.model.pool(embedding)


def test_ops_bench_prints_a_table_and_json(tmp_path):
    done = start(
        "-m", "pytest", "bench", "-q", "-p", "no:cacheprovider", "--benchmark-only", "--quick",
        "--size", "odd", "-k", "linear or moe_mlp or flow_step or silu_mul or overlap_add",
        "--keep", tmp_path,
    )  # fmt: skip
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


def test_ops_bench_does_not_time_what_is_wrong(bench_modules, monkeypatch):
    import measure

    from mingcore.testing.cases import for_op

    case = next(c for c in for_op("silu_mul") if c.name == "mid_expert")
    row, _ = measure.measure(case, torch.float32, quick=True)
    assert row.backend == "cpu" and row.nbytes == 6 * 704 * 3 * 4
    monkeypatch.setattr(
        measure, "candidates", lambda op, kwargs: {"ours": lambda: kwargs["gate_up"][:, :704]}
    )
    monkeypatch.setattr(measure, "served_by", lambda call: "cpu")
    with pytest.raises(AssertionError, match="silu_mul-mid_expert: ours differs"):
        measure.measure(case, torch.float32, quick=True)


def test_gpu_runner_walks_through_on_a_cpu(tmp_path):
    done = start(BENCH / "gpu.py", "--dry-run", OUT=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    said = last_json(done.stdout)
    assert [p["status"] for p in said["parts"]] == ["ok"] * 5
    assert {b["verdict"] for b in said["bars"]} == {"not measured"}
    files = {f.name for f in tmp_path.iterdir()}
    assert files == {"report.txt", "gpu.json", "log.txt"}
    kept = json.loads((tmp_path / "gpu.json").read_text())
    assert {"ops", "end_to_end"} <= set(kept["results"])
    assert "moe_mlp T=1, us" in (tmp_path / "report.txt").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_runner_without_a_gpu_says_so_in_one_line(tmp_path):
    done = start(BENCH / "gpu.py", OUT=str(tmp_path))
    assert done.returncode == 2
    (line,) = done.stdout.splitlines()
    assert "nothing to measure here" in line and "finds no GPU" in line
    assert not list(tmp_path.iterdir())


def test_gpu_runner_goes_on_after_a_part_that_fails_or_hangs(bench_modules, tmp_path, monkeypatch):
    import gpu

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


def test_gpu_runner_zips_records_and_judges_bars(bench_modules, tmp_path):
    import bars
    import gpu

    records = tmp_path / "cache" / "verified"
    records.mkdir(parents=True)
    (records / "silu_mul.json").write_text("{}")
    out = tmp_path / "out"
    out.mkdir()
    files = gpu.leave(out, records, [], {"kind": "gpu"}, "report")
    assert {f.name for f in files} == {"report.txt", "gpu.json", "log.txt", "verified.zip"}

    def ops(case, backend="triton", **row):
        row = {"op": "moe_mlp", "case": case, "device": "cuda", "backend": backend, **row}
        return {"ops": {"rows": [row]}}

    def verdict(found, name):
        return next(b.verdict for b in bars.judge(found) if b.name.startswith(name))

    assert verdict(ops("real_t1", us=44.0), "moe_mlp T=1,") == "pass"
    assert verdict(ops("real_t1", us=46.0), "moe_mlp T=1,") == "fail"
    assert verdict(ops("real_t32", read_share=0.79), "moe_mlp T=32") == "fail"
    assert verdict(ops("real_t4096", tflops=501.0), "moe_mlp T=4096") == "pass"
    assert verdict(ops("real_t1", backend="reference", us=1.0), "moe_mlp T=1,") == "not measured"
    assert verdict({}, "first audio") == "not measured"


def test_probes_compile_without_a_gpu(bench_modules):
    import probes

    if probes.nvcc() is None:
        pytest.skip("no nvcc here")
    done = start(BENCH / "probes.py", "--compile-only", "90a")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("compiled for sm_90a") == len(probes.SOURCES)
    older = start(BENCH / "probes.py", "--compile-only", "80")
    assert older.returncode == 0, older.stderr


def test_every_probe_that_is_launched_exists(bench_modules):
    import probes

    text = "".join((BENCH / "probes" / f"{name}.cu").read_text() for name in probes.SOURCES)
    for name in (*probes.EXCHANGES, "nothing", "read_loads", "read_bulk"):
        assert f" {name}(" in text, name
