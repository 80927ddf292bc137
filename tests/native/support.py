"""What the tests of kernels share: why an implementation does not take arguments."""

from collections.abc import Sequence
from typing import Any

from mingcore.ops._core import backends
from mingcore.ops._core.op import Op
from mingcore.ops._core.support import anywhere


def unsupported_reason(op: Op, backend: str, args: Sequence[Any], any_device: bool = False) -> str | None:
    """For arguments in the order of the op's schema; any_device: tensors may be on any."""
    assert backends.load(backend, op.family) is None
    found = op.implementations[backend]
    reason = found.support.check(op.first, anywhere) if any_device else found.reason
    return reason(dict(zip(op.names, args, strict=True)))
