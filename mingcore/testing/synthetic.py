"""Synthetic whole models: a config in the official layout and random weights to go with it.

Used by tests and benchmarks that need a complete checkpoint of a chosen size. The sound is noise;
the shapes, names and numerics are those of a released model (docs/model.md, "Checkpoint names").
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file


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


# name -> language model, audio backbones, semantic module, flow head. `mid` is the middle size that
# the end-to-end figures on a CPU refer to; `real` has the dims of the released model.
_SIZES: dict[str, tuple[_LLM, _Audio, _Stack, _Stack]] = {
    "tiny": (
        _LLM(512, 256, 2, 4, 2, 8, 2, 96, 1),
        _Audio(64, 2, 4, 2, 160, 8),
        _Stack(64, 2, 2),
        _Stack(64, 2, 2),
    ),
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
LATENT = 64
HOP = 320
N_FFT = 1280


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
            "enc_kwargs": {
                "backbone": _backbone(audio),
                "input_dim": HOP,
                "hop_size": HOP,
                "latent_dim": LATENT,
            },
            "semantic_module_kwargs": {
                "whisper_encoder": {
                    "n_state": semantic.hidden,
                    "n_head": semantic.heads,
                    "n_layer": semantic.layers,
                }
            },
            "dec_kwargs": {
                "backbone": _backbone(audio),
                "output_dim": HOP,
                "latent_dim": LATENT,
            },
        },
        "ditar_config": {
            "hidden_size": flow.hidden,
            "depth": flow.layers,
            "num_heads": flow.heads,
            "mlp_ratio": 4.0,
        },
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


def tensor_shapes(config: dict[str, Any], *, stacked: bool = False) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint with this config: name -> shape, in the official layout.

    `stacked` gives the experts as one `[E, out, in]` tensor per projection, as newer checkpoints
    do, in place of one tensor per expert.
    """
    return {
        **_llm_shapes(config["llm_config"], stacked),
        **_audio_shapes(config["audio_tokenizer_config"]),
        **_flow_shapes(config["ditar_config"], config["llm_config"]["hidden_size"]),
        **_joint_shapes(config),
    }


def _llm_shapes(llm: dict[str, Any], stacked: bool) -> dict[str, tuple[int, ...]]:
    H, V, E = llm["hidden_size"], llm["vocab_size"], llm["num_experts"]
    D = llm.get("head_dim") or H // llm["num_attention_heads"]
    q, kv = llm["num_attention_heads"] * D, llm["num_key_value_heads"] * D
    width = llm["moe_intermediate_size"]
    gates = ["gate", "image_gate", "audio_gate"] if llm.get("multi_gate") else ["gate"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.model.word_embeddings.weight": (V, H),
        "model.model.norm.weight": (H,),
        "model.lm_head.weight": (V, H),
    }
    for n in range(llm["num_hidden_layers"]):
        p = f"model.model.layers.{n}."
        shapes[p + "input_layernorm.weight"] = (H,)
        shapes[p + "post_attention_layernorm.weight"] = (H,)
        shapes[p + "attention.query_key_value.weight"] = (q + 2 * kv, H)
        shapes[p + "attention.dense.weight"] = (H, q)
        if llm.get("use_qkv_bias"):
            shapes[p + "attention.query_key_value.bias"] = (q + 2 * kv,)
        if llm.get("use_bias"):
            shapes[p + "attention.dense.bias"] = (H,)
        if n < llm.get("first_k_dense_replace", 0):
            shapes.update(_swiglu(p + "mlp.", H, llm["intermediate_size"]))
            continue
        shapes.update({f"{p}mlp.{gate}.weight": (E, H) for gate in gates})
        if stacked:
            for key, shape in _swiglu(p + "mlp.experts.", H, width).items():
                shapes[key] = (E, *shape)
        else:
            for e in range(E):
                shapes.update(_swiglu(f"{p}mlp.experts.{e}.", H, width))
        if llm.get("num_shared_experts"):
            shared = llm["num_shared_experts"] * width
            shapes.update(_swiglu(p + "mlp.shared_experts.", H, shared))
    return shapes


