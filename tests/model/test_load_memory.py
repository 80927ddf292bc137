"""Loading never holds two copies: the peak is the weights and little more."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mingcore.testing.synthetic import model_config, write_checkpoint

LIMIT = 1.15
# of bytes in bfloat16; the matrices that stay in it and scales come on top of one half
FACTORS = {"fp32": 2, "int8": 0.55, "int8_dyn": 0.55}
MIB = 1 << 20

MEASURE = """
import sys
import torch
from mingcore.model import load

def status(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

load(sys.argv[1])  # everything that is imported or built at first use
open("/proc/self/clear_refs", "w").write("5")  # the peak starts from here
before = status("VmRSS")
model = load(sys.argv[2], weights=sys.argv[3])
print(status("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """About 340 MiB in bfloat16: experts, a vocabulary and a flow head of some size."""
    config = model_config("tiny", hidden_size=512, num_experts=48, moe_intermediate_size=640)
    config["llm_config"].update(vocab_size=8000, num_hidden_layers=3)
    config["ditar_config"].update(hidden_size=512, depth=8, num_heads=8)
    folder = tmp_path_factory.mktemp("large")
    write_checkpoint(folder, config, dtype=torch.bfloat16, shard_bytes=64 * MIB)
    yield folder
    for file in folder.glob("*.safetensors"):
        file.unlink()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("format", ["bf16", "fp32", "int8", pytest.param("int8_dyn", marks=pytest.mark.slow)])
def test_peak_memory(large, golden_folder, format):
    index = json.loads((large / "model.safetensors.index.json").read_text())
    weights = index["metadata"]["total_size"] * FACTORS.get(format, 1)
    assert weights >= 150 * MIB
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(golden_folder), str(large), format],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout)
    assert 0.9 * weights < peak <= LIMIT * weights, f"{peak / weights:.3f} of the weights"
