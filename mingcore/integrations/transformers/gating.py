"""Which experts modules of transformers `moe_mlp` can compute, and their weights in its layout.

A module made by `use_experts_implementation` holds gate_up_proj [E, 2I, H] and down_proj [E, H, I],
or, where `is_transposed`, [E, H, 2I] and [E, I, H]; gate rows come first (`is_concatenated`) or are
interleaved with up rows.
"""

import torch
from torch import Tensor, nn

from ... import ops

_PLAIN = (Tensor, nn.Parameter)
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# inputs that a gate is tested on, beyond every limit that models clamp at
_SIZES = (0.0, 1e-3, 0.1, 0.7, 1.5, 3.0, 6.0, 9.0, 15.0, 40.0, 300.0, 1e4, 1e6)


def is_experts(module: nn.Module) -> bool:
    """Whether transformers dispatches this module's forward by `experts_implementation`."""
    return all(hasattr(module, name) for name in ("is_transposed", "has_bias", "_apply_gate"))


def unsupported_reason(module: nn.Module) -> str | None:
    """Why `moe_mlp` cannot compute an experts module, or None. Its weights must not be on the meta device."""
    if not is_experts(module):
        return "it is no experts module of transformers' interface"
    if not getattr(module, "has_gate", True):
        return "its experts have no gate; moe_mlp is down (silu(gate x) * up x)"
    if module.has_bias:
        return "its experts have biases; moe_mlp takes none"
    if getattr(module, "has_post_expert_norm", False):
        return "it has a norm behind each expert; moe_mlp has none"
    for name in ("gate_up_proj", "down_proj"):
        w = getattr(module, name, None)
        if type(w) not in _PLAIN:
            return f"{name} is a {type(w).__name__}; it takes plain tensors"
        if w.dtype not in _FLOATS:
            return f"{name} is {w.dtype}; it takes float32, bfloat16 and float16"
    return _misshapen(module) or _other_gate(module)


def _misshapen(module: nn.Module) -> str | None:
    shapes = list(module.gate_up_proj.shape), list(module.down_proj.shape)
    if [len(shape) for shape in shapes] == [3, 3]:
        (E, a, b), (_, c, d) = shapes
        width, hidden = (b, a) if module.is_transposed else (a, b)
        if shapes[1] == ([E, c, hidden] if module.is_transposed else [E, hidden, d]):
            if width == 2 * (c if module.is_transposed else d):
                return None
    kind = "[E, H, 2I], [E, I, H]" if module.is_transposed else "[E, 2I, H], [E, H, I]"
    return f"gate_up_proj and down_proj are {shapes[0]}, {shapes[1]}; it takes {kind}"


def _other_gate(module: nn.Module) -> str | None:
    """Evaluates the gate on test inputs, because models write the same function in different forms."""
    sizes = torch.tensor(_SIZES, device=module.gate_up_proj.device)
    values = torch.cat((-sizes, sizes))
    gate, up = torch.cartesian_prod(values, values).T
    join = torch.cat if getattr(module, "is_concatenated", True) else _interleaved
    with torch.no_grad():
        got = module._apply_gate(join((gate, up))[None]).float()[0]
        expected = nn.functional.silu(gate) * up
    if got.shape == expected.shape and torch.allclose(got, expected, rtol=1e-4, atol=1e-6):
        return None
    return "its gate is not silu(gate) * up, the only one of moe_mlp"


def _interleaved(parts: tuple[Tensor, Tensor]) -> Tensor:
    return torch.stack(parts, dim=-1).flatten(-2)


def rows_of(module: nn.Module) -> tuple[Tensor, Tensor]:
    """gate_up [E, 2I, H], gate rows first, and down [E, H, I]: views where the layout allows."""
    gate_up, down = module.gate_up_proj.detach(), module.down_proj.detach()
    if module.is_transposed:
        gate_up, down = gate_up.transpose(1, 2), down.transpose(1, 2)
    if not getattr(module, "is_concatenated", True):
        gate_up = torch.cat((gate_up[:, ::2], gate_up[:, 1::2]), dim=1)
    return gate_up, down


def layout_of(module: nn.Module, packed: ops.PackedExperts) -> tuple[Tensor, Tensor]:
    """`rows_of` undone: gate_up_proj and down_proj as the module had them, dense."""
    rows = packed.as_rows()
    gate_up, down = rows.gate_up, rows.down
    if not getattr(module, "is_concatenated", True):
        gate_up = gate_up.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
    if module.is_transposed:
        gate_up, down = gate_up.transpose(1, 2), down.transpose(1, 2)
    return gate_up.contiguous(), down.contiguous()
