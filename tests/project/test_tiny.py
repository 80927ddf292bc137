"""The bundled checkpoint: its config is that of its scripts, it is small, and its card is accurate."""

import json
import sys
from pathlib import Path

import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

from mingcore.testing.synthetic import tensor_shapes

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "mingcore" / "checkpoints" / "tiny"


@pytest.fixture(scope="module")
def settings():
    sys.path.insert(0, str(ROOT / "examples" / "tiny_voice"))
    try:
        import settings

        return settings
    finally:
        del sys.path[0]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TINY / "tokenizer.json"))


def test_its_scripts_made_it(settings, tokenizer):
    eos = tokenizer.token_to_id("<|endoftext|>")
    config = json.loads((TINY / "config.json").read_text())
    assert config == settings.config(eos)
    assert json.loads(settings.tokenizer().to_str()) == json.loads(tokenizer.to_str())
    with safe_open(TINY / "model.safetensors", "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        assert {n: tuple(s.get_shape()) for n, s in slices.items()} == tensor_shapes(config)
        assert {s.get_dtype() for s in slices.values()} == {"BF16", "F32"}


def test_it_is_small():
    assert sum(p.stat().st_size for p in TINY.rglob("*") if p.is_file()) <= 12 * 2**20


def test_it_says_what_it_can_do():
    card = json.loads((TINY / "config.json").read_text())["card"]
    assert card["trained"] is True and card["tasks"] == ["tts", "asr"]
    assert "digits" in card["note"] and "words" in card["note"]
    text = (TINY / "README.md").read_text()
    assert all(word in text for word in ("Vocabulary", "Data", "flite", "License", "make voice"))


def test_it_exercises_every_path(settings):
    """Heads of 128 with the real model's 3-D RoPE, three routers, experts with a shared one."""
    llm = settings.config(0)["llm_config"]
    assert (llm["head_dim"], llm["rope_scaling"]["type"], llm["multi_gate"]) == (128, "3D", True)
    assert llm["num_experts"] >= 8 and llm["num_experts_per_tok"] == 2
    assert llm["num_shared_experts"] == 1


TEXTS = ["plain", "", "数字 3.5 元，你好！", "🎉👩‍👩‍👧", "\x00\x7f\t\r\n é", "עברית العربية", "one two"]


@pytest.mark.parametrize("text", TEXTS)
def test_its_tokenizer_gives_any_text_back(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    loud = tokenizer.encode(text.upper().lower(), add_special_tokens=False).ids
    assert tokenizer.encode(text.upper(), add_special_tokens=False).ids == loud


def test_its_special_tokens_are_one_id_each(settings, tokenizer):
    single = [*settings.SPECIAL, *(f"{name}\t" for name in settings.LANGUAGES)]
    ids = [tokenizer.encode(token, add_special_tokens=False).ids for token in single]
    assert all(len(i) == 1 for i in ids) and len({i[0] for i in ids}) == len(single)
    assert max(i[0] for i in ids) < settings.VOCAB
    assert tokenizer.decode(ids[-2], skip_special_tokens=False) == "English\t"
