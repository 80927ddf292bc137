"""The backends by name: which are there, which was asked for, and which the automatic choice asks.

Choice: the `backend` argument, else `use_backend(...)`, else MINGCORE_BACKEND (read once, at the
first call), else automatic: the first of the device's backends that supports the arguments. A
backend that was named and cannot serve raises `BackendError` with its reason. Several may be named
in order, "triton,reference": the first that can serve does, and when none can the error gives every
reason. Adapters are `<family>/<backend>.py`; they declare their implementations on import, and are
imported when an op of the family is first asked for on their backend.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from pathlib import Path
from types import ModuleType

from ... import env
from ...env import BACKENDS
from ...errors import BackendError, InputError

FAMILIES = ("gemm", "activation", "norm", "rotary", "routing", "moe", "attention", "flow", "conv", "spectrum")
AUTOMATIC = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "flash", "reference")}
_OPS = Path(__file__).parents[1]

_load_errors: dict[tuple[str, str], str | None] = {}
_forced: ContextVar[tuple[str, ...] | None] = ContextVar("mingcore_backend", default=None)
_environment: tuple[str, ...] | None = None  # what MINGCORE_BACKEND names, once read


def load(backend: str, family: str) -> str | None:
    """Import the adapter of a family's ops on `backend` once; the reason when it cannot be imported
    here. A family without an adapter has nothing to load."""
    key = backend, family
    if key not in _load_errors:
        check_backend(backend)
        _load_errors[key] = None
        if (_OPS / family / f"{backend}.py").is_file():
            try:
                import_module(f"mingcore.ops.{family}.{backend}")
            except (ImportError, BackendError) as error:
                _load_errors[key] = f"the {backend} backend cannot be loaded: {error}"
    return _load_errors[key]


def shared(backend: str) -> ModuleType:
    """`_core/<backend>.py`, what the adapters of a backend share; where `load` gives no reason."""
    return import_module(f"mingcore.ops._core.{backend}")


def load_all() -> None:
    """Import every adapter that can be imported here."""
    for backend in BACKENDS:
        for family in FAMILIES:
            load(backend, family)


def missing(backend: str) -> str | None:
    """Why no op of `backend` can be had here, or None."""
    reasons = [load(backend, family) for family in FAMILIES if (_OPS / family / f"{backend}.py").is_file()]
    return next((reason for reason in reasons if reason is not None), None)


def check_backend(backend: str) -> str:
    """`backend`, when it is one name."""
    if backend not in BACKENDS:
        raise InputError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    return backend


def check_backends(names: str) -> tuple[str, ...]:
    """ "triton,reference" -> ("triton", "reference"); "auto" -> (), the automatic choice."""
    if names == "auto":
        return ()
    return tuple(check_backend(name.strip()) for name in names.split(","))


@contextmanager
def use_backend(backend: str | None) -> Iterator[None]:
    """Within the block, ops whose caller names no backend use this one (None or "auto": automatic).

    Several in order of preference are given as "triton,reference".

    Holds for the current thread or task. Inside a function that is being compiled, pass
    `backend=` to the op instead; around a compiled function the block works as anywhere.
    """
    token = _forced.set(check_backends(backend or "auto"))
    try:
        yield
    finally:
        _forced.reset(token)


def named_backends(backend: str | None = None) -> tuple[str, ...]:
    """What argument, `use_backend` or MINGCORE_BACKEND name, in order; () for automatic."""
    if backend:
        return check_backends(backend)
    forced = _forced.get()
    if forced is not None:
        return forced
    return _environment if _environment is not None else read_environment()


def read_environment() -> tuple[str, ...]:
    """MINGCORE_BACKEND anew: done once, at the first call of an op."""
    global _environment
    _environment = check_backends(env.backend() or "auto")
    return _environment
