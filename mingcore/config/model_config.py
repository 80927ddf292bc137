"""The facts of a checkpoint: `config.json` in the official layout, as validated dataclasses.

Unknown keys are ignored with a debug log: official files carry training flags, `auto_map` and
versions. A missing required key, a value of the wrong type and values that contradict each other
raise `CheckpointError` with the key's full name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .files import read_json
from .rope import RopeConfig, require_known, rope_entries, rope_kind
from .sections import Section, positive, positive_values, require

SAMPLE_RATE = 16000
QWEN2_THETA = 10000.0  # of Qwen2Config, whose defaults a backbone has for what it does not state


@dataclass(frozen=True)
class LLMConfig:
    """`llm_config`: BailingMoe. A bias flag of None means that the weights decide."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeConfig
    intermediate_size: int = 0
    num_experts: int = 0
    num_shared_experts: int = 0
    top_k: int = 0
    moe_intermediate_size: int = 0
    norm_topk_prob: bool = True
    first_k_dense_replace: int = 0
    multi_gate: bool = False
    use_qkv_bias: bool | None = None
    use_bias: bool | None = None
    norm_head: bool = False
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        positive(
            "llm_config",
            self,
            "vocab_size",
            "hidden_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "rms_norm_eps",
        )
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"llm_config.num_attention_heads ({self.num_heads}) must be a multiple of "
            f"num_key_value_heads ({self.num_kv_heads})",
        )
        if self.moe_layers:
            positive("llm_config", self, "moe_intermediate_size", "top_k")
            require(
                self.top_k <= self.num_experts,
                f"llm_config.num_experts_per_tok ({self.top_k}) exceeds num_experts ({self.num_experts})",
            )
            require(
                self.num_shared_experts >= 0,
                f"llm_config.num_shared_experts must not be negative, got {self.num_shared_experts}",
            )
        if self.moe_layers < self.num_layers:
            require(
                self.intermediate_size > 0, "llm_config.intermediate_size is required by the dense layers and missing"
            )

    @property
    def moe_layers(self) -> int:
        """How many layers have experts: the last ones."""
        if not self.num_experts:
            return 0
        return max(0, self.num_layers - self.first_k_dense_replace)

    def is_moe(self, layer: int) -> bool:
        return layer >= self.num_layers - self.moe_layers

    @classmethod
    def from_json(cls, s: Section) -> LLMConfig:
        hidden, heads = s.get("hidden_size", int), s.get("num_attention_heads", int)
        positive_values(s.name, hidden_size=hidden, num_attention_heads=heads)
        head_dim = s.get("head_dim", int, 0)
        if not head_dim:
            require(
                hidden % heads == 0,
                f"llm_config.head_dim is missing and hidden_size ({hidden}) is no multiple of "
                f"num_attention_heads ({heads})",
            )
            head_dim = hidden // heads
        act = s.get("hidden_act", str, "silu")
        require(act == "silu", f"llm_config.hidden_act must be 'silu', got {act!r}")
        sliding = s.get("use_sliding_window", bool, False)
        require(not sliding, "llm_config.use_sliding_window: the LLM has no window here")
        experts = s.get("num_experts", int)
        intermediate = s.get("intermediate_size", int, 0)
        config = cls(
            vocab_size=s.get("vocab_size", int),
            hidden_size=hidden,
            num_layers=s.get("num_hidden_layers", int),
            num_heads=heads,
            num_kv_heads=s.get("num_key_value_heads", int),
            head_dim=head_dim,
            rms_norm_eps=s.get("rms_norm_eps", float),
            rope=RopeConfig.from_json(s, head_dim),
            intermediate_size=intermediate,
            num_experts=experts,
            num_shared_experts=s.get("num_shared_experts", int, 0),
            top_k=s.get("num_experts_per_tok", int, *(() if experts else (0,))),
            moe_intermediate_size=s.get("moe_intermediate_size", int, *(() if experts else (0,))),
            norm_topk_prob=s.get("norm_topk_prob", bool, True),
            first_k_dense_replace=s.get("first_k_dense_replace", int, 0),
            multi_gate=s.get("multi_gate", bool, False),
            use_qkv_bias=s.get("use_qkv_bias", bool, None),
            use_bias=s.get("use_bias", bool, None),
            norm_head=s.get("norm_head", bool, False),
            tie_word_embeddings=s.get("tie_word_embeddings", bool, False),
        )
        s.done()
        return config


