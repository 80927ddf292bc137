"""transformers' neural codecs on our convolutions: Mimi, EnCodec, DAC, VibeVoice's tokenizer.

Every nn.Conv1d and nn.ConvTranspose1d outside the quantiser gets a forward of ours, on weights that are packed once
with their weight norm folded in, fused with the ELU or Snake before it. Padding and streaming caches stay the
library's, so caches, one-shot and streamed calls work as before. The modules, their parameters and `state_dict` do not
change.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ... import ops
from ...errors import BackendError, InputError
from .identity import identity_of

MODELS = ("mimi", "encodec", "dac", "vibevoice_acoustic_tokenizer")
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# DAC's classes: (Snake, the convolution after it)
_SNAKES = {
    "DacResidualUnit": (("snake1", "conv1"), ("snake2", "conv2")),
    "DacEncoderBlock": (("snake1", "conv1"),),
    "DacDecoderBlock": (("snake1", "conv_t1"),),
    "DacEncoder": (("snake1", "conv2"),),
    "DacDecoder": (("snake1", "conv2"),),
}


@dataclass(frozen=True)
class Report:
    """The modules that `accelerate` changed (name -> what) and left unchanged (name -> why)."""

    changed: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{len(self.changed)} modules changed, {len(self.left)} left"]
        lines += [f"  {name}: {what}" for name, what in self.changed.items()]
        lines += [f"  {name}: left, {why}" for name, why in self.left.items()]
        return "\n".join(lines)


def accelerate(model: nn.Module) -> Report:
    """Replace the convolutions of a codec of transformers by ours, until `undo(model)`.

    model: a Mimi, EnCodec, DAC or VibeVoice acoustic tokenizer model, or a model that has one
    inside. For inference: recording gradients raises BackendError. The packed weights are a second
    copy on the CPU; they are packed again when the originals change. Calling it again changes
    nothing. Raises InputError when there is none of these codecs.
    """
    report = Report()
    activations, found = {}, False
    for module in model.modules():
        if _codec_of(module) is not None:
            activations.update(_before(module))
    for name, module in model.named_modules():
        if _codec_of(module) is None:
            continue
        for inner, conv in _convolutions(module, name):
            found, why = True, _unsupported_reason(inner, conv)
            if why is not None:
                report.left[inner] = why
            elif not isinstance(conv.__dict__.get("forward"), _Convolution):
                activation = activations.get(conv)
                conv.forward = _Convolution(conv, activation)
                what = "transposed convolution" if _transposed(conv) else "convolution"
                if activation is not None:
                    activation.forward = _nothing
                    what = f"{type(activation).__name__} and {what}"
                report.changed[inner] = what
    if not found:
        raise InputError(f"accelerate: {type(model).__name__} has none of the codecs {', '.join(MODELS)}")
    return report


def undo(model: nn.Module) -> tuple[str, ...]:
    """Restore the forward of every module that `accelerate` changed; returns their names."""
    found = []
    for name, module in model.named_modules():
        own = module.__dict__.get("forward")
        if isinstance(own, _Convolution) or own is _nothing:
            del module.forward
            found.append(name)
    return tuple(found)


def _codec_of(module: nn.Module) -> str | None:
    """The entry of MODELS that a module's class belongs to, or None."""
    parts = type(module).__module__.split(".")
    return parts[-2] if len(parts) > 1 and parts[-2] in MODELS else None


