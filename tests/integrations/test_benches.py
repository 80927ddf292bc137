"""The benches of transformers' models run to the end with the expected rows."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_spec("transformers") is None, reason="no transformers")]


def rows_of(script: str, folder: Path, *options: str) -> list[dict]:
    """The rows that a quick run prints, equal to those in its result file."""
    path = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))
    command = [sys.executable, str(ROOT / "bench" / script), "--quick", "--budget", "0.05"]
    done = subprocess.run(
        [*command, "--keep", str(folder), *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.strip().splitlines()[-1])
    (kept,) = folder.glob("*.json")
    assert json.loads(kept.read_text()) == said
    return said["rows"]


def test_experts(tmp_path):
    rows = rows_of("bench_transformers.py", tmp_path, "--size", "tiny", "--tokens", "1,5")
    assert [row["tokens"] for row in rows] == [1, 5]
    for row in rows:
        assert row["us"].keys() >= {"eager", "grouped_mm", "batched_mm", "mingcore", "mingcore_int8"}
        assert all(us["median"] > 0 for us in row["us"].values())


def test_codecs(tmp_path):
    rows = rows_of("bench_codecs.py", tmp_path)
    assert {row["codec"] for row in rows} >= {"mimi", "encodec", "dac"}
    assert all(row["error"] < 1e-5 and row["ours_ms"] > 0 for row in rows)
