"""Wraps a copy of a model and the functions of `mingcore.ops`, so that an observer sees stages and op calls.

The observer's `stage(stage, name)` opens a range around a stage, its `op(name, function, args, kwargs)` calls an op.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from .. import ops
from ..ops._core.op import OPS

STAGES = ("llm", "flow", "stop head", "semantic", "pooling", "vae decode", "vae encode")
OTHER = "host/other"  # between stages

Name = str | Callable[..., str]


class Observer(Protocol):
    """Is called for every stage and op."""

    def stage(self, stage: str, name: str) -> AbstractContextManager:
        """A context around a call of a part of the model; `name`: of the call, such as "prefill of 30"."""

    def op(self, name: str, function: Callable, args: tuple, kwargs: dict) -> Any:
        """Calls the op and returns its result."""


class Part:
    """A proxy for a part of a model, some of whose methods are stages; other attributes are the part's own."""

    def __init__(self, target: Any, observer: Observer, stages: dict[str, tuple[str, Name]]):
        """stages: method -> (stage, name of the range, or a function of the arguments that gives it)."""
        self._target = target
        for method, (stage, name) in stages.items():
            setattr(self, method, _observed(observer, stage, name, getattr(target, method)))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = self.__dict__.get("__call__", self._target)
        return call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)


def _observed(observer: Observer, stage: str, name: Name, function: Callable) -> Callable:
    def call(*args: Any, **kwargs: Any) -> Any:
        with observer.stage(stage, name if isinstance(name, str) else name(*args)):
            return function(*args, **kwargs)

    return call


def _tokens(embeds: Any, *_: Any) -> str:
    return "step" if embeds.shape[1] == 1 else f"prefill of {embeds.shape[1]}"


def staged(model: Any, observer: Observer) -> Any:
    """A model over the same weights whose parts call the observer. The flow stage is its op alone (`observed_ops`)."""
    part = partial(Part, observer=observer)
    llm = {"__call__": ("llm", _tokens), "forward": ("llm", _tokens)}
    llm |= {"embed": ("llm", "embed"), "logits": ("llm", "logits")}
    vae = {"encode": ("vae encode", "encode"), "decode": ("vae decode", "decode")}
    vae = part(model.vae, stages=vae | {"unify": ("semantic", "unify")})
    vae.semantic = part(model.vae.semantic, stages={"forward": ("semantic", "step")})
    return replace(
        model,
        llm=part(model.llm, stages=llm),
        vae=vae,
        pool=part(model.pool, stages={"__call__": ("pooling", "pool")}),
        stop_head=part(model.stop_head, stages={"__call__": ("stop head", "stop")}),
    )


@contextmanager
def observed_ops(observer: Observer) -> Iterator[None]:
    """Within the block the observer calls every public op of `mingcore.ops`, in the whole process: nothing else
    should run in it."""
    originals = {name: getattr(ops, name) for name in OPS}
    try:
        for name, function in originals.items():
            setattr(ops, name, _op(observer, name, function))
        yield
    finally:
        for name, function in originals.items():
            setattr(ops, name, function)


def _op(observer: Observer, name: str, function: Callable) -> Callable:
    def call(*args: Any, **kwargs: Any) -> Any:
        if name != "flow_sample":
            return observer.op(name, function, args, kwargs)
        with observer.stage("flow", "sample"):
            return observer.op(name, function, args, kwargs)

    return call
