"""Text files of a checkpoint: read whole, every failure one CheckpointError that says what was found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

_LFS = b"version https://git-lfs"


def read_text(path: str | Path) -> str:
    """The file as UTF-8 text. Raises CheckpointError, naming the path, for what is no such file."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise CheckpointError(unreadable(path, error)) from None
    require_content(path, data[: len(_LFS)])
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text at byte {error.start}") from None


def read_json(path: str | Path) -> Any:
    """The file's JSON value. Raises CheckpointError, naming the path, for what is no JSON."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None


def unreadable(path: Path, error: Exception) -> str:
    """One line on why a file of a checkpoint could not be opened or read."""
    if isinstance(error, FileNotFoundError):
        if path.is_symlink():
            return f"{path} is a link to {path.readlink()}, which does not exist"
        return f"{path} is missing"
    if isinstance(error, IsADirectoryError):
        return f"{path} is a folder, it must be a file"
    return f"{path} cannot be read ({getattr(error, 'strerror', None) or error})"


def require_content(path: Path, start: bytes) -> None:
    """Raises CheckpointError for a Git LFS pointer, which stands where the file should be.

    start: the first bytes of the file.
    """
    if start.startswith(_LFS):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the file itself; `git lfs pull` fetches it")
