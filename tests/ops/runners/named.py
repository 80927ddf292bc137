"""One named case of one op on one backend: what every runner checks."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from mingcore import ops
from mingcore.errors import BackendError
from mingcore.ops._core import cases
from mingcore.ops._core.layouts import nan_poisoned
from mingcore.testing import compare
from tests.ops import flow_harness

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def find(op: str, name: str) -> cases.Case:
    return next(case for case in cases.for_op(op, large=True) if case.name == name)


def forms(op: str, name: str, backend: str, dtype: str, seed: int = 1, device: str = "cpu") -> list[dict[str, Any]]:
    """The case's arguments as this backend reads them: on a CPU also packed, on a GPU in rows."""
    case, rows = find(op, name), backend in ("triton", "cuda")
    kwargs = case.make(device, DTYPES[dtype], seed)
    if op == "flow_sample":
        if backend == "cuda" and "format" in case.dims:  # it takes packed weights with 16-bit activations only
            kwargs = replace(case, dims={**case.dims, "float_input": False}).make(device, DTYPES[dtype], seed)
        return [flow_harness.prepared(kwargs, rows)]
    if rows:
        return [{key: value.as_rows() if hasattr(value, "as_rows") else value for key, value in kwargs.items()}]
    made = [kwargs]
    if backend == "cpu" and isinstance(kwargs.get("weight"), torch.Tensor):
        if "conv" in op:
            shape = {key: kwargs[key] for key in ("stride", "dilation", "groups") if key in kwargs}
            weight = ops.pack_conv(kwargs["weight"], transposed="transpose" in op, backend="cpu", **shape)
            made.append({**kwargs, "weight": weight})
        if op == "linear" and kwargs["weight"].dtype in DTYPES.values():
            weight = ops.pack_linear(kwargs["weight"], backend="cpu", activation=kwargs.get("activation"))
            made.append({**kwargs, "weight": weight})
    return made


def check(
    op: str,
    name: str,
    backend: str,
    dtype: str,
    *,
    seed: int = 1,
    device: str = "cpu",
    before_again: Callable[[], None] = lambda: None,
) -> str | None:
    """Within the oracle's tolerance, from poisoned outputs, and the same bits in a second run.

    Returns why the backend declined, or None. before_again: what may change before the second run.
    """
    with torch.no_grad():
        for kwargs in forms(op, name, backend, dtype, seed, device):
            try:
                with nan_poisoned():
                    got = compare.run(op, kwargs, backend=backend)
            except BackendError as error:
                return str(error)
            compare.check_op(op, kwargs, got)
            before_again()
            again = compare.run(op, kwargs, backend=backend)
            same = all(map(torch.equal, got, again))
            assert same and len(got) == len(again), f"{op} {name} {dtype}: two runs differ"
    return None
