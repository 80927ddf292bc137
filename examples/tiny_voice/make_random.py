"""Make the bundled checkpoint `tiny`: a whole Ming-UniAudio, small, with random weights.

    python examples/tiny_voice/make_random.py [FOLDER]

It has every part, name and option of the released model at a size that speaks faster than real
time on one core, so that installing, examples and tests need no download. Nothing in it is
trained: the sound is noise with the loudness of speech. Weights come from an integer hash of
(tensor name, element), so every machine makes the same bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mingcore.testing.synthetic import tensor_shapes

SEED = 2
HIDDEN = 256
VOCAB = 512
FIRST_SPECIAL = 480  # ids 0..255 are the bytes; the rest up to here is free for merges
SPECIAL = (
    "<|endoftext|>", "<role>", "</role>", "<end_of_audio>", "<audioPatch>", "<audio>", "</audio>",
    "<gen_audio>", "<edit>", "</edit>", "<prompt>", "</prompt>", "<answer>", "</answer>",
    "<cot_text>", "</cot_text>", "<imagePatch>", "<image>", "</image>",
)  # fmt: skip
BUNDLED = Path(__file__).resolve().parents[2] / "mingcore" / "checkpoints" / "tiny"

README = """\
# tiny

A whole Ming-UniAudio in miniature with **random weights: its sound is noise** and its text is
letters without meaning. It exists so that installing, trying the commands and testing need no
download. Every part, tensor name and option is that of a released checkpoint (docs/model.md).

| part | size |
|---|---|
| LLM | 2 layers of 256, 4 heads of 128 (2 KV), three routers, 3-D RoPE |
| experts | 8 of width 64, top-2, and one shared |
| flow head | 3 x 128, 2 heads |
| AudioVAE | backbones 2 x 128, semantic module 2 x 128, 16 kHz, 50 latents of 64 per second |
| tokenizer | one token per UTF-8 byte, the model's special tokens by name |
| voices/default.safetensors | a synthetic hum, so that `tts` needs no recording |

Made by `examples/tiny_voice/make_random.py`; the same bytes every time. License: Apache-2.0.
"""


def config(eos: int) -> dict:
    """config.json of the checkpoint, in the official layout."""
    backbone = {
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
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
            "trained": False,
            "note": "random weights: sound is noise",
            "made_by": "examples/tiny_voice/make_random.py",
            "license": "Apache-2.0",
        },
        "llm_config": {
            "vocab_size": VOCAB,
            "hidden_size": HIDDEN,
            "intermediate_size": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
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
            "enc_kwargs": {
                "backbone": dict(backbone), "input_dim": 320, "hop_size": 320, "latent_dim": 64,
            },
            "semantic_module_kwargs": {
                "whisper_encoder": {"n_state": 128, "n_head": 2, "n_layer": 2}
            },
            "dec_kwargs": {"backbone": dict(backbone), "output_dim": 320, "latent_dim": 64},
        },
        "ditar_config": {"hidden_size": 128, "depth": 3, "num_heads": 2, "mlp_ratio": 4.0},
    }  # fmt: skip


def byte_tokenizer() -> Tokenizer:
    """One token per UTF-8 byte plus the special tokens: encode then decode gives any text back."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: i for i, letter in enumerate(alphabet)}
    vocab.update({f"<unused{i}>": i for i in range(len(alphabet), FIRST_SPECIAL)})
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return tokenizer


