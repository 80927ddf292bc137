"""The GPU kernels on a device, in this process."""

from tests.ops.runners import named


def run(op: str, name: str, backend: str, dtypes: tuple[str, ...] = tuple(named.DTYPES)) -> dict[str, str | None]:
    """Why a case was declined, or None, by type."""
    return {dtype: named.check(op, name, backend, dtype, device="cuda") for dtype in dtypes}
