"""One declaration per op: its schema, its results, how they are allocated, and who serves it.

    RMS_NORM = Op(
        __name__,
        "rms_norm",
        "Tensor x, Tensor weight, float eps -> Tensor",
        results="out",
        fake=lambda x, **_: like(x),
        backends=("reference", "cpu", "triton"),
    )

    @RMS_NORM.implementation("cpu", Support(floats=("x", "weight")))   # in cpu.py
    def rms_norm(x, weight, eps, out): ...                            # writes into out

    def rms_norm(x, weight, eps, *, backend=None):                    # the public function
        ...checks...
        return RMS_NORM.call(backend, x=x, weight=weight, eps=eps)

Arguments have their schema's names all the way down. `fake` gives results of the right shape and
type without values: it is the shape rule of `torch.compile` and `torch.export`, and the allocator
of eager calls. Implementations write into the results that they are given by name; "reference" and
"flash" return theirs, as PyTorch allocates them anyway. The in-place form `<op>_` is the same
implementation with the caller's results.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn import Parameter

from ...errors import BackendError, InputError
from . import backends, records
from .support import Support, anywhere, on_cpu, on_gpu, on_gpu_or_interpreted

_PLAIN = frozenset((Tensor, Parameter))
_RETURNING = ("reference", "flash")
_GPU_KERNELS = ("cuda", "triton")
_DEVICE = {"reference": anywhere, "flash": anywhere, "cpu": on_cpu, "triton": on_gpu_or_interpreted, "cuda": on_gpu}

_NOTHING: Mapping[str, str] = {}

OPS: dict[str, Op | InPlaceForm] = {}  # every name of torch.ops.mingcore
Watcher = Callable[["Op", "Implementation", dict[str, Any]], None]
_watchers: list[Watcher] = []
_probes: list[Callable[[Call], None]] = []
_meta_runs: ContextVar[bool] = ContextVar("mingcore_meta_runs", default=False)


def like(x: Tensor) -> Tensor:
    """A contiguous result of x's shape and type. `new_empty` of a torch.Size takes twice as long,
    a tenth of a small norm."""
    if x.is_contiguous():
        return torch.empty_like(x)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@dataclass(frozen=True, eq=False)
class Implementation:
    """One op on one backend. `sources` and `flags` are what a verified record vouches for."""

    op: str
    backend: str
    function: Callable
    support: Support
    sources: tuple[Path, ...]
    flags: tuple[str, ...]
    packed: bool  # whether the op takes packed weights, whose packing the record vouches for too
    fits: Callable[[Mapping[str, Any]], bool] = field(repr=False)
    fits_in_order: Callable[..., bool] = field(repr=False)  # the op's arguments, positional
    reason: Callable[..., str | None] = field(repr=False)  # why arguments do not fit


class Op:
    """An op: its schema, its results, and its implementations. `call` runs the chosen one."""

    def __init__(
        self,
        module: str,
        name: str,
        schema: str,
        *,
        results: str = "",
        fake: Callable,
        backends: Sequence[str],
        in_place: InPlaceForm | None = None,
    ):
        """module: the `__name__` of the family's package, where the adapters are. schema: PyTorch's,
        "Tensor x, float eps -> Tensor", without the op's name and without `backend`. results: the
        names under which implementations get them, in order. fake: all arguments by name -> the
        results, without values. in_place: the form that writes into the caller's tensors."""
        self.name, self.schema, self.fake = name, schema, fake
        self.family = module.rpartition(".")[2]
        self.results = tuple(results.split())
        self.names, self._lists = _parsed(schema)
        self.first = self.names[0]
        self.backends = tuple(backends)
        self.implementations: dict[str, Implementation] = {}
        self.public: Callable | None = None
        self.forget_choices()
        self.call = _compiled_call(self)
        self._torch_op = _define(self, schema, self._fake)
        self.in_place = in_place
        if in_place is not None:
            in_place.bind(self)

    def __repr__(self) -> str:
        return f"Op({self.name})"

    def implementation(
        self,
        backend: str,
        support: Support | None = None,
        *,
        sources: Sequence[str | Path] = (),
        flags: Sequence[str] = (),
    ) -> Callable[[Callable], Callable]:
        """Decorate the function that serves this op on `backend`; a second one raises.

        It takes the schema's arguments and the results by name. GPU kernels name the files that
        they are compiled from, and the compiler's flags, for the verified records; the function's own
        file is one of them.
        """
        if backend not in self.backends:
            raise InputError(f"{self.name}: backend must be one of {', '.join(self.backends)}, got {backend!r}")
        support = support or Support()

        def add(function: Callable) -> Callable:
            if backend in self.implementations:
                raise InputError(f"{self.name}: there is a {backend} implementation already")
            own = inspect.getsourcefile(inspect.unwrap(function))
            self.implementations[backend] = Implementation(
                op=self.name,
                backend=backend,
                function=function,
                support=support,
                sources=(*map(Path, sources), Path(own)) if sources else (),
                flags=tuple(flags),
                packed="str layout" in self.schema,
                fits=support.fits(self.first, _DEVICE[backend], self._lists),
                fits_in_order=support.fits(self.first, _DEVICE[backend], self._lists, self.names),
                reason=partial(support.reason, self.first, _DEVICE[backend]),
            )
            self.forget_choices()
            return function

        return add

    def public_function(self, function: Callable) -> Callable:
        """Decorate the public function, which checks the caller's arguments and calls the op."""
        self.public = function
        return function

    def traced(self, backend: str | None, args: Mapping[str, Any]) -> Any:
        backends.check_backends(backend or "auto")
        return self._torch_op(*[args[name] for name in self.names], backend=backend or "")

    def run(self, backend: str | None, args: dict[str, Any]) -> Any:
        return self._launch(self.select(backend, args), args)

    def _launch(self, chosen: Implementation, args: dict[str, Any]) -> Any:
        if chosen.backend in _RETURNING:
            return chosen.function(**args)
        results = self.fake(**args)
        if isinstance(results, Tensor):
            args[self.results[0]] = results
        elif results is not None:
            args.update(zip(self.results, results, strict=True))
        chosen.function(**args)
        return results

    def run_into(self, chosen: Implementation, args: dict[str, Any], given: Mapping[str, Tensor]) -> None:
        """With results that the caller gives, by name."""
        if chosen.backend not in _RETURNING:
            chosen.function(**args, **given)
            return
        results = chosen.function(**args)
        for name, result in zip(self.results, (results,) if isinstance(results, Tensor) else results, strict=True):
            given[name].copy_(result)

    def select(
        self, backend: str | None, args: dict[str, Any], renamed: Mapping[str, str] = _NOTHING, name: str = ""
    ) -> Implementation:
        """Who serves these arguments (results among them where they are given)."""
        if _probes:
            for probe in tuple(_probes):
                probe(Call(self, backend, args, renamed))
        names = backends.named_backends(backend)
        if names:
            chosen = self._first_named(names, args, renamed, name or self.name)
        else:
            chosen = self._automatic(args, renamed)
        if _watchers:
            for watcher in tuple(_watchers):
                watcher(self, chosen, args)
        return chosen

    def _automatic(self, args: dict[str, Any], renamed: Mapping[str, str]) -> Implementation:
        device = args[self.first].device
        for candidate in self.chain(device):
            if candidate.fits(args):
                return candidate
        raise BackendError(f"{self.name}: no backend has this op for {device} tensors")

    def _first_named(self, names: tuple[str, ...], args: dict, renamed: Mapping, name: str) -> Implementation:
        reasons = []
        for backend in names:
            found = self.implementations.get(backend) if backends.load(backend, self.family) is None else None
            if found is None:
                reasons.append(self.absent(backend))
                continue
            if found.fits(args):
                return found
            reasons.append(f"the {backend} backend cannot serve this call: {found.reason(args, renamed)}")
        raise BackendError(f"{name}: {'; '.join(reasons)}")

    def chain(self, device: torch.device) -> tuple[Implementation, ...]:
        """Whom the automatic choice asks, in order, for a tensor's device.

        A GPU kernel is among them only where a record says that its tests passed on this architecture.
        """
        found = self._chains.get(device)
        if found is None:
            order = backends.AUTOMATIC.get(device.type, ("reference",))
            loaded = [
                self.implementations.get(backend) for backend in order if backends.load(backend, self.family) is None
            ]
            found = tuple(each for each in loaded if each is not None and unproven(each, device) is None)
            self._chains[device] = found
            if device.type == "cpu":
                self._cpu_chain = found
        return found

    def forget_choices(self) -> None:
        """Decide anew whom the automatic choice asks."""
        self._chains, self._cpu_chain = {}, ()

    def absent(self, backend: str) -> str:
        """Why this op has no implementation on a backend that was asked for."""
        return backends.load(backend, self.family) or f"the {backend} backend does not have this op"

    def _fake(self, *values: Any) -> Any:
        return self.fake(**dict(zip(self.names, values, strict=True)))

    def at_run_time(self, values: tuple, backend: str) -> Any:
        return self.run(backend or None, self.named(values))

    def named(self, values: tuple) -> dict[str, Any]:
        """Positional arguments of `torch.ops` by name; AOTInductor says None for an empty list."""
        args = dict(zip(self.names, values, strict=True))
        for name in self._lists:
            if args[name] is None:
                args[name] = []
        return args


