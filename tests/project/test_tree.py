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
SITES = (
    ("pypi", "org"),
    ("debian", "org"),
    ("npm" + "js", "com"),
    ("python" + "hosted", "org"),
    ("download.pytorch", "org"),
)
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
    """The folders that ARCHITECTURE.md's tree names, as paths: names that end in "/", before two spaces."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    tree = re.search(r"^## Tree$.*?```\n(.*?)```", text, re.M | re.S).group(1)
    above: list[str] = []
    found = set()
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = re.match(r"\s*((?:[\w/]+/ )*[\w/]+/)\s", line)[1].split()
        del above[depth:]
        found |= {"".join(above) + name for name in names}
        above.append(names[-1])
    return found


def test_the_folders_of_the_architecture_exist():
    found = described()
    assert len(found) > 20 and not [name for name in found if not (ROOT / name).is_dir()]


def test_the_architecture_names_every_package():
    """Folders at the top, packages of mingcore, and families of ops; kernels are in folders of families too."""
    paths = [path.relative_to(ROOT).parts for path in tracked()]
    top = {f"{parts[0]}/" for parts in paths if len(parts) > 1 and not parts[0].startswith(".")}
    packages = {f"mingcore/{parts[1]}/" for parts in paths if parts[0] == "mingcore" and len(parts) > 2}
    families = {f"mingcore/ops/{parts[2]}/" for parts in paths if parts[:2] == ("mingcore", "ops") and len(parts) > 3}
    named = {name for path in described() for name in (path, f"{path.split('/')[0]}/")}
    assert top | packages | families <= named, sorted((top | packages | families) - named)


def test_kernels_are_in_folders_of_families():
    families = {path.split("/")[2] for path in described() if path.startswith("mingcore/ops/") and path.count("/") == 3}
    for folder in ("kernels/mingcore_kernels", "csrc/cpu", "csrc/cuda", "csrc/bind"):
        inside = {path.parent.name for path in tracked() if path.parent.parent == ROOT / folder}
        assert inside <= families | {"lib", "probe"}, (folder, sorted(inside - families))
