"""The patch step exported, saved, loaded, and compiled by AOTInductor: bit for bit the step."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mingcore import ops
from mingcore.model import load
from mingcore.runtime.exportable import PatchStep, tensors_of, with_tensors
from mingcore.runtime.params import PatchLimits
from mingcore.runtime.state import BatchState
from mingcore.runtime.step import FlowGroup, advance, generate_patch

ROOT = Path(__file__).parents[2]
TINY = ROOT / "mingcore" / "checkpoints" / "tiny"
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def model():
    return load(TINY)


def begun(model, batch: int = 2) -> BatchState:
    """BatchState of a state that cannot grow, each with a history and the LLM's hidden state."""
    draw = torch.Generator().manual_seed(5)
    rows = BatchState.create(model, batch + 1, tokens=64, frames=128).rows(0, batch)
    for row in range(batch):
        hidden = torch.randn(1, model.config.llm.hidden_size, generator=draw)
        history = torch.randn(1, 5, model.config.latent_dim, generator=draw)
        rows.begin_patches(row, hidden, history, PatchLimits(max_patches=3 + row, min_patches=1, expected=4), 2.0)
    return rows


def noises(model, steps: int, patches: int, batch: int = 2) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(6)
    shape = (steps + 1, batch, 5, model.config.latent_dim)
    return [torch.randn(shape, generator=draw) for _ in range(patches)]


@torch.no_grad()
def by_step(model, schedule, patches):
    rows, out = begun(model), []
    for noise in noises(model, schedule.steps, patches):
        e = generate_patch(model, rows, [FlowGroup(schedule, True, noise)])
        out.append((e.latents, e.samples, e.counts, e.consumed, e.ended, e.stopped))
        advance(model, rows)
        out[-1] = tuple(t.clone() for t in out[-1])
    return out, tensors_of(rows)


def by_function(model, function, schedule, patches):
    state, out = [t.clone() for t in tensors_of(begun(model))], []
    for noise in noises(model, schedule.steps, patches):
        out.append(tuple(t.clone() for t in function(state, noise)))
    return out, state


def check(got, expected, exact=True) -> None:
    """Equal patches, and equal state behind them."""
    limits = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-4, "atol": 1e-5}
    for a, b in zip((*got[0], got[1]), (*expected[0], expected[1]), strict=True):
        for s, t in zip(a, b, strict=True):
            torch.testing.assert_close(s, t, **limits)


def test_a_state_is_its_tensors(model):
    rows = begun(model)
    found = tensors_of(rows)
    again = with_tensors(rows, iter(found))
    assert [t.data_ptr() for t in tensors_of(again)] == [t.data_ptr() for t in found]
    assert again.llm.windows == rows.llm.windows and again.decoder.overlap.skip is None


def test_the_module_is_the_step(model):
    schedule = ops.FlowSchedule.make(5)
    step = PatchStep(model, begun(model), schedule)
    with torch.no_grad():
        got = by_function(model, step, schedule, 4)
    check(got, by_step(model, schedule, 4))


@pytest.mark.slow
def test_exported_saved_loaded_and_run_by_aotinductor(model, tmp_path):
    schedule = ops.FlowSchedule.make(5)
    step = PatchStep(model, begun(model), schedule)
    with torch.no_grad():
        exported = torch.export.export(step, (step.state, step.noise()))
    called = {str(n.target) for n in exported.graph.nodes if "mingcore" in str(n.target)}
    assert any("flow_sample" in name for name in called), called
    assert any("moe_mlp" in name for name in called), called
    torch.export.save(exported, tmp_path / "step.pt2")
    loaded = torch.export.load(tmp_path / "step.pt2")
    expected = by_step(model, schedule, 4)
    with torch.no_grad():
        check(by_function(model, loaded.module(), schedule, 4), expected)
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    path = torch._inductor.aoti_compile_and_package(loaded, package_path=str(tmp_path / "a.pt2"))
    compiled = torch._inductor.aoti_load_package(path)
    check(by_function(model, compiled, schedule, 4), expected, exact=False)
    # and in another Python process, which knows the ops and no model
    torch.save((step.state, step.noise()), tmp_path / "inputs.pt")
    code = (
        "import sys, torch, mingcore.ops\n"
        "state, noise = torch.load(sys.argv[2])\n"
        "out = torch._inductor.aoti_load_package(sys.argv[1])(state, noise)\n"
        "assert 'mingcore.model' not in sys.modules\n"
        "print(tuple(out[0].shape))\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, path, str(tmp_path / "inputs.pt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=200)
    assert done.returncode == 0 and done.stdout.strip() == "(2, 5, 64)", done.stderr[-2000:]
