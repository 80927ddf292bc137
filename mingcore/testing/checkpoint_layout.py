"""The official layout of a checkpoint: every tensor's name and shape, by its config.

Written from docs/model.md, "Checkpoint names".
"""

from __future__ import annotations

from typing import Any

LATENT = 64
TIME_WAVES = 256  # inputs of the flow head's time embedding


def tensor_shapes(
    config: dict[str, Any], *, stacked: bool = False, released: bool = False
) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint with this config: name -> shape, in the official layout.

    `stacked` gives the experts as one `[E, out, in]` tensor per projection, as newer checkpoints
    do, in place of one tensor per expert. `released` adds the five tensors of Whisper's front end
    that the released checkpoints carry and nothing reads.
    """
    extra = _whisper_front_end(config["audio_tokenizer_config"]) if released else {}
    return {
        **extra,
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


def _whisper_front_end(audio: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    S, root = audio["semantic_module_kwargs"]["whisper_encoder"]["n_state"], "audio.decoder.semantic_model."
    return {
        root + "conv1.weight": (S, 128, 3),
        root + "conv1.bias": (S,),
        root + "conv2.weight": (S, S, 3),
        root + "conv2.bias": (S,),
        root + "positional_embedding": (1500, S),
    }


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
        **_affine(root + "t_embedder.time_mlp.0.", H, TIME_WAVES),
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
