"""What a weight format costs: a model in it against the same model unquantised, on real inputs.

Both see the same sound and text, and the flow head the same conditions, so that its error is its
own; what is the language model's includes the semantic module before it. The language model is run
layer by layer, each read from the file when its turn comes, so any checkpoint can be measured whose
flow head and AudioVAE fit in memory.
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
PATCHES = 32  # of sound that are looked at, at most
STEPS = 10
RANDOM_SECONDS = 3


@dataclass(frozen=True)
class Inputs:
    """latents [1,n·P,C] of real sound; samples [1,L] or none; a prompt that speaks, ending with the
    sound's placeholders; one that understands, ending with the answer; and where they are from.
    """

    latents: Tensor
    samples: Tensor | None
    speaking: Prompt
    understanding: Prompt
    source: str


@dataclass(frozen=True)
class Precision:
    """Errors of `weights` against `reference`. Relative ones are |a - b| / |b| (L2), 0 is equal.

    encoding: the encoder's mean, None where latents were the input. unified: the semantic module's
    embedding. decoding: the decoder's sound. hidden: the language model's hidden states; tokens
    whose experts were chosen otherwise are among them.
    velocity and latents: the flow head's, from equal conditions; velocity is the worst of `TIMES`.
    latents_in_all: latents where everything before them was in `weights` too.
    stop: largest difference of a stop probability. top1: how often the likeliest token agrees;
    logits: relative; kl_mean, kl_max: Kullback-Leibler divergence of the next token, in nats.
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
    """Run the checkpoint twice over the same inputs and compare.

    samples [L] at the checkpoint's rate: a recording of someone saying `text`. Without them the
    checkpoint's default voice is the sound, and where it has none a synthetic one. weights, dtype:
    as in `mingcore.model.load`. The reference is the file's own values with float32 activations.
    Raises InputError for sound shorter than two patches.
    """
    folder, device = Path(folder), torch.device(device)
    exact = _exact(folder)
    reference = exact if device.type == "cpu" else "fp32"
    with torch.no_grad():
        model = _model(folder, reference, device, None)
        inputs = _inputs(model, folder, samples, text, seed)
        wanted = _run(model, inputs, None, seed)
        del model
        model = _model(folder, weights, device, dtype)
        found = _run(model, inputs, wanted["condition"], seed)
    logits = _compare_logits(found["logits"], wanted["logits"])
    names = ("unified", "decoding", "hidden", "latents", "latents_in_all")
    return Precision(
        weights=weights,
        reference=reference,
        inputs=inputs.source,
        patches=wanted["latents"].shape[0],
        tokens=wanted["logits"].shape[0],
        encoding=None if inputs.samples is None else relative(found["encoding"], wanted["encoding"]),
        velocity=max(map(relative, found["velocity"], wanted["velocity"])),
        stop=float((found["stop"] - wanted["stop"]).abs().max()),
        **{name: relative(found[name], wanted[name]) for name in names},
        **logits,
    )


