"""What the tests of kernels share: why an implementation does not take arguments."""

from collections.abc import Sequence
from typing import Any

from mingcore.ops._core import backends
from mingcore.ops._core.op import Op, flat_call
from mingcore.ops._core.support import anywhere


def unsupported_reason(op: Op, backend: str, args: Sequence[Any], any_device: bool = False) -> str | None:
    """For arguments in the order of the op's schema; any_device: tensors may be on any."""
    assert backends.load(backend, op.family) is None
    found = op.implementations[backend]
    reason = found.support.check(op.first, anywhere, op._lists) if any_device else found.reason
    return reason(dict(zip(op.names, args, strict=True)))


def refusal(name: str, backend: str, *args: Any, **kwargs: Any) -> str | None:
    """Why `backend` does not take these arguments of the public function, on whatever device they are."""
    call = flat_call(name, args, kwargs)
    assert backends.load(backend, call.op.family) is None
    found = call.op.implementations[backend]
    return found.support.check(call.op.first, anywhere, call.op._lists)(call.args, call.renamed)
