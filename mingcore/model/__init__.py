"""The model core: modules from ops and config, whose state is always an explicit argument."""

from .checkpoint import MingModel, load

__all__ = ["MingModel", "load"]
