"""Ming-UniAudio: speak, transcribe and edit audio, on one GPU or on a plain CPU.

`import mingcore` is cheap: a module, and PyTorch with it, is imported when one of its names is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .api import MingAudio, RoundTrip, Speech, Transcript, Voice
    from .api.aio import AsyncMingAudio
    from .errors import BackendError, CheckpointError, ClosedError, InputError, MingError, NotEnoughMemory

_HOME = {
    "AsyncMingAudio": ".api.aio",
    "MingAudio": ".api",
    "Voice": ".api",
    "Speech": ".api",
    "Transcript": ".api",
    "RoundTrip": ".api",
    "MingError": ".errors",
    "InputError": ".errors",
    "CheckpointError": ".errors",
    "BackendError": ".errors",
    "NotEnoughMemory": ".errors",
    "ClosedError": ".errors",
}

__all__ = [
    "AsyncMingAudio",
    "BackendError",
    "CheckpointError",
    "ClosedError",
    "InputError",
    "MingAudio",
    "MingError",
    "NotEnoughMemory",
    "RoundTrip",
    "Speech",
    "Transcript",
    "Voice",
    "__version__",
]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
