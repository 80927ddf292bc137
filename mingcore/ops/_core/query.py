"""Which backend would serve a call of an op, and why another would not; nothing is run."""

from typing import Any

from .backends import check_backend
from .op import Call, Op, flat_call, known_op


def selected_backend(op: str, *args: Any, **kwargs: Any) -> str:
    """The backend that would serve `getattr(mingcore.ops, op)(*args, **kwargs)`, `backend=` included.

    Raises what that call raises: InputError for bad arguments, BackendError where a named backend
    cannot serve.
    """
    return flat_call(op, args, kwargs).select().backend


def unsupported_reason(op: str, backend: str, *args: Any, **kwargs: Any) -> str | None:
    """Why the automatic choice would pass over `backend` for a call with these arguments of the
    public function, in one line; None where it would not. Raises InputError."""
    check_backend(backend)
    return flat_call(op, args, kwargs).unsupported_reason(backend)


def supports(op: str, backend: str, *args: Any, **kwargs: Any) -> bool:
    """Whether `backend` can serve a call with these arguments of the public function, here and, for a
    GPU kernel, as proven by its tests on this architecture. Raises InputError."""
    return unsupported_reason(op, backend, *args, **kwargs) is None


def why_not(op: str, backend: str, *args: Any) -> str | None:
    """`unsupported_reason` for the flat arguments of the op's schema (`torch.ops.mingcore.<op>`)."""
    check_backend(backend)
    form = known_op(op)
    values = dict(zip(form.names, args, strict=True))
    if isinstance(form, Op):
        return Call(form, None, values, {}).unsupported_reason(backend)
    inner, given = form.split(values)
    return Call(form.op, None, {**inner, **given}, form.writes).unsupported_reason(backend)
