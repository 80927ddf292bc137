"""What holds for every file of the tree: imports, syntax, length, and no talk of one machine."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# a machine's folders and the registries' hosts, in pieces so that this file holds none of them
PLACES = "|".join(("home", "root", "work", "farm"))
SITES = (("pypi", "org"), ("debian", "org"), ("npmjs", "com"), ("pythonhosted", "org"), ("download.pytorch", "org"))
HOSTS = "|".join(re.escape(f"{name}.{top}") for name, top in SITES)
FORBIDDEN = re.compile(rf"(^|[^.\w/])/({PLACES})/[a-z]|\.\./sha" + "red|" + HOSTS)
LONGEST = 600


def tracked(*suffixes: str) -> list[Path]:
    """Files that git would keep: tracked ones and new ones that are not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    paths = [ROOT / name for name in listed if name.endswith(suffixes or "")]
    return [path for path in paths if path.is_file()]


def test_imports_point_one_way():
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as m; m()"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("version", [(3, 10), (3, 13)])
def test_syntax_of_the_oldest_and_newest_python(version):
    for path in tracked(".py"):
        ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=version)


def test_no_file_speaks_of_one_machine_or_a_registry():
    found = []
    for path in tracked():
        if path.name == "LICENSE":
            continue
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        found += [f"{path}:{n}: {s.strip()}" for n, s in enumerate(lines, 1) if FORBIDDEN.search(s)]
    assert not found, "\n".join(found)


def test_the_search_for_forbidden_lines_finds_them():
    slash = "/"
    lines = ("see {}home{}me/x", "cd {}work{}main", "https:{0}{0}py" + "pi.org", "..{}sha" + "red{}x")
    for line in lines:
        assert FORBIDDEN.search(line.format(slash, slash)), line
    assert not FORBIDDEN.search("docs/work/x and a/home/y")


def test_source_files_are_short():
    paths = [p for p in tracked(".py", ".cpp", ".h", ".cu", ".cuh") if "tests" not in p.parts]
    lengths = {str(p): len(p.read_text(encoding="utf-8").splitlines()) for p in paths}
    long = {path: n for path, n in lengths.items() if n > LONGEST}
    assert len(lengths) > 50 and not long, long


def test_nothing_is_left_open_in_the_code():
    marks = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|NotImplemented" + r"Error)\b")
    found = [
        f"{path}:{n}"
        for path in tracked(".py", ".cpp", ".h", ".cu")
        for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if marks.search(line)
    ]
    assert not found, "\n".join(found)


def described() -> set[str]:
    """The files that ARCHITECTURE.md's tree names, as paths."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    tree = re.search(r"^## Tree$.*?```\n(.*?)```", text, re.M | re.S).group(1)
    folders: list[str] = []
    found = set()
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = re.split(r"\s{2,}", line.strip())[0].split()
        del folders[depth:]
        found |= {"".join(folders) + name for name in names if not name.endswith("/")}
        if names[0].endswith("/"):
            folders.append(names[0])
    return found


def test_the_architecture_names_every_module_and_no_other():
    suffixes = (".py", ".cpp", ".h", ".cu", ".cuh")
    ours = {p.relative_to(ROOT).as_posix() for p in tracked(*suffixes)}
    ours = {p for p in ours if p.split("/")[0] in ("mingcore", "kernels", "csrc", "bench", "examples")}
    ours = {p for p in ours if not p.endswith("__init__.py")}
    assert described() == ours, sorted(described() ^ ours)