class InPlaceForm:
    """`<op>_`: the op with the caller's results, which are changed.

    schema: its own, with "(a!)" on what is changed. writes: result -> the argument of this form
    that it is written into. derived: what the op's schema has and this form does not, from this
    form's arguments.
    """

    def __init__(self, schema: str, writes: Mapping[str, str], **derived: Callable[[Mapping[str, Any]], Any]):
        self.schema, self.writes, self._derived = schema, dict(writes), derived
        self.names, self._lists = _parsed(schema)

    def bind(self, op: Op) -> None:
        self.op, self.name = op, f"{op.name}_"
        self.public: Callable | None = None
        self.first = self.names[0]
        self._shared = tuple(name for name in self.names if name in op.names)
        missing = {*op.names} - {*self._shared} - {*self._derived}
        if missing or {*self.writes} != {*op.results}:
            raise InputError(f"{self.name}: schema must give {sorted(missing)} and write {op.results}")
        self._torch_op = _define(self, self.schema, lambda *_: None)

    @property
    def implementations(self) -> dict[str, Implementation]:
        return self.op.implementations

    def public_function(self, function: Callable) -> Callable:
        """Decorate the public function of this form."""
        self.public = function
        return function

    def call(self, backend: str | None = None, **args: Any) -> None:
        """As `Op.call`."""
        if is_traced(args[self.first]):
            self.traced(backend, args)
        else:
            self.run(backend, args)

    def traced(self, backend: str | None, args: Mapping[str, Any]) -> None:
        backends.check_backends(backend or "auto")
        self._torch_op(*[args[name] for name in self.names], backend=backend or "")

    def split(self, args: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The op's arguments, and the results that the caller gives."""
        inner = {name: args[name] for name in self._shared}
        for name, derive in self._derived.items():
            inner[name] = derive(args)
        return inner, {result: args[name] for result, name in self.writes.items()}

    def run(self, backend: str | None, args: Mapping[str, Any]) -> None:
        inner, given = self.split(args)
        chosen = self.op.select(backend, {**inner, **given}, self.writes, self.name)
        self.op.run_into(chosen, inner, given)

    def at_run_time(self, values: tuple, backend: str) -> None:
        self.run(backend or None, dict(zip(self.names, values, strict=True)))


def is_traced(x: Tensor) -> bool:
    """Whether a call goes through PyTorch's dispatcher: tracing, or x is no plain data."""
    return is_compiling() or type(x) not in _PLAIN or (x.is_meta and not _meta_runs.get())


@contextmanager
def run_on_meta() -> Iterator[None]:
    """Within the block, ops of meta tensors go to the chosen backend's functions, not to the fakes:
    for those who record what these would launch (`aot`)."""
    token = _meta_runs.set(True)
    try:
        yield
    finally:
        _meta_runs.reset(token)


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Within the block, `watcher(op, implementation, arguments)` is called before every eager call
    of an op, in every thread; what it raises ends the call."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


class _Stop(Exception):
    pass


@dataclass(frozen=True)
class Call:
    """A call of a public function as its op gets it: arguments by the schema's names, with results
    where the caller gives them; `renamed` as in `Support.check`."""

    op: Op
    backend: str | None
    args: dict[str, Any]
    renamed: Mapping[str, str]

    def select(self) -> Implementation:
        """Who would serve it. Raises BackendError."""
        return self.op.select(self.backend, self.args, self.renamed)

    def unsupported_reason(self, backend: str) -> str | None:
        """Why `backend` cannot serve it, or the automatic choice would pass over it, or None."""
        found = self.op.implementations.get(backend) if backends.load(backend, self.op.family) is None else None
        if found is None:
            return backends.load(backend, self.op.family) or f"the {backend} backend does not have {self.op.name}"
        device = self.args[self.op.first].device
        if backend not in backends.AUTOMATIC.get(device.type, ("reference",)):
            return f"the {backend} backend is not for {device.type} tensors"
        return found.reason(self.args, self.renamed) or unproven(found, device)


def known_op(name: str) -> Op | InPlaceForm:
    """The op, or the in-place form of one, of that name. Raises InputError."""
    if name not in OPS:
        raise InputError(f"op must be one of {', '.join(sorted(OPS))}, got {name!r}")
    return OPS[name]


def flat_call(name: str, args: tuple, kwargs: Mapping[str, Any]) -> Call:
    """The call that the public function of op `name` makes for these arguments; nothing is run.
    Raises what the function raises for bad ones."""
    form = known_op(name)
    wanted, thread, found = getattr(form, "op", form), threading.get_ident(), []

    def probe(call: Call) -> None:
        if call.op is wanted and threading.get_ident() == thread:  # not an op that prepares its arguments
            found.append(call)
            raise _Stop

    _probes.append(probe)
    try:
        form.public(*args, **kwargs)
    except _Stop:
        pass
    finally:
        _probes.remove(probe)
    if not found:
        raise InputError(f"{name}: the arguments must be plain tensors, got traced, fake or meta ones")
    return found[0]


def unproven(implementation: Implementation, device: torch.device) -> str | None:
    """Why the automatic choice must not take a GPU kernel on `device`, or None."""
    return records.unproven(implementation, device) if implementation.backend in _GPU_KERNELS else None


def forget_choices() -> None:
    """Decide every choice anew: after new verified records, or another environment."""
    for op in OPS.values():
        if isinstance(op, Op):
            op.forget_choices()


def implementations() -> list[Implementation]:
    """Every implementation of every backend that can be loaded here, sorted by op and backend."""
    backends.load_all()
    found = [each for op in OPS.values() if isinstance(op, Op) for each in op.implementations.values()]
    return sorted(found, key=lambda each: (each.op, each.backend))


def _compiled_call(op: Op) -> Callable[..., Any]:
    """call(backend, *, <the schema's arguments>): straight to the chosen implementation; through
    PyTorch's dispatcher while a graph is being traced, and for tensors that are not plain data
    (fake, functional, meta).

    The usual call, of CPU tensors when nobody names a backend, is `run` in one function made for
    the op's arguments: no dict of them is built or unpacked, which takes a microsecond or two.
    """
    x, names = op.first, ", ".join(op.names)
    by_name = ", ".join(f"{name}={name}" for name in op.names)
    asked = inspect.signature(op.fake).parameters
    wanted = [name for name in op.names if name in asked] if "_" in asked else op.names  # _ is **_
    lines = [
        f"def call(backend=None, *, {names}):",
        f"    if compiling() or type({x}) not in plain or ({x}.is_meta and not meta_runs()):  # is_traced",
        f"        return op.traced(backend, dict({by_name}))",
        f"    if {x}.is_cpu and not (backend or probes or watchers or named_backends()):",
        f"        for chosen in op._cpu_chain or op.chain({x}.device):",
        f"            if chosen.fits_in_order({names}):",
        "                if chosen.backend in returning:",
        f"                    return chosen.function({by_name})",
        f"                results = fake({', '.join(f'{name}={name}' for name in wanted)})",
        *_launch_lines(op.results, by_name),
        "                return results",
        f"    return op.run(backend, dict({by_name}))",
    ]
    space = {"op": op, "fake": op.fake, "plain": _PLAIN, "probes": _probes, "watchers": _watchers}
    space |= {"compiling": is_compiling, "meta_runs": _meta_runs.get, "returning": _RETURNING}
    space["named_backends"] = backends.named_backends
    exec("\n".join(lines), space)  # only the declaration's own names
    return space["call"]


def _launch_lines(results: tuple[str, ...], by_name: str) -> list[str]:
    if len(results) == 1:
        return [f"                chosen.function({by_name}, {results[0]}=results)"]
    given = "".join(f", {name}=results[{i}]" for i, name in enumerate(results))
    return [f"                chosen.function({by_name}{given})"]


def _parsed(schema: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of all arguments, and of those that are lists of tensors."""
    arguments = [each.split() for each in schema.rsplit(" -> ", 1)[0].split(", ")]
    return tuple(name for _, name in arguments), tuple(name for kind, name in arguments if kind == "Tensor[]")


def _define(form: Op | InPlaceForm, schema: str, fake: Callable) -> Any:
    """torch.ops.mingcore.<name>, with its run-time function and its fake."""
    arguments, returns = schema.rsplit(" -> ", 1)
    name = f"mingcore::{form.name}"
    torch.library.define(name, f'({arguments}, *, str backend="") -> {returns}', tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(name, "CompositeExplicitAutograd", lambda *values, backend="": form.at_run_time(values, backend))
    torch.library.register_fake(name, lambda *values, backend="": fake(*values))
    OPS[form.name] = form
    return getattr(torch.ops.mingcore, form.name)
