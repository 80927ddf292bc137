"""config.json: what is required, what may be absent, what must agree."""

import json
import logging

import pytest

from mingcore.config.model_config import AudioConfig, MingConfig
from mingcore.errors import CheckpointError


def test_golden_config(golden_folder):
    config = MingConfig.from_folder(golden_folder)
    assert config.llm.num_heads == 4 and config.llm.head_dim == 128 and config.llm.multi_gate
    assert config.llm.rope.kind == "3d" and config.llm.rope.sections == (16, 24, 24)
    assert config.audio.encoder.windows == (16, 16) and config.audio.decoder.windows == (8, 8)
    assert (config.patch_frames, config.latent_dim) == (5, 64)
    assert (config.sample_rate, config.hop_samples, config.audio.n_fft) == (16000, 320, 1280)


@pytest.mark.parametrize(
    "changes, encoder, decoder",
    [
        ({}, (16, 16), (8, 8)),
        ({"_attn_implementation": "eager"}, (16, 16), (8, 8)),
        ({"_attn_implementation": None}, (16, 16), (8, 8)),
        ({"_attn_implementation": "flash_attention_2"}, (None, 17), (9, 9)),
        ({"use_sliding_window": False}, (None, None), (None, None)),
    ],
)
def test_both_meanings_of_the_window(golden_config, changes, encoder, decoder):
    values = golden_config()["audio_tokenizer_config"]
    for side in ("enc_kwargs", "dec_kwargs"):
        values[side]["backbone"].update(changes)
    config = AudioConfig.from_json(values)
    assert (config.encoder.windows, config.decoder.windows) == (encoder, decoder)


def test_absent_attn_implementation_is_sdpa(golden_config):
    values = golden_config()["audio_tokenizer_config"]
    del values["enc_kwargs"]["backbone"]["_attn_implementation"]
    assert AudioConfig.from_json(values).encoder.windows == (16, 16)


def test_unknown_keys_are_logged_and_ignored(golden_config, caplog):
    values = golden_config()
    values["auto_map"] = {}
    values["llm_config"]["some_training_flag"] = True
    with caplog.at_level(logging.DEBUG, logger="mingcore"):
        config = MingConfig.from_json(values)
    assert config == MingConfig.from_json(golden_config())
    assert "some_training_flag" in caplog.text and "auto_map" in caplog.text
    assert all(record.levelno == logging.DEBUG for record in caplog.records)


def keys_of(values, path=()):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from keys_of(value, (*path, key))
        yield (*path, key)


REQUIRED = [
    "llm_config",
    "llm_config.vocab_size",
    "llm_config.hidden_size",
    "llm_config.num_hidden_layers",
    "llm_config.num_attention_heads",
    "llm_config.num_key_value_heads",
    "llm_config.rms_norm_eps",
    "llm_config.rope_theta",
    "llm_config.num_experts",
    "llm_config.num_experts_per_tok",
    "llm_config.moe_intermediate_size",
    "audio_tokenizer_config",
    "audio_tokenizer_config.enc_kwargs",
    "audio_tokenizer_config.enc_kwargs.backbone",
    "audio_tokenizer_config.enc_kwargs.backbone.hidden_size",
    "audio_tokenizer_config.enc_kwargs.backbone.num_hidden_layers",
    "audio_tokenizer_config.enc_kwargs.backbone.num_attention_heads",
    "audio_tokenizer_config.enc_kwargs.backbone.num_key_value_heads",
    "audio_tokenizer_config.enc_kwargs.backbone.intermediate_size",
    "audio_tokenizer_config.enc_kwargs.backbone.sliding_window",
    "audio_tokenizer_config.enc_kwargs.input_dim",
    "audio_tokenizer_config.enc_kwargs.hop_size",
    "audio_tokenizer_config.enc_kwargs.latent_dim",
    "audio_tokenizer_config.semantic_module_kwargs",
    "audio_tokenizer_config.semantic_module_kwargs.whisper_encoder",
    "audio_tokenizer_config.semantic_module_kwargs.whisper_encoder.n_state",
    "audio_tokenizer_config.semantic_module_kwargs.whisper_encoder.n_head",
    "audio_tokenizer_config.semantic_module_kwargs.whisper_encoder.n_layer",
    "audio_tokenizer_config.dec_kwargs",
    "audio_tokenizer_config.dec_kwargs.backbone",
    "audio_tokenizer_config.dec_kwargs.output_dim",
    "audio_tokenizer_config.dec_kwargs.latent_dim",
    "ditar_config",
    "ditar_config.num_heads",
]
REQUIRED += [path.replace("enc_", "dec_") for path in REQUIRED if "enc_kwargs.backbone." in path]
# 3-D RoPE needs head_dim 128, which is not what hidden_size / heads gives; and a scaling its type
IMPLIED = ["llm_config.head_dim", "llm_config.rope_scaling.type"]


