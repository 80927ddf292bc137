"""Measures the error of a weight format: a model in it against the same model unquantised, on real inputs.

Both models get the same audio and text, and the flow head the same conditions, so that its error is its own; the
language model's error includes that of the semantic module before it. The layers of the language model are read from
the file one at a time, so any checkpoint can be measured whose flow head and AudioVAE fit in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import InputError
from .model import load
from .model.headers import read_headers
from .results import Voice
from .runtime import prefill
from .runtime.noise import RequestNoise
from .runtime.params import AS_REFERENCE, ContextParams, number
from .text import prompts
from .text.prompts import Prompt

TEXT = "The quick brown fox jumps over the lazy dog, and one hundred people saw it."
TIMES = (0.0, 0.1, 0.3, 0.6, 0.9)  # at which velocities are compared
MAX_PATCHES = 32  # of audio that is compared
STEPS = 10
RANDOM_SECONDS = 3


@dataclass(frozen=True)
class Inputs:
    """latents [1,n·P,C] of real audio; samples [1,L] or None; a text-to-speech prompt that ends with the audio's
    placeholders; a recognition prompt that ends with the answer; and a description of the source.
    """

    latents: Tensor
    samples: Tensor | None
    speaking: Prompt
    understanding: Prompt
    source: str


@dataclass(frozen=True)
class Precision:
    """Errors of the format `weights` against `reference`. Relative errors are |a - b| / |b| (L2); 0 is equal.

    encoding: relative, of the encoder's mean; None where latents were the input. unified: relative, of the semantic
    module's embedding. decoding: relative, of the decoder's samples. hidden: relative, of the language model's hidden
    states, tokens that were routed to other experts included. velocity, latents: relative, of the flow head from equal
    conditions; velocity is the worst of `TIMES`. latents_in_all: of latents, with everything before them in `weights`
    too. stop: largest absolute difference of a stop probability. top1: fraction of tokens whose likeliest next token
    agrees; logits: relative; kl_mean, kl_max: Kullback-Leibler divergence of the next token, in nats.
    """

    weights: str
    reference: str
    inputs: str
    patches: int
    tokens: int
    encoding: float | None
    unified: float
    decoding: float
    hidden: float
    velocity: float
    latents: float
    latents_in_all: float
    stop: float
    top1: float
    logits: float
    kl_mean: float
    kl_max: float

    def as_dict(self) -> dict[str, Any]:
        """All figures, for JSON."""
        return asdict(self)


def measure(
    folder: str | Path,
    weights: str,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    samples: np.ndarray | None = None,
    text: str | None = None,
    seed: int = 0,
) -> Precision:
    """Run the checkpoint in both formats on the same inputs and compare.

    samples [L] at the checkpoint's rate: a recording of someone saying `text`. Without them the checkpoint's default
    voice is used, or synthetic audio where it has none. weights, dtype: as in `mingcore.model.load`. The reference
    has the file's own values and float32 activations. Raises InputError for audio shorter than two patches.
    """
    folder, device = Path(folder), torch.device(device)
    exact = _exact(folder)
    reference = exact if device.type == "cpu" else "fp32"
    with torch.no_grad():
        model = _model(folder, reference, device, None)
        inputs = _inputs(model, folder, samples, text, seed)
        expected = _outputs(model, inputs, None, seed)
        del model
        model = _model(folder, weights, device, dtype)
        found = _outputs(model, inputs, expected["condition"], seed)
    logits = _compare_logits(found["logits"], expected["logits"])
    names = ("unified", "decoding", "hidden", "latents", "latents_in_all")
    return Precision(
        weights=weights,
        reference=reference,
        inputs=inputs.source,
        patches=expected["latents"].shape[0],
        tokens=expected["logits"].shape[0],
        encoding=None if inputs.samples is None else relative(found["encoding"], expected["encoding"]),
        velocity=max(map(relative, found["velocity"], expected["velocity"])),
        stop=float((found["stop"] - expected["stop"]).abs().max()),
        **{name: relative(found[name], expected[name]) for name in names},
        **logits,
    )


def relative(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|, L2 in float64."""
    a, b = a.double(), b.double()
    return float((a - b).norm() / b.norm().clamp(min=1e-300))


