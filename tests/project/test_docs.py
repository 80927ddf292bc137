"""The examples of docs/ run as they are written, in an empty folder, and those of examples/."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
# what transformers needs where an example loads "FOLDER"
SMALL_MODEL = """
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
torch.manual_seed(0)
Qwen3MoeForCausalLM(Qwen3MoeConfig(
    vocab_size=64, hidden_size=64, intermediate_size=96, moe_intermediate_size=32,
    num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    num_experts=8, num_experts_per_tok=2)).save_pretrained("FOLDER")
"""


def blocks(page: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.S)


def run(code: str, folder: Path, *options: str) -> str:
    roots = (str(ROOT), str(ROOT / "kernels"))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(roots)}
    command = [sys.executable, *options, "-c", code]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_every_page_with_an_example_is_tested_here():
    with_examples = {page.name for page in DOCS.glob("*.md") if blocks(page.name)}
    assert with_examples == {"compiler.md", "flow_head.md", "transformers.md"}


def test_flow_head(tmp_path):
    (code,) = blocks("flow_head.md")
    assert "torch.Size([1, 5, 16])" in run(code, tmp_path, "-W", "error")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("transformers") is None, reason="no transformers")
def test_transformers(tmp_path):
    run(SMALL_MODEL, tmp_path, "-W", "ignore")
    experts, codecs = blocks("transformers.md")
    run(experts, tmp_path, "-W", "ignore")
    assert "modules changed" in run(codecs, tmp_path, "-W", "ignore")


@pytest.mark.slow
def test_compiler(tmp_path):
    (tmp_path / "mingcore").symlink_to(ROOT / "mingcore")  # the page loads the bundled checkpoint
    step, exported = (run(code, tmp_path, "-W", "ignore") for code in blocks("compiler.md"))
    assert "torch.Size([1, 30, 256])" in step and "torch.Size([1, 5, 64])" in exported


@pytest.mark.slow
def test_ahead_of_time(tmp_path):
    """The command of the page, with one architecture and fewer kernels."""
    from mingcore.aot import identity

    if identity.unsupported_reason():
        pytest.skip(identity.unsupported_reason())
    text = (DOCS / "ahead_of_time.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"```sh\nmingcore (.*?)\n```", text)
    command = command.replace("sm_90a,sm_80", "sm_90a").replace("64", "2") + " --json"
    code = f"import sys; from mingcore.cli import main; main({command.split()!r})"
    made = run(code, tmp_path, "-W", "ignore")
    assert '"triton"' in made and (tmp_path / "bundle" / "manifest.json").is_file()
