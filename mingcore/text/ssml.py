"""The useful part of SSML 1.1 in a text: breaks, substitutions, say-as, paragraphs; anything else is text.

`<break>` is a pause, `<sub alias>` says the alias, `<say-as>` spells or counts, `<p>`, `<s>` and `<speak>` structure.
What the model cannot follow (`<prosody>`, `<emphasis>`, `<voice>`, `<lang>`, `<phoneme>`, `<mark>`, `<audio>`) loses
its tags, with one line in the log, and keeps its text.
"""

from __future__ import annotations

import html
import logging
import re
from functools import cache
from typing import NamedTuple

logger = logging.getLogger(__name__)

PARAGRAPH_SECONDS = 0.5
MAX_BREAK_SECONDS = 60.0
_STRENGTHS = {"none": 0.0, "x-weak": 0.1, "weak": 0.2, "medium": 0.4, "strong": 0.7, "x-strong": 1.0}
_IGNORED = "prosody|emphasis|voice|lang|phoneme|mark|audio|desc|w|token"
_NAMES = f"speak|break|say-as|sub|p|s|{_IGNORED}"
_TAG = re.compile(
    rf"<(?P<close>/?)(?P<name>{_NAMES})(?P<attributes>(?:\s[^<>/]*(?:/(?!>)[^<>/]*)*)?)(?P<empty>/?)>", re.I
)
_ATTRIBUTE = re.compile(r"([\w:-]+)\s*=\s*(?:\"([^\"]*)\"|'([^']*)')")
_TIME = re.compile(r"\+?(\d*\.?\d+)(ms|s)")
_SPELLED = ("characters", "spell-out", "verbatim")
_BY_DIGIT = ("digits", "telephone")


class Piece(NamedTuple):
    """Text, and the pause behind it in seconds; None: as between sentences."""

    text: str
    pause: float | None = None


def pieces(text: str) -> list[Piece]:
    """`text` cut at its breaks; without SSML one piece, the text as it is. Pieces may be empty."""
    if not _TAG.search(text):
        return [Piece(text)]
    found: list[Piece] = []
    parts, at, stack = [], 0, []
    for match in _TAG.finditer(text):
        _add(parts, text[at : match.start()], stack)
        at = match.end()
        name, attributes = match["name"].lower(), _attributes(match["attributes"])
        closing = bool(match["close"])
        if name == "break" and not closing:
            found.append(Piece("".join(parts), _break_seconds(attributes)))
            parts = []
        elif name == "p":
            found.append(Piece("".join(parts), PARAGRAPH_SECONDS))
            parts = []
        elif name == "s":
            parts.append("\n\n")
        elif name in ("sub", "say-as"):
            if closing:
                _close(parts, stack, name)
            elif not match["empty"]:
                stack.append((name, attributes))
                if name == "sub" and "alias" in attributes:
                    parts.append(attributes["alias"])
        elif name != "speak":
            _note(name)
    _add(parts, text[at:], stack)
    return [*found, Piece("".join(parts))]


def _add(parts: list[str], text: str, stack: list[tuple[str, dict[str, str]]]) -> None:
    text = html.unescape(text)
    if stack:
        name, attributes = stack[-1]
        if name == "sub" and "alias" in attributes:
            return
        if name == "say-as":
            text = _say_as(text, attributes.get("interpret-as", "").lower())
    parts.append(text)


def _close(parts: list[str], stack: list[tuple[str, dict[str, str]]], name: str) -> None:
    if stack and stack[-1][0] == name:
        stack.pop()


def _say_as(text: str, kind: str) -> str:
    if kind in _SPELLED:
        return " ".join(c.upper() if c.isascii() else c for c in text if not c.isspace())
    if kind in _BY_DIGIT:
        return " ".join(c for c in text if not c.isspace())
    if kind == "ordinal" and text.strip().isdecimal():
        number = int(text)
        last = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
        return f"{number}{last}"
    return text


def _attributes(text: str) -> dict[str, str]:
    return {name.lower(): html.unescape(a or b) for name, a, b in _ATTRIBUTE.findall(text)}


def _break_seconds(attributes: dict[str, str]) -> float:
    match = _TIME.fullmatch(attributes.get("time", "").strip().lower())
    if match:
        return min(float(match[1]) / (1000 if match[2] == "ms" else 1), MAX_BREAK_SECONDS)
    return _STRENGTHS.get(attributes.get("strength", "medium").lower(), _STRENGTHS["medium"])


@cache
def _note(name: str) -> None:
    logger.warning("text: the model does not follow <%s>; its text is spoken without it", name)
