"""The exceptions that mingcore raises deliberately; every message is one line: argument, expected, got."""


class MingError(Exception):
    """Base of every error that mingcore raises deliberately."""


class InputError(MingError, ValueError):
    """An argument, a file or a text of the caller cannot be used."""


class CheckpointError(MingError, RuntimeError):
    """A checkpoint is missing, incomplete, damaged, or contradicts itself."""


class BackendError(MingError, RuntimeError):
    """A backend that was named explicitly does not support the call; the message says why."""


class KernelBundleError(BackendError):
    """A bundle of compiled kernels cannot be used: stale, for another GPU or model, damaged, or lacking a kernel."""


class NotEnoughMemory(MingError, MemoryError):
    """A model does not fit in the available memory of its device; nothing was loaded."""


class ClosedError(MingError, RuntimeError):
    """The engine of the request was closed, or has failed."""
