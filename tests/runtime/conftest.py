"""What the loop's tests share: recorded noise, a stub tokenizer, the golden model's variants."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import AddedToken, pre_tokenizers
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.models import WordLevel

from mingcore.model import load
from mingcore.runtime.single import results
from mingcore.runtime.speaking import SpeechRequest
from mingcore.text.prompts import Tokenizer

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
LIMIT = 2e-5
SPECIAL = {
    "<audio>": 500,
    "<audioPatch>": 501,
    "</audio>": 502,
    "<role>": 503,
    "</role>": 504,
    "<|endoftext|>": 506,
    "<gen_audio>": 507,
    "<answer>": 508,
    "<prompt>": 509,
}


class Recorded:
    """Golden tensors that remember which were looked at."""

    def __init__(self, name: str):
        self.tensors = load_file(GOLDEN / f"{name}.safetensors")
        self.seen: set[str] = set()

    def __getitem__(self, key: str) -> torch.Tensor:
        self.seen.add(key)
        return self.tensors[key]

    def names(self, prefix: str = "") -> list[str]:
        return sorted(k for k in self.tensors if k.startswith(prefix))


class Tape:
    """A NoiseSource that plays what was recorded, and checks the order of the draws."""

    def __init__(self, recorded: Recorded, prefix: str):
        self.draws = [(k, recorded[k]) for k in recorded.names(f"{prefix}tape.")]
        self.at = 0

    def _next(self, kind: str, shape: list[int]) -> torch.Tensor:
        key, draw = self.draws[self.at]
        self.at += 1
        assert key.endswith(kind) and list(draw.shape) == shape, (key, kind, draw.shape, shape)
        return draw

    def posterior(self, mean: torch.Tensor) -> torch.Tensor:
        B, T, C = mean.shape
        return self._next("randn", [B, C, T]).transpose(1, 2)

    def patch(self, batch: int, frames: int, channels: int, steps: int) -> torch.Tensor:
        start = self._next("randn", [batch, channels, frames]).transpose(1, 2)
        shape = [batch, frames, channels]
        return torch.stack([start, *(self._next("like", shape) for _ in range(steps))])

    @property
    def is_over(self) -> bool:
        return self.at == len(self.draws)


def close(got: torch.Tensor, wanted: torch.Tensor, limit: float = LIMIT) -> None:
    """Relative error max|a − b| / max|b|; shapes equal."""
    assert got.shape == wanted.shape, (got.shape, wanted.shape)
    error = (got.double() - wanted.double()).abs().max() / wanted.double().abs().max()
    assert error <= limit, float(error)


@pytest.fixture
def tools():
    """The helpers above, as tests cannot import from here."""

    class Tools:
        pass

    Tools.Recorded, Tools.Tape, Tools.close = Recorded, Tape, staticmethod(close)
    return Tools


@pytest.fixture(scope="session")
def stub_json(tmp_path_factory) -> Path:
    """The golden runs' tokenizer: one id per character, (7·codepoint + 10) mod 480."""
    vocab = {chr(c): (7 * c + 10) % 480 for c in range(9, 256)} | SPECIAL
    tokenizer = HFTokenizer(WordLevel(vocab, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    path = tmp_path_factory.mktemp("stub") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="session")
def stub(stub_json) -> Tokenizer:
    return Tokenizer.from_folder(stub_json.parent)


@pytest.fixture(scope="session")
def golden_with_stub(stub_json, tmp_path_factory):
    """window meaning ("sdpa", "fa2", "full") → a folder of the golden model, with tokenizer."""
    folders = {}

    def make(window: str = "sdpa") -> Path:
        if window not in folders:
            folder = tmp_path_factory.mktemp(f"golden-{window}")
            config = json.loads((GOLDEN / "config.json").read_text())
            for part in ("enc_kwargs", "dec_kwargs"):
                backbone = config["audio_tokenizer_config"][part]["backbone"]
                backbone["use_sliding_window"] = window != "full"
                kind = "flash_attention_2" if window == "fa2" else "sdpa"
                backbone["_attn_implementation"] = kind
            (folder / "config.json").write_text(json.dumps(config))
            (folder / "model.safetensors").symlink_to(GOLDEN / "model.safetensors")
            shutil.copy(stub_json, folder / "tokenizer.json")
            folders[window] = folder
        return folders[window]

    return make


@pytest.fixture(scope="session")
def golden_models(golden_with_stub):
    """window meaning → the golden model with the stub tokenizer, loaded once."""
    models = {}

    def get(window: str = "sdpa"):
        if window not in models:
            models[window] = load(golden_with_stub(window))
        return models[window]

    return get


@pytest.fixture
def model(golden_models):
    return golden_models()


@pytest.fixture
def endless(golden_models, monkeypatch):
    """The golden model, which never stops but by a limit."""
    model = golden_models()
    monkeypatch.setattr(model.stop_head.linear, "bias", torch.tensor([50.0, -50.0]))
    return model


@pytest.fixture(scope="session")
def alone(golden_models):
    """Request -> its samples when it is the only one, by the loop of one request."""
    kept = {}

    def samples(request: SpeechRequest) -> np.ndarray:
        if id(request) not in kept:
            pieces = [speech.samples for speech in results(golden_models(), request)]
            kept[id(request)] = request, np.concatenate(pieces)  # its id is not another's
        return kept[id(request)][1]

    return samples