@dataclass(frozen=True)
class BackboneConfig:
    """A Qwen2 backbone of the AudioVAE.

    `windows[layer]` is how many keys a query sees, itself included, or None for all of them.
    The reference has two meanings of `sliding_window` W: flash_attention_2 sees W + 1 keys, only
    on layers from `max_window_layers` on; sdpa, eager or no entry: W keys on every layer.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    rms_norm_eps: float
    rope_theta: float
    windows: tuple[int | None, ...]
    name: str = "backbone"

    def __post_init__(self) -> None:
        positive(
            self.name,
            self,
            "hidden_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "intermediate_size",
            "rms_norm_eps",
            "rope_theta",
        )
        require(
            self.hidden_size % self.num_heads == 0,
            f"{self.name}.hidden_size ({self.hidden_size}) must be a multiple of "
            f"num_attention_heads ({self.num_heads})",
        )
        require(self.head_dim % 2 == 0, f"{self.name}: the head dimension must be even for RoPE, got {self.head_dim}")
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"{self.name}.num_attention_heads ({self.num_heads}) must be a multiple of "
            f"num_key_value_heads ({self.num_kv_heads})",
        )
        require(
            len(self.windows) == self.num_layers,
            f"{self.name}: {len(self.windows)} windows for {self.num_layers} layers",
        )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @classmethod
    def from_json(cls, s: Section) -> BackboneConfig:
        layers = s.get("num_hidden_layers", int)
        act = s.get("hidden_act", str, "silu")
        require(act == "silu", f"{s.name}.hidden_act must be 'silu', got {act!r}")
        require(s.get("is_causal", bool, True), f"{s.name}.is_causal must be true: the AudioVAE streams")
        theta, scaling = rope_entries(s, default_theta=QWEN2_THETA)
        if scaling is not None:
            kind = rope_kind(scaling)
            require(kind == "default", f"{scaling.name} must be null, got {dict(scaling.values)!r}")
            require_known(scaling)
        config = cls(
            hidden_size=s.get("hidden_size", int),
            num_layers=layers,
            num_heads=s.get("num_attention_heads", int),
            num_kv_heads=s.get("num_key_value_heads", int),
            intermediate_size=s.get("intermediate_size", int),
            rms_norm_eps=s.get("rms_norm_eps", float, 1e-6),
            rope_theta=theta,
            windows=_windows(s, layers),
            name=s.name,
        )
        s.done()
        return config


def _windows(s: Section, layers: int) -> tuple[int | None, ...]:
    use = s.get("use_sliding_window", bool, False)
    window = s.get("sliding_window", int, *(() if use else (0,)))
    first = s.get("max_window_layers", int, 28)
    kind = s.get("_attn_implementation", str, "sdpa")
    known = ("flash_attention_2", "sdpa", "eager")
    require(kind in known, f"{s.name}._attn_implementation must be one of {known}, got {kind!r}")
    if not use:
        return (None,) * layers
    require(window > 0, f"{s.name}.sliding_window must be positive, got {window}")
    if kind == "flash_attention_2":
        return tuple(window + 1 if layer >= first else None for layer in range(layers))
    return (window,) * layers


@dataclass(frozen=True)
class AudioConfig:
    """`audio_tokenizer_config`: encoder, semantic module and decoder of the AudioVAE."""

    encoder: BackboneConfig
    decoder: BackboneConfig
    hop_samples: int
    latent_dim: int
    semantic_hidden: int
    semantic_heads: int
    semantic_layers: int

    def __post_init__(self) -> None:
        positive(
            "audio_tokenizer_config",
            self,
            "hop_samples",
            "latent_dim",
            "semantic_hidden",
            "semantic_heads",
            "semantic_layers",
        )
        require(
            self.semantic_hidden % (2 * self.semantic_heads) == 0,
            f"audio_tokenizer_config.semantic_module_kwargs.whisper_encoder.n_state "
            f"({self.semantic_hidden}) must give an even head dimension with n_head "
            f"({self.semantic_heads})",
        )

    @property
    def n_fft(self) -> int:
        """Length of the inverse STFT's frames: four hops."""
        return 4 * self.hop_samples

    @classmethod
    def from_json(cls, values: Mapping[str, Any] | Section) -> AudioConfig:
        """From the `audio_tokenizer_config` mapping."""
        name = "audio_tokenizer_config"
        s = values if isinstance(values, Section) else Section(name, values)
        enc, dec = s.sub("enc_kwargs"), s.sub("dec_kwargs")
        whisper = s.sub("semantic_module_kwargs").sub("whisper_encoder")
        hop, latent = enc.get("hop_size", int), enc.get("latent_dim", int)
        for section, key, expected, other in (
            (enc, "input_dim", hop, f"{name}.enc_kwargs.hop_size"),
            (dec, "output_dim", hop, f"{name}.enc_kwargs.hop_size"),
            (dec, "latent_dim", latent, f"{name}.enc_kwargs.latent_dim"),
        ):
            got = section.get(key, int)
            require(got == expected, f"{section.name}.{key} ({got}) must equal {other} ({expected})")
        patch = s.get("patch_size", int, -1)
        require(patch == -1, f"{name}.patch_size must be -1 (one latent per frame), got {patch}")
        config = cls(
            encoder=BackboneConfig.from_json(enc.sub("backbone")),
            decoder=BackboneConfig.from_json(dec.sub("backbone")),
            hop_samples=hop,
            latent_dim=latent,
            semantic_hidden=whisper.get("n_state", int),
            semantic_heads=whisper.get("n_head", int),
            semantic_layers=whisper.get("n_layer", int),
        )
        for section in (enc, dec, whisper, s):
            section.done()
        return config


