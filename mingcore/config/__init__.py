"""config.json as validated dataclasses; devices and types by name (`devices`)."""

from .model_config import MingConfig
from .rope import RopeConfig

__all__ = ["MingConfig", "RopeConfig"]
