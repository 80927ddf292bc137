"""Random checkpoints have the official layout, and both implementations agree on them."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from mingcore.model import load
from mingcore.testing.compare import max_relative
from mingcore.testing.eager import EagerMing
from mingcore.testing.synthetic import model_config, model_names, random_state_dict, tensor_shapes, write_checkpoint


def test_names_and_shapes_are_the_official_ones(golden_folder):
    config = json.loads((golden_folder / "config.json").read_text())
    with safe_open(golden_folder / "model.safetensors", "pt") as file:
        expected = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    assert tensor_shapes(config) == expected


def test_sizes_are_those_of_the_design():
    assert model_names() == ["tiny", "mid", "real"]
    mid = model_config("mid")
    llm, flow = mid["llm_config"], mid["ditar_config"]
    assert (llm["hidden_size"], llm["num_hidden_layers"], llm["moe_intermediate_size"]) == (1024, 8, 704)
    assert (flow["hidden_size"], flow["depth"], flow["num_heads"]) == (1024, 8, 16)
    backbone = mid["audio_tokenizer_config"]["dec_kwargs"]["backbone"]
    assert (backbone["hidden_size"], backbone["intermediate_size"]) == (896, 4864)
    billions = sum(torch.Size(s).numel() for s in tensor_shapes(model_config("real")).values())
    assert 18.0e9 < billions < 18.5e9  # 16.8 B of language model, and the rest


def test_unknown_size_names_the_known_ones():
    with pytest.raises(ValueError, match=r"name must be one of \['tiny', 'mid', 'real'\], got 'x'"):
        model_config("x")


def test_same_seed_same_tensors_and_no_two_tensors_alike():
    config = model_config("tiny")
    a, b, c = (random_state_dict(config, seed) for seed in (3, 3, 4))
    assert all(torch.equal(a[k], b[k]) for k in a)
    differ = [k for k in a if not torch.equal(a[k], c[k])]
    buffers = {k for k in a if k.endswith(("istft.window", "inv_freq"))}
    assert set(differ) == set(a) - buffers
    first, second = (f"model.model.layers.0.mlp.experts.{e}.up_proj.weight" for e in (0, 1))
    assert not torch.equal(a[first], a[second])
    assert all(t.abs().max() > 0 and t.isfinite().all() for t in a.values())


def test_shards_hold_what_one_file_holds(tmp_path):
    config = model_config("tiny")
    one = load_file(write_checkpoint(tmp_path / "one", config) / "model.safetensors")
    folder = write_checkpoint(tmp_path / "many", config, shard_bytes=1 << 20)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 5
    many = {}
    for file in files:
        assert (folder / file).stat().st_size < 2 << 20
        many.update(load_file(folder / file))
    assert many.keys() == one.keys() == index["weight_map"].keys()
    assert all(torch.equal(many[k], one[k]) for k in one)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"multi_gate": True, "use_qkv_bias": True, "use_bias": True},
        {"first_k_dense_replace": 1, "rope_scaling": None, "norm_head": True},
    ],
)
@pytest.mark.parametrize("stacked", [False, True])
def test_both_implementations_agree(tmp_path, options, stacked):
    config = model_config("tiny", **options)
    folder = write_checkpoint(tmp_path, config, seed=1, stacked=stacked)
    ours, eager = load(folder), EagerMing.load(folder)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 500, (1, 9), generator=generator)
    mask = torch.tensor([[0, 1, 1, 0, 0, 0, 1, 0, 0]]) if config["llm_config"]["multi_gate"] else None
    latents = torch.randn(1, 15, 64, generator=generator)
    noise = torch.randn(11, 1, 5, 64, generator=generator)
    with torch.inference_mode():
        hidden, _ = ours.llm(ours.llm.embed(ids), audio_mask=mask)
        expected, logits = eager.model(eager.model.model.word_embeddings(ids), {}, audio_mask=mask)
        assert max_relative(hidden, expected) < 2e-5
        assert max_relative(ours.llm.logits(hidden), logits) < 2e-5
        embedding, _ = ours.vae.unify(latents)
        assert max_relative(embedding, eager.audio.decoder.unify(latents, {})) < 2e-5
        assert max_relative(ours.pool(embedding), eager.pool(embedding)) < 2e-5
        samples, _ = ours.vae.decode(latents)
        assert max_relative(samples, eager.audio.decoder.decode(latents, None, True)) < 2e-5
        patch = ours.flow.sample(hidden[:, -1], latents[:, -5:], noise)
        assert max_relative(patch, eager.flow.sample(hidden[:, -1], latents[:, -5:], noise)) < 5e-5
