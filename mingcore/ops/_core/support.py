"""What a backend's function takes, as data, and one line that says why arguments do not fit it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
FLOAT32 = (torch.float32,)
_NOTHING: Mapping[str, str] = {}
FP8_CAPABILITY = 89  # sm_89: the first with 8-bit floats


class Limit(NamedTuple):
    """A bound on a size that arguments imply: `of(**arguments)` must be in min_value..max_value."""

    what: str  # "heads are {} wide"
    of: Callable[..., int]
    max_value: int
    min_value: int = 0


@dataclass(frozen=True)
class Support:
    """What an implementation takes; whatever is not declared here, `rule` decides.

    Names are arguments of the op's schema or its results; results are checked only where the
    caller gives them (the in-place form). A named argument may be None, or a list of tensors.

    floats: float32, bfloat16 or float16. float32: that type alone. types: other types, by name.
    All tensors named in these three must be on the implementation's device and need no gradient.
    dense_last: the last dimension has stride 1. contiguous: row-major without gaps. disjoint:
    no two elements share memory (for what is written). layouts, formats: the values of the
    arguments `layout` and `format`. limits: bounds on sizes. rule(**arguments): a reason, or
    None, for what data cannot say; it sees results too where they are given.
    """

    floats: tuple[str, ...] = ()
    float32: tuple[str, ...] = ()
    types: Mapping[str, tuple[torch.dtype, ...]] = field(default_factory=dict)
    dense_last: tuple[str, ...] = ()
    contiguous: tuple[str, ...] = ()
    disjoint: tuple[str, ...] = ()
    layouts: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    limits: tuple[Limit, ...] = ()
    rule: Callable[..., str | None] | None = None

    def allowed(self) -> dict[str, frozenset[torch.dtype]]:
        """The types of every tensor that is named."""
        found = {name: frozenset(FLOATS) for name in self.floats}
        found |= {name: frozenset(FLOAT32) for name in self.float32}
        return found | {name: frozenset(types) for name, types in self.types.items()}

    def fits(
        self, first: str, device: DeviceRule, lists: tuple[str, ...] = (), names: tuple[str, ...] = ()
    ) -> Callable[..., bool]:
        """(arguments by name) -> whether they fit, as one expression made of the declaration: it takes
        a third of the time of a loop over it.

        first: the argument whose device is the call's. lists: arguments that are lists of tensors.
        names: take these arguments in this order instead, and no results.
        """
        space = {"enabled": torch.is_grad_enabled, "S": torch.strided, "overlap": torch._debug_has_internal_overlap}
        space |= {"device": device, "layouts": self.layouts, "formats": self.formats, "rule": self.rule}
        place = "t.is_cpu" if device is on_cpu else "t.device == place"
        every = ", ".join(f"{name}={name}" for name in names) or "**args"

        def value(name: str) -> str:
            return name if names else f"get({name!r})"

        terms = [] if device in (on_cpu, anywhere) else [f"device({first!r}, {value(first)}) is None"]
        terms += [f"{value(name)} in {name}s" for name in ("layout", "format") if getattr(self, f"{name}s")]

        def each(name: str, term: str) -> None:
            if names and name not in names:
                return
            if name in lists:
                terms.append(f"all({term} for t in {value(name)})")
            else:
                terms.append(f"((t := {value(name)}) is None or ({term}))")

        for i, (name, allowed) in enumerate(self.allowed().items()):
            space[f"A{i}"] = allowed
            each(name, f"t.dtype in A{i} and {place} and t.layout is S and not (grad and t.requires_grad)")
        if device is on_cpu and first not in self.allowed():
            terms.append(f"{value(first)}.is_cpu and {value(first)}.layout is S")
        for name in self.dense_last:
            each(name, "not t.dim() or t.shape[-1] <= 1 or t.stride(-1) == 1")
        for name in self.contiguous:
            each(name, "t.is_contiguous()")
        for name in self.disjoint:
            each(name, "overlap(t) != 1")
        for i, limit in enumerate(self.limits):
            space[f"L{i}"] = limit.of
            terms.append(f"{limit.min_value} <= L{i}({every}) <= {limit.max_value}")
        if self.rule is not None:
            terms.append(f"rule({every}) is None")
        lines = [f"def fits({', '.join(names) or 'args'}):", " grad = enabled()"]
        lines += [] if names else [" get = args.get"]
        lines += [f" place = {value(first)}.device"] if "place" in place else []
        # only the declaration's own names and numbers, nothing that a caller gives
        exec("\n".join([*lines, f" return {' and '.join(terms) or 'True'}"]), space)
        return space["fits"]

    def reason(
        self, first: str, device: DeviceRule, args: Mapping[str, Any], renamed: Mapping[str, str] = _NOTHING
    ) -> str | None:
        """Why arguments do not fit, or None; renamed: names of results as the caller knows them."""
        x = args[first]
        wrong = device(first, x)
        if wrong is not None:
            return wrong
        if self.layouts and args["layout"] not in self.layouts:
            return f"the weights are in layout {args['layout']!r}; it takes {_listed(tuple(map(repr, self.layouts)))}"
        if self.formats and args["format"] not in self.formats:
            return f"the weights are {args['format']}; it takes {_listed(self.formats)}"
        grad, place = torch.is_grad_enabled(), x.device
        for name, allowed in self.allowed().items():
            for t in _tensors(args, name):
                if (
                    t.dtype not in allowed
                    or t.device != place
                    or (grad and t.requires_grad)
                    or t.layout is not torch.strided
                ):
                    return _unfit(renamed.get(name, name), t, allowed, first, place)
        for name in self.dense_last:
            for t in _tensors(args, name):
                if t.dim() and t.shape[-1] > 1 and t.stride(-1) != 1:
                    return f"{renamed.get(name, name)} has strides {t.stride()}; it takes a dense last dimension"
        for name in self.contiguous:
            for t in _tensors(args, name):
                if not t.is_contiguous():
                    return f"{renamed.get(name, name)} has strides {t.stride()}; it takes a contiguous one"
        for name in self.disjoint:
            for t in _tensors(args, name):
                if torch._debug_has_internal_overlap(t) == 1:
                    return f"{renamed.get(name, name)} overlaps itself (strides {t.stride()}); it takes none that do"
        for limit in self.limits:
            size = limit.of(**args)
            if not limit.min_value <= size <= limit.max_value:
                return f"{limit.what.format(size)}; it takes {limit.min_value} to {limit.max_value}"
        return None if self.rule is None else self.rule(**args)


DeviceRule = Callable[[str, Tensor], str | None]


def on_cpu(name: str, x: Tensor) -> str | None:
    if x.is_cpu and x.layout is torch.strided:
        return None
    return f"{name} is a {x.layout} tensor on {x.device}; it takes dense CPU tensors"


def on_gpu(name: str, x: Tensor) -> str | None:
    # meta tensors come here only where launches are recorded, not made: `aot`
    return None if x.device.type in ("cuda", "meta") else f"{name} is on {x.device}; it takes tensors on a GPU"


def on_gpu_or_interpreted(name: str, x: Tensor) -> str | None:
    """For Triton: its interpreter runs kernels on CPU tensors, which is how they are tested without a GPU."""
    reason = on_gpu(name, x)
    return None if reason is not None and sys.modules["triton"].knobs.runtime.interpret else reason


def anywhere(name: str, x: Tensor) -> str | None:
    return None


def names_of(types: frozenset[torch.dtype]) -> str:
    """ "float32, bfloat16 and float16"."""
    order = [t for t in (*FLOATS, torch.float64, torch.int8, torch.uint8, torch.int32, torch.int64) if t in types]
    order += [t for t in types if t not in order]
    return _listed(tuple(str(t).removeprefix("torch.") for t in order))


def _listed(words: tuple[str, ...]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def _tensors(args: Mapping[str, Any], name: str) -> Iterator[Tensor]:
    value = args.get(name)
    if isinstance(value, Tensor):
        yield value
    elif value is not None:
        yield from (t for t in value if t is not None)


def _unfit(name: str, t: Tensor, allowed: frozenset[torch.dtype], first: str, place: torch.device) -> str:
    if t.dtype not in allowed:
        return f"{name} is {t.dtype}; it takes {names_of(allowed)}"
    if t.device != place:
        return f"{name} is on {t.device}, {first} on {place}"
    if t.layout is not torch.strided:
        return f"{name} is a {t.layout} tensor; it takes dense ones"
    return f"{name} requires a gradient; it computes none (torch.no_grad() or reference)"
