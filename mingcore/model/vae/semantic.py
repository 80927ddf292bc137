"""The semantic module: latents to the unified embedding that the language model reads."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import ops
from ...config.model_config import AudioConfig
from ..context import ContextState
from ..declared import Build, Declared
from ..layers import Attention, Linear, dense_positions
from ..rope import Rope
from ..state import KVState
from ..weights import Weights

SemanticState = KVState
EPS = 1e-5
THETA = 10000.0
# released checkpoints carry them; the reference does not use them either
WHISPER_FRONT_END = ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias", "positional_embedding")


class WhisperBlock:
    """A block of Whisper's kind: pre-LayerNorm, no bias on the key, GELU MLP."""

    __slots__ = ("attention", "attention_norm", "down", "mlp_norm", "up")

    def __init__(
        self,
        attention_norm: tuple[Tensor, Tensor],
        attention: Attention,
        mlp_norm: tuple[Tensor, Tensor],
        up: Linear,
        down: Linear,
    ):
        self.attention_norm, self.attention = attention_norm, attention
        self.mlp_norm, self.up, self.down = mlp_norm, up, down

    @classmethod
    def declare(cls, w: Weights, hidden: int, heads: int) -> Declared[WhisperBlock]:
        H, a = hidden, w.sub("attn")
        names = ("query", "key", "value")
        attention = Build(
            Attention,
            a.linear(names, (H, H, H), H, bias=("query", "value"), role="block"),
            a.linear("out", H, H, role="block"),
            heads,
            heads,
            H // heads,
            interleaved=True,
        )
        return Build(
            cls,
            _norm(w, "attn_ln", H),
            attention,
            _norm(w, "mlp_ln", H),
            w.linear("mlp.0", 4 * H, H, role="block"),
            w.linear("mlp.2", H, 4 * H, role="block"),
        )


def _norm(w: Weights, name: str, n: int) -> tuple[Declared[Tensor], Declared[Tensor]]:
    return w.vector(f"{name}.weight", n), w.vector(f"{name}.bias", n)


class Semantic:
    """fc1 -> GELU -> fc2 -> blocks -> ln_post; causal, every earlier frame is seen."""

    def __init__(
        self,
        fc1: Linear,
        fc2: Linear,
        blocks: list[WhisperBlock],
        norm: tuple[Tensor, Tensor],
        config: AudioConfig,
        *,
        device: torch.device,
        activation_dtype: torch.dtype,
    ):
        self.fc1, self.fc2, self.blocks, self.norm, self.config = fc1, fc2, blocks, norm, config
        self.heads, self.head_dim = config.semantic_heads, config.semantic_hidden // config.semantic_heads
        self.device, self.activation_dtype = device, activation_dtype
        self.rope = Rope(THETA, self.head_dim, device)

    @classmethod
    def declare(cls, w: Weights, config: AudioConfig, fc1: Declared[Linear]) -> Declared[Semantic]:
        """`w` is the decoder's view; fc1 is shared with the acoustic decoder."""
        H, heads, s = config.semantic_hidden, config.semantic_heads, w.sub("semantic_model")
        for name in WHISPER_FRONT_END:
            s.ignore(name, "Whisper's front end reads mel spectra; this module reads latents and rotates positions")
        return Build(
            cls,
            fc1,
            w.linear("fc2", H, config.decoder.hidden_size),
            [WhisperBlock.declare(s.sub(f"blocks.{i}"), H, heads) for i in range(config.semantic_layers)],
            _norm(s, "ln_post", H),
            config,
            device=w.device,
            activation_dtype=w.activation_dtype,
        )

    def new_state(
        self, batch: int, capacity: int, *, window: int | None = None, format: str | None = None, block: int = 0
    ) -> SemanticState:
        """window: frames that are seen (None: all); format: "int8" or None; see context.py."""
        kinds = {"dtype": self.activation_dtype, "device": self.device}
        return semantic_state(self.config, batch, capacity, window=window, format=format, block=block, **kinds)

    def __call__(self, latents: Tensor, state: SemanticState) -> Tensor:
        """latents [B,T,C] -> [B,T,H]; the state is changed in place."""
        T, fresh = latents.shape[1], state.max_length == 0
        out = self.forward(latents, state.reserve(T), state.lengths, fresh=fresh)
        state.advance(T)
        return out

    def forward(
        self,
        latents: Tensor,
        caches: list[tuple[Tensor, Tensor]],
        lengths: Tensor,
        *,
        fresh: bool = False,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The step itself, on tensors alone; `lengths` [B] is moved in place.

        mask [B,T]: frames that count; the others are neither stored nor seen, and what comes out
        in their place has no meaning.
        """
        T = latents.shape[1]
        positions = dense_positions(lengths, T, mask)
        lengths.add_(T if mask is None else mask.sum(1))
        rope = self.rope(positions if mask is None else positions.clamp(min=0))
        x = self.fc2(self.fc1(latents.to(self.activation_dtype), activation="gelu"))
        for block, cache in zip(self.blocks, caches):
            normed = ops.layer_norm(x, *block.attention_norm, EPS)
            x = block.attention(normed, x, rope, cache, positions, fresh)
            h = block.up(ops.layer_norm(x, *block.mlp_norm, EPS), activation="gelu")
            x = block.down(h, residual=x)
        return ops.layer_norm(x, *self.norm, EPS)


def semantic_state(
    config: AudioConfig,
    batch: int,
    capacity: int,
    *,
    window: int | None = None,
    format: str | None = None,
    block: int = 0,
    dtype: torch.dtype,
    device: torch.device,
) -> SemanticState:
    """An empty state for `capacity` frames a row; see `Semantic.new_state`. block 0: `capacity`."""
    layers, heads, kinds = config.semantic_layers, config.semantic_heads, {"dtype": dtype, "device": device}
    head_dim = config.semantic_hidden // heads
    if window is None and format is None:
        return KVState.create(batch, capacity, (None,) * layers, heads, head_dim, block=capacity, **kinds)
    options = {"window": window, "format": format, "block": block or capacity}
    return ContextState.start(batch, capacity, layers, heads, head_dim, **options, **kinds)
