"""LoRA adapters merged while loading equal the merged checkpoint, in every format; bad ones are refused by name."""

import json
import logging
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from mingcore.errors import CheckpointError
from mingcore.model import load
from mingcore.model.adapters import read_adapter
from mingcore.model.headers import read_headers
from mingcore.model.sources import FileTensors
from mingcore.runtime.fingerprint import fingerprint
from mingcore.testing.synthetic import model_config, write_checkpoint

QKV = "model.model.layers.0.attention.query_key_value"
EXPERT = "model.model.layers.1.mlp.experts.3.up_proj"
TO_Q = "flowloss.cfm.model.blocks.1.attn.to_q"
FC3 = "audio.encoder.fc3"
PREFIX = "base_model.model."


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("base"), model_config("tiny"))


@pytest.fixture
def adapter(tmp_path, base):
    """Writes an adapter for these modules, and returns its folder and the matrices it adds."""
    shapes = {name: tuple(t.shape) for name, t in load_file(base / "model.safetensors").items()}

    def write(modules, r=4, alpha=8.0, name="adapter", ranks=None, extra=None, **config):
        generator = torch.Generator().manual_seed(len(modules) * 100 + r)
        tensors, factors = {}, {}
        for module in modules:
            n, k = shapes[f"{module}.weight"]
            rank = (ranks or {}).get(module, r)
            a, b = torch.randn(rank, k, generator=generator), 0.1 * torch.randn(n, rank, generator=generator)
            tensors |= {f"{PREFIX}{module}.lora_A.weight": a, f"{PREFIX}{module}.lora_B.weight": b}
            factors[module] = (a, b)
        folder = tmp_path / name
        folder.mkdir()
        tensors |= extra or {}
        save_file({key: t.contiguous() for key, t in tensors.items()}, folder / "adapter_model.safetensors")
        settings = {"peft_type": "LORA", "r": r, "lora_alpha": alpha, "target_modules": list(modules), **config}
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        return folder, factors

    return write


@pytest.fixture
def merged(tmp_path, base):
    """Writes the base with float32 changes, and returns its folder."""

    def write(changes):
        tensors = load_file(base / "model.safetensors")
        for name, change in changes.items():
            tensors[name] = change(tensors[name].clone()).contiguous()
        folder = tmp_path / "merged"
        folder.mkdir()
        shutil.copy(base / "config.json", folder)
        save_file(tensors, folder / "model.safetensors")
        return folder

    return write


def added(a, b, scale):
    return lambda w: w + (b @ a) * scale


def results(model):
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 480, (1, 9), generator=g)
    hidden, _ = model.llm(model.llm.embed(ids))
    mean, std = model.vae.encode(torch.randn(1, 3200, generator=g))
    return {"logits": model.llm.logits(hidden), "stop": model.stop_head(hidden), "mean": mean, "std": std}


def assert_same(one, other, *, differs_from=None):
    ours, theirs = results(one), results(other)
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    weights, others = matrices(one), matrices(other)
    assert all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))
    if differs_from is not None:
        plain = [*results(differs_from).values(), *matrices(differs_from)]
        assert any(not torch.equal(a, b) for a, b in zip([*ours.values(), *weights], plain, strict=True))


def matrices(model):
    """Those that `results` may miss: of experts that no token takes, and of the flow head."""
    experts = [m for layer in model.llm.layers for m in (layer.mlp.experts.gate_up, layer.mlp.experts.down)]
    return [*experts, *model.flow.packed.matrices]


@pytest.mark.parametrize("weights", [None, "bf16", "int8", "int8_dyn"])
def test_equals_the_merged_checkpoint(base, adapter, merged, weights):
    folder, factors = adapter([QKV, EXPERT, TO_Q, "model.lm_head", "model.model.layers.0.mlp.gate"])
    reference = merged({f"{module}.weight": added(a, b, 2.0) for module, (a, b) in factors.items()})
    ours = load(base, weights=weights, adapters=[folder])
    assert_same(ours, load(reference, weights=weights), differs_from=load(base, weights=weights))
    assert ours.load_report.merged == {str(folder): 5}


