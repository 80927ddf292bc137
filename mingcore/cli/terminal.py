"""Output of the command line: a progress bar on a terminal, JSON, one line per error.

Standard output carries results only; messages go to standard error.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import InputError, MingError

Progress = Callable[[float], None]


@contextmanager
def progress(what: str, quiet: bool, total: float | None = None) -> Iterator[Progress | None]:
    """A progress bar over seconds of audio; None if quiet or standard error is no terminal.

    The callable takes the seconds done so far; `total` is their upper bound, if there is one.
    """
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.1f} s of audio"),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda seconds: bar.update(task, completed=seconds)


def say(line: str, quiet: bool = False) -> None:
    """Prints a message on standard error."""
    if not quiet:
        print(line, file=sys.stderr)


def emit(data: Mapping[str, Any], *, stdout_taken: bool = False) -> None:
    """Prints one JSON object; on standard error when standard output carries the audio."""
    text = json.dumps(data, ensure_ascii=False, default=_plain)
    print(text, file=sys.stderr if stdout_taken else sys.stdout)


def _plain(value: Any) -> Any:
    """Numbers of NumPy and PyTorch, and paths, as JSON values."""
    if hasattr(value, "item"):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def read_text(argument: str) -> str:
    """A text argument; "-" is standard input, UTF-8. Raises InputError for other bytes."""
    if argument != "-":
        data = os.fsencode(argument)
        return _decoded(data, "text")
    data = sys.stdin.buffer.read()
    return _decoded(data, "text (standard input)")


def _decoded(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: is not UTF-8 at byte {error.start}") from None


class _ClosedStream(io.TextIOBase):
    """Stands for a standard stream that the caller has closed (`<&-`): what is read or written raises InputError."""

    def __init__(self, name: str):
        self._name = name

    def _refuse(self, *_: Any) -> Any:
        raise InputError(f"{self._name}: is closed")

    read = readline = write = fileno = detach = _refuse

    @property
    def buffer(self) -> _ClosedStream:
        return self

    def isatty(self) -> bool:
        return False

    def flush(self) -> None:
        """Nothing was written."""


def replace_closed_streams() -> None:
    """Python has None for a standard stream that is closed at the start."""
    if sys.stdin is None:
        sys.stdin = _ClosedStream("standard input")
    if sys.stdout is None:
        sys.stdout = _ClosedStream("standard output")
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")


def os_error(error: OSError) -> str:
    """One line for an error of the system that nobody nearer knew a name for."""
    what = "standard output" if error.filename is None else repr(os.fspath(error.filename))
    return f"{what}: {error.strerror or error}"


def write_bytes(target: str, data: bytes) -> None:
    """Bytes to a path or, for "-", to standard output. Raises InputError, naming the path."""
    if target == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    try:
        Path(target).write_bytes(data)
    except OSError as error:
        raise InputError(f"output {target!r}: cannot be written ({error.strerror})") from None


def silence_stdout() -> None:
    """After a broken pipe: redirect to os.devnull, so that the flush at exit does not raise."""
    with suppress(MingError):  # it is closed already
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def count(number: float) -> str:
    """16800000000 -> "16.8 B"."""
    for size, unit in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def size(number: float) -> str:
    """Bytes for a person: 7899912 -> "7.9 MB"."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number:.0f} B"
