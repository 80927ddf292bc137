"""The command line: `mingcore tts`, `asr`, `edit`, `encode`, `decode` and the tools beside them."""

from .commands import app, main, run

__all__ = ["app", "main", "run"]
