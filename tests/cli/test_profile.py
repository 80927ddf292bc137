"""`mingcore profile`: its table, its JSON, and its trace file."""

import json
import subprocess
from pathlib import Path

SHORT = ("--max-seconds", "0.2", "--steps", "1")


def test_a_table_and_a_trace(mingcore):
    done = mingcore("profile", "one two", *SHORT, "--out", "t.json")
    assert done.status == 0, done.err
    for word in ("vae decode", "host/other", "flow", "gap", "launches", "GB/s"):
        assert word in done.out
    assert "t.json" in done.err and "ui.perfetto.dev" in done.err
    trace = json.loads(Path("t.json").read_text())
    assert {"ph", "pid", "name"} <= set(trace["traceEvents"][0])
    assert trace["otherData"]["machine"]["cores"] >= 1


def test_recognition_as_json_and_nothing_else_in_a_process(command, wav, tmp_path):
    arguments = ["profile", str(wav), "--task", "asr", "--max-tokens", "2", "--json"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    said = json.loads(done.stdout)
    assert said["task"] == "asr" and said["trace"] == "profile.json"
    assert [row["stage"] for row in said["stages"]][-1] == "host/other"
    assert (tmp_path / "profile.json").exists()
