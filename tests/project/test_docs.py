"""The examples of docs/ run as they are written, in an empty folder; links and the table of ops are right."""

import json
import os
import re
import shutil
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


# page -> what its one example prints
PRINTED = {
    "batching.md": r"3 3\n",
    "codec_fidelity.md": r"[\d.-]+ dB, [\d.-]+ dB\nTrue\n",
    "flow_head.md": r"torch.Size\(\[1, 5, 16\]\)\n",
    "profiling.md": r"(\S.* \d+ [\d.]+ ms\n){4,}",
    "streams.md": r"True\n",
}
# the new op of adding_an_op.md: on the reference, traced, on its cases, and in Triton's interpreter
NEW_OP = """
import os
import torch
from mingcore import ops
from mingcore.ops._core.cases import for_op
from mingcore.testing import compare
backends = ["reference"] + ["triton"] * bool(os.environ.get("TRITON_INTERPRET"))
for case in for_op("relu_squared"):
    for backend in backends:
        kwargs = case.make(seed=1)
        compare.check_op("relu_squared", kwargs, compare.run("relu_squared", kwargs, backend=backend))
traced = torch.compile(lambda x: ops.relu_squared(x, backend="reference") + 1, fullgraph=True, backend="aot_eager")
assert torch.equal(traced(torch.tensor([-1.0, 3.0])), torch.tensor([1.0, 10.0]))
"""


def blocks(page: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.S)


def run(code: str, folder: Path, *options: str, root: Path = ROOT, **environment: str) -> str:
    roots = (str(root), str(root / "kernels"))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(roots), **environment}
    command = [sys.executable, *options, "-c", code]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_every_page_with_an_example_is_tested_here():
    with_examples = {page.name for page in DOCS.glob("*.md") if blocks(page.name)}
    assert with_examples == {"compiler.md", "transformers.md", *PRINTED}


@pytest.mark.parametrize("page", PRINTED)
def test_a_page_with_one_example(page, tmp_path):
    (code,) = blocks(page)
    printed = run(code, tmp_path, "-W", "error")
    assert re.fullmatch(PRINTED[page], printed), printed


def test_a_new_op(tmp_path):
    """The Python of adding_an_op.md, put into a copy of the tree."""
    ignored = shutil.ignore_patterns("checkpoints", "__pycache__")
    for part in ("mingcore", "kernels"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=ignored)
    page = (DOCS / "adding_an_op.md").read_text(encoding="utf-8")
    added = re.findall(r"```py\n# (\S+)\n(.*?)```", page, re.S)
    assert len(added) == 7
    for name, text in added:
        path = tmp_path / name
        path.write_text((path.read_text(encoding="utf-8") if path.exists() else "") + text, encoding="utf-8")
    interpreted = {"TRITON_INTERPRET": "1"} if find_spec("triton") else {}
    run(NEW_OP, tmp_path, "-W", "ignore", root=tmp_path, **interpreted)


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


def test_every_link_leads_somewhere():
    count = 0
    for page in (*ROOT.glob("*.md"), *DOCS.glob("*.md")):
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if "://" in link:
                continue
            count += 1
            assert target.exists(), (page.name, link)
            assert not anchor or anchor in anchors(target), (page.name, link)
    assert count > 30


def anchors(page: Path) -> set[str]:
    """What a page's titles are called in a link."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def test_the_table_of_ops_is_that_of_the_package(tmp_path):
    """backends.md names every op and the backends that are written for it."""
    section = (DOCS / "backends.md").read_text(encoding="utf-8").partition("## Which op")[2]
    head, _, *rows = re.findall(r"^\|.*", section.partition("\n## ")[0], re.M)
    backends = re.findall(r"`(\w+)`", head)
    shown = {}
    for row in rows:
        ops, *cells = [cell.strip() for cell in row.strip("|").split("|")]
        for op in re.findall(r"`(\w+)`", ops):
            shown[op] = {backend for backend, cell in zip(backends, cells, strict=True) if cell == "yes"}
    printed = run("from mingcore.cli import main; main(['doctor', '--json'])", tmp_path, "-W", "ignore")
    found = json.loads(printed)
    if found["backends"]["flash"] is not None:  # without flash-attn nobody can tell what it has
        shown = {op: row - {"flash"} for op, row in shown.items()}
        backends.remove("flash")
    written = {op: {b for b in backends if row[b] != "not written"} for op, row in found["ops"].items()}
    assert shown == written