def _exact(folder: Path) -> str:
    """The format that stores the file's values exactly: that of all its matrices where they have one, else float32."""
    found = {info.dtype for info in read_headers(folder).values() if len(info.shape) > 1}
    only = found.pop() if len(found) == 1 else torch.float32
    return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(only, "fp32")


def _model(folder: Path, weights: str, device: torch.device, dtype: torch.dtype | None):
    return load(folder, device, dtype, weights=weights, layers_on_demand=True)


def _inputs(model, folder: Path, samples: np.ndarray | None, text: str | None, seed: int) -> Inputs:
    config, device = model.config, model.device
    sound, words, source = None, text or TEXT, "the recording given"
    if samples is None:
        voice, source = folder / "voices" / "default.safetensors", "the default voice"
        if voice.exists():
            default = Voice.load(voice)
            latents, words = torch.from_numpy(default.latents)[None], text or default.transcript or TEXT
            latents = latents.to(device)
        else:
            sound, source = _synthetic(config.sample_rate, seed), "synthetic sound"
    else:
        sound = torch.from_numpy(np.ascontiguousarray(samples, np.float32))[None]
    if sound is not None:
        sound = sound.to(device)
        latents = model.vae.encode(sound)[0]
    latents = prefill.whole_patches(model, latents)[:, : MAX_PATCHES * config.patch_frames]
    n = latents.shape[1] // config.patch_frames
    if n < 2:
        raise InputError(f"samples: must hold at least two patches, got {n}")
    if model.tokenizer is None:
        speaking, understanding = _random_prompts(config.llm.vocab_size, n, seed)
        source += ", random tokens"
    else:
        speaking = prompts.tts_prompt(model.tokenizer, TEXT, words, n)
        parts = [prompts.ASR_INSTRUCTION, prompts.Audio(n)]
        understanding = prompts.understanding_prompt(model.tokenizer, parts, words)
    return Inputs(latents, sound, speaking, understanding, source)


def _synthetic(rate: int, seed: int) -> Tensor:
    """A sine sweep with noise, [1, L]."""
    t = torch.arange(RANDOM_SECONDS * rate) / rate
    noise = torch.randn(len(t), generator=torch.Generator().manual_seed(seed))
    return (0.4 * torch.sin(2 * torch.pi * (180 + 60 * t) * t) + 0.02 * noise)[None]


def _random_prompts(vocabulary: int, patches: int, seed: int) -> tuple[Prompt, Prompt]:
    drawn = torch.randint(vocabulary, (2, 64), generator=torch.Generator().manual_seed(seed))
    a, b = drawn.tolist()
    place = [0] * patches
    return (Prompt((*a, *place), ((len(a), patches),)), Prompt((*a[:16], *place, *b), ((16, patches),)))


def _outputs(model, inputs: Inputs, condition: Tensor | None, seed: int) -> dict[str, Any]:
    """Everything that is compared, on the CPU in float32; condition [n,H]: the reference model's, None: its own."""
    frames, latents = model.config.patch_frames, inputs.latents
    out: dict[str, Any] = {}
    if inputs.samples is not None:
        out["encoding"] = model.vae.encode(inputs.samples)[0]
    out["unified"], _ = model.vae.unify(latents)
    out["decoding"], _ = model.vae.decode(latents)
    projected = model.pool(out["unified"])
    speaking = prefill.embed_prompt(model, inputs.speaking, [projected])
    ((start, n),) = inputs.speaking.spans
    out["hidden"] = model.llm(speaking)[0][0]
    # the hidden state after patch p is the condition of patch p + 1
    out["condition"] = out["hidden"][start : start + n - 1]
    out["stop"] = model.stop_head(out["condition"])
    given = out["condition"] if condition is None else condition.to(model.device)
    patches = latents[0].unflatten(0, (n, frames))
    history, target = patches[:-1], patches[1:]
    drawn = RequestNoise(range(seed, seed + n - 1), model.device)
    noise = drawn.patch(n - 1, frames, latents.shape[2], STEPS)
    out["velocity"] = [_velocity(model, t, given, history, noise[0], target) for t in TIMES]
    out["latents"] = model.flow.sample(given, history, noise, STEPS)
    out["latents_in_all"] = model.flow.sample(out["condition"], history, noise, STEPS)
    out["logits"] = _answers(model, inputs.understanding, projected)
    return {name: _host(value) for name, value in out.items()}


