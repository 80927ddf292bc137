"""The eager model: loading a checkpoint folder, and the text-to-speech loop."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .audio import DecoderState, EagerAudio
from .flow import EagerFlow, FinalLayer
from .layers import KVCache
from .llm import EagerLLM

PATCH_FRAMES = 5


class _Inner(nn.Module):
    """A level of the checkpoint's names that holds exactly one module."""

    def __init__(self, name: str, module: nn.Module):
        super().__init__()
        self.add_module(name, module)


@dataclass
class Patch:
    """One patch of the loop: latents [B, 5, 64], samples [B, L], stop probability [B]."""

    latents: Tensor
    samples: Tensor
    stop_probability: Tensor
    condition: Tensor
    history: Tensor
    is_last: bool


class EagerMing(nn.Module):
    """Ming-UniAudio in plain PyTorch, module names as in the checkpoint."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        H = config["llm_config"]["hidden_size"]
        audio = config["audio_tokenizer_config"]
        S = audio["semantic_module_kwargs"]["whisper_encoder"]["n_state"]
        self.config = config
        self.model = EagerLLM(config["llm_config"])
        self.audio = EagerAudio(audio)
        self.linear_proj_audio = _Inner("final_layer", FinalLayer(S, H))
        self.stop_head = nn.Linear(H, 2)
        flow = EagerFlow(config["ditar_config"], H, audio["enc_kwargs"]["latent_dim"])
        self.flowloss = _Inner("cfm", _Inner("model", flow))

    @property
    def flow(self) -> EagerFlow:
        return self.flowloss.cfm.model

    @classmethod
    def load(cls, folder: str | Path, dtype: torch.dtype | None = None, device: str = "cpu") -> EagerMing:
        """Read a checkpoint folder in the official layout, one file or sharded.

        `dtype` None keeps the file's. Windows and inverse frequencies keep float32. Raises
        RuntimeError naming missing and unexpected keys.
        """
        folder = Path(folder)
        config = json.loads((folder / "config.json").read_text())
        index = folder / "model.safetensors.index.json"
        files = ["model.safetensors"]
        if index.exists():
            files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        tensors: dict[str, Tensor] = {}
        for file in files:
            tensors.update(load_file(folder / file, device=device))
        return cls.from_state_dict(config, tensors, dtype)

    @classmethod
    def from_state_dict(
        cls, config: dict[str, Any], tensors: dict[str, Tensor], dtype: torch.dtype | None = None
    ) -> EagerMing:
        """Build from tensors in memory; those that need no conversion are shared, not copied."""
        with torch.device("meta"):
            ming = cls(config)
        ready = {}
        for name, tensor in _unstacked(tensors).items():
            is_buffer = name.endswith(("istft.window", "inv_freq"))
            ready[name] = tensor.float() if is_buffer else tensor.to(dtype or tensor.dtype)
        ming.load_state_dict(ready, strict=True, assign=True)
        ming.requires_grad_(False)
        ming.model.finish_loading()
        return ming.eval()

    def pool(self, embedding: Tensor) -> Tensor:
        """[B, 5n, S] -> [B, n, H]: norm, Linear, mean over the frames of a patch."""
        projected = self.linear_proj_audio.final_layer(embedding)
        return projected.unflatten(1, (-1, PATCH_FRAMES)).mean(dim=2)

    def stop_probability(self, hidden: Tensor) -> Tensor:
        """[B] for hidden [B, H]."""
        return torch.softmax(self.stop_head(hidden).float(), dim=-1)[:, 1]

    @torch.no_grad()
    def tts(
        self,
        ids: Tensor,
        voice: Tensor,
        audio_positions: Tensor,
        noise: Callable[[int], Tensor],
        *,
        max_patches: int,
        min_patches: int = 18,
        steps: int = 10,
        guidance: float = 2.0,
    ) -> Iterator[Patch]:
        """Generate speech patch by patch.

        ids [T] of the prompt, of which those where `audio_positions` [T] is true are replaced by
        the projected `voice` latents [1, 5n, 64]; `noise(patch)` gives [steps + 1, 1, 5, 64].
        """
        semantic: KVCache = {}
        cache: KVCache = {}
        decoder = DecoderState()
        embeds = self.model.model.word_embeddings(ids)[None].clone()
        projected = self.pool(self.audio.decoder.unify(voice, semantic))
        embeds[0, audio_positions] = projected[0]
        history = voice[:, -PATCH_FRAMES:]
        for step in range(max_patches):
            hidden, _ = self.model(embeds, cache)
            condition = hidden[:, -1]
            stop = self.stop_probability(condition)
            latents = self.flow.sample(condition, history, noise(step), steps=steps, guidance=guidance)
            is_last = bool(stop[0] > 0.5) and step >= min_patches - 1
            samples = self.audio.decoder.decode(latents, decoder, is_last)
            yield Patch(latents, samples, stop, condition, history, is_last)
            if is_last:
                return
            embeds = self.pool(self.audio.decoder.unify(latents, semantic))
            history = latents


def _unstacked(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Split experts stacked as [E, out, in] into one tensor per expert (views, not copies)."""
    flat = {}
    for name, tensor in tensors.items():
        before, mark, after = name.partition(".mlp.experts.")
        if mark and tensor.dim() == 3:
            flat.update({f"{before}{mark}{e}.{after}": part for e, part in enumerate(tensor)})
        else:
            flat[name] = tensor
    return flat