def _swiglu(prefix: str, hidden: int, width: int) -> dict[str, tuple[int, ...]]:
    return {
        prefix + "gate_proj.weight": (width, hidden),
        prefix + "up_proj.weight": (width, hidden),
        prefix + "down_proj.weight": (hidden, width),
    }


def _audio_shapes(audio: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    enc, dec = audio["enc_kwargs"], audio["dec_kwargs"]
    He, Hd = enc["backbone"]["hidden_size"], dec["backbone"]["hidden_size"]
    whisper = audio["semantic_module_kwargs"]["whisper_encoder"]
    S, latent = whisper["n_state"], enc["latent_dim"]
    n_fft = 4 * dec["output_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "audio.encoder.fc1.weight": (He, enc["input_dim"]),
        **_affine("audio.encoder.fc2.", He, He),
        **_affine("audio.encoder.fc3.", 2 * latent, He),
        "audio.encoder.norm.weight": (He,),
        "audio.encoder.norm.bias": (He,),
        **_qwen2("audio.encoder.encoder.", enc["backbone"]),
        **_affine("audio.decoder.fc1.", Hd, latent),
        **_affine("audio.decoder.fc2.", S, Hd),
        **_affine("audio.decoder.fc3.", Hd, S),
        **_qwen2("audio.decoder.decoder.", dec["backbone"]),
        **_affine("audio.decoder.head.out.", n_fft + 2, Hd),
        "audio.decoder.head.istft.window": (n_fft,),
    }
    for n in range(whisper["n_layer"]):
        p = f"audio.decoder.semantic_model.blocks.{n}."
        shapes.update(_affine(p + "attn.query.", S, S))
        shapes[p + "attn.key.weight"] = (S, S)
        shapes.update(_affine(p + "attn.value.", S, S))
        shapes.update(_affine(p + "attn.out.", S, S))
        shapes.update(_affine(p + "mlp.0.", 4 * S, S))
        shapes.update(_affine(p + "mlp.2.", S, 4 * S))
        for norm in ("attn_ln", "mlp_ln"):
            shapes.update({f"{p}{norm}.weight": (S,), f"{p}{norm}.bias": (S,)})
    shapes["audio.decoder.semantic_model.ln_post.weight"] = (S,)
    shapes["audio.decoder.semantic_model.ln_post.bias"] = (S,)
    return shapes


def _affine(prefix: str, n_out: int, n_in: int) -> dict[str, tuple[int, ...]]:
    return {prefix + "weight": (n_out, n_in), prefix + "bias": (n_out,)}


def _qwen2(prefix: str, backbone: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    H = backbone["hidden_size"]
    kv = H // backbone["num_attention_heads"] * backbone["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        prefix + "embed_tokens.weight": (backbone["vocab_size"], H),
        prefix + "norm.weight": (H,),
    }
    for n in range(backbone["num_hidden_layers"]):
        p = f"{prefix}layers.{n}."
        shapes[p + "input_layernorm.weight"] = (H,)
        shapes[p + "post_attention_layernorm.weight"] = (H,)
        for name, width in (("q_proj", H), ("k_proj", kv), ("v_proj", kv)):
            shapes.update(_affine(f"{p}self_attn.{name}.", width, H))
        shapes[p + "self_attn.o_proj.weight"] = (H, H)
        shapes.update(_swiglu(p + "mlp.", H, backbone["intermediate_size"]))
    return shapes


def _flow_shapes(flow: dict[str, Any], cond: int) -> dict[str, tuple[int, ...]]:
    H, root = flow["hidden_size"], "flowloss.cfm.model."
    head_dim = H // flow["num_heads"]
    ff = int(H * flow["mlp_ratio"])
    shapes: dict[str, tuple[int, ...]] = {
        **_affine(root + "t_embedder.time_mlp.0.", H, 256),
        **_affine(root + "t_embedder.time_mlp.2.", H, H),
        **_affine(root + "x_embedder.", H, LATENT),
        **_affine(root + "c_embedder.cond_embedder.", H, cond),
        root + "rotary_embed.inv_freq": (head_dim // 2,),
        root + "final_layer.norm_final.weight": (H,),
        **_affine(root + "final_layer.linear.", LATENT, H),
    }
    for n in range(flow["depth"]):
        p = f"{root}blocks.{n}."
        shapes[p + "norm1.weight"] = (H,)
        shapes[p + "norm2.weight"] = (H,)
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            shapes.update(_affine(f"{p}attn.{name}.", H, H))
        if flow.get("qk_norm") == "rms_norm":
            shapes[p + "attn.q_norm.weight"] = (head_dim,)
            shapes[p + "attn.k_norm.weight"] = (head_dim,)
        shapes.update(_affine(p + "mlp.ff.0.0.", ff, H))
        shapes.update(_affine(p + "mlp.ff.2.", H, ff))
    return shapes


def _joint_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    H = config["llm_config"]["hidden_size"]
    S = config["audio_tokenizer_config"]["semantic_module_kwargs"]["whisper_encoder"]["n_state"]
    return {
        "linear_proj_audio.final_layer.norm_final.weight": (S,),
        **_affine("linear_proj_audio.final_layer.linear.", H, S),
        **_affine("stop_head.", 2, H),
    }


def random_tensor(
    name: str, shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """One random tensor of a checkpoint, a function of (name, shape, seed) alone.

    Matrices have standard deviation 1/sqrt(fan in), norms are near one, biases near zero; buffers
    (the Hann window, inverse frequencies) hold their true values and stay float32.
    """
    if name.endswith("istft.window"):
        return torch.hann_window(shape[0], periodic=True)
    if name.endswith("inv_freq"):
        return 10000.0 ** -(torch.arange(shape[0], dtype=torch.float32) / shape[0])
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) ^ (seed & 0xFFFFFFFF))
    if len(shape) > 1:
        values = torch.randn(shape, generator=generator, dtype=dtype)
        scale = 1.0 if name.endswith("word_embeddings.weight") else 1.0 / math.sqrt(shape[-1])
        return values.mul_(scale)
    values = torch.randn(shape, generator=generator)
    is_norm = "norm" in name or "_ln." in name or "ln_post" in name
    if name.endswith("weight") and is_norm:
        return (1.0 + 0.1 * values).to(dtype)
    return (0.05 * values).to(dtype)


def random_state_dict(
    config: dict[str, Any],
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    *,
    stacked: bool = False,
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
    shard_bytes: int | None = None,
) -> Path:
    """Write config.json and random weights to `folder` and return it.

    With `shard_bytes` the weights are split into files of about that many bytes with an index
    (`model.safetensors.index.json`); no more than one shard is ever held in memory. Otherwise one
    `model.safetensors`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    if shard_bytes is None:
        tensors = random_state_dict(config, seed, dtype, stacked=stacked)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    plan = _shard_plan(config, dtype, stacked, shard_bytes)
    shapes = tensor_shapes(config, stacked=stacked)
    weight_map: dict[str, str] = {}
    for i, names in enumerate(plan, 1):
        file = f"model-{i:05d}-of-{len(plan):05d}.safetensors"
        shard = {name: random_tensor(name, shapes[name], seed, dtype) for name in names}
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names, file))
    total = sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    return folder


def _shard_plan(
    config: dict[str, Any], dtype: torch.dtype, stacked: bool, shard_bytes: int
) -> list[list[str]]:
    plan: list[list[str]] = [[]]
    filled = 0
    for name, shape in tensor_shapes(config, stacked=stacked).items():
        nbytes = math.prod(shape) * dtype.itemsize
        if plan[-1] and filled + nbytes > shard_bytes:
            plan.append([])
            filled = 0
        plan[-1].append(name)
        filled += nbytes
    return plan
