"""Where a checkpoint is: a folder, the name of a bundled one, or a hub id."""

import re
from pathlib import Path

from ..errors import CheckpointError, InputError

_BUNDLED = Path(__file__).resolve().parents[1] / "checkpoints"
# what a checkpoint consists of; a hub repository may hold much more
_FILES = ("*.json", "*.safetensors", "voices/*.safetensors")


def bundled() -> list[str]:
    """The names of the checkpoints that come with the package."""
    return sorted(path.parent.name for path in _BUNDLED.glob("*/config.json"))


def find_folder(name_or_path: str | Path) -> Path | None:
    """The folder of a bundled checkpoint or of a path; None for what may be a hub id.

    A bundled name wins over a folder of that name here ("./tiny" is the folder). Raises
    InputError for a path that does not exist, CheckpointError for a folder without config.json.
    """
    name = str(name_or_path)
    if not name.strip():
        raise InputError("checkpoint '': the name is empty")
    if name in bundled():
        return _BUNDLED / name
    try:
        path = Path(name_or_path).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"checkpoint {name!r}: not a path ({error})") from None
    if is_file:
        raise InputError(f"checkpoint {name!r}: is a file; give the folder that holds it")
    if is_folder:
        if not (path / "config.json").is_file():
            raise CheckpointError(f"checkpoint {name!r}: the folder has no config.json")
        return path
    if not isinstance(name_or_path, str) or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise InputError(
            f"checkpoint {name!r}: no such folder, bundled are {', '.join(bundled()) or 'none'}, "
            "and a hub id has the form owner/name"
        )
    return None


def locate(name_or_path: str | Path) -> Path:
    """The checkpoint's folder; a hub id is downloaded, or taken from the cache when offline.

    Raises InputError when nothing has that name or it cannot be fetched.
    """
    folder = find_folder(name_or_path)
    if folder is not None:
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(name_or_path), allow_patterns=list(_FILES)))
    except LocalEntryNotFoundError:
        reason = "the hub cannot be reached and nothing is cached"
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise InputError(f"checkpoint {str(name_or_path)!r}: no folder, no bundled name, and as a hub id: {reason}")