def _velocity(model, t: float, condition: Tensor, history: Tensor, noise: Tensor, data: Tensor) -> Tensor:
    """The velocity at x = (1 - t) noise + t data: the straight path, where a head is trained."""
    x = (1 - t) * noise + t * data
    times = torch.full((len(x),), t, device=x.device)
    return model.flow.velocity(x, times, condition, history)


def _answers(model, prompt: Prompt, projected: Tensor) -> Tensor:
    """Logits [T,V] of the tokens after the audio."""
    embeds = prefill.embed_prompt(model, prompt, [projected])
    mask = torch.tensor([prompt.audio_mask], device=embeds.device)
    hidden, _ = model.llm(embeds, audio_mask=mask)
    ((start, n),) = prompt.spans
    return model.llm.logits(hidden[0, start + n :])


def _host(value: Tensor | Sequence[Tensor]) -> Any:
    if isinstance(value, Tensor):
        return value.to("cpu", torch.float32)
    return [_host(each) for each in value]


def _compare_logits(found: Tensor, expected: Tensor) -> dict[str, float]:
    agree = (found.argmax(-1) == expected.argmax(-1)).double().mean()
    p, q = expected.double().log_softmax(-1), found.double().log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1).clamp(min=0)
    return {
        "top1": float(agree),
        "logits": relative(found, expected),
        "kl_mean": float(kl.mean()),
        "kl_max": float(kl.max()),
    }


@dataclass(frozen=True)
class ContextCost:
    """The effect of the options for long audio on the embeddings that the language model reads: relative L2
    differences over the newest half of `seconds` of audio.

    error: the window or the 8-bit cache against the full, unquantised cache. kept: the full cache against the second
    half alone, as a new segment starts. bytes, reference_bytes: of the semantic cache.
    """

    seconds: float
    error: float
    kept: float
    bytes: int
    reference_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """All figures, for JSON."""
        return asdict(self)


def measure_context(
    folder: str | Path,
    *,
    context_seconds: float | None = None,
    context_format: str | None = None,
    seconds: float = 60.0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    weights: str | None = None,
    seed: int = 0,
) -> ContextCost:
    """Run the semantic module over `seconds` of audio, with the options and without.

    The audio is the checkpoint's default voice, repeated, or synthetic. context_seconds, context_format: as in
    `MingAudio.tts_stream`. Raises InputError.
    """
    folder, device = Path(folder), torch.device(device)
    params = ContextParams(False, context_seconds, context_format)
    with torch.no_grad():
        model = load(folder, device, dtype, weights=weights, layers_on_demand=True)
        frames = model.config.patch_frames
        sound = _inputs(model, folder, None, None, seed).latents
        count = round(number("seconds", seconds, 1, 36000) * 5) * 2 * frames
        latents = sound.repeat(1, -(-count // sound.shape[1]), 1)[:, :count]
        half = latents[:, count // 2 :]
        states = [AS_REFERENCE.state(model, count), params.state(model, count)]
        found = [_embeddings(model, latents, state)[:, -half.shape[1] // frames :] for state in states]
        alone = _embeddings(model, half, AS_REFERENCE.state(model, count))
    sizes = [state.nbytes for state in states]
    return ContextCost(count / frames / 10, relative(found[1], found[0]), relative(found[0], alone), sizes[1], sizes[0])


def _embeddings(model, latents: Tensor, state: Any) -> Tensor:
    """latents [1,n·P,C], patch by patch as in generation -> embeddings [1,n,H] for the language model."""
    parts = []
    for part in latents.split(model.config.patch_frames, dim=1):
        embedding, state = model.vae.unify(part, state)
        parts.append(model.pool(embedding))
    return torch.cat(parts, dim=1)
