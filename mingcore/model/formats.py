"""Weight formats, and which matrices each of them is for.

`weights` is the format of the large matrices: the experts, shared ones too; the projections and
MLPs of every transformer block (language model, semantic module, both backbones of the AudioVAE);
the flow head's blocks. They are 96 % of a released model's bytes, and each is a sum over a whole
row, in which the errors of single weights average out.

What a quantised format leaves as it is, in `dtype`, and why:
- routers, in the activations' type: a small error flips the choice of an expert;
- norms and biases, in the activations' type: they are added or multiplied once, and weigh nothing;
- the embedding and the text head: rows are looked up alone, and the best of 126464 logits is a
  close race; of no use while sound is made, so there is little to gain;
- the layers that values enter and leave by (latents, samples, spectrum, condition, time, pooling,
  stop head): few bytes, and every value passes them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import CheckpointError, InputError
from ..ops._core.packing import FORMATS, QUANTISED, format_of

WEIGHTS = ("fp32", "fp16", "bf16", "int8", "int8_dyn", "fp8")
# What a tensor is for, which decides its format: a large matrix of a transformer block, or of a block
# of the flow head; another matrix; a router; a vector (bias, norm); an operand of weight folding.
ROLES = ("block", "flow_block", "matrix", "router", "vector", "float32")
_FP8_CAPABILITY = (8, 9)


@dataclass(frozen=True)
class Formats:
    """`weights`: of the large matrices; `flow`: of the flow head's. `dtype`: of matrices that are
    not quantised; `activation_dtype`: of vectors, and of what flows between the modules.
    """

    weights: str
    flow: str
    dtype: torch.dtype
    activation_dtype: torch.dtype

    @property
    def quantised(self) -> bool:
        return self.weights in QUANTISED

    @property
    def router_dtype(self) -> torch.dtype:
        """Routers keep the activations' type where the rest is quantised."""
        return self.activation_dtype if self.quantised else self.dtype

    def of(self, role: str) -> str:
        """The format of a tensor by what it is for, one of `ROLES`."""
        if role in ("block", "flow_block"):
            return self.weights if role == "block" else self.flow
        held = {
            "matrix": self.dtype,
            "router": self.router_dtype,
            "vector": self.activation_dtype,
            "float32": torch.float32,
        }
        return format_of(held[role])


def resolve(
    weights: str | None, dtype: torch.dtype | None, device: torch.device, activation_dtype: torch.dtype | None = None
) -> Formats:
    """What `weights` and `dtype` mean on `device`, either of them None where it was not asked for.

    weights None is the format of `dtype`, which is by default float32 on a CPU and bfloat16 on a
    GPU. With a quantised `weights`, `dtype` is bfloat16 by default: what released checkpoints hold.
    activation_dtype: by default float32 on a CPU, where 16-bit weights are widened on the way into
    its registers, and `dtype` on a GPU. "int8_dyn" on a GPU keeps the flow head in "int8": no
    sampler there quantises activations. Raises InputError for an unknown or contradictory pair.
    """
    on_cpu = device.type == "cpu"
    if weights is not None and weights not in WEIGHTS:
        raise InputError(f"weights: must be one of {', '.join(WEIGHTS)}, got {weights!r}")
    if dtype is not None and dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise CheckpointError(f"dtype must be float32, bfloat16 or float16, got {dtype}")
    if weights in QUANTISED:
        dtype = torch.bfloat16 if dtype is None else dtype
    elif weights is not None:
        if dtype not in (None, FORMATS[weights]):
            raise InputError(f"weights: {weights} and dtype {dtype} contradict each other; give one of them")
        dtype = FORMATS[weights]
    elif dtype is None:
        dtype = torch.float32 if on_cpu else torch.bfloat16
    weights = weights or format_of(dtype)
    if activation_dtype is None:
        activation_dtype = torch.float32 if on_cpu else dtype
    flow = "int8" if weights == "int8_dyn" and not on_cpu else weights
    return Formats(weights, flow, dtype, activation_dtype)


def unsupported_reason(formats: Formats, device: torch.device) -> str | None:
    """Why no kernel takes this format on this device, where that is so: formulas would compute."""
    if formats.weights != "fp8":
        return None
    if device.type == "cpu":
        return "no native CPU kernel multiplies 8-bit floats (int8 and int8_dyn have kernels)"
    if torch.cuda.get_device_capability(device) < _FP8_CAPABILITY:
        return "this GPU has no 8-bit floats (int8 and int8_dyn have kernels)"
    return None
