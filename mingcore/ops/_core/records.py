"""Which GPU kernels have passed their tests on which architecture.

A GPU proves a kernel, nothing else does. A record says: these sources passed on this architecture.
Records that ship with the package lie in `verified/<op>.json`, those of this machine, written by
`mingcore verify`, in the user's cache under the same name; both count. A record counts as long as
the kernel's fingerprint is the same: a hash of its sources and what they include, without
comments, of the packing code where the op takes packed weights, of the adapter, and of the flags.
PyTorch's and Triton's versions and the date stand beside it.
"""

import ast
import hashlib
import io
import json
import logging
import os
import re
import tokenize
from dataclasses import asdict, dataclass
from datetime import date
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Protocol

import torch

from ... import env

SHIPPED = Path(__file__).parents[1] / "verified"
PACKING = Path(__file__).with_name("packing.py")
NOT_VERIFIED = "not verified on this architecture ({}); run mingcore verify"

_log = logging.getLogger("mingcore")


class Kernel(Protocol):
    """What a record needs to know of an implementation (`op.Implementation`)."""

    op: str
    backend: str
    sources: tuple[Path, ...]
    flags: tuple[str, ...]
    packed: bool


@dataclass(frozen=True)
class Record:
    """One line of `<op>.json`."""

    backend: str
    architecture: str
    hash: str
    device: str
    torch: str
    triton: str | None
    date: str


def unproven(entry: Kernel, device: torch.device) -> str | None:
    """Why the automatic choice must not take this GPU kernel on `device`, or None."""
    here = architecture(device)
    try:
        expected = fingerprint(entry)
    except FileNotFoundError as error:
        return f"cannot be verified: its source {error.filename} is missing"
    for record in records(entry.op):
        if (record.backend, record.architecture, record.hash) == (entry.backend, here, expected):
            return None
    return NOT_VERIFIED.format(here)


def architecture(device: torch.device) -> str:
    """The instruction set of a GPU, such as sm_90 or gfx942."""
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return properties.gcnArchName.split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def user_folder() -> Path:
    return env.cache_dir() / "verified"


def records(op: str) -> list[Record]:
    """Every record of an op: the package's, then this machine's."""
    return [*_read(SHIPPED / f"{op}.json"), *_read(user_folder() / f"{op}.json")]


def _read(path: Path) -> list[Record]:
    try:
        return [Record(**fields) for fields in json.loads(path.read_text())["records"]]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        _log.warning("%s is not a list of records and counts for nothing: %s", path, error)
        return []


def keep(entry: Kernel, device: torch.device, folder: Path | None = None) -> Path:
    """Write that the tests of `entry` passed on `device`; folder None: the user's cache."""
    try:
        triton = metadata.version("triton")
    except metadata.PackageNotFoundError:
        triton = None
    new = Record(
        backend=entry.backend,
        architecture=architecture(device),
        hash=fingerprint(entry),
        device=torch.cuda.get_device_name(device),
        torch=torch.__version__,
        triton=triton,
        date=date.today().isoformat(),
    )
    path = (folder or user_folder()) / f"{entry.op}.json"
    place = (new.backend, new.architecture)
    kept = [old for old in _read(path) if (old.backend, old.architecture) != place]
    kept = sorted([*kept, new], key=lambda record: (record.backend, record.architecture))
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"op": entry.op, "records": [asdict(record) for record in kept]}, indent=1)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    unfinished.write_text(text + "\n")
    unfinished.replace(path)
    return path


@cache
def fingerprint(entry: Kernel) -> str:
    """Hash of everything that the record of a kernel vouches for; comments do not count."""
    digest = hashlib.sha256()
    for path in source_files(entry):
        digest.update(f"{path.name}\0{stripped(path.read_text(), path.suffix)}\0".encode())
    digest.update("\0".join(entry.flags).encode())
    return digest.hexdigest()[:32]


def source_files(entry: Kernel) -> list[Path]:
    """The named sources, what they include or import beside them, and the packing code."""
    found: dict[Path, None] = {}
    waiting = list(entry.sources)
    if entry.packed:
        waiting.append(PACKING)
    while waiting:
        path = waiting.pop(0).resolve()
        if path not in found:
            found[path] = None
            if path != PACKING:
                waiting.extend(_included(path))
    return sorted(found, key=lambda path: path.name)


def _included(path: Path) -> list[Path]:
    """Files named by `#include "..."`, and modules of the kernel folder that a kernel imports."""
    text = path.read_text()
    if path.suffix != ".py":
        names = re.findall(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', text, re.MULTILINE)
        places = [folder / name for name in names for folder in (path.parent, path.parent.parent)]
    elif path.is_relative_to(SHIPPED.parent):
        places = []  # an adapter's neighbours are the engine, not the kernel
    else:
        nodes = ast.walk(ast.parse(text))
        places = [p for node in nodes if isinstance(node, ast.ImportFrom) for p in _named(node, path)]
    return [place for place in places if place.is_file()]


def _named(node: ast.ImportFrom, path: Path) -> list[Path]:
    """Modules of the importing one's package: `from .a import f`, `from ..b import a`, `from
    package.b.a import f`."""
    module = node.module or ""
    if node.level:
        folder = path.parents[node.level - 1]
    else:
        top, _, module = module.partition(".")
        folder = next((parent for parent in path.parents if parent.name == top), None)
        if folder is None:
            return []
    place = folder.joinpath(*module.split(".")) if module else folder
    return [place.with_suffix(".py"), *(place / f"{alias.name}.py" for alias in node.names)]


def stripped(text: str, suffix: str) -> str:
    """Source text without comments, docstrings (Python), blank lines and trailing spaces."""
    text = _without_python_comments(text) if suffix == ".py" else _without_c_comments(text)
    lines = (line.rstrip() for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def _without_python_comments(text: str) -> str:
    spans = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            spans.append((token.start, token.end))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                if isinstance(first.value.value, str):
                    spans.append(_character_span(text, first))
    lines = text.splitlines(keepends=True)
    for (first, start), (last, end) in sorted(spans, reverse=True):
        lines[first - 1 : last] = [lines[first - 1][:start] + lines[last - 1][end:]]
    return "".join(lines)


def _character_span(text: str, node: ast.AST) -> tuple[tuple[int, int], tuple[int, int]]:
    """`ast` counts columns in UTF-8 bytes, `tokenize` in characters; this is the latter."""
    lines = text.splitlines()

    def column(line: int, offset: int) -> int:
        return len(lines[line - 1].encode()[:offset].decode())

    start = (node.lineno, column(node.lineno, node.col_offset))
    return start, (node.end_lineno, column(node.end_lineno, node.end_col_offset))


_C_TOKENS = re.compile(r"""//(?:\\\n|[^\n])*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'""", re.DOTALL)


def _without_c_comments(text: str) -> str:
    return _C_TOKENS.sub(lambda found: " " if found[0].startswith("/") else found[0], text)