@pytest.mark.parametrize("path", REQUIRED)
def test_missing_keys_are_named(golden_config, path):
    values = golden_config()
    *parents, key = path.split(".")
    section = values
    for parent in parents:
        section = section[parent]
    del section[key]
    with pytest.raises(CheckpointError, match=path.replace(".", r"\.") + " is required"):
        MingConfig.from_json(values)


def test_every_key_is_required_or_has_a_default(golden_config):
    """Without any one other key the file still parses: nothing is required by accident."""
    for path in keys_of(golden_config()):
        if ".".join(path) in REQUIRED + IMPLIED:
            continue
        values = golden_config()
        section = values
        for parent in path[:-1]:
            section = section[parent]
        del section[path[-1]]
        MingConfig.from_json(values)


LLM, DIT = ("llm_config",), ("ditar_config",)
ENC = ("audio_tokenizer_config", "enc_kwargs")
DEC = ("audio_tokenizer_config", "dec_kwargs")


@pytest.mark.parametrize(
    "path, value, message",
    [
        ((*LLM, "hidden_size"), "256", r"llm_config.hidden_size must be of type int, got '256'"),
        ((*LLM, "hidden_size"), True, "llm_config.hidden_size must be of type int, got True"),
        ((*LLM, "hidden_size"), 0, "llm_config.hidden_size must be positive"),
        ((*LLM, "num_key_value_heads"), 3, r"num_attention_heads \(4\) must be a multiple of"),
        ((*LLM, "num_experts_per_tok"), 9, r"num_experts_per_tok \(9\) exceeds num_experts"),
        ((*LLM, "num_shared_experts"), -1, "num_shared_experts must not be negative"),
        ((*LLM, "head_dim"), 64, "needs head_dim 128, got 64"),
        ((*LLM, "hidden_act"), "gelu", "hidden_act must be 'silu'"),
        ((*LLM, "use_sliding_window"), True, "use_sliding_window"),
        ((*LLM, "rope_scaling"), {"type": "llama3", "factor": 8}, "rope_scaling.factor has no"),
        ((*LLM, "rope_scaling"), {"type": "longrope"}, "the type of RoPE must be one of"),
        ((*LLM, "rope_scaling"), {"type": "linear"}, "rope_scaling.factor is required"),
        ((*LLM, "rope_scaling"), {"type": "yarn", "factor": 0.5}, "factor of RoPE must be at least 1"),
        ((*LLM, "rope_scaling"), {"type": "3D", "scale": 2}, "has entries that are not known: scale"),
        ((*LLM, "rope_scaling"), {"type": "3D", "rope_type": "linear"}, "must equal rope_type"),
        ((*LLM, "rope_scaling"), {"type": "3D", "rope_theta": 1e4}, "must equal llm_config.rope_theta"),
        ((*LLM, "rope_scaling"), {"type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1"),
        ((*LLM, "rope_scaling"), {"factor": 2.0}, "rope_scaling.rope_type is required"),
        ((*LLM, "rope_scaling"), {"type": "3D", "mrope_section": [16, 24]}, "has sections"),
        ((*LLM, "rms_norm_eps"), -1e-6, "rms_norm_eps must be positive"),
        ((*ENC, "input_dim"), 160, r"enc_kwargs.input_dim \(160\) must equal .*hop_size \(320\)"),
        ((*DEC, "latent_dim"), 32, r"dec_kwargs.latent_dim \(32\) must equal .*latent_dim \(64\)"),
        ((*DEC, "output_dim"), 640, r"dec_kwargs.output_dim \(640\) must equal"),
        ((*ENC, "backbone", "num_attention_heads"), 5, "must be a multiple of num_attention_heads"),
        ((*ENC, "backbone", "num_key_value_heads"), 3, "must be a multiple of num_key_value_heads"),
        ((*ENC, "backbone", "sliding_window"), 0, "sliding_window must be positive"),
        ((*ENC, "backbone", "_attn_implementation"), "flex", "must be one of"),
        ((*ENC, "backbone", "is_causal"), False, "is_causal must be true"),
        ((*ENC, "backbone", "rope_scaling"), {"type": "yarn"}, "rope_scaling must be null"),
        (("audio_tokenizer_config", "patch_size"), 4, "patch_size must be -1"),
        (("audio_tokenizer_config",), [], "audio_tokenizer_config must be a mapping"),
        ((*DIT, "num_heads"), 0, "ditar_config.num_heads must be positive"),
        ((*DIT, "num_heads"), 3, r"hidden_size \(64\) must be a multiple of num_heads \(3\)"),
        ((*DIT, "qk_norm"), "layer_norm", "qk_norm must be null or 'rms_norm'"),
        ((*DIT, "pe_attn_head"), 5, r"pe_attn_head must be in 1\.\.num_heads = 2, got 5"),
    ],
)
def test_contradictions(golden_config, path, value, message):
    values = golden_config()
    section = values
    for parent in path[:-1]:
        section = section[parent]
    section[path[-1]] = value
    with pytest.raises(CheckpointError, match=message):
        MingConfig.from_json(values)


def rope_of(values, side):
    config = MingConfig.from_json(values)
    if side == "llm":
        return config.llm.rope.theta, config.llm.rope.kind
    backbone = getattr(config.audio, side)
    return backbone.rope_theta, "default"


SIDES = {"llm": LLM, "encoder": (*ENC, "backbone"), "decoder": (*DEC, "backbone")}


def section_of(values, path):
    for key in path:
        values = values[key]
    return values


@pytest.mark.parametrize("side", SIDES)
def test_rope_parameters_replace_theta_and_scaling(golden_config, side):
    """transformers writes them from version 5 on; another theta than Qwen2's default, so that it shows."""
    values = golden_config()
    section = section_of(values, SIDES[side])
    for key in ("rope_theta", "rope_scaling"):
        section.pop(key, None)
    scaling = {"rope_type": "3D", "mrope_section": [16, 24, 24]} if side == "llm" else {"rope_type": "default"}
    section["rope_parameters"] = {"rope_theta": 123456.0, **scaling}
    kind = "3d" if side == "llm" else "default"
    assert rope_of(values, side) == (123456.0, kind)
    # by type of layer, all the same; beside the old keys, where they agree
    section["rope_parameters"] = {"full_attention": section["rope_parameters"]}
    section.update(rope_theta=123456, rope_scaling={"type": "3D"} if side == "llm" else None)
    if side == "llm":
        section["rope_scaling"]["mrope_section"] = [16, 24, 24]
    assert rope_of(values, side) == (123456.0, kind)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"rope_theta": 5e5, "rope_parameters": {"rope_theta": 6e5, "rope_type": "default"}},
            "must equal .*rope_theta",
        ),
        ({"rope_parameters": {"rope_type": "default", "base": 1e4, "rope_theta": 1e4}}, "not known: base"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}}, "rope_parameters"),
        ({"rope_parameters": {"a": {"rope_theta": 1e4}, "b": {"rope_theta": 1e6}}}, "differ between a, b"),
        ({"rope_parameters": {"rope_theta": "1e4"}}, "must be of type float"),
        ({"rope_parameters": [1]}, "must be of type Mapping"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}},
            "must agree with|must be null",
        ),
    ],
)
def test_rope_parameters_that_contradict(golden_config, side, changes, message):
    values = golden_config()
    section = section_of(values, SIDES[side])
    for key in ("rope_theta", "rope_scaling"):
        section.pop(key, None)
    if "rope_theta" not in changes:
        section["rope_theta"] = 10000.0
    section.update(changes)
    with pytest.raises(CheckpointError, match=message):
        MingConfig.from_json(values)


