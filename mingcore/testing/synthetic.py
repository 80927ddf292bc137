"""Synthetic models: a config in the official layout, and random weights for it.

For tests and benchmarks that need a complete checkpoint of a chosen size. Its audio is noise; shapes, names and
numerics are those of a released model (docs/model.md, "Checkpoint names").
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from ..model.headers import DTYPES
from .checkpoint_layout import LATENT, tensor_shapes

__all__ = [
    "model_config",
    "model_names",
    "random_state_dict",
    "random_tensor",
    "tensor_shapes",
    "write_checkpoint",
    "write_headers",
]


class _LLM(NamedTuple):
    vocab: int
    hidden: int
    layers: int
    heads: int
    kv: int
    experts: int
    top_k: int
    width: int
    shared: int


class _Audio(NamedTuple):
    hidden: int
    layers: int
    heads: int
    kv: int
    mlp: int
    window: int


class _Stack(NamedTuple):
    hidden: int
    heads: int
    layers: int


# name -> language model, audio backbones, semantic module, flow head. `mid` is the size of the
# end-to-end figures on a CPU; `real` has the dimensions of the released model.
_SIZES: dict[str, tuple[_LLM, _Audio, _Stack, _Stack]] = {
    "tiny": (_LLM(512, 256, 2, 4, 2, 8, 2, 96, 1), _Audio(64, 2, 4, 2, 160, 8), _Stack(64, 2, 2), _Stack(64, 2, 2)),
    "mid": (
        _LLM(32768, 1024, 8, 8, 2, 64, 6, 704, 2),
        _Audio(896, 8, 14, 2, 4864, 32),
        _Stack(512, 8, 8),
        _Stack(1024, 16, 8),
    ),
    "real": (
        _LLM(126464, 2048, 28, 16, 4, 64, 6, 1408, 2),
        _Audio(896, 24, 14, 2, 4864, 32),
        _Stack(1280, 20, 32),
        _Stack(1024, 16, 8),
    ),
}

HEAD_DIM = 128  # of the LLM: 3-D RoPE is defined for this one
HOP = 320


def model_names() -> list[str]:
    """Names that `model_config` knows."""
    return list(_SIZES)


def model_config(name: str, **llm_overrides: Any) -> dict[str, Any]:
    """The config.json mapping of a synthetic model in the official layout.

    `name` is one of `model_names()`. Keyword arguments replace keys of `llm_config`
    (`multi_gate=True`, `use_qkv_bias=True`, `rope_scaling=None`, ...). The result is a fresh
    mapping that the caller may edit. Raises ValueError for an unknown name.
    """
    if name not in _SIZES:
        raise ValueError(f"model_config: name must be one of {model_names()}, got {name!r}")
    llm, audio, semantic, flow = _SIZES[name]
    return {
        "architectures": ["BailingMMNativeForConditionalGeneration"],
        "model_type": "bailingmm",
        "llm_config": {
            "vocab_size": llm.vocab,
            "hidden_size": llm.hidden,
            "intermediate_size": 2 * llm.hidden,
            "num_hidden_layers": llm.layers,
            "num_attention_heads": llm.heads,
            "num_key_value_heads": llm.kv,
            "head_dim": HEAD_DIM,
            "hidden_act": "silu",
            "use_qkv_bias": False,
            "use_bias": False,
            "rms_norm_eps": 1e-6,
            "norm_head": False,
            "tie_word_embeddings": False,
            "max_position_embeddings": 16384,
            "rope_theta": 600000.0,
            "rope_scaling": {"type": "3D", "factor": None},
            "pad_token_id": llm.vocab - 1,
            "eos_token_id": llm.vocab - 1,
            "num_experts": llm.experts,
            "num_shared_experts": llm.shared,
            "num_experts_per_tok": llm.top_k,
            "norm_topk_prob": True,
            "moe_intermediate_size": llm.width,
            "first_k_dense_replace": 0,
            "multi_gate": False,
            "_attn_implementation": "sdpa",
            **llm_overrides,
        },
        "audio_tokenizer_config": {
            "patch_size": -1,
            "enc_kwargs": {"backbone": _backbone(audio), "input_dim": HOP, "hop_size": HOP, "latent_dim": LATENT},
            "semantic_module_kwargs": {
                "whisper_encoder": {"n_state": semantic.hidden, "n_head": semantic.heads, "n_layer": semantic.layers}
            },
            "dec_kwargs": {"backbone": _backbone(audio), "output_dim": HOP, "latent_dim": LATENT},
        },
        "ditar_config": {"hidden_size": flow.hidden, "depth": flow.layers, "num_heads": flow.heads, "mlp_ratio": 4.0},
    }


def _backbone(audio: _Audio) -> dict[str, Any]:
    return {
        "hidden_size": audio.hidden,
        "num_hidden_layers": audio.layers,
        "intermediate_size": audio.mlp,
        "num_attention_heads": audio.heads,
        "num_key_value_heads": audio.kv,
        "vocab_size": 16,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "is_causal": True,
        "use_sliding_window": True,
        "sliding_window": audio.window,
        "max_window_layers": 0,
        "_attn_implementation": "sdpa",
    }


def random_tensor(
    name: str, shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """One random tensor of a checkpoint, a function of (name, shape, seed) and device alone.

    Matrices have standard deviation 1/sqrt(fan in), norms are near one, biases near zero; buffers
    (the Hann window, inverse frequencies) hold their true values and stay float32. It is made on
    `device`, whose generator is not the CPU's: other numbers there.
    """
    if name.endswith("istft.window"):
        return torch.hann_window(shape[0], periodic=True, device=device)
    if name.endswith("inv_freq"):
        return (10000.0 ** -(torch.arange(shape[0], dtype=torch.float32) / shape[0])).to(device)
    generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()) ^ (seed & 0xFFFFFFFF))
    if len(shape) > 1:
        values = torch.randn(shape, generator=generator, dtype=dtype, device=device)
        scale = 1.0 if name.endswith("word_embeddings.weight") else 1.0 / math.sqrt(shape[-1])
        return values.mul_(scale)
    values = torch.randn(shape, generator=generator, device=device)
    is_norm = "norm" in name or "_ln." in name or "ln_post" in name
    if name.endswith("weight") and is_norm:
        return (1.0 + 0.1 * values).to(dtype)
    return (0.05 * values).to(dtype)


def random_state_dict(
    config: dict[str, Any], seed: int = 0, dtype: torch.dtype = torch.float32, *, stacked: bool = False
) -> dict[str, torch.Tensor]:
    """All tensors of a random checkpoint, by their official names. Deterministic in `seed`."""
    return dict(_tensors(config, seed, dtype, stacked))


def _tensors(
    config: dict[str, Any], seed: int, dtype: torch.dtype, stacked: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, shape in tensor_shapes(config, stacked=stacked).items():
        yield name, random_tensor(name, shape, seed, dtype)


def write_checkpoint(
    folder: str | Path,
    config: dict[str, Any],
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    stacked: bool = False,
    released: bool = False,
    shard_bytes: int | None = None,
) -> Path:
    """Write config.json and random weights to `folder` and return it.

    With `shard_bytes` the weights are split into files of about that many bytes with an index
    (`model.safetensors.index.json`); no more than one shard is ever held in memory. Otherwise one
    `model.safetensors`. stacked, released: as in `checkpoint_layout.tensor_shapes`.
    """
    shapes = tensor_shapes(config, stacked=stacked, released=released)

    def write(path: Path, names: list[str]) -> None:
        shard = {name: random_tensor(name, shapes[name], seed, dtype) for name in names}
        save_file(shard, path, metadata={"format": "pt"})

    return _write_files(Path(folder), config, shapes, dtype, shard_bytes, write)


def write_headers(
    folder: str | Path,
    config: dict[str, Any],
    *,
    dtype: torch.dtype = torch.bfloat16,
    stacked: bool = False,
    released: bool = True,
    shard_bytes: int | None = None,
) -> Path:
    """`write_checkpoint` without the weights: files of the full size, sparse, that hold headers alone.

    For looking at a checkpoint of any size without the room for it: its description, its plans.
    """
    shapes = tensor_shapes(config, stacked=stacked, released=released)
    code = next(name for name, each in DTYPES.items() if each == dtype)

    def write(path: Path, names: list[str]) -> None:
        header, end = {}, 0
        for name in names:
            start, end = end, end + math.prod(shapes[name]) * dtype.itemsize
            header[name] = {"dtype": code, "shape": list(shapes[name]), "data_offsets": [start, end]}
        raw = json.dumps(header).encode()
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(raw)) + raw)
            file.truncate(8 + len(raw) + end)

    return _write_files(Path(folder), config, shapes, dtype, shard_bytes, write)


def _write_files(
    folder: Path,
    config: dict[str, Any],
    shapes: dict[str, tuple[int, ...]],
    dtype: torch.dtype,
    shard_bytes: int | None,
    write: Callable[[Path, list[str]], None],
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    if shard_bytes is None:
        write(folder / "model.safetensors", list(shapes))
        return folder
    plan = _shard_plan(shapes, dtype, shard_bytes)
    weight_map: dict[str, str] = {}
    for i, names in enumerate(plan, 1):
        file = f"model-{i:05d}-of-{len(plan):05d}.safetensors"
        write(folder / file, names)
        weight_map.update(dict.fromkeys(names, file))
    total = sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    return folder


def _shard_plan(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, shard_bytes: int) -> list[list[str]]:
    plan: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        nbytes = math.prod(shape) * dtype.itemsize
        if plan[-1] and filled + nbytes > shard_bytes:
            plan.append([])
            filled = 0
        plan[-1].append(name)
        filled += nbytes
    return plan
