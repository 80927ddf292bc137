"""Rows that write text: their next tokens are chosen in step, and read by the LLM together with the
patches of others (step.py).

The device decides what ends, and a row that takes no part is left without a trace.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

MOST_STOPS, EXPECTED_TOKENS = 2, 256


@dataclass(frozen=True)
class TextPlan:
    """Text that is written behind a prompt: at most `most` tokens, the likeliest at temperature 0.

    It ends with one of `stops`, at most `MOST_STOPS`. then: the token that is read before sound
    follows; None where none does.
    """

    most: int
    temperature: float
    stops: tuple[int, ...]
    then: int | None = None

    @property
    def expected(self) -> int:
        """Tokens that caches have room for at the start; they grow."""
        return min(self.most, EXPECTED_TOKENS)


@dataclass
class TextRows:
    """B rows. Tensors [B]:

    writing, bool: the text has not ended. read, bool: the row's token goes to the LLM in this step.
    token int64: the one that was chosen last. forced int64: the one to be read next whatever the
    model says, which is no part of the text; -1: none. written, most int64: tokens of the text, and
    how many at most. stops [B,MOST_STOPS] int64: tokens that end it; -1 is none. temperature
    float32.
    """

    writing: Tensor
    read: Tensor
    token: Tensor
    forced: Tensor
    written: Tensor
    most: Tensor
    stops: Tensor
    temperature: Tensor

    @classmethod
    def create(cls, batch: int, device: torch.device) -> TextRows:
        """`batch` rows, none of which writes."""
        flags = (torch.zeros(batch, dtype=torch.bool, device=device) for _ in range(2))
        counts = (torch.zeros(batch, dtype=torch.int64, device=device) for _ in range(4))
        stops = torch.zeros(batch, MOST_STOPS, dtype=torch.int64, device=device)
        return cls(*flags, *counts, stops, torch.zeros(batch, device=device))

    @property
    def nbytes(self) -> int:
        return sum(getattr(self, f.name).nbytes for f in fields(self))

    def rows(self, start: int, stop: int) -> TextRows:
        """Rows start..stop-1 over the same memory."""
        return TextRows(*(getattr(self, f.name)[start:stop] for f in fields(self)))

    def begin(self, row: int, plan: TextPlan) -> None:
        """`row` writes from now on."""
        stops = [*plan.stops, *[-1] * MOST_STOPS][:MOST_STOPS]
        self.stops[row] = torch.tensor(stops, device=self.stops.device)
        self.written[row], self.most[row], self.forced[row] = 0, plan.most, -1
        self.temperature[row] = plan.temperature
        self.writing[row] = True

    def force(self, row: int, token: int) -> None:
        """`row`, which has ended, reads one more token."""
        self.forced[row], self.writing[row] = token, True

    def clear(self, row: int) -> None:
        """`row` writes nothing."""
        self.writing[row] = self.read[row] = False

    def move(self, source: int, target: int) -> None:
        """Row `target` becomes a copy of row `source`."""
        for f in fields(self):
            part = getattr(self, f.name)
            part[target] = part[source]


@dataclass(frozen=True)
class Picked:
    """The next tokens [n] int64, on the device. ended [n]: the row's text ends with it; stopped
    [n]: because it is a stop, which is not part of it. Without meaning where nothing is written."""

    token: Tensor
    ended: Tensor
    stopped: Tensor


def pick(model, rows, draws: Tensor | None, who: Tensor | None = None) -> Picked:
    """The next token of every row whose turn it is to write; `rows` are `rows.Rows`.

    draws [m,V], or None where all temperatures are 0: see `choose`. who [m] int64: the rows that
    are computed; None: all.
    """
    text = rows.text
    hidden, temperature = rows.hidden, text.temperature
    if who is not None:
        hidden, temperature = hidden.index_select(0, who), temperature.index_select(0, who)
    logits = model.llm.logits(hidden[:, None])[:, -1].float()
    token = choose(logits, temperature[:, None], draws)
    if who is not None:
        token = text.token.index_copy(0, who, token)
    given = text.forced >= 0
    token = torch.where(given, text.forced, token)
    taken = text.writing & rows.turn
    chosen = taken & ~given
    stopped = chosen & (token[:, None] == text.stops).any(1)
    text.written += chosen
    ended = stopped | (chosen & (text.written >= text.most))
    torch.logical_and(taken, ~stopped, out=text.read)
    text.token.copy_(torch.where(text.read, token, text.token))
    text.writing &= ~ended
    # what was left of an earlier step by rows that sit out is not meant
    torch.logical_or(text.read, rows.going & rows.open & rows.turn, out=rows.going)
    return Picked(token, ended, stopped)


class Draws:
    """Exponentially distributed numbers (rate 1) for `choose`, of one request's own stream."""

    def __init__(self, seed: int, vocab_size: int, temperature: float, device: torch.device):
        self._shape, self._temperature = (1, vocab_size), temperature
        self._generator = torch.Generator(device).manual_seed(seed)

    def __call__(self) -> Tensor | None:
        """[1,V] for the next token; None at temperature 0."""
        if self._temperature == 0:
            return None
        room = torch.empty(self._shape, device=self._generator.device)
        return room.exponential_(generator=self._generator)


def choose(logits: Tensor, temperature: Tensor | float, draws: Tensor | None) -> Tensor:
    """logits [m,V] float32 -> ids [m]: the likeliest where `temperature` ([m,1], or of all) is 0,
    else one drawn with probability softmax(logits / temperature).

    draws [m,V]: exponentially distributed (rate 1), of a stream of the row's own; the id with the
    largest probability / draw, as `torch.multinomial` has it. None: every temperature is 0.
    """
    likeliest = logits.argmax(-1)
    if draws is None:
        return likeliest
    temperature = torch.as_tensor(temperature, device=logits.device)
    drawn = temperature > 0
    probabilities = torch.softmax(logits / torch.where(drawn, temperature, 1.0), -1)
    return torch.where(drawn.squeeze(-1), (probabilities / draws).argmax(-1), likeliest)