def test_ranks_alphas_and_rslora(base, adapter, merged):
    folder, factors = adapter(
        [QKV, EXPERT],
        r=4,
        alpha=6.0,
        ranks={EXPERT: 2},
        rank_pattern={"up_proj": 2},
        alpha_pattern={r"layers\.\d+\.attention\.query_key_value": 3.0},
        use_rslora=True,
    )
    scales = {QKV: 3.0 / math.sqrt(4), EXPERT: 6.0 / math.sqrt(2)}
    reference = merged({f"{module}.weight": added(*ab, scales[module]) for module, ab in factors.items()})
    assert_same(load(base, adapters=[folder]), load(reference))


def test_embeddings_saved_modules_and_biases(base, adapter, merged):
    g = torch.Generator().manual_seed(5)
    name = "model.model.word_embeddings"
    vocab, hidden = read_headers(base)[f"{name}.weight"].shape
    a, b = torch.randn(4, vocab, generator=g), torch.randn(hidden, 4, generator=g)
    stop, bias = torch.randn(2, hidden, generator=g), torch.randn(128, generator=g)
    extra = {
        f"{PREFIX}{name}.lora_embedding_A": a,
        f"{PREFIX}{name}.lora_embedding_B": b,
        f"{PREFIX}stop_head.modules_to_save.default.weight": stop,
        f"{PREFIX}{FC3}.base_layer.bias": bias,
    }
    folder, factors = adapter([FC3], extra=extra, bias="all", modules_to_save=["stop_head"])
    reference = merged(
        {
            f"{name}.weight": lambda w: w + ((b @ a) * 2.0).T,
            "stop_head.weight": lambda w: stop,
            f"{FC3}.bias": lambda w: bias,
            f"{FC3}.weight": added(*factors[FC3], 2.0),
        }
    )
    assert_same(load(base, adapters=[folder]), load(reference), differs_from=load(base))


def test_dora_scales_the_rows(base, adapter, merged):
    rows = read_headers(base)[f"{QKV}.weight"].shape[0]
    lengths = 1 + torch.rand(rows, generator=torch.Generator().manual_seed(2))
    folder, factors = adapter([QKV], use_dora=True, extra={f"{PREFIX}{QKV}.lora_magnitude_vector.weight": lengths})

    def change(w):
        w = w + (factors[QKV][1] @ factors[QKV][0]) * 2.0
        return w * (lengths[:, None] / torch.linalg.vector_norm(w, dim=1, keepdim=True))

    ours, theirs = results(load(base, adapters=[folder])), results(load(merged({f"{QKV}.weight": change})))
    torch.testing.assert_close(ours["logits"], theirs["logits"], rtol=1e-5, atol=1e-5)


def test_several_in_order(base, adapter, merged):
    one, first = adapter([QKV], name="one")
    two, second = adapter([QKV, EXPERT], name="two", r=2)
    changes = {
        f"{QKV}.weight": lambda w: added(*second[QKV], 4.0)(added(*first[QKV], 2.0)(w)),
        f"{EXPERT}.weight": added(*second[EXPERT], 4.0),
    }
    assert_same(load(base, adapters=[one, two]), load(merged(changes)))


@pytest.fixture
def stack_of(tmp_path, base):
    """Writes the base with its experts stacked, gate and up perhaps as one, and returns its folder."""

    def write(layout):
        tensors, config = load_file(base / "model.safetensors"), model_config("tiny")
        for layer in range(config["llm_config"]["num_hidden_layers"]):
            root, count = f"model.model.layers.{layer}.mlp.experts.", config["llm_config"]["num_experts"]
            parts = {
                matrix: torch.stack([tensors.pop(f"{root}{e}.{matrix}.weight") for e in range(count)])
                for matrix in ("gate_proj", "up_proj", "down_proj")
            }
            if layout == "fused":
                parts["gate_up_proj"] = torch.cat([parts.pop("gate_proj"), parts.pop("up_proj")], dim=1)
            tensors |= {f"{root}{name}": value for name, value in parts.items()}
        folder = tmp_path / layout
        folder.mkdir()
        shutil.copy(base / "config.json", folder)
        save_file(tensors, folder / "model.safetensors")
        return folder

    return write


