"""Options that the golden checkpoint does not use, against the eager baseline."""

import json

import pytest
import torch

from mingcore.errors import CheckpointError
from mingcore.model import load
from mingcore.testing.compare import max_relative
from mingcore.testing.eager.llm import EagerLLM
from mingcore.testing.synthetic import model_config, random_state_dict, write_checkpoint


def llm_pair(folder, **llm):
    """A random tiny checkpoint with these `llm_config` keys, here and in eager form."""
    config = model_config("tiny", **llm)
    tensors = random_state_dict(config)
    write_checkpoint(folder, config)
    eager = EagerLLM(config["llm_config"]).requires_grad_(False)
    own = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    eager.load_state_dict(own)
    eager.finish_loading()
    return load(folder).llm, eager


@pytest.mark.parametrize(
    "options",
    [
        {"use_qkv_bias": True},
        {"use_bias": True},
        {"use_qkv_bias": True, "use_bias": True, "rope_scaling": None},
        {"first_k_dense_replace": 1},
        {"first_k_dense_replace": 2},
        {"num_shared_experts": 0},
        {"num_shared_experts": 2, "norm_topk_prob": False},
        {"num_experts_per_tok": 1},
        {"norm_head": True},
        {"multi_gate": True},
        {"num_key_value_heads": 1},
        {"num_key_value_heads": 4, "head_dim": 64, "rope_scaling": None},
    ],
    ids=str,
)
def test_llm_options(tmp_path, options):
    ours, eager = llm_pair(tmp_path, **options)
    ids = torch.randint(0, 512, (2, 14), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(14).expand(2, 14) % 3 == 1
    hidden, state = ours(ours.embed(ids), audio_mask=mask)
    cache = {}
    expected, logits = eager(eager.model.word_embeddings(ids), cache, audio_mask=mask)
    assert max_relative(hidden, expected) < 2e-5
    assert max_relative(ours.logits(hidden), logits) < 2e-5
    for t in range(3):
        hidden, state = ours(ours.embed(ids[:, t : t + 1]), state)
        expected, _ = eager(eager.model.word_embeddings(ids[:, t : t + 1]), cache)
        assert max_relative(hidden, expected) < 2e-5


@pytest.mark.parametrize("norm_head", [False, True])
def test_tied_embeddings(tmp_path, norm_head):
    """The embedding is the head; a head in the file is listed as unused, or may be absent."""
    config = model_config("tiny", tie_word_embeddings=True, norm_head=norm_head)
    write_checkpoint(tmp_path, config)
    model = load(tmp_path)
    assert "model.lm_head.weight" in model.load_report.unused
    llm, hidden = model.llm, torch.randn(3, 256)
    weight = llm.embedding
    if norm_head:
        weight = weight / (weight.norm(dim=0) + 1e-7)
    torch.testing.assert_close(llm.logits(hidden), hidden @ weight.T, rtol=1e-4, atol=1e-4)
    assert llm.head.weight is llm.embedding


def test_biases_that_the_config_does_not_mention(tmp_path):
    """An absent use_bias lets the weights decide; a present one must agree with them."""
    config = model_config("tiny", use_bias=True)
    del config["llm_config"]["use_qkv_bias"]
    tensors = random_state_dict(config)
    write_checkpoint(tmp_path, config)
    with_bias = load(tmp_path).llm
    assert with_bias.layers[0].attention.out.bias is not None
    assert with_bias.layers[0].attention.qkv.bias is None
    del config["llm_config"]["use_bias"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    silent = load(tmp_path).llm
    bias = tensors["model.model.layers.0.attention.dense.bias"]
    assert torch.equal(silent.layers[0].attention.out.bias, bias)
    config["llm_config"]["use_bias"] = False
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"unexpected key .*attention.dense.bias"):
        load(tmp_path)


def test_routers_are_picked_by_mask(golden_model):
    """A token in a mask takes that router whatever its neighbours do; audio wins over image."""
    mlp = golden_model.llm.layers[0].mlp
    x = torch.randn(6, 256)
    audio = torch.tensor([1, 0, 1, 0, 0, 1])[:, None] > 0
    image = torch.tensor([1, 1, 0, 0, 1, 0])[:, None] > 0
    mixed = mlp.logits(x, audio, image)
    own = {"audio": mlp.audio_gate(x), "image": mlp.image_gate(x), "text": mlp.gate(x)}
    for t, name in enumerate(("audio", "image", "audio", "text", "image", "audio")):
        torch.testing.assert_close(mixed[t], own[name][t], msg=f"token {t}")


def test_single_gate_ignores_masks(tmp_path):
    ours, _ = llm_pair(tmp_path)
    x = ours.embed(torch.arange(9)[None])
    mask = torch.ones(1, 9)
    assert torch.equal(ours(x)[0], ours(x, audio_mask=mask, image_mask=mask)[0])