def relative(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|, L2 in float64."""
    a, b = a.double(), b.double()
    return float((a - b).norm() / b.norm().clamp(min=1e-300))


def _exact(folder: Path) -> str:
    """The format that holds the file's values as they are: float32, or the one type of them all."""
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
            kept = Voice.load(voice)
            latents, words = torch.from_numpy(kept.latents)[None], text or kept.transcript or TEXT
            latents = latents.to(device)
        else:
            sound, source = _synthetic(config.sample_rate, seed), "synthetic sound"
    else:
        sound = torch.from_numpy(np.ascontiguousarray(samples, np.float32))[None]
    if sound is not None:
        sound = sound.to(device)
        latents = model.vae.encode(sound)[0]
    latents = prefill.whole_patches(model, latents)[:, : PATCHES * config.patch_frames]
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
    """A glide with some noise, [1, L]."""
    t = torch.arange(RANDOM_SECONDS * rate) / rate
    noise = torch.randn(len(t), generator=torch.Generator().manual_seed(seed))
    return (0.4 * torch.sin(2 * torch.pi * (180 + 60 * t) * t) + 0.02 * noise)[None]


def _random_prompts(vocabulary: int, patches: int, seed: int) -> tuple[Prompt, Prompt]:
    drawn = torch.randint(vocabulary, (2, 64), generator=torch.Generator().manual_seed(seed))
    a, b = drawn.tolist()
    place = [0] * patches
    return (Prompt((*a, *place), ((len(a), patches),)), Prompt((*a[:16], *place, *b), ((16, patches),)))


def _run(model, inputs: Inputs, condition: Tensor | None, seed: int) -> dict[str, Any]:
    """Everything that is compared, on the CPU in float32; condition: the reference's, [n,H]."""
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
    # the state behind patch p is what patch p + 1 is made from
    out["condition"] = out["hidden"][start : start + n - 1]
    out["stop"] = model.stop_head(out["condition"])
    given = out["condition"] if condition is None else condition.to(model.device)
    patches = latents[0].unflatten(0, (n, frames))
    history, wanted = patches[:-1], patches[1:]
    drawn = RequestNoise(range(seed, seed + n - 1), model.device)
    noise = drawn.patch(n - 1, frames, latents.shape[2], STEPS)
    out["velocity"] = [_velocity(model, t, given, history, noise[0], wanted) for t in TIMES]
    out["latents"] = model.flow.sample(given, history, noise, STEPS)
    out["latents_in_all"] = model.flow.sample(out["condition"], history, noise, STEPS)
    out["logits"] = _answers(model, inputs.understanding, projected)
    return {name: _host(value) for name, value in out.items()}


def _velocity(model, t: float, condition: Tensor, history: Tensor, noise: Tensor, data: Tensor) -> Tensor:
    """On the straight path from noise to data, where a trained head is meant to be asked."""
    x = (1 - t) * noise + t * data
    times = torch.full((len(x),), t, device=x.device)
    return model.flow.velocity(x, times, condition, history)


def _answers(model, prompt: Prompt, projected: Tensor) -> Tensor:
    """Logits [T,V] of the tokens behind the sound."""
    embeds = prefill.embed_prompt(model, prompt, [projected])
    mask = torch.tensor([prompt.audio_mask], device=embeds.device)
    hidden, _ = model.llm(embeds, audio_mask=mask)
    ((start, n),) = prompt.spans
    return model.llm.logits(hidden[0, start + n :])


def _host(value: Tensor | Sequence[Tensor]) -> Any:
    if isinstance(value, Tensor):
        return value.to("cpu", torch.float32)
    return [_host(each) for each in value]


def _compare_logits(found: Tensor, wanted: Tensor) -> dict[str, float]:
    agree = (found.argmax(-1) == wanted.argmax(-1)).double().mean()
    p, q = wanted.double().log_softmax(-1), found.double().log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1).clamp(min=0)
    return {
        "top1": float(agree),
        "logits": relative(found, wanted),
        "kl_mean": float(kl.mean()),
        "kl_max": float(kl.max()),
    }


@dataclass(frozen=True)
class ContextCost:
    """What the options for long sound change, relative (L2): the embeddings that the language model
    reads, over the newest half of `seconds` of sound.

    error: of a window or an 8-bit cache against all that came before, as it is. kept: of having
    heard the first half against hearing the second alone, as a new segment does. bytes and
    reference_bytes: of the semantic cache.
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
    """Run the semantic module over so much sound, with the options and without.

    The sound is the checkpoint's default voice over and over, or a synthetic one. context_seconds,
    context_format: as in `MingAudio.tts_stream`. Raises InputError.
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
        heard = [_heard(model, latents, state)[:, -half.shape[1] // frames :] for state in states]
        alone = _heard(model, half, AS_REFERENCE.state(model, count))
    sizes = [state.nbytes for state in states]
    return ContextCost(count / frames / 10, relative(heard[1], heard[0]), relative(heard[0], alone), sizes[1], sizes[0])


def _heard(model, latents: Tensor, state: Any) -> Tensor:
    """latents [1,n·P,C] patch by patch, as speech is made -> [1,n,H] for the language model."""
    parts = []
    for part in latents.split(model.config.patch_frames, dim=1):
        embedding, state = model.vae.unify(part, state)
        parts.append(model.pool(embedding))
    return torch.cat(parts, dim=1)
