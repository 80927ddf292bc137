"""The stages of a request, around a copy of a model, and the ops, wrapped while one watches.

A watcher is told of both: `stage(stage, name)` opens a range, `op(name, function, args, kwargs)`
calls an op.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from .. import ops
from ..ops._core.library import SCHEMAS

STAGES = ("llm", "flow", "stop head", "semantic", "pooling", "vae decode", "vae encode")
OTHER = "host/other"  # what lies between them

Name = str | Callable[..., str]


class Watcher(Protocol):
    """Who is told of stages and ops."""

    def stage(self, stage: str, name: str) -> AbstractContextManager:
        """Around a part of the model; `name`: what it does there, such as "prefill"."""

    def op(self, name: str, function: Callable, args: tuple, kwargs: dict) -> Any:
        """Calls the op and returns its result."""


class Part:
    """A part of a model, some of whose methods are stages; everything else is the part's own."""

    def __init__(self, target: Any, watcher: Watcher, stages: dict[str, tuple[str, Name]]):
        """stages: method -> (stage, name of the range, or what gives it for the arguments)."""
        self._target = target
        for method, (stage, name) in stages.items():
            setattr(self, method, _told(watcher, stage, name, getattr(target, method)))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = self.__dict__.get("__call__", self._target)
        return call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)


def _told(watcher: Watcher, stage: str, name: Name, function: Callable) -> Callable:
    def call(*args: Any, **kwargs: Any) -> Any:
        with watcher.stage(stage, name if isinstance(name, str) else name(*args)):
            return function(*args, **kwargs)

    return call


def _tokens(embeds: Any, *_: Any) -> str:
    return "step" if embeds.shape[1] == 1 else f"prefill of {embeds.shape[1]}"


def staged(model: Any, watcher: Watcher) -> Any:
    """A model over the same weights whose parts tell a watcher when they run. Flow is told of by
    its op (`watched_ops`): nothing but it is called there."""
    part = partial(Part, watcher=watcher)
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
def watched_ops(watcher: Watcher) -> Iterator[None]:
    """Within the block every public op of `mingcore.ops` is called by the watcher, in the whole
    process: do not profile beside other work."""
    kept = {name: getattr(ops, name) for name in SCHEMAS if hasattr(ops, name)}
    try:
        for name, function in kept.items():
            setattr(ops, name, _op(watcher, name, function))
        yield
    finally:
        for name, function in kept.items():
            setattr(ops, name, function)


def _op(watcher: Watcher, name: str, function: Callable) -> Callable:
    def call(*args: Any, **kwargs: Any) -> Any:
        if name != "flow_sample":
            return watcher.op(name, function, args, kwargs)
        with watcher.stage("flow", "sample"):
            return watcher.op(name, function, args, kwargs)

    return call
