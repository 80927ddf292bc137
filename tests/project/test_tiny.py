"""The bundled checkpoint: made by its script to the byte, small, and honest about itself."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "mingcore" / "checkpoints" / "tiny"


@pytest.fixture(scope="module")
def script():
    path = ROOT / "examples" / "tiny_voice" / "make_random.py"
    spec = importlib.util.spec_from_file_location("make_random", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.strict
def test_made_again_it_has_the_same_bytes(script, tmp_path):
    script.make(tmp_path)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md"):
        assert (tmp_path / name).read_bytes() == (TINY / name).read_bytes(), name
    # the voice is computed by the model, so its last bits are the machine's
    old, new = (load_file(folder / "voices/default.safetensors") for folder in (TINY, tmp_path))
    assert old.keys() == new.keys()
    for name in old:
        torch.testing.assert_close(new[name], old[name], rtol=1e-3, atol=1e-3)


def test_it_is_small():
    assert sum(p.stat().st_size for p in TINY.rglob("*") if p.is_file()) <= 12 * 2**20


def test_it_says_that_its_weights_are_random():
    card = json.loads((TINY / "config.json").read_text())["card"]
    assert card["trained"] is False and "noise" in card["note"]
    assert "random weights" in (TINY / "README.md").read_text()


TEXTS = ["plain", "", "数字 3.5 元，你好！", "🎉👩‍👩‍👧", "\x00\x7f\t\r\n é", "עברית العربية", "𝔘𝔫𝔦"]


@pytest.mark.parametrize("text", TEXTS)
def test_its_tokenizer_gives_any_text_back(text):
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert len(ids) == len(text.encode())


def test_its_special_tokens_are_one_id_each(script):
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    ids = [tokenizer.encode(token, add_special_tokens=False).ids for token in script.SPECIAL]
    assert all(len(i) == 1 for i in ids) and len({i[0] for i in ids}) == len(script.SPECIAL)
    llm = json.loads((TINY / "config.json").read_text())["llm_config"]
    assert max(i[0] for i in ids) < llm["vocab_size"]
    assert llm["eos_token_id"] == tokenizer.token_to_id("<|endoftext|>")


def test_its_values_are_near_a_unit_normal(script):
    values = script.hashed_normal("any", (1000, 1000)).double()
    assert abs(values.mean()) < 0.01 and abs(values.std() - 1) < 0.01
    rows = torch.corrcoef(values[:200])
    assert (rows - torch.eye(200)).abs().max() < 0.2
    assert not torch.equal(values[0, :9], script.hashed_normal("other", (9,)).double())
