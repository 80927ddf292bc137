"""Small mixture-of-experts models of transformers, with random weights of unit gain."""

import torch

VOCAB = 97
_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
}
_DEEPSEEK = {
    **_COMMON,
    "head_dim": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 64,
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "routed_scaling_factor": 1.5,
}
_GLM = dict(
    _COMMON,
    intermediate_size=64,
    moe_intermediate_size=24,
    n_routed_experts=8,
    num_experts_per_tok=3,
    n_group=1,
    topk_group=1,
    first_k_dense_replace=1,
    n_shared_experts=1,
)
_QWEN = dict(_COMMON, intermediate_size=64, moe_intermediate_size=24, num_experts=8, num_experts_per_tok=3)
# name of the architecture: class prefix, config
ARCHITECTURES = {
    "qwen3_moe": ("Qwen3Moe", dict(_QWEN, norm_topk_prob=True)),
    "qwen2_moe": ("Qwen2Moe", dict(_QWEN, shared_expert_intermediate_size=40)),
    "mixtral": ("Mixtral", dict(_COMMON, intermediate_size=40, num_local_experts=4, num_experts_per_tok=2)),
    "olmoe": ("Olmoe", dict(_COMMON, intermediate_size=24, num_experts=8, num_experts_per_tok=4)),
    "deepseek_v3": ("DeepseekV3", _DEEPSEEK),
    "glm4_moe": ("Glm4Moe", _GLM),
    "ernie4_5_moe": (
        "Ernie4_5_Moe",
        dict(
            _COMMON,
            intermediate_size=64,
            moe_intermediate_size=24,
            moe_num_experts=8,
            moe_k=3,
            moe_num_shared_experts=1,
            moe_layer_start_index=1,
        ),
    ),
    "aria": ("AriaText", dict(_COMMON, intermediate_size=24, moe_num_experts=8, moe_topk=3, moe_num_shared_experts=1)),
    "granitemoe": ("GraniteMoe", dict(_COMMON, intermediate_size=24, num_local_experts=8, num_experts_per_tok=3)),
}
THINKER = "qwen3_omni_moe"  # its thinker's text model: embeddings in, hidden states out
GPT_OSS = dict(_COMMON, intermediate_size=24, num_local_experts=4, num_experts_per_tok=2)


def randomise(model, seed=0):
    """Matrices of unit gain, so that experts and routing matter; norms near 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if p.dim() >= 2:
            fan_in = p.shape[-2] if p.dim() == 3 and "aria" in type(model).__name__.lower() else (p.shape[-1])
            p.data.copy_(noise * fan_in**-0.5)
        elif "norm" in name:
            p.data.copy_(1 + 0.1 * noise)
    return model.eval().requires_grad_(False)


def build(transformers, architecture, seed=0, dtype=torch.float32, **changes):
    """The causal language model (or the thinker's text model), on transformers' eager experts."""
    if architecture == THINKER:
        from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as module
        from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeTextConfig as Config

        model_class = module.Qwen3OmniMoeThinkerTextModel
        values = dict(_QWEN, rope_scaling={"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 1e4})
    else:
        prefix, values = ARCHITECTURES[architecture]
        Config = getattr(transformers, f"{prefix}Config")
        model_class = getattr(transformers, f"{prefix}ForCausalLM")
    config = Config(**{**values, **changes})
    model = randomise(model_class(config), seed).to(dtype)
    model.set_experts_implementation("eager")
    return model


def tokens(batch, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCAB, (batch, length), generator=generator)


def output_of(out):
    return out.logits if hasattr(out, "logits") else out.last_hidden_state
