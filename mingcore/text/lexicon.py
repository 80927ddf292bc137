"""Pronunciations that a user gives: words and how they are spelled for the model to say them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from ..errors import InputError


def check_pronunciations(pronunciations: Mapping[str, str] | None) -> dict[str, str]:
    """The mapping, when it is one of words to spellings. Raises InputError."""
    if pronunciations is None:
        return {}
    if not isinstance(pronunciations, Mapping):
        raise InputError(f"pronunciations: must map words to spellings, got {type(pronunciations).__name__}")
    for word, spelling in pronunciations.items():
        if not isinstance(word, str) or not isinstance(spelling, str) or not word.strip():
            raise InputError(f"pronunciations: must map words to spellings, got {word!r}: {spelling!r}")
    return dict(pronunciations)


def pronounce(text: str, pronunciations: Mapping[str, str]) -> str:
    """`text` with every given word replaced, the longest first.

    A word of letters is replaced where it stands alone, one of ideographs anywhere. A word in small letters is found in
    any case, another as it is written.
    """
    if not pronunciations:
        return text
    words = sorted(pronunciations, key=len, reverse=True)
    pattern = re.compile("|".join(f"(?P<w{i}>{_pattern(word)})" for i, word in enumerate(words)))
    return pattern.sub(lambda match: pronunciations[words[int(match.lastgroup[1:])]], text)


def _pattern(word: str) -> str:
    found = re.escape(word)
    if word == word.lower():
        found = f"(?i:{found})"
    start = r"(?<![^\W\u3400-\u9fff])" if re.match(r"\w", word) and not _han(word[0]) else ""
    end = r"(?![^\W\u3400-\u9fff])" if re.search(r"\w$", word) and not _han(word[-1]) else ""
    return f"{start}{found}{end}"


def _han(character: str) -> bool:
    return "\u3400" <= character <= "\u9fff"


def read_lexicon(path: str | Path) -> dict[str, str]:
    """A lexicon file: JSON of words to spellings, or lines "word<TAB>spelling"; lines from "#" on are remarks.

    Raises InputError for a file that cannot be read and for lines that are neither.
    """
    label = f"lexicon {str(path)!r}"
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{label}: is not UTF-8 at byte {error.start}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{label}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if text.lstrip().startswith("{"):
        try:
            return check_pronunciations(json.loads(text))
        except ValueError as error:
            raise InputError(f"{label}: is no JSON ({error})") from None
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        word, tab, spelling = line.partition("\t")
        if not tab or not word.strip() or not spelling.strip():
            raise InputError(f"{label}: line {number} must be a word, a tab and a spelling, got {line[:60]!r}")
        found[word.strip()] = spelling.strip()
    return found
