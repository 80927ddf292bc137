"""Sampling of text: the next tokens of all sequences that write, chosen on the device in step.

The device decides which text has ended, and a row that takes no part is left without a trace.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_STOPS, EXPECTED_TOKENS = 2, 256


@dataclass(frozen=True)
class TextPlan:
    """Text to be generated behind a prompt: at most `max_tokens` tokens, the likeliest at temperature 0.

    It ends with one of `stops`, at most `MAX_STOPS`. then: the token that is fed to the LLM before sound follows; None
    where none does.
    """

    max_tokens: int
    temperature: float
    stops: tuple[int, ...]
    then: int | None = None

    @property
    def expected(self) -> int:
        """Tokens that caches have room for at the start; they grow."""
        return min(self.max_tokens, EXPECTED_TOKENS)


@dataclass(frozen=True)
class SampledTokens:
    """The next tokens [n] int64, on the device. ended [n]: the row's text ends with it; stopped [n]: because it is a
    stop, which is not part of the text. Without meaning where no text is generated."""

    token: Tensor
    ended: Tensor
    stopped: Tensor


def sample_tokens(model, state, noise: Tensor | None, rows: Tensor | None = None) -> SampledTokens:
    """The next token of every active row that writes; `state` is a `state.BatchState` and changed in place.

    noise [m,V], or None where all temperatures are 0: see `choose`. rows [m] int64: those that are computed; None: all.
    """
    text = state.text
    hidden, temperature = state.hidden, text.temperature
    if rows is not None:
        hidden, temperature = hidden.index_select(0, rows), temperature.index_select(0, rows)
    logits = model.llm.logits(hidden[:, None])[:, -1].float()
    token = choose(logits, temperature[:, None], noise)
    if rows is not None:
        token = text.token.index_copy(0, rows, token)
    forced = text.forced >= 0
    token = torch.where(forced, text.forced, token)
    consumed = text.writing & state.active
    sampled = consumed & ~forced
    stopped = sampled & (token[:, None] == text.stops).any(1)
    text.num_tokens += sampled
    ended = stopped | (sampled & (text.num_tokens >= text.max_tokens))
    torch.logical_and(consumed, ~stopped, out=text.feed)
    text.token.copy_(torch.where(text.feed, token, text.token))
    text.writing &= ~ended
    # `alive` of rows that are not active is left over from an earlier step
    torch.logical_or(text.feed, state.alive & state.open & state.active, out=state.alive)
    return SampledTokens(token, ended, stopped)


class SamplingNoise:
    """Exponentially distributed numbers (rate 1) for `choose`, from one request's own generator."""

    def __init__(self, seed: int, vocab_size: int, temperature: float, device: torch.device):
        self._shape, self._temperature = (1, vocab_size), temperature
        self._generator = torch.Generator(device).manual_seed(seed)

    def __call__(self) -> Tensor | None:
        """[1,V] for the next token; None at temperature 0."""
        if self._temperature == 0:
            return None
        noise = torch.empty(self._shape, dtype=torch.float32, device=self._generator.device)
        return noise.exponential_(generator=self._generator)


def choose(logits: Tensor, temperature: Tensor | float, noise: Tensor | None) -> Tensor:
    """logits [m,V] float32 -> ids [m]: argmax where `temperature` ([m,1], or of all) is 0, else a sample of
    softmax(logits / temperature).

    noise [m,V]: exponentially distributed (rate 1), from a generator of the row's own; the id with the largest
    probability / noise is taken, as `torch.multinomial` does (the exponential form of the Gumbel-max trick). None:
    every temperature is 0.
    """
    likeliest = logits.argmax(-1)
    if noise is None:
        return likeliest
    temperature = torch.as_tensor(temperature, dtype=torch.float32, device=logits.device)
    random = temperature > 0
    probabilities = torch.softmax(logits / torch.where(random, temperature, 1.0), -1)
    return torch.where(random.squeeze(-1), (probabilities / noise).argmax(-1), likeliest)