def test_rope_of_the_llm_has_no_default(golden_config):
    values = golden_config()
    del values["llm_config"]["rope_theta"]
    values["llm_config"]["rope_parameters"] = {"rope_type": "3D"}
    with pytest.raises(CheckpointError, match=r"llm_config.rope_parameters.rope_theta is required and missing"):
        MingConfig.from_json(values)
    values = golden_config()
    values["llm_config"]["rope_scaling"] = {"type": "yarn", "factor": 2.0}
    values["llm_config"].pop("max_position_embeddings", None)
    with pytest.raises(CheckpointError, match="original_max_position_embeddings is required for type 'yarn'"):
        MingConfig.from_json(values)


def test_dense_layers_need_their_width(golden_config):
    values = golden_config()
    values["llm_config"].update(first_k_dense_replace=1)
    assert MingConfig.from_json(values).llm.moe_layers == 1
    del values["llm_config"]["intermediate_size"]
    with pytest.raises(CheckpointError, match="intermediate_size is required by the dense layers"):
        MingConfig.from_json(values)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff\xfe"])
def test_no_json(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config"):
        MingConfig.from_folder(tmp_path)


def test_no_config(tmp_path):
    with pytest.raises(CheckpointError, match=r"config.json is missing"):
        MingConfig.from_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(CheckpointError, match="llm_config is required and missing"):
        MingConfig.from_folder(tmp_path)
