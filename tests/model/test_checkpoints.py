"""Checkpoints: every layout gives the same model, and what does not fit is named."""

import json
import logging
import warnings

import pytest
import torch

from mingcore import ops
from mingcore.errors import CheckpointError
from mingcore.model import load
from mingcore.model.headers import read_headers
from mingcore.testing.compare import max_relative
from mingcore.testing.synthetic import write_checkpoint

INPUTS = torch.randint(0, 480, (1, 9), generator=torch.Generator().manual_seed(0))


def outputs(model):
    """Something of every part of a model."""
    g = torch.Generator().manual_seed(1)
    z, noise = torch.randn(1, 10, 64, generator=g), torch.randn(11, 1, 5, 64, generator=g)
    hidden, _ = model.llm(model.llm.embed(INPUTS))
    unified, _ = model.vae.unify(z)
    return {
        "logits": model.llm.logits(hidden),
        "unified": unified,
        "pooled": model.pool(unified),
        "decoded": model.vae.decode(z)[0],
        "encoded": torch.cat(model.vae.encode(noise.flatten()[None]), dim=-1),
        "patch": model.flow.sample(hidden[:, -1], z[:, :5], noise),
        "stop": model.stop_head(hidden),
    }


def assert_same(a, b, limit=0.0):
    a, b = outputs(a), outputs(b)
    for name in a:
        error = max_relative(a[name], b[name])
        assert error <= limit, (name, error)


def test_sharded_is_single(tiny, tmp_path):
    config = json.loads((tiny[0] / "config.json").read_text())
    write_checkpoint(tmp_path, config, shard_bytes=1 << 20)
    assert len(list(tmp_path.glob("*.safetensors"))) > 5
    assert_same(load(tmp_path), tiny[2])


def stack(tensors, spelling):
    """Experts as [E, out, in], in one of the spellings of newer checkpoints."""
    for layer in range(2):
        start = f"model.model.layers.{layer}.mlp.experts."
        found = {}
        for name in ("gate_proj", "up_proj", "down_proj"):
            parts = [tensors.pop(f"{start}{e}.{name}.weight") for e in range(8)]
            found[name] = torch.stack(parts)
        if spelling.startswith("fused"):
            gate_up = torch.cat((found.pop("gate_proj"), found.pop("up_proj")), dim=1)
            found["gate_up_proj"] = gate_up
        end = ".weight" if spelling.endswith("weight") else ""
        tensors.update({f"{start}{name}{end}": t for name, t in found.items()})


@pytest.mark.parametrize("spelling", ["stacked", "stacked.weight", "fused", "fused.weight"])
def test_stacked_is_separate(tiny, rewritten, spelling):
    folder = rewritten(lambda tensors, config: stack(tensors, spelling))
    assert not any(".experts.0." in name for name in read_headers(folder))
    assert_same(load(folder), tiny[2])


def test_packed_is_rows(tiny):
    """The form that a backend packs, and plain rows, compute the same."""
    with ops.use_backend("reference"):
        rows = load(tiny[0])
        assert rows.llm.head.weight.layout == "rows"
        plain = outputs(rows)
    packed = outputs(tiny[2])
    for name, value in packed.items():
        assert max_relative(value, plain[name]) <= 1e-5, name


def test_bfloat16_weights(tiny, rewritten):
    """From a float32 or a bfloat16 file, as 16-bit or widened: the same rounded weights."""

    def narrow(tensors, config):
        for name, t in tensors.items():
            if not name.endswith(("inv_freq", "window")):
                tensors[name] = t.bfloat16()

    folder = rewritten(narrow)
    widened = load(folder)
    kept = load(folder, dtype=torch.bfloat16)
    assert widened.llm.embedding.dtype == torch.float32
    assert kept.llm.embedding.dtype == torch.bfloat16 and kept.dtype == torch.bfloat16
    assert kept.llm.activation_dtype == torch.float32
    assert_same(kept, widened, 1e-5)
    converted = load(tiny[0], dtype=torch.bfloat16)
    assert torch.equal(converted.llm.embedding, kept.llm.embedding)
    full = load(folder, dtype=torch.bfloat16, activation_dtype=torch.bfloat16)
    for name, value in outputs(full).items():
        assert value.isfinite().all(), name
    assert full.llm(full.llm.embed(INPUTS))[0].dtype == torch.bfloat16
    assert full.vae.decoder.window.dtype == torch.float32
    assert all(t.dtype == torch.float32 for t in full.flow.packed.rope(11))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes_in_the_file(tiny, rewritten, dtype):
    def change(tensors, config):
        for name in tensors:
            tensors[name] = tensors[name].to(dtype)

    assert_same(load(rewritten(change)), tiny[2], 2e-2 if dtype == torch.float16 else 0.0)