@pytest.mark.parametrize("layout", ["stacked", "fused"])
def test_one_expert_of_a_stack(base, adapter, merged, stack_of, layout):
    """An adapter names single experts; the checkpoint keeps them stacked."""
    gate, down = EXPERT.replace("up_proj", "gate_proj"), EXPERT.replace("up_proj", "down_proj")
    folder, factors = adapter([EXPERT, gate, down])
    reference = merged({f"{module}.weight": added(a, b, 2.0) for module, (a, b) in factors.items()})
    assert_same(load(stack_of(layout), adapters=[folder]), load(reference), differs_from=load(base))


def test_parameters_that_stack_experts(base, adapter, merged, stack_of):
    """PEFT's target_parameters: the factors of all experts of a layer in two matrices, one module in the other."""
    config = model_config("tiny")["llm_config"]
    E, H, I, r = config["num_experts"], config["hidden_size"], config["moe_intermediate_size"], 3
    g = torch.Generator().manual_seed(3)
    root = "model.model.layers.1.mlp.experts"
    gate_a, gate_b = torch.randn(r * E, H, generator=g), 0.1 * torch.randn(2 * I, r * E, generator=g)
    down_a, down_b = torch.randn(r * E, I, generator=g), 0.1 * torch.randn(H, r * E, generator=g)
    extra = {
        f"{PREFIX}{root}.lora_A.weight": gate_a,
        f"{PREFIX}{root}.lora_B.weight": gate_b,
        f"{PREFIX}{root}.base_layer.lora_A.weight": down_a,
        f"{PREFIX}{root}.base_layer.lora_B.weight": down_b,
    }
    names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    folder, _ = adapter([], r=r, alpha=3.0, extra=extra, target_parameters=names)
    changes = {}
    for e in range(E):
        gate_up = gate_b.view(2 * I, r, E)[:, :, e] @ gate_a.view(E, r, H)[e]
        down = down_b.view(H, r, E)[:, :, e] @ down_a.view(E, r, I)[e]
        for name, delta in (("gate", gate_up[:I]), ("up", gate_up[I:]), ("down", down)):
            changes[f"{root}.{e}.{name}_proj.weight"] = lambda w, delta=delta: w + delta
    fused = stack_of("fused")
    assert_same(load(fused, adapters=[folder]), load(merged(changes)), differs_from=load(base))
    # of another size they fit neither
    extra = {key: t[:, :-1] if "lora_A" in key else t for key, t in extra.items()}
    folder, _ = adapter([], r=r, alpha=3.0, extra=extra, target_parameters=names, name="narrow")
    with pytest.raises(CheckpointError, match="fit 0 of the parameters .*gate_up_proj, .*down_proj"):
        load(fused, adapters=[folder])


def test_an_adapter_of_the_language_model_alone(base, adapter, merged):
    """It was trained on the part `model`: its names lack that prefix."""
    folder, factors = adapter([QKV])
    weights = load_file(folder / "adapter_model.safetensors")
    weights = {key.replace(f"{PREFIX}model.", PREFIX): t for key, t in weights.items()}
    save_file(weights, folder / "adapter_model.safetensors")
    assert_same(load(base, adapters=[folder]), load(merged({f"{QKV}.weight": added(*factors[QKV], 2.0)})))


