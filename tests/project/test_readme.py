"""Every example of README.md runs as it is written, in an empty folder; it is short, and names every page of docs/."""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text under `## title`."""
    return re.search(rf"^## {title}$(.*?)(?=^## |\Z)", README, re.M | re.S).group(1)


def blocks(title: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", section(title), re.S)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a `mingcore` command of this very tree first on the PATH."""
    folder = tmp_path_factory.mktemp("readme")
    script = folder / "bin" / "mingcore"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nfrom mingcore.cli import main\nmain()\n")
    script.chmod(0o755)
    return folder


def run(command: list[str], home: Path) -> str:
    scripts = (str(home / "bin"), sysconfig.get_path("scripts"), os.environ["PATH"])
    roots = (str(ROOT), str(ROOT / "kernels"))
    env = {**os.environ, "PATH": os.pathsep.join(scripts), "PYTHONPATH": os.pathsep.join(roots)}
    work = home / "work"
    work.mkdir(exist_ok=True)
    done = subprocess.run(command, cwd=work, env=env, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:].decode() + done.stderr[-4000:].decode()
    return done.stdout.decode()


def test_python_example(home):
    (code,) = blocks("In Python", "python")
    run([sys.executable, "-W", "error", "-c", code], home)
    for name in ("hello.wav", "me.safetensors", "edited.wav"):
        assert (home / "work" / name).stat().st_size > 1000


def test_batch_example(home):
    (code,) = blocks("Many requests at once", "python")
    printed = run([sys.executable, "-W", "error", "-c", code], home).splitlines()
    assert [sum(line.startswith(text) for line in printed) for text in ("One", "Two")] == [10, 10]


def test_command_line_example(home):
    (code,) = blocks("On the command line", "sh")
    run(["bash", "-euo", "pipefail", "-c", code], home)
    made = ("hello.wav", "voice.wav", "raw.pcm", "edited.wav", "hello.safetensors", "again.wav")
    for name in made:
        assert (home / "work" / name).stat().st_size > 1000, name


def test_kernels_example(home):
    (code,) = blocks("The kernels alone", "python")
    run([sys.executable, "-W", "error", "-c", code + "\nprint(tuple(y.shape))"], home)


def test_every_target_that_the_readme_names_exists():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"\bmake ([a-z]+)\b", README))
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_the_readme_is_short():
    lines = README.splitlines()
    assert len(lines) <= 200
    assert not [line for line in lines if len(line) > 120]


def test_the_readme_links_every_page_of_the_docs():
    pages = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")}
    assert pages <= set(re.findall(r"\]\((docs/[^)#]+)", README))