def _convolutions(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The convolutions that are children of a codec's module, or of a list or sequence in it."""
    for child_name, child in module.named_children():
        full = f"{name}.{child_name}" if name else child_name
        if isinstance(child, (nn.Conv1d, nn.ConvTranspose1d)):
            yield full, child
        elif type(child).__module__.startswith("torch."):
            yield from _convolutions(child, full)


def _before(module: nn.Module) -> dict[nn.Module, nn.Module]:
    """convolution -> the activation immediately before it."""
    found = {}
    for snake, conv in _SNAKES.get(type(module).__name__, ()):
        found[getattr(module, conv)] = getattr(module, snake)
    for child in module.children():
        if isinstance(child, (nn.ModuleList, nn.Sequential)):
            steps = list(child)
            for activation, wrapper in pairwise(steps):
                conv = getattr(wrapper, "conv", None)
                if isinstance(activation, nn.ELU) and isinstance(conv, (nn.Conv1d, nn.ConvTranspose1d)):
                    if activation.alpha == 1.0:
                        found[conv] = activation
    return found


def _transposed(conv: nn.Module) -> bool:
    return isinstance(conv, nn.ConvTranspose1d)


def _unsupported_reason(name: str, conv: nn.Module) -> str | None:
    if "quantizer" in name:
        return "in the quantiser, where a rounding error can choose another code"
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return f"pads by {conv.padding_mode}, {conv.padding}"
    if conv.weight.dtype not in _FLOATS or conv.weight.is_meta:
        return f"its weight is {conv.weight.dtype} on {conv.weight.device}"
    if _transposed(conv):
        span = conv.dilation[0] * (conv.kernel_size[0] - 1) + 1
        if conv.output_padding[0] or span < conv.stride[0]:
            return "its output is padded, or its kernel shorter than its stride"
    return None


def _nothing(x: Tensor) -> Tensor:
    """The forward of an activation that is fused into the convolution after it."""
    return x


class _Convolution:
    """The forward of one convolution: x [B, C, L] or [C, L], as of nn.Conv1d and nn.ConvTranspose1d."""

    def __init__(self, conv: nn.Module, activation: nn.Module | None):
        self.conv, self.activation = conv, activation
        self.made_from: tuple | None = None
        self.prepare()

    def prepare(self) -> None:
        """Pack the weights if that was not done yet, or if they have changed since."""
        identity = self._identity()
        if identity == self.made_from:
            return
        conv, self.snake = self.conv, None
        with torch.no_grad():
            self.packed = ops.pack_conv(
                conv.weight.detach(),
                stride=conv.stride[0],
                dilation=conv.dilation[0],
                groups=conv.groups,
                transposed=_transposed(conv),
            )
            if isinstance(self.activation, nn.ELU):
                self.before = "elu"
            elif self.activation is not None:
                alpha = self.activation.alpha.detach().float().flatten().contiguous()
                self.before, self.snake = "snake", (alpha, (alpha + 1e-9).reciprocal())
            else:
                self.before = None
        self.made_from = identity

    def _identity(self) -> tuple:
        modules = (self.conv,) if self.activation is None else (self.conv, self.activation)
        return identity_of(p for module in modules for p in module.parameters())

    def __call__(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        conv = self.conv
        if torch.compiler.is_compiling():
            _prepare_while_tracing(self)
        else:
            self.prepare()
        weights = conv.parameters()
        if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in weights)):
            raise BackendError(
                "accelerated convolutions compute no gradients: call the codec under "
                "torch.no_grad() or torch.inference_mode(), or undo(model)"
            )
        if output_size is not None:
            raise InputError("an accelerated transposed convolution takes no output_size")
        batch = x if x.dim() == 3 else x[None]
        pad = conv.padding[0]
        options = {
            "stride": conv.stride[0],
            "dilation": conv.dilation[0],
            "groups": conv.groups,
            "activation_before": self.before,
            "snake_before": self.snake,
        }
        if _transposed(conv):
            # `last` emits the end too, so that y has all outputs of nn.ConvTranspose1d
            y, _ = ops.causal_conv_transpose1d(batch, self.packed, conv.bias, trim_right=0, last=True, **options)
            y = y[..., pad : y.shape[-1] - pad] if pad else y
        else:
            batch = F.pad(batch, (pad, pad)) if pad else batch
            y, _ = ops.causal_conv1d(batch, self.packed, conv.bias, left_pad=0, **options)
        return y if x.dim() == 3 else y[0]


# torch.compile runs it while tracing; it is no part of the graph
_prepare_while_tracing = torch.compiler.assume_constant_result(_Convolution.prepare)
