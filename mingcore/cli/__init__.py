"""The command line: `mingcore tts`, `asr`, `edit`, `encode`, `decode` and the tools beside them."""

from .main import app, main

__all__ = ["app", "main"]