def test_rounded_buffers_are_computed_anew(tiny, rewritten):
    """A bfloat16 file rounds the Hann window and the frequencies; the model does not use those."""

    def change(tensors, config):
        for name in ("audio.decoder.head.istft.window", "flowloss.cfm.model.rotary_embed.inv_freq"):
            tensors[name] = tensors[name].bfloat16()

    assert_same(load(rewritten(change)), tiny[2])


def test_report_lists_what_is_known_to_be_unused(golden_model):
    report = golden_model.load_report
    assert sorted(report.unused) == [
        "audio.decoder.decoder.embed_tokens.weight",
        "audio.decoder.fc3.bias",
        "audio.decoder.fc3.weight",
        "audio.encoder.encoder.embed_tokens.weight",
        "audio.encoder.norm.bias",
        "audio.encoder.norm.weight",
    ]
    assert report.clean and report.lines() == []


def test_unused_tensors_may_be_absent(tiny, rewritten, golden_model):
    def change(tensors, config):
        for name in golden_model.load_report.unused:
            del tensors[name]

    model = load(rewritten(change))
    assert model.load_report.unused == {}
    assert_same(model, tiny[2])


def test_read_headers(tiny):
    folder, tensors, _ = tiny
    headers = read_headers(folder)
    assert {k: (v.dtype, v.shape) for k, v in headers.items()} == {
        k: (v.dtype, tuple(v.shape)) for k, v in tensors.items()
    }
    assert {v.file for v in headers.values()} == {folder / "model.safetensors"}
    assert read_headers(folder / "model.safetensors") == headers


GATE = "model.model.layers.1.mlp.experts.5.gate_proj.weight"


def drop(name):
    return lambda tensors, config: tensors.pop(name)


def put(name, value):
    return lambda tensors, config: tensors.update({name: value})


def configure(section, key, value):
    return lambda tensors, config: config[section].update({key: value})


