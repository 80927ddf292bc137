"""The training scripts run from flite to a checkpoint that speaks; a few steps, on little data."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "examples" / "tiny_voice"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed"),
]


def run(script: str, *arguments: object) -> str:
    roots = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))
    command = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": roots}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_from_nothing_to_speech(tmp_path):
    corpus, out, folder = tmp_path / "corpus", tmp_path / "run", tmp_path / "checkpoint"
    assert "90 utterances" in run("corpus.py", corpus, "--count", 90)
    for stage in ("codec.py", "speech.py"):
        few = ("--batch", 2, "--resume")
        run(stage, corpus, out, "--steps", 2, *few)
        row = json.loads(run(stage, corpus, out, "--steps", 3, *few).splitlines()[-1])
        assert row["step"] == 3 and row.keys() - {"step", "minutes", "validation"} == row["validation"].keys()
    run("plots.py", out, tmp_path / "losses.png")
    assert (tmp_path / "losses.png").stat().st_size > 5000
    run("export.py", out, folder)

    from mingcore import MingAudio

    ming = MingAudio.from_pretrained(folder, device="cpu")
    assert ming.voices == ["awb", "default", "rms", "slt"]
    assert ming.tts("one two", seed=0, max_seconds=0.5).samples.shape == (8000,)
    # what was made is a start for more
    row = run("speech.py", corpus, out, "--steps", 1, "--batch", 2, "--start", folder)
    assert json.loads(row.splitlines()[-1])["step"] == 1
