"""What every backend of `flow_sample` must hold: `checks("cpu")` gives the checks by name.

Usable from pytest and from a process of its own: a check is a callable that raises AssertionError.
`rows`: the backend reads weights in layout "rows" (a GPU's, also where it is emulated).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

import mingcore.ops as ops
from mingcore.ops._core import cases
from mingcore.ops._core.layouts import map_tensors, nan_poisoned, tensors_in
from mingcore.testing import compare

Check = Callable[[], None]


def checks(
    backend: str,
    device: str = "cpu",
    dtypes: tuple[torch.dtype, ...] = (torch.float32,),
    *,
    rows: bool = False,
    repeats: int = 20,
    served: Callable[[cases.Case], bool] = lambda case: True,
) -> Iterator[tuple[str, Check]]:
    """Every check by name. `served`: which cases this backend takes; the others are left out."""
    setting = {"backend": backend, "device": device, "rows": rows}
    for dtype in dtypes:
        name = str(dtype).removeprefix("torch.")
        with_dtype = partial(partial, dtype=dtype, **setting)
        for case in cases.for_op("flow_sample"):
            if served(case):
                yield f"{name}-{case.name}", with_dtype(check_case, case)
        yield f"{name}-step_by_step", with_dtype(check_steps)
        yield f"{name}-rows_alone", with_dtype(check_rows_alone)
        yield f"{name}-repeats", with_dtype(check_repeats, repeats)
        yield f"{name}-no_nan", with_dtype(check_no_nan)
        yield f"{name}-guidance_zero", with_dtype(check_guidance_zero)
        yield f"{name}-arguments_unchanged", with_dtype(check_arguments)


def make(name: str, *, device: str, dtype: torch.dtype, rows: bool, **change) -> dict:
    """Keyword arguments of the case `name`, or of it with some of its dimensions changed."""
    found = next(c for c in cases.for_op("flow_sample", large=True) if c.name == name)
    return prepared(replace(found, dims={**found.dims, **change}).make(device, dtype), rows)


def prepared(kwargs: dict, rows: bool) -> dict:
    """With NaN for all noise that must not be read."""
    schedule, noise = kwargs["schedule"], kwargs["noise"].clone()
    noise[schedule.draws :] = math.nan
    for b, factor in enumerate(kwargs.get("noise_scale", ())):
        if factor == 0:
            noise[1:, b] = math.nan
    head = kwargs["head"].as_rows() if rows else kwargs["head"]
    return {**kwargs, "head": head, "noise": kwargs["noise"].copy_(noise)}


def run(kwargs: dict, backend: str) -> Tensor:
    """The result, computed into memory that was NaN before."""
    with torch.no_grad(), nan_poisoned():
        return ops.flow_sample(**kwargs, backend=backend)


def check_case(case: cases.Case, *, backend: str, device: str, dtype: torch.dtype, rows: bool):
    kwargs = prepared(case.make(device, dtype), rows)
    with torch.no_grad():
        compare.check_op("flow_sample", kwargs, (run(kwargs, backend),))


def check_steps(*, backend: str, **setting) -> None:
    """The state after each step, noise not yet added, for two solvers."""
    for name in ("b3", "midpoint"):
        kwargs = make(name, **setting)
        whole = kwargs["schedule"]
        for steps in range(1, whole.steps + 1):
            part = {**kwargs, "schedule": whole.prefix(steps)}
            part["noise"] = kwargs["noise"][: steps + 1].clone()
            part["noise"][steps] = math.nan
            with torch.no_grad():
                compare.check_op("flow_sample", part, (run(part, backend),))


def check_rows_alone(*, backend: str, **setting) -> None:
    """A request's result does not depend on who shares its batch."""
    kwargs = make("b3", guidance=(0.0, 2.0, 7.0), noise_scale=(1.0, 0.0, 0.5), **setting)
    together = run(kwargs, backend)
    limit = 1e-5 if setting["dtype"] == torch.float32 else 2e-2
    for b in range(3):
        alone = {
            **kwargs,
            "condition": kwargs["condition"][b : b + 1],
            "history": kwargs["history"][b : b + 1],
            "noise": kwargs["noise"][:, b : b + 1],
            "guidance": kwargs["guidance"][b : b + 1],
            "noise_scale": kwargs["noise_scale"][b : b + 1],
        }
        got = run(alone, backend)
        assert compare.max_relative(got, together[b : b + 1]) <= limit
    poisoned = {**kwargs, "history": kwargs["history"].clone()}
    poisoned["history"][0] = math.nan
    got = run(poisoned, backend)
    assert got[0].isnan().all() and torch.equal(got[1:], together[1:])


def check_repeats(times: int, *, backend: str, **setting) -> None:
    """The same bits every time."""
    kwargs = make("odd_qk_norm", **setting)
    first = run(kwargs, backend)
    for _ in range(times):
        assert torch.equal(run(kwargs, backend), first)


def check_no_nan(*, backend: str, **setting) -> None:
    """Inputs up to 1e3 in every argument give finite numbers."""
    for scale in (1.0, 1e3):
        for guidance in (0.0, 7.0):
            kwargs = make("b1", scale=scale, guidance=guidance, **setting)
            assert run(kwargs, backend).isfinite().all()


def check_guidance_zero(*, backend: str, **setting) -> None:
    """Leaving the unconditional rows out gives what guidance 0 with them gives."""
    kwargs = make("b3", guidance=0.0, **setting)
    half = run({**kwargs, "guided": False}, backend)
    limit = 1e-5 if setting["dtype"] == torch.float32 else 2e-2
    assert compare.max_relative(half, run({**kwargs, "guided": True}, backend)) <= limit


def check_arguments(*, backend: str, **setting) -> None:
    """Nothing that was passed in is written to."""
    kwargs = make("strided", **setting)
    run(kwargs, backend)
    before = map_tensors(kwargs, torch.clone)
    run(kwargs, backend)
    for a, b in zip(tensors_in(before), tensors_in(kwargs), strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num()) and torch.equal(a.isnan(), b.isnan())
