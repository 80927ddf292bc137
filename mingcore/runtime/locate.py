"""Where a checkpoint or an adapter is: a folder, the name of a bundled one, or a hub id."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from ..errors import CheckpointError, InputError

_BUNDLED = Path(__file__).resolve().parents[1] / "checkpoints"
# what a checkpoint consists of; a hub repository may hold much more
_FILES = ("*.json", "*.safetensors", "voices/*.safetensors")
_CONFIG = {"checkpoint": "config.json", "adapter": "adapter_config.json"}
_SEGMENT = r"[\w-][\w.-]*"
_HUB_ID = re.compile(
    rf"(?P<repo>{_SEGMENT}/{_SEGMENT})(?:/(?P<folder>{_SEGMENT}(?:/{_SEGMENT})*))?(?:@(?P<revision>.+))?"
)


class HubId(NamedTuple):
    """A repository of the hub, perhaps a folder in it, perhaps a revision (branch, tag or commit)."""

    repo: str
    folder: str | None = None
    revision: str | None = None

    @classmethod
    def parse(cls, name: str) -> HubId | None:
        """Of "owner/name", "owner/name@revision" or "owner/name/folder@revision"; None for other strings."""
        match = _HUB_ID.fullmatch(name)
        return None if match is None else cls(match["repo"], match["folder"], match["revision"])

    @property
    def options(self) -> dict[str, str]:
        """For calls of huggingface_hub."""
        return {} if self.revision is None else {"revision": self.revision}

    def path(self, name: str) -> str:
        """Of a file below the folder."""
        return name if self.folder is None else f"{self.folder}/{name}"


def bundled() -> list[str]:
    """The names of the checkpoints that come with the package."""
    return sorted(path.parent.name for path in _BUNDLED.glob("*/config.json"))


def find_folder(name_or_path: str | Path, kind: str = "checkpoint") -> Path | None:
    """The folder of a bundled checkpoint or of a path; None for what may be a hub id.

    A bundled name wins over a folder of that name here ("./tiny" is the folder). kind: "checkpoint" or "adapter", of
    which none is bundled. Raises InputError for a path that does not exist, CheckpointError for a folder without its
    config.
    """
    if not isinstance(name_or_path, str | Path):
        raise InputError(f"{kind}: must be a path or a hub id, got {type(name_or_path).__name__}")
    name = str(name_or_path)
    if not name.strip():
        raise InputError(f"{kind} {name!r}: the name is empty")
    if kind == "checkpoint" and name in bundled():
        return _BUNDLED / name
    try:
        path = Path(name_or_path).expanduser()
        is_folder, is_file, is_link = path.is_dir(), path.is_file(), path.is_symlink()
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{kind} {name!r}: not a path ({error})") from None
    if is_file:
        raise InputError(f"{kind} {name!r}: is a file; give the folder that holds it")
    if is_link and not is_folder:
        raise InputError(f"{kind} {name!r}: is a link to {path.readlink()}, which does not exist")
    if is_folder:
        try:
            found = (path / _CONFIG[kind]).exists() or (path / _CONFIG[kind]).is_symlink()
        except OSError as error:
            raise CheckpointError(f"{kind} {name!r}: cannot be read ({error.strerror})") from None
        if not found:
            raise CheckpointError(f"{kind} {name!r}: the folder has no {_CONFIG[kind]}")
        return path
    if not isinstance(name_or_path, str) or HubId.parse(name) is None:
        names = f"bundled are {', '.join(bundled()) or 'none'}, " if kind == "checkpoint" else ""
        raise InputError(
            f"{kind} {name!r}: no such folder, {names}and a hub id has the form owner/name, "
            "owner/name@revision or owner/name/folder"
        )
    return None


def hub_id(name: str, revision: str | None, kind: str = "checkpoint") -> HubId:
    """The parts of a hub id; `revision` is another way to say "@revision". Raises InputError for two revisions."""
    found = HubId.parse(name)
    if revision is None:
        return found
    if not isinstance(revision, str) or not revision.strip():
        raise InputError(f"revision: must be a branch, a tag or a commit, got {revision!r}")
    if found.revision not in (None, revision):
        raise InputError(f"revision: {kind} {name!r} names another one, got {revision!r}")
    return found._replace(revision=revision)


def locate(name_or_path: str | Path, revision: str | None = None, kind: str = "checkpoint") -> Path:
    """The checkpoint's folder; a hub id is downloaded, or taken from the cache when offline.

    revision: of a hub id: a branch, a tag or a commit. kind: "checkpoint" or "adapter". Raises InputError when nothing
    has that name or it cannot be fetched, CheckpointError for a folder that holds none.
    """
    folder = find_folder(name_or_path, kind)
    if folder is not None:
        if revision is not None:
            raise InputError(f"revision: belongs to a hub id, {kind} {str(name_or_path)!r} is a folder")
        return folder
    from huggingface_hub import snapshot_download

    found = hub_id(str(name_or_path), revision, kind)
    try:
        fetched = snapshot_download(found.repo, allow_patterns=[found.path(name) for name in _FILES], **found.options)
    except hub_errors() as error:
        raise not_on_hub(str(name_or_path), found, error, kind) from None
    folder = Path(fetched, found.folder or "")
    if not folder.is_dir():
        raise InputError(f"{kind} {str(name_or_path)!r}: the repository {found.repo} has no folder {found.folder}")
    if not (folder / _CONFIG[kind]).exists():
        raise CheckpointError(f"{kind} {str(name_or_path)!r}: the repository has no {found.path(_CONFIG[kind])}")
    return folder


def hub_errors() -> tuple[type[Exception], ...]:
    """What calls of huggingface_hub raise for names, networks and disks: its own errors and its HTTP client's."""
    from huggingface_hub import errors

    return (OSError, ValueError, errors.HfHubHTTPError, *errors.HfHubHTTPError.__bases__)


def not_on_hub(name: str, found: HubId, error: Exception, kind: str = "checkpoint") -> InputError:
    """The error, on one line, for a hub id that could not be fetched."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        reason = f"{found.repo} is gated: accept its terms on the hub and log in (HF_TOKEN)"
    elif isinstance(error, errors.RevisionNotFoundError):
        reason = f"{found.repo} has no revision {found.revision!r}"
    elif isinstance(error, errors.RepositoryNotFoundError):
        reason = f"there is no repository {found.repo}, or it is private and needs a login (HF_TOKEN)"
    elif isinstance(error, errors.LocalEntryNotFoundError):
        cause = error.__cause__ or error.__context__
        why = f" ({_first_line(cause)})" if cause is not None else ""
        reason = f"the hub cannot be reached and nothing is cached{why}"
    elif isinstance(error, OSError) and error.strerror:
        reason = f"it cannot be stored ({error.strerror})"
    else:
        reason = _first_line(error)
    return InputError(f"{kind} {name!r}: no folder, no bundled name, and as a hub id: {reason}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