@dataclass(frozen=True)
class FlowConfig:
    """`ditar_config`. None: the weights decide; a given value must agree with them."""

    num_heads: int
    hidden_size: int | None = None
    depth: int | None = None
    mlp_ratio: float | None = None
    qk_norm: bool | None = None
    pe_attn_head: int | None = None

    def __post_init__(self) -> None:
        positive("ditar_config", self, "num_heads")
        if self.hidden_size is not None:
            require(
                self.hidden_size % self.num_heads == 0,
                f"ditar_config.hidden_size ({self.hidden_size}) must be a multiple of num_heads ({self.num_heads})",
            )
        if self.pe_attn_head is not None:
            require(
                0 < self.pe_attn_head <= self.num_heads,
                f"ditar_config.pe_attn_head must be in 1..num_heads = {self.num_heads}, got {self.pe_attn_head}",
            )

    @classmethod
    def from_json(cls, s: Section) -> FlowConfig:
        qk_norm = s.get("qk_norm", str, None)
        require(qk_norm in (None, "rms_norm"), f"ditar_config.qk_norm must be null or 'rms_norm', got {qk_norm!r}")
        config = cls(
            num_heads=s.get("num_heads", int),
            hidden_size=s.get("hidden_size", int, None),
            depth=s.get("depth", int, None),
            mlp_ratio=s.get("mlp_ratio", float, None),
            qk_norm=qk_norm is not None,
            pe_attn_head=s.get("pe_attn_head", int, None),
        )
        s.done()
        return config


@dataclass(frozen=True)
class MingConfig:
    """A whole checkpoint's `config.json`."""

    llm: LLMConfig
    audio: AudioConfig
    flow: FlowConfig
    patch_frames: int = 5

    @property
    def sample_rate(self) -> int:
        return SAMPLE_RATE

    @property
    def hop_samples(self) -> int:
        return self.audio.hop_samples

    @property
    def latent_dim(self) -> int:
        return self.audio.latent_dim

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> MingConfig:
        """From the parsed file. Raises CheckpointError, naming the key."""
        top = Section("", values)
        config = cls(
            llm=LLMConfig.from_json(top.sub("llm_config")),
            audio=AudioConfig.from_json(top.sub("audio_tokenizer_config")),
            flow=FlowConfig.from_json(top.sub("ditar_config")),
        )
        top.done()
        return config

    @classmethod
    def from_folder(cls, folder: str | Path) -> MingConfig:
        """From `config.json` in a checkpoint's folder."""
        return cls.from_json(read_json(Path(folder) / "config.json"))