def hashed_normal(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """About normal values, mean 0 and deviation 1, float32: splitmix64 of the element's index.

    The four 16-bit words of a hash are added (Irwin-Hall): integers only until the last division,
    so the bits do not depend on the machine.
    """
    count = math.prod(shape)
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z += np.uint64(zlib.crc32(name.encode())) << np.uint64(32) | np.uint64(SEED)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    words = z.view("<u2").reshape(count, 4).astype(np.int64).sum(axis=1)
    values = (words - 2 * 65535) / (65536 / math.sqrt(3))
    return torch.from_numpy(values.astype(np.float32)).reshape(shape)


def tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """One tensor of the checkpoint; buffers keep their true values in float32."""
    if name.endswith("istft.window"):
        return torch.hann_window(shape[0], periodic=True)
    if name.endswith("inv_freq"):
        return 10000.0 ** -(torch.arange(shape[0], dtype=torch.float32) / shape[0])
    values = hashed_normal(name, shape)
    if len(shape) == 1:
        norm = name.endswith("weight")
        values = 1 + 0.1 * values if norm else 0.05 * values
    elif not name.endswith("word_embeddings.weight"):
        values /= math.sqrt(shape[-1])
    if name == "audio.decoder.head.out.weight":
        values[: shape[0] // 2] *= 0.4
    elif name == "audio.decoder.head.out.bias":
        values[: shape[0] // 2] += loudness(shape[0] // 2)
    elif name == "audio.encoder.fc3.bias":
        values[shape[0] // 2 :] -= 2  # a narrow posterior: a voice is heard the same each time
    elif name == "stop_head.bias":
        values += torch.tensor([-0.25, 0.25])  # most runs end soon after they may
    elif name == "model.lm_head.weight":
        values = plain_letters(values)
    return values.to(torch.bfloat16)


def loudness(bins: int) -> torch.Tensor:
    """Log-magnitude per frequency that falls like a voice's; full scale is about 1/6 in RMS."""
    hertz = torch.arange(bins) * (16000 / (2 * (bins - 1)))
    return 2.6 - 0.7 * torch.log1p((hertz / 500) ** 2) - 3 * torch.exp(-hertz / 60)


def plain_letters(values: torch.Tensor) -> torch.Tensor:
    """Make the text head prefer small letters and blanks, and now and then the tokens that end
    a text or begin edited audio, so that every task of a random model finishes."""
    tokenizer = byte_tokenizer()
    scale = torch.full((VOCAB, 1), 0.2)
    for letter in "abcdefghijklmnopqrstuvwxyz ":
        scale[tokenizer.encode(letter).ids] = 1.0
    for token, factor in (("<|endoftext|>", 1.5), ("<gen_audio>", 3.0)):
        scale[tokenizer.token_to_id(token)] = factor
    return values * scale


def hum(seconds: float = 2.0, rate: int = 16000) -> np.ndarray:
    """The reference sound of the default voice: a gliding buzz under two formants. float32."""
    t = np.arange(int(seconds * rate)) / rate
    pitch = 130 + 25 * np.sin(2 * np.pi * 0.7 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    sound = np.zeros_like(t)
    for k in range(1, 24):
        formants = sum(np.exp(-(((k * pitch - f) / 180) ** 2)) for f in (600, 1200, 2500))
        sound += (0.08 / k + 0.2 * formants) * np.sin(k * phase)
    syllables = 0.55 - 0.45 * np.cos(2 * np.pi * 3 * t)
    return (0.25 * syllables * sound).astype(np.float32)


def make(folder: Path) -> None:
    """Write the checkpoint to `folder`, which is made when it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = byte_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    mapping = config(tokenizer.token_to_id("<|endoftext|>"))
    (folder / "config.json").write_text(json.dumps(mapping, indent=1) + "\n")
    (folder / "README.md").write_text(README)
    tensors = {name: tensor(name, shape) for name, shape in tensor_shapes(mapping).items()}
    weights = folder / "model.safetensors"
    save_file(tensors, weights, metadata={"format": "pt"})
    weights.chmod(0o644)

    from mingcore import MingAudio  # needs the files above

    ming = MingAudio.from_pretrained(folder, device="cpu")
    (folder / "voices").mkdir(exist_ok=True)
    voice = ming.voice((hum(), 16000), transcript="hum")
    voice.save(folder / "voices" / "default.safetensors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="make the bundled random checkpoint")
    parser.add_argument("folder", nargs="?", type=Path, default=BUNDLED)
    make(parser.parse_args().folder)
