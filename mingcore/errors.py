"""The exceptions that mingcore raises on purpose; every message is one clear line."""


class MingError(Exception):
    """Base of every error that mingcore raises on purpose."""


class InputError(MingError, ValueError):
    """What the caller gave cannot be used: a file, a text, an argument."""


class CheckpointError(MingError, RuntimeError):
    """A checkpoint is missing, incomplete, damaged, or contradicts itself."""


class BackendError(MingError, RuntimeError):
    """A backend that was named explicitly cannot serve the call; the message says why."""


class KernelBundleError(BackendError):
    """A bundle of compiled kernels does not fit: stale, foreign, damaged, or without a kernel."""


class NotEnoughMemory(MingError, MemoryError):
    """A model would not fit in what its device has left; nothing was loaded."""


class ClosedError(MingError, RuntimeError):
    """What was to serve the request is closed, or broke."""
