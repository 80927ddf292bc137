"""The Triton kernels without a GPU: interpreted against the oracle, and compiled for three GPUs.

Both with the installed Triton and with the oldest that is supported, which is kept in a folder
beside the environment.
"""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from tests.native import triton_process

OLDEST = "3.6.0"
FOLDER = triton_process.OLDEST


@pytest.fixture(scope="module", params=("installed", OLDEST))
def triton_folder(request) -> Path | None:
    """What goes in front of PYTHONPATH for a Triton version; None: nothing, the installed one."""
    if request.param == "installed":
        return None
    if not (FOLDER / "triton" / "backends").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
        done = subprocess.run([*command, str(FOLDER), f"triton=={OLDEST}"], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"triton {OLDEST} cannot be had: {done.stderr.strip().splitlines()[-1]}")
    return FOLDER


def run(mode: str, folder: Path | None, cache: Path) -> list[dict]:
    lines = triton_process.run("run_triton.py", cache, folder, mode)
    if folder:
        assert {line["triton"] for line in lines} == {OLDEST}
    return lines


def test_interpreted_kernels_match_the_oracle(triton_folder, tmp_path):
    lines = run("interpret", triton_folder, tmp_path)
    for op in ("flow_step", "flow_step_", "silu_mul"):
        assert sum(line.get("op") == op for line in lines) >= 10
    assert "overlaps itself" in lines[-1]["refused"]


def test_compiled_kernels_neither_spill_nor_use_local_memory(triton_folder, tmp_path):
    lines = run("compile", triton_folder, tmp_path)
    assert len(lines) == 3 * 3 * 2 + 3 * 3
    triton_process.held("elementwise", lines, exact=True)
    for line in lines:
        usage = line["usage"]
        assert usage["STACK"] == 0 and usage["LOCAL"] == 0 and 0 < usage["REG"] <= 255, line