def edited(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type must be LORA, got IA3"),
        ({"peft_type": None}, "peft_type is required"),
        ({"r": 0}, "r must be positive, got 0"),
        ({"r": 5}, "factors have ranks 4 and 4, adapter_config.json says 5"),
        ({"r": "4"}, "r must be of type int, got '4'"),
        ({"lora_alpha": None}, "lora_alpha is required"),
        ({"layer_replication": [[0, 1]]}, r"layer_replication is not supported, got \[\[0, 1\]\]"),
        ({"use_qalora": True}, "use_qalora is not supported"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices is not supported"),
        ({"use_dora": True}, "has no lora_magnitude_vector.weight, which use_dora needs"),
    ],
)
def test_settings_that_are_refused(base, adapter, changes, message):
    folder, _ = adapter([QKV])
    edited(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        load(base, adapters=[folder])


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("model.model.layers.9.attention.dense.lora_A.weight", (4, 8), "layers.9.attention.dense has no lora_B.weight"),
        ("model.model.layers.0.attention.q_proj.weight", (4, 8), "has no tensor model.model.layers.0.attention.q_proj"),
        ("stop_head.weight", (3, 256), r"must be \[2, 256\], the shape of stop_head.weight, got \[3, 256\]"),
        (f"{TO_Q}.lora_B.bias", (64,), "lora_bias"),
    ],
)
def test_tensors_that_are_refused(base, adapter, key, shape, message):
    folder, _ = adapter([TO_Q], extra={PREFIX + key: torch.zeros(shape)})
    with pytest.raises(CheckpointError, match=message):
        load(base, adapters=[folder])


def test_unknown_targets_and_wrong_shapes(base, adapter):
    unknown = {
        f"{PREFIX}model.model.layers.0.attention.q_proj.lora_A.weight": torch.zeros(4, 256),
        f"{PREFIX}model.model.layers.0.attention.q_proj.lora_B.weight": torch.zeros(256, 4),
    }
    folder, _ = adapter([QKV], extra=unknown)
    with pytest.raises(CheckpointError, match=r"has no tensor model.model.layers.0.attention.q_proj.weight"):
        load(base, adapters=[folder])
    narrow = {f"{PREFIX}{TO_Q}.lora_A.weight": torch.zeros(4, 32), f"{PREFIX}{TO_Q}.lora_B.weight": torch.zeros(64, 4)}
    folder, _ = adapter([QKV], extra=narrow, name="narrow")
    with pytest.raises(CheckpointError, match=rf"factors make \[64, 32\], {TO_Q}.weight is \[64, 64\]"):
        load(base, adapters=[folder])
    folder, _ = adapter([QKV], extra={f"{PREFIX}{QKV}.lora_A.weight": torch.full((4, 256), torch.nan)}, name="nan")
    with pytest.raises(CheckpointError, match="lora_A.weight holds values that are not finite"):
        load(base, adapters=[folder])


def test_files_that_are_missing(base, adapter, tmp_path):
    folder, _ = adapter([QKV])
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="a pickle; save the adapter as adapter_model.safetensors"):
        load(base, adapters=[folder])
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointError, match="adapter_model.safetensors is missing"):
        load(base, adapters=[folder])
    with pytest.raises(CheckpointError, match="adapter_config.json is missing"):
        load(base, adapters=[tmp_path / "nowhere"])


def test_what_is_not_used_is_said(base, adapter, caplog):
    name = "audio.decoder.fc3"
    folder, _ = adapter([name])
    with caplog.at_level(logging.WARNING):
        load(base, adapters=[folder])
    assert f"an adapter changes {name}.weight, which is not used" in caplog.text


def test_the_fingerprint_follows_the_audio_tokenizer(base, adapter):
    tuned, _ = adapter([QKV])
    other, _ = adapter([FC3], name="other")
    assert fingerprint(base, [tuned]) == fingerprint(base) != fingerprint(base, [other])


def test_only_headers_are_read_for_the_plan(base, adapter, monkeypatch):
    folder, _ = adapter([QKV])
    source = FileTensors(read_headers(base), "base")
    monkeypatch.setattr(FileTensors, "fill", None)
    assert read_adapter(folder, source).names == {f"{QKV}.weight"}
