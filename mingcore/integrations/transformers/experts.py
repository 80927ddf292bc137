"""transformers' mixture-of-experts models on `moe_mlp`: an implementation of its experts interface.

Weights are packed at first use, beside the originals, or by `pack`, which frees the originals. Packed weights are a
plain attribute of the experts module, neither parameter nor buffer: `module.to(dtype)` must not convert their bytes as
if they were rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ... import ops
from ...errors import BackendError, InputError
from ...ops._core.packing import FORMATS, QUANTISED
from .gating import is_experts, layout_of, rows_of, unsupported_reason
from .identity import identity_of

NAME = "mingcore"
_FORMATS = tuple(f for f in (*FORMATS, *QUANTISED) if f != "fp64")
_NAMES = {NAME: None, **{f"{NAME}_{format}": format for format in _FORMATS}}
_ATTRIBUTE = "_mingcore_experts"
_WEIGHTS = ("gate_up_proj", "down_proj")


@dataclass(frozen=True, eq=False)
class _Packed:
    """Packed experts, the requested format (None: the weights' own), and the identity of their originals."""

    experts: ops.PackedExperts
    format: str | None
    made_from: tuple


def register() -> tuple[str, ...]:
    """Add our implementations to transformers' experts interface; returns their names.

    "mingcore" keeps the type of the weights, "mingcore_int8" and the like pack them in a format of
    `ops.pack_experts`. Choose one by `from_pretrained(..., experts_implementation=name)` or
    `model.set_experts_implementation(name)`. An experts module that `moe_mlp` cannot compute raises
    BackendError with the reason when it is first called (see `why_not`). Calling it again changes
    nothing. Raises ImportError without transformers >= 5.
    """
    try:
        from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
    except ImportError as error:
        raise ImportError(
            f'register: needs transformers >= 5, pip install "mingcore[transformers]": {error}'
        ) from error
    for name, format in _NAMES.items():
        ALL_EXPERTS_FUNCTIONS.register(name, _implementation(format))
    return tuple(_NAMES)


def _implementation(format: str | None) -> Callable[..., Tensor]:
    def mingcore_experts_forward(
        self: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
    ) -> Tensor:
        if torch.compiler.is_compiling():
            _prepare_while_tracing(self, format)
        else:
            _prepare(self, format)
        if torch.is_grad_enabled() and _records(self, hidden_states, top_k_weights):
            raise BackendError(
                "mingcore experts compute no gradients: call the model under torch.no_grad() or "
                "torch.inference_mode(), or choose another experts_implementation"
            )
        ids, weights = top_k_index.to(torch.int32), top_k_weights.float()
        if getattr(self, "_is_expert_parallel", True):
            ids, weights = _without_sentinels(ids, weights, self.num_experts)
        return ops.moe_mlp(hidden_states, getattr(self, _ATTRIBUTE).experts, weights, ids)

    return mingcore_experts_forward


def _records(module: nn.Module, *inputs: Tensor) -> bool:
    return any(t.requires_grad for t in (*inputs, module.gate_up_proj, module.down_proj))


def _without_sentinels(ids: Tensor, weights: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Expert parallelism: ids >= num_experts are experts of other devices. They get weight 0 and the id of another
    expert of their token, so that no further weights are read for them."""
    here = ids < num_experts
    some = ids.amin(dim=1, keepdim=True).clamp(max=num_experts - 1)
    return torch.where(here, ids, some), torch.where(here, weights, 0.0)


def _prepare(module: nn.Module, format: str | None) -> None:
    """Pack the module's weights if that was not done yet, or if they have changed since."""
    packed = module.__dict__.get(_ATTRIBUTE)
    if packed is not None and packed.format == format and packed.made_from == _identity(module):
        return
    if packed is not None and module.down_proj.is_meta:
        raise InputError(
            f"{type(module).__name__}: the experts were packed as {packed.format or 'they were'} and "
            f"their original weights freed; to change weights or format, call unpack(model) first"
        )
    reason = unsupported_reason(module)
    if reason is not None:
        raise BackendError(f"mingcore experts cannot serve {type(module).__name__}: {reason}")
    experts = ops.pack_experts(*rows_of(module), format=format)
    setattr(module, _ATTRIBUTE, _Packed(experts, format, _identity(module)))


# torch.compile runs it while tracing; it is no part of the graph
_prepare_while_tracing = torch.compiler.assume_constant_result(_prepare)


def _identity(module: nn.Module) -> tuple:
    return identity_of(getattr(module, name) for name in _WEIGHTS)


def experts_of(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a model that transformers dispatches by experts_implementation, by name."""
    return {name: module for name, module in model.named_modules() if is_experts(module)}


def why_not(model: nn.Module) -> dict[str, str]:
    """The experts modules that "mingcore" does not support, by name, each with the reason."""
    found = experts_of(model)
    reasons = {name: unsupported_reason(m) for name, m in found.items() if not _freed(m)}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def pack(model: nn.Module, format: str | None = None) -> tuple[str, ...]:
    """Pack the experts of a model in place, free their originals, and choose our implementation.

    format: None keeps the weights' dtype, else a format of `ops.pack_experts`. Layers are packed one after the other,
    into the memory of the originals where dtype and size allow. The originals are freed: gate_up_proj and down_proj
    become "meta" parameters, and `state_dict` of the experts raises until `unpack(model)`. The packed weights stay on
    their device. Returns the names of the modules. Raises InputError when the model has no experts, and BackendError,
    before anything is changed, when some are not supported.
    """
    if format is not None and format not in _FORMATS:
        raise InputError(f"pack: format must be one of {', '.join(_FORMATS)}, got {format!r}")
    found = experts_of(model)
    if not found:
        raise InputError(
            f"pack: {type(model).__name__} has no experts of transformers' interface "
            "(modules made by use_experts_implementation)"
        )
    todo = {name: m for name, m in found.items() if not (_freed(m) and _packed(m).format == format)}
    reasons = [f"{name}: {reason}" for name, m in todo.items() if (reason := _pack_obstacle(m, model))]
    if reasons:
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        raise BackendError(f"pack: {reasons[0]}{more}")
    for module in todo.values():
        experts = ops.pack_experts(*rows_of(module), format=format, overwrite=True)
        _free(module)
        setattr(module, _ATTRIBUTE, _Packed(experts, format, _identity(module)))
    if hasattr(model, "set_experts_implementation"):
        register()
        model.set_experts_implementation(NAME if format is None else f"{NAME}_{format}")
    return tuple(found)


def unpack(model: nn.Module) -> tuple[str, ...]:
    """Restore the parameters of the experts that `pack` freed; returns the modules' names.

    Exact in the dtype that they were packed in. Raises InputError for experts in a quantised format, whose originals
    are lost.
    """
    found = {name: module for name, module in experts_of(model).items() if _freed(module)}
    for name, module in found.items():
        format = _packed(module).experts.format
        if format in QUANTISED:
            raise InputError(f"unpack: {name} was packed as {format}, which has lost the originals")
    for module in found.values():
        weights = layout_of(module, _packed(module).experts)
        delattr(module, _ATTRIBUTE)
        module.__dict__.pop("_apply", None)
        for name, w in zip(_WEIGHTS, weights):
            setattr(module, name, nn.Parameter(w, requires_grad=False))
    return tuple(found)


def _packed(module: nn.Module) -> _Packed | None:
    return module.__dict__.get(_ATTRIBUTE)


def _freed(module: nn.Module) -> bool:
    return _packed(module) is not None and module.down_proj.is_meta


def _pack_obstacle(module: nn.Module, model: nn.Module) -> str | None:
    if _freed(module):
        return f"it is packed as {_packed(module).experts.format} already; unpack(model) first"
    if module.down_proj.is_meta:
        return "its weights are on the meta device"
    for name in _WEIGHTS:
        weight = getattr(module, name, None)
        owners = [m for m in model.modules() if any(p is weight for p in m._parameters.values())]
        if len(owners) > 1:
            return f"{name} is shared with another module, which needs it as it is"
    return unsupported_reason(module)


def _free(module: nn.Module) -> None:
    for name in _WEIGHTS:
        meta = torch.empty_like(getattr(module, name), device="meta")
        setattr(module, name, nn.Parameter(meta, requires_grad=False))
    if _refuse_to_save not in module._state_dict_pre_hooks.values():
        module.register_state_dict_pre_hook(_refuse_to_save)
        module.register_load_state_dict_pre_hook(_refuse_to_load)
        module.register_forward_pre_hook(_refuse_other_implementations)
    module._apply = partial(_apply_or_refuse, module)  # what `.cpu()`, `.to(...)` and `.half()` call


def _refuse_to_load(module: nn.Module, state_dict: dict, prefix: str, *_: object) -> None:
    if _freed(module) and any(f"{prefix}{name}" in state_dict for name in _WEIGHTS):
        raise InputError(
            f"load_state_dict: pack() has freed the weights of {prefix.rstrip('.')}; call unpack(model) before "
            "loading, and pack it again"
        )


def _refuse_other_implementations(module: nn.Module, *_: object) -> None:
    """Another implementation would compute with the freed weights."""
    if torch.compiler.is_compiling() or not _freed(module):
        return
    chosen = getattr(getattr(module, "config", None), "_experts_implementation", NAME)
    if chosen not in _NAMES:
        raise InputError(
            f"experts_implementation {chosen!r}: pack() has freed the weights of {type(module).__name__} that it "
            "needs; call unpack(model) before choosing it"
        )


def _apply_or_refuse(module: nn.Module, function: Callable, recurse: bool = True) -> nn.Module:
    try:
        return type(module)._apply(module, function, recurse)
    except RuntimeError as error:  # of a tensor without data
        raise InputError(
            f"{type(module).__name__}: pack() has freed its weights, and packed ones stay where and as they are; "
            "call unpack(model) before moving or converting it"
        ) from error


def _refuse_to_save(module: nn.Module, prefix: str, keep_vars: bool) -> None:
    if _freed(module):
        raise InputError(
            f"state_dict: pack() has freed the weights of {prefix.rstrip('.')}; call unpack(model) before saving it"
        )