DAMAGES = {
    "missing key": (drop(GATE), rf"missing key {GATE} of shape \[96, 256\]"),
    "missing bias": (drop("stop_head.bias"), r"missing key stop_head.bias of shape \[2\]"),
    "missing router": (drop("model.model.layers.0.mlp.audio_gate.weight"), "missing key .*audio_gate.weight"),
    "missing stack": (
        lambda t, c: (stack(t, "fused"), t.pop("model.model.layers.0.mlp.experts.down_proj")),
        r"missing key model.model.layers.0.mlp.experts.down_proj of shape \[8, 256, 96\]",
    ),
    "extra key": (
        put("model.model.layers.9.mystery", torch.zeros(3)),
        r"unexpected key model.model.layers.9.mystery of shape \[3\]",
    ),
    "extra layer of the flow head": (
        put("flowloss.cfm.model.blocks.2.norm1.weight", torch.zeros(64)),
        "ditar_config.depth is 2, but the weights have 3",
    ),
    "wrong shape": (put(GATE, torch.zeros(96, 255)), rf"{GATE} must be \[96, 256\], got \[96, 255\]"),
    "transposed stack": (
        lambda t, c: (
            stack(t, "fused"),
            t.update({"model.model.layers.0.mlp.experts.gate_up_proj": torch.zeros(8, 256, 192)}),
        ),
        r"gate_up_proj must be \[8, 192, 256\], got \[8, 256, 192\]",
    ),
    "integers": (
        put("stop_head.weight", torch.zeros(2, 256, dtype=torch.int64)),
        "stop_head.weight must hold float32, bfloat16 or float16, got torch.int64",
    ),
    "more layers": (configure("llm_config", "num_hidden_layers", 3), "missing key model.model.layers.2.attention"),
    "fewer layers": (configure("llm_config", "num_hidden_layers", 1), "unexpected key model.model.layers.1"),
    "other heads": (
        configure("llm_config", "num_attention_heads", 8),
        r"query_key_value.weight must be \[1536, 256\], got \[1024, 256\]",
    ),
    "other vocabulary": (configure("llm_config", "vocab_size", 513), r"lm_head.weight must be \[513, 256\]"),
    "more experts": (configure("llm_config", "num_experts", 9), "missing key .*experts.8.gate_proj.weight"),
    "single gate": (configure("llm_config", "multi_gate", False), "unexpected key .*_gate.weight"),
    "flow width": (
        configure("ditar_config", "hidden_size", 128),
        "ditar_config.hidden_size is 128, but the weights have 64",
    ),
    "flow heads": (
        configure("ditar_config", "num_heads", 4),
        "num_heads is 4, but width 64 and 16 inverse frequencies make 2 heads of 32",
    ),
    "flow mlp": (
        configure("ditar_config", "mlp_ratio", 3.0),
        "ditar_config.mlp_ratio is 3.0, but the weights have 4.0",
    ),
    "flow qk_norm": (
        configure("ditar_config", "qk_norm", "rms_norm"),
        "ditar_config.qk_norm is True, but the weights have False",
    ),
    "another window": (
        put("audio.decoder.head.istft.window", torch.ones(1280)),
        "istft.window differs from the computed buffer",
    ),
    "window length": (
        put("audio.decoder.head.istft.window", torch.hann_window(1024)),
        r"istft.window must be \[1280\], got \[1024\]",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_does_not_fit(rewritten, damage):
    change, message = DAMAGES[damage]
    with pytest.raises(CheckpointError, match=message):
        load(rewritten(change))


def test_errors_list_many_and_count_the_rest(rewritten):
    def change(tensors, config):
        for e in range(8):
            del tensors[f"model.model.layers.0.mlp.experts.{e}.up_proj.weight"]
        del tensors["stop_head.bias"]

    with pytest.raises(CheckpointError, match=r"experts.0.up_proj.*; and 1 more$"):
        load(rewritten(change))


def test_not_strict_skips_what_is_not_used(tiny, rewritten, caplog):
    def change(tensors, config):
        tensors |= {f"extra.{i}": torch.zeros(4) for i in range(7)}

    folder = rewritten(change)
    with pytest.raises(CheckpointError, match=r"extra.0 of shape \[4\].*; strict=False \(--no-strict\) skips"):
        load(folder)
    model = load(folder, strict=False)
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert record.getMessage() == (
        f"{folder}: skipped 7 unexpected tensors: extra.0, extra.1, extra.2, extra.3, extra.4 and 2 more"
    )
    assert list(model.load_report.unexpected) == [f"extra.{i}" for i in range(7)]
    ours, theirs = outputs(model), outputs(tiny[2])
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize(
    ("name", "feature"),
    [
        ("stop_head.bias", "speech and edits"),
        ("model.lm_head.weight", "transcription and edits"),
        ("flowloss.cfm.model.x_embedder.bias", "speech and edits"),
        ("audio.encoder.fc2.bias", "encoding, voices, transcription and edits"),
        ("audio.decoder.head.out.bias", "decoding, speech and edits"),
        ("audio.decoder.semantic_model.ln_post.bias", "everything but encoding and decoding"),
        ("model.model.layers.1.mlp.gate.weight", "everything but encoding and decoding"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_a_missing_tensor_says_what_needs_it(rewritten, name, feature, strict):
    folder = rewritten(lambda tensors, config: tensors.pop(name))
    with pytest.raises(CheckpointError, match=rf"missing key {name} of shape \[.*\] \(needed by {feature}\)$"):
        load(folder, strict=strict)


def test_whispers_front_end_is_known_to_be_unused(tiny, rewritten):
    """Released checkpoints carry five tensors of Whisper's that nothing reads."""
    root = "audio.decoder.semantic_model."
    shapes = {
        "conv1.weight": (64, 80, 3),
        "conv1.bias": (64,),
        "conv2.weight": (64, 64, 3),
        "conv2.bias": (64,),
        "positional_embedding": (1500, 64),
    }
    added = {root + name: torch.randn(shape) for name, shape in shapes.items()}
    model = load(rewritten(lambda tensors, config: tensors.update(added)))
    assert set(added) <= set(model.load_report.unused)
    ours, theirs = outputs(model), outputs(tiny[2])
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_not_finite(rewritten, bad, dtype):
    def change(tensors, config):
        tensors[GATE] = tensors[GATE].clone()
        tensors[GATE][50, 200] = bad

    with pytest.raises(CheckpointError, match=f"{GATE} holds values that are not finite .*, as {dtype}"):
        load(rewritten(change), dtype=dtype)


def test_large_finite_weights_give_no_warning(rewritten):
    """Values whose sum overflows are finite all the same; those that overflow float16 are not."""
    folder = rewritten(put("stop_head.weight", torch.full((2, 256), 3e38)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(folder)
    with pytest.raises(CheckpointError, match=r"stop_head.weight .* as torch.float16\); what overflows float16 fits"):
        load(folder, dtype=torch.float16)


def test_dtype_must_be_a_float(tiny):
    with pytest.raises(CheckpointError, match="dtype must be float32, bfloat16 or float16"):
        load(tiny[0], dtype=torch.int8)
