"""A bundle built on this machine for its GPU, installed: two kernels, and (slow) those of a model.

Each in a process of its own, because a bundle is installed for the process.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("cuda.bindings")

from mingcore.aot import identity, install

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.skipif(identity.unsupported_reason() is not None, reason=str(identity.unsupported_reason())),
]
SPEAK = """
import json, sys
import triton.compiler as compiler
from mingcore import MingAudio, ops

def wrong(*_):
    raise AssertionError("Triton compiles")

compiler.ASTSource.make_ir = wrong
with ops.use_backend("triton,reference"):
    ming = MingAudio.from_pretrained("tiny", device="cuda", kernels=sys.argv[1])
    speech = ming.tts("Hello, this is Ming.", seed=0, max_seconds=2)
print(json.dumps({"seconds": speech.samples.size / 16000, "kernels": speech.stats.kernels}))
"""


TWO = """
import sys, torch
from pathlib import Path
from mingcore.aot import build, dry_run, install, manifest, trace
from mingcore.errors import KernelBundleError
from mingcore.ops._core import launch
from mingcore_kernels.activation import silu_mul

def few(spec, target, limits, **_):
    with trace.tracing(target) as found:
        for width in (32, 17):
            x = torch.empty(3, 2 * width, device="meta")
            silu_mul.silu_mul(x, torch.empty(3, width, device="meta"))
    return found

dry_run.launches, launch.ops = few, lambda: ["flow_step"]
folder, target = Path(sys.argv[1]), install.target_of(torch.device("cuda", 0))
build.build(dry_run.ModelSpec.of(sys.argv[2]), [target], folder, jobs=1, cuda_compiler="nvrtc")
use = install.install_checked(folder, manifest.read(folder), target)
for width in (32, 17):
    x, out = torch.randn(3, 2 * width, device="cuda"), torch.full((3, width), torch.nan).cuda()
    silu_mul.silu_mul(x, out)
    expected = torch.nn.functional.silu(x[:, :width]) * x[:, width:]
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
try:
    silu_mul.silu_mul(x.half(), out.half())
except KernelBundleError as error:
    assert "has no _silu_mul_kernel" in str(error), error
else:
    raise AssertionError("a kernel that the bundle lacks was compiled")
(entry,) = manifest.read(folder)["cuda"]
assert launch.kernel("flow_step", sorted(entry["kernels"])[0], 0).function
print(use.as_dict()["compiled"])
"""


@pytest.fixture
def environment(tmp_path):
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "kernels"))),
        # empty: what the bundle lacks would be compiled
        "TRITON_CACHE_DIR": str(tmp_path / "nowhere"),
        "MINGCORE_CACHE": str(tmp_path / "cache"),
    }


def test_two_kernels_on_a_gpu(tmp_path, environment):
    tiny = ROOT / "mingcore" / "checkpoints" / "tiny"
    command = [sys.executable, "-W", "ignore", "-c", TWO, str(tmp_path / "bundle"), str(tiny)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "0"


@pytest.mark.slow
def test_nothing_is_compiled_on_a_gpu(tmp_path, environment):
    target, bundle = install.target_of(torch.device("cuda", 0)), tmp_path / "bundle"
    python = [sys.executable, "-W", "ignore"]
    make = [*python, "-c", "from mingcore.cli import main; main()", "compile", "tiny"]
    sizes = ["--arch", str(target), "-o", str(bundle), "--rows", "1", "--tokens", "256"]
    subprocess.run([*make, *sizes], check=True, env=environment, timeout=280)
    command = [*python, "-c", SPEAK, str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["seconds"] > 0.5 and said["kernels"]["compiled"] == 0
    assert said["kernels"]["target"] == str(target) and said["kernels"]["triton"] > 50
