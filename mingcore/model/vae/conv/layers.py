"""Convolutions of a network, from a checkpoint: weight norm and scales folded, packed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .... import ops
from ....ops.conv.packing import context_width
from ...declared import Build, Declared
from ...weights import Weights
from .stream import Chunk, CodecState

ConvLayer = Callable[[Tensor, Chunk], Tensor]

# weight norm: magnitude and direction, by torch.nn.utils.weight_norm and by its parametrization
NORMED = (("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1"))


class Conv:
    """One causal convolution of a stream: x [B, C_in, L] -> [B, C_out, T].

    slot: its index among the states, None where it needs no left context. before, after: an
    activation's name, or for Snake the pair (alpha, gain); both are computed within the
    convolution, as a residual is.
    """

    __slots__ = ("bias", "options", "slot", "strided", "transposed", "weight")

    def __init__(
        self,
        slot: int | None,
        weight: ops.PackedConv | Tensor,
        bias: Tensor | None,
        *,
        transposed: bool,
        before: str | ops.Snake | None = None,
        after: str | ops.Snake | None = None,
        **options,
    ):
        self.slot, self.weight, self.bias, self.transposed = slot, weight, bias, transposed
        self.strided = options["stride"] > 1 and not transposed
        for name, pair, act in (("activation_before", "snake_before", before), ("activation", "snake", after)):
            options |= {name: "snake", pair: act} if isinstance(act, tuple) else {name: act}
        self.options = options

    def __call__(self, x: Tensor, chunk: Chunk, residual: Tensor | None = None) -> Tensor:
        x = x.contiguous()
        options = {**self.options, "residual": residual, "valid": chunk.valid}
        args = (self.weight, self.bias)
        if self.slot is None:
            return ops.causal_conv1d(x, *args, **options)[0]
        layers = chunk.state.layers
        if self.strided:  # the number of outputs depends on the state: the op allocates them
            y, layers[self.slot] = ops.causal_conv1d(x, *args, state=layers[self.slot], **options)
        else:
            op = ops.causal_conv_transpose1d_ if self.transposed else ops.causal_conv1d_
            T = x.shape[2] * (options["stride"] if self.transposed else 1)
            y = x.new_empty(x.shape[0], self.weight.out_channels, T)
            op(x, y, *args, state=layers[self.slot], **options)
        if chunk.valid is not None:
            chunk.valid = layers[self.slot].emitted
        return y


@dataclass
class Network:
    """Layers one after the other: x [B, C_in, L] and its chunk -> [B, C_out, T].

    contexts: channels and width of each convolution's left context, in the order of the states.
    """

    layers: list[ConvLayer]
    contexts: list[tuple[int, int]]
    outputs: int

    def __call__(self, x: Tensor, chunk: Chunk) -> Tensor:
        for layer in self.layers:
            x = layer(x, chunk)
        return x

    def new_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> CodecState:
        return CodecState.create(batch, self.contexts, dtype=dtype, device=device)


class Contexts:
    """Declares the convolutions of a network; `sizes`: channels and width of each left context."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []

    def conv(
        self,
        w: Weights,
        names: str | Sequence[str],
        inputs: int,
        outputs: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        transposed: bool = False,
        bias: bool = True,
        scale: Declared[Tensor] | None = None,
        **options,
    ) -> Declared[Conv]:
        """A convolution from `name.weight`, or weight norm's two parts, and `name.bias`.

        Several names: convolutions of the same inputs, `outputs` each, one after the other. scale
        [outputs]: folded into weight and bias. options: `before` and `after` of `Conv`.
        """
        first, second = (inputs, outputs) if transposed else (outputs, inputs)
        shape = (first, second // groups, kernel)
        weights, biases = [], []
        for name in [names] if isinstance(names, str) else names:
            part = w.sub(name)
            weights.append(folded_weight(part, shape))
            if bias:
                biases.append(part.float32("bias", outputs))
        slot = None
        if kernel > 1 or stride > 1:
            slot = len(self.sizes)
            self.sizes.append((inputs, context_width(kernel, stride, dilation, transposed)))
        shapes = {"stride": stride, "dilation": dilation, "groups": groups}
        folded = {"weights": weights, "biases": biases, "scale": scale, "dtype": w.dtype}
        return Build(_conv, slot, **folded, transposed=transposed, shapes=shapes, options=options)


def _conv(
    slot: int | None,
    *,
    weights: list[Tensor],
    biases: list[Tensor],
    scale: Tensor | None,
    dtype: torch.dtype,
    transposed: bool,
    shapes: dict[str, int],
    options: dict,
) -> Conv:
    if scale is not None:
        for weight in weights:
            weight *= scale.view((1, -1, 1) if transposed else (-1, 1, 1))
        for bias in biases:
            bias *= scale
    weight = torch.cat(weights, dim=1 if transposed else 0).to(dtype)
    packed = ops.pack_conv(weight, transposed=transposed, **shapes)
    return Conv(slot, packed, torch.cat(biases) if biases else None, transposed=transposed, **shapes, **options)


def folded_weight(w: Weights, shape: tuple[int, ...]) -> Declared[Tensor]:
    """`weight`, or where the checkpoint has weight norm's parts g v / |v|, in float32.

    |v| is over all but the first dimension, which for a transposed convolution is the inputs.
    """
    for g_name, v_name in NORMED:
        if w.has(v_name) or w.has(g_name):
            g = w.float32(g_name, shape[0], *(1 for _ in shape[1:]))
            return Build(_normed, g, w.float32(v_name, *shape))
    return w.float32("weight", *shape)


def _normed(g: Tensor, v: Tensor) -> Tensor:
    return v * (g / v.flatten(1).norm(dim=1).view(g.shape))


def snake(w: Weights, name: str, channels: int) -> Declared[ops.Snake]:
    """(alpha, 1/alpha) of `name.alpha` [1, C, 1]: x + sin(alpha x)^2 / alpha."""
    return Build(_snake, w.sub(name).float32("alpha", 1, channels, 1))


def _snake(alpha: Tensor) -> ops.Snake:
    alpha = alpha.flatten()
    return alpha, (alpha + 1e-9).reciprocal()
