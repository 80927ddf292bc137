"""Which function serves an op on a backend, and how one is chosen.

`(op, backend) -> Entry(function, why_not, sources)`. The adapters of a
backend, `<family>/<backend>.py`, register themselves on import, and are imported when their backend
is first asked for. Functions and `why_not` take the flat arguments of the op's schema
(`library.py`), positionally.

Choice: the `backend` argument, else `use_backend(...)`, else MINGCORE_BACKEND, else automatic: the
first of the device's backends whose `why_not` has no objection. A backend that was named and cannot
serve raises `BackendError` with its reason. Several may be named in order, "triton,reference": the
first that can serve does, and when none can the error gives every reason.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch

from ...env import BACKENDS
from ...env import backend as env_backend
from ...errors import BackendError, InputError

Reason = str | None

FAMILIES = ("gemm", "activation", "norm", "rotary", "routing", "moe", "attention", "flow", "conv", "spectrum")
_OPS = Path(__file__).parents[1]
_AUTO = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "flash", "reference")}
_GPU_KERNELS = ("cuda", "triton")

_entries: dict[tuple[str, str], "Entry"] = {}
_load_errors: dict[str, Reason] = {}
_chains: dict[tuple[str, torch.device], tuple["Entry", ...]] = {}
_forced: ContextVar[str | None] = ContextVar("mingcore_backend", default=None)


@dataclass(frozen=True)
class Entry:
    """One op on one backend. `sources` and `flags` are what a verified record vouches for."""

    op: str
    backend: str
    function: Callable
    why_not: Callable[..., Reason] | None
    sources: tuple[Path, ...]
    flags: tuple[str, ...]

    def reason(self, args: tuple) -> Reason:
        """Why this entry cannot take `args`, or None when it can."""
        return None if self.why_not is None else self.why_not(*args)


def register(
    op: str,
    backend: str,
    why_not: Callable[..., Reason] | None = None,
    *,
    sources: Sequence[str | Path] = (),
    flags: Sequence[str] = (),
) -> Callable[[Callable], Callable]:
    """Decorate the function that serves `op` on `backend`; a second one for the same pair raises.

    `why_not(*args)` returns one line when the arguments cannot be served, else None. GPU kernels
    name the files they are compiled from, and the compiler flags, for the verified records.
    """
    if backend not in BACKENDS:
        raise InputError(f"register: backend must be one of {', '.join(BACKENDS)}, got {backend!r}")

    def add(function: Callable) -> Callable:
        if (op, backend) in _entries:
            raise InputError(f"register: {op} has a {backend} function already")
        paths = tuple(Path(path) for path in sources)
        _entries[op, backend] = Entry(op, backend, function, why_not, paths, tuple(flags))
        _chains.clear()
        return function

    return add


def load(backend: str) -> Reason:
    """Import the adapter of `backend` once; the reason when it cannot be imported here."""
    if backend not in _load_errors:
        check_backend(backend)
        try:
            for family in FAMILIES:
                if (_OPS / family / f"{backend}.py").is_file():
                    import_module(f"mingcore.ops.{family}.{backend}")
            _load_errors[backend] = None
        except (ImportError, BackendError) as error:
            _load_errors[backend] = f"the {backend} backend cannot be loaded: {error}"
    return _load_errors[backend]


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


def entry(op: str, backend: str) -> Entry:
    """The entry of `op` on `backend`; BackendError with the reason when there is none."""
    load(check_backend(backend))
    found = _entries.get((op, backend))
    if found is None:
        raise BackendError(f"{op}: {_absent(op, backend)}")
    return found


def entries() -> list[Entry]:
    """Every registered (op, backend) of every backend that can be loaded here, sorted."""
    for backend in BACKENDS:
        load(backend)
    return [_entries[key] for key in sorted(_entries)]


@contextmanager
def use_backend(backend: str | None) -> Iterator[None]:
    """Within the block, ops whose caller names no backend use this one (None or "auto": automatic).

    Several in order of preference are given as "triton,reference".

    Holds for the current thread or task. Inside a function that is being compiled, pass
    `backend=` to the op instead; around a compiled function the block works as anywhere.
    """
    check_backends(backend or "auto")
    token = _forced.set(backend or "auto")
    try:
        yield
    finally:
        _forced.reset(token)


def named_backends(backend: str | None = None) -> tuple[str, ...]:
    """What argument, `use_backend` or MINGCORE_BACKEND name, in order; () for automatic."""
    return check_backends(backend or _forced.get() or env_backend() or "auto")


def chain(op: str, tensor: torch.Tensor) -> tuple[Entry, ...]:
    """The entries that the automatic choice asks, in order, for a tensor's device.

    A GPU kernel is among them only where a record says that its tests passed on this architecture.
    """
    device = tensor.device
    found = _chains.get((op, device))
    if found is None:
        backends = _AUTO.get(device.type, ("reference",))
        loaded = [backend for backend in backends if load(backend) is None]
        candidates = [_entries[op, backend] for backend in loaded if (op, backend) in _entries]
        found = tuple(each for each in candidates if _unverified(each, device) is None)
        _chains[op, device] = found
    return found


def forget_choices() -> None:
    """Decide the automatic choice anew: after new verified records."""
    _chains.clear()


def select(op: str, args: tuple, backend: str | None = None) -> Callable:
    """The function that serves `op` for these flat arguments. `args[0]` is a tensor."""
    names = named_backends(backend)
    if names:
        return _first_named(op, names, args)
    for candidate in chain(op, args[0]):
        if candidate.why_not is None or candidate.why_not(*args) is None:
            return candidate.function
    raise BackendError(f"{op}: no backend has this op for {args[0].device} tensors")


def _first_named(op: str, names: tuple[str, ...], args: tuple) -> Callable:
    reasons = []
    for name in names:
        found = _entries.get((op, name)) if load(name) is None else None
        if found is None:
            reasons.append(_absent(op, name))
            continue
        reason = found.reason(args)
        if reason is None:
            return found.function
        reasons.append(f"the {name} backend cannot serve this call: {reason}")
    raise BackendError(f"{op}: {'; '.join(reasons)}")


def _absent(op: str, backend: str) -> str:
    """Why `op` has no entry on a backend that was asked for."""
    return _load_errors[backend] or f"the {backend} backend does not have this op"


def why_not(op: str, backend: str, *args) -> Reason:
    """Why the automatic choice would pass over `backend` for these flat arguments, or None."""
    reason = load(check_backend(backend))
    found = _entries.get((op, backend))
    if found is None:
        return reason or f"the {backend} backend does not have {op}"
    device = args[0].device
    if backend not in _AUTO.get(device.type, ("reference",)):
        return f"the {backend} backend is not for {device.type} tensors"
    return found.reason(args) or _unverified(found, device)


def _unverified(candidate: Entry, device: torch.device) -> Reason:
    if candidate.backend not in _GPU_KERNELS:
        return None
    from . import records as verified

    return verified.why_not(candidate, device)
