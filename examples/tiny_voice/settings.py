"""The shape of the tiny voice: config.json in the official layout, and its tokenizer."""

from __future__ import annotations

import random

import torch
from sentences import text
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from mingcore.testing.eager import EagerMing

HIDDEN = 256
VOCAB = 512
FIRST_SPECIAL = VOCAB - 32
LANGUAGES = ("English", "Chinese")
PROMPTS = (
    "HUMAN",
    "ASSISTANT",
    "Please translate the text to speech.\n",
    "Please recognize the language of this speech and transcribe it. Format: oral.",
)
SPECIAL = (
    "<|endoftext|>",
    "<role>",
    "</role>",
    "<end_of_audio>",
    "<audioPatch>",
    "<audio>",
    "</audio>",
    "<gen_audio>",
    "<edit>",
    "</edit>",
    "<prompt>",
    "</prompt>",
    "<answer>",
    "</answer>",
    "<cot_text>",
    "</cot_text>",
    "<imagePatch>",
    "<image>",
    "</image>",
)


def config(eos: int) -> dict:
    """config.json in the official layout: every part and option of the released model, small."""

    def backbone(layers: int) -> dict:
        return {
            "hidden_size": 192,
            "num_hidden_layers": layers,
            "intermediate_size": 384,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "vocab_size": 16,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "use_cache": True,
            "is_causal": True,
            "use_sliding_window": True,
            "sliding_window": 32,
            "max_window_layers": 0,
            "_attn_implementation": "sdpa",
        }

    return {
        "architectures": ["BailingMMNativeForConditionalGeneration"],
        "model_type": "bailingmm",
        "card": {
            "name": "tiny",
            "trained": True,
            "tasks": ["tts", "asr"],
            "note": "digits and some 150 English words, in three synthetic voices",
            "made_by": "examples/tiny_voice",
            "license": "Apache-2.0",
        },
        "llm_config": {
            "vocab_size": VOCAB,
            "hidden_size": HIDDEN,
            "intermediate_size": 512,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 128,
            "hidden_act": "silu",
            "use_qkv_bias": False,
            "use_bias": False,
            "rms_norm_eps": 1e-6,
            "norm_head": False,
            "tie_word_embeddings": False,
            "max_position_embeddings": 16384,
            "rope_theta": 600000.0,
            "rope_scaling": {"type": "3D", "factor": None},
            "pad_token_id": eos,
            "eos_token_id": eos,
            "num_experts": 8,
            "num_shared_experts": 1,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
            "moe_intermediate_size": 64,
            "first_k_dense_replace": 0,
            "multi_gate": True,
            "_attn_implementation": "sdpa",
        },
        "audio_tokenizer_config": {
            "patch_size": -1,
            "enc_kwargs": {"backbone": backbone(3), "input_dim": 320, "hop_size": 320, "latent_dim": 64},
            "semantic_module_kwargs": {"whisper_encoder": {"n_state": 128, "n_head": 2, "n_layer": 1}},
            "dec_kwargs": {"backbone": backbone(4), "output_dim": 320, "latent_dim": 64},
        },
        "ditar_config": {"hidden_size": 128, "depth": 4, "num_heads": 2, "mlp_ratio": 4.0},
    }


def tokenizer() -> Tokenizer:
    """Byte-level BPE whose merges are the words of the vocabulary, blind to capitals.

    Any text can be encoded. The names of languages in a transcript are tokens of their own, which
    keep their capitals.
    """
    rng = random.Random(0)
    corpus = [text(rng) for _ in range(8000)] + list(PROMPTS) * 1000
    model = Tokenizer(models.BPE())
    model.normalizer = normalizers.Lowercase()
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    model.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=FIRST_SPECIAL, initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator(corpus, trainer)
    model.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    model.add_tokens([AddedToken(f"{name}\t", normalized=False) for name in LANGUAGES])
    return model


def new_model(seed: int = 0) -> tuple[EagerMing, dict]:
    """An untrained model (float32, gradients on) and its config."""
    torch.manual_seed(seed)
    mapping = config(tokenizer().token_to_id("<|endoftext|>"))
    ming = EagerMing(mapping)
    hop = mapping["audio_tokenizer_config"]["dec_kwargs"]["output_dim"]
    ming.audio.decoder.head.istft.window.copy_(torch.hann_window(4 * hop, periodic=True))
    inverse = ming.flow.rotary_embed.inv_freq
    pairs = torch.arange(len(inverse), dtype=torch.float32)
    inverse.copy_(10000.0 ** -(pairs / len(inverse)))
    for gate in (m for n, m in ming.named_parameters() if "gate.weight" in n):
        torch.nn.init.normal_(gate, std=gate.shape[1] ** -0.5)
    torch.nn.init.normal_(ming.model.model.word_embeddings.weight, std=0.5)
    return ming, mapping
