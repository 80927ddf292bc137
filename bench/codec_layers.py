"""Layers of two real codecs as pairs of calls: ours, and PyTorch's ops one after another.

VoxCPM's AudioVAE (16 kHz, 25 latents a second, 4 a patch; voxcpm 2.0.3, AudioVAEConfig),
VibeVoice's acoustic tokenizer (24 kHz, 7.5 latents a second, one a patch; its configuration in
transformers). A layer's length is given per latent; a streamed call continues a state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from measure import served
from mingcore import ops

Call = Callable[[], Tensor]


LENGTHS: dict[str, float | None] = {
    "patch": None,
    "10s": 10.0,
    "60s": 60.0,
}  # seconds in one shot; None: one patch, streamed


@dataclass(frozen=True)
class Layer:
    """unit: dilated depthwise 7 between Snakes, 1x1, residual; mixer: depthwise 7 and residual; up,
    down: Snake or nothing, then transposed or strided; out: to one channel, tanh."""

    codec: str
    kind: str
    C: int
    N: int
    k: int
    stride: int
    per_latent: int  # inputs

    @property
    def name(self) -> str:
        return f"{self.codec}_{self.kind}_{self.C}" + (f"_to_{self.N}" if self.N != self.C else "")

    def length(self, seconds: float | None) -> int:
        rate, patch = {"vox": (25, 4), "vibe": (7.5, 1)}[self.codec]
        latents = patch if seconds is None else round(rate * seconds)
        return latents * self.per_latent


LAYERS = [
    Layer("vox", "up", 1536, 768, 16, 8, 1),
    Layer("vox", "unit", 768, 768, 7, 1, 8),
    Layer("vox", "up", 768, 384, 16, 8, 8),
    Layer("vox", "unit", 384, 384, 7, 1, 64),
    Layer("vox", "up", 384, 192, 10, 5, 64),
    Layer("vox", "unit", 192, 192, 7, 1, 320),
    Layer("vox", "up", 192, 96, 4, 2, 320),
    Layer("vox", "unit", 96, 96, 7, 1, 640),
    Layer("vox", "out", 96, 1, 7, 1, 640),
    Layer("vox", "down", 512, 1024, 16, 8, 64),
    Layer("vibe", "up", 2048, 1024, 16, 8, 1),
    Layer("vibe", "up", 512, 256, 10, 5, 40),
    Layer("vibe", "mixer", 2048, 2048, 7, 1, 1),
    Layer("vibe", "mixer", 256, 256, 7, 1, 200),
    Layer("vibe", "mixer", 32, 32, 7, 1, 3200),
    Layer("vibe", "out", 32, 1, 7, 1, 3200),
]


class Built:
    """One layer at one of LENGTHS: `ours()` and `torch()` on the same random tensors."""

    def __init__(self, layer: Layer, length: str, device: str = "cpu", dtype: torch.dtype = torch.float32):
        self.layer, self.streaming = layer, LENGTHS[length] is None
        torch.manual_seed(0)
        c, L = layer, layer.length(LENGTHS[length])

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape).to(device, dtype)

        self.x = draw(1, c.C, L)
        up, groups = c.kind == "up", c.C if c.kind in ("unit", "mixer") else 1
        shape = (c.C, c.N, c.k) if up else (c.N, c.C // groups, c.k)
        fan = c.C // groups * c.k / (c.stride if up else 1)
        self.weight, self.bias = draw(*shape) / fan**0.5, draw(c.N) * 0.1
        self.dilation = 9 if c.kind == "unit" else 1
        self.groups, self.up = groups, up
        self.alpha = [0.5 + torch.rand(c.C).to(device) for _ in range(2)]
        self.pairs = [(a, 1 / (a + 1e-9)) for a in self.alpha]
        self.mix, self.mix_bias = draw(c.C, c.C, 1) / c.C**0.5, draw(c.C) * 0.1
        shapes = {"stride": c.stride, "dilation": self.dilation, "groups": groups}
        self.packed = ops.pack_conv(self.weight, transposed=up, **shapes)
        self.packed_mix = ops.pack_conv(self.mix)
        self.op = ops.causal_conv_transpose1d if up else ops.causal_conv1d
        self.options = shapes
        self.state = self.context = None
        if self.streaming:
            earlier = draw(1, c.C, (self.packed.context // c.stride + 1) * c.stride)
            self.state = self.op(earlier, self.packed, **shapes)[1]
            self.context = self.state.context

    def ours(self) -> Tensor:
        kind, x = self.layer.kind, self.x
        kw = {"state": self.state, **self.options}
        if kind == "unit":
            y, _ = ops.causal_conv1d(
                x,
                self.packed,
                self.bias,
                activation_before="snake",
                snake_before=self.pairs[0],
                activation="snake",
                snake=self.pairs[1],
                **kw,
            )
            return ops.causal_conv1d(y, self.packed_mix, self.mix_bias, residual=x)[0]
        if kind == "mixer":
            return ops.causal_conv1d(x, self.packed, self.bias, residual=x, **kw)[0]
        if kind == "out":
            act = {"activation_before": "snake", "snake_before": self.pairs[0]}
            act = act if self.layer.codec == "vox" else {}
            end = "tanh" if self.layer.codec == "vox" else None
            return self.op(x, self.packed, self.bias, activation=end, **act, **kw)[0]
        act = {"activation_before": "snake", "snake_before": self.pairs[0]}
        return self.op(x, self.packed, self.bias, **(act if self.layer.codec == "vox" else {}), **kw)[0]

    def backend(self) -> str:
        """Who serves every op of it; "reference" where it serves one."""
        names = set(served(self.ours).values())
        return "reference" if "reference" in names else "+".join(sorted(names))

    def torch(self) -> Tensor:
        return self.plain(self.x, self.context)

    def plain(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Snake, pad or context, convolution, Snake, residual: an op each."""
        kind, vox = self.layer.kind, self.layer.codec == "vox"
        h = _snake(x, self.alpha[0]) if vox else x
        width = self.packed.context
        if self.up:
            if context is not None:
                before = _snake(context, self.alpha[0]) if vox else context
                h = torch.cat((before, h), dim=2)
            s = self.layer.stride
            y = F.conv_transpose1d(h, self.weight, self.bias, s)
            first = 0 if context is None else width * s
            return y[:, :, first : h.shape[2] * s]
        left = max(width + 1 - self.layer.stride, 0)
        if context is None:
            h = F.pad(h, (left, 0))
        else:
            before = context[:, :, width - left :]
            h = torch.cat((_snake(before, self.alpha[0]) if vox else before, h), dim=2)
        y = F.conv1d(h, self.weight, self.bias, self.layer.stride, 0, self.dilation, self.groups)
        if kind == "unit":
            y = F.conv1d(_snake(y, self.alpha[1]), self.mix, self.mix_bias)
        if kind in ("unit", "mixer"):
            return x + y
        return torch.tanh(y) if kind == "out" and vox else y

    @property
    def flops(self) -> int:
        """Multiply-adds times two; activations do not count."""
        c, L = self.layer, self.x.shape[2]
        own = 2 * L * self.weight.numel() // (1 if self.up else c.stride)
        return own + (2 * L * self.mix.numel() if c.kind == "unit" else 0)

    @property
    def nbytes(self) -> int:
        """Weights, input, output, context: once each."""
        c, L = self.layer, self.x.shape[2]
        out = c.N * L * c.stride if self.up else c.N * L // c.stride
        mix = self.mix.numel() if c.kind == "unit" else 0
        carried = 0 if self.context is None else 2 * self.context.numel()
        return self.x.element_size() * (self.weight.numel() + mix + self.x.numel() + out + carried)


def _snake(x: Tensor, alpha: Tensor) -> Tensor:
    a = alpha.view(1, -1, 1).to(x.dtype)
    return x + (a + 1e-9).reciprocal() * torch.sin(a * x).pow(2)
