"""Text made speakable: numbers, dates and units in words, and long texts in speakable pieces.

Normalisation is wetext's, a finite-state grammar per language; it is imported at first use.
"""

import logging
import re
import unicodedata
from collections.abc import Mapping
from functools import cache
from threading import Lock

from ..errors import InputError
from .lexicon import check_pronunciations, pronounce
from .ssml import PARAGRAPH_SECONDS, Piece, pieces
from .symbols import readable, spelled_out

logger = logging.getLogger(__name__)
_GRAMMARS = Lock()  # requests are prepared in threads; a grammar is one object

LANGUAGES = ("zh", "en")
# how long a text takes to speak, a generous estimate: 4.5 ideographs, 15 letters a second
SECONDS_PER_IDEOGRAPH = 0.22
SECONDS_PER_LETTER = 0.066
# a segment is one run of the model; its semantic cache grows by 8 MB per second
SEGMENT_SECONDS = 20.0

_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_LATIN_WORD = re.compile(r"[A-Za-z\u00c0-\u024f]+")
# pictographs, dingbats, arrows and stars, private use, and what glues emoji together
_UNSPEAKABLE = re.compile(
    "[\U0001f000-\U0001faff\u2600-\u27bf\u2b00-\u2bff\u2300-\u23ff\ue000-\uf8ff"
    "\U000e0000-\U0010ffff\u200b\ufe00-\ufe0f\u20e3\ufff0-\uffff]"
)
# joiners, soft hyphens and marks of direction stand inside words: they vanish without a gap
_INVISIBLE = re.compile("[\u00ad\u034f\u061c\u180e\u200c-\u200f\u202a-\u202e\u2060-\u206f\ufeff]")
_FULL_WIDTH = {
    code: code - 0xFEE0
    for first, last in ((0xFF10, 0xFF19), (0xFF21, 0xFF3A), (0xFF41, 0xFF5A))
    for code in range(first, last + 1)
} | {ord(wide): ord(narrow) for wide, narrow in zip("＋－＜＞＝％＃＄＆＊／＠＾", "+-<>=%#$&*/@^")}

_CLOSING = "\"'”’」』）)】》〉]}"
_SENTENCE_END = re.compile(
    rf"(?:[。！？；…]+|[.!?;…]+)[{re.escape(_CLOSING)}]*(?=\s|$)"
    rf"|[。！？；…!?]+[{re.escape(_CLOSING)}]*"
    r"|\n\s*\n"
)
_ABBREVIATIONS = (
    "dr mr mrs ms prof st jr sr vs no fig eq vol pp inc ltd co corp dept gen col capt lt sgt rev "
    "hon gov sen rep est approx e.g i.e a.m p.m u.s u.k u.n cf al jan feb mar apr jun jul aug sep "
    "sept oct nov dec mt ft ave blvd"
)
_CLAUSE_END = re.compile(r"[,，、;；:：—\n]+\s*")
_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")
_SPACES = re.compile(r" {2,}")
_SPACE = re.compile(r"\s+")
_SPANS = re.compile(r"(\s+|[\u3400-\u9fff]+|[，。！？；：、（）]+)")
_NUMBERS = re.compile(r"(\d+(?:[.,]\d+)*)")
_READS = re.compile(r"[0-9A-Za-z+=#%<>]")


def check_language(language: str | None) -> str | None:
    """The language of a tag such as "zh-CN", "English" or "auto": "zh", "en" or None (detect)."""
    if language is None:
        return None
    if isinstance(language, str):
        tag = language.strip().lower().replace("_", "-").split("-")[0]
        known = {"auto": None, "zh": "zh", "chinese": "zh", "en": "en", "english": "en"}
        if tag in known:
            return known[tag]
    raise InputError(f"language: must be one of auto, {', '.join(LANGUAGES)}, got {language!r}")


def detect_language(text: str, default: str = "en") -> str:
    """The dominant language of `text`: ideographs against Latin words; `default` if neither."""
    ideographs, found = len(_HAN.findall(text)), _LATIN_WORD.findall(text)
    # beside ideographs, words of one or two letters are units and codes: 60km/h, A1B2
    words = sum(len(word) > 2 for word in found) if ideographs else len(found)
    if ideographs == words == 0:
        return default
    # a Chinese word is about one and a half ideographs
    return "zh" if ideographs >= words * 1.5 else "en"


def clean(text: str) -> str:
    """`text` without what nobody can pronounce: emoji, control characters, lone surrogates.

    Full-width digits, letters and signs become ordinary ones; joiners vanish; letters and their
    marks are composed (NFC); white space inside a line becomes one blank; line breaks stay.
    """
    text = unicodedata.normalize("NFC", _INVISIBLE.sub("", text.translate(_FULL_WIDTH)))
    text = _UNSPEAKABLE.sub(" ", text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n"))
    text = text.replace("\u2029", "\n\n")
    text = "".join(
        "\n" if c == "\n" else " " if unicodedata.category(c) in ("Cc", "Cn", "Cs", "Zs") else c for c in text
    )
    return re.sub(r" *\n *", "\n", re.sub(r" {2,}", " ", text)).strip()


def speakable(text: str) -> bool:
    """Whether `text` holds a letter or a number."""
    return any(unicodedata.category(c)[0] in "LN" for c in text)


def normalize(text: str, language: str | None = None) -> str:
    """`text` as it is read aloud: "3.5元" → "三点五元", "$5" → "five dollars".

    Each sentence is normalised in its dominant language, which settles how its numbers are
    read; `language` overrides. Texts that are spoken as written come back unchanged.
    """
    language = check_language(language)
    text = clean(text)
    default = detect_language(text)
    return _join(_normalize_sentence(s, language or detect_language(s, default)) for s in split_sentences(text))


def _normalize_sentence(sentence: str, language: str) -> str:
    """One sentence in words; what ends it is kept from the grammar, which reads "No." as number."""
    sentence = readable(sentence, language)
    if language == "zh" and not re.search(r"\d", sentence):
        return sentence
    end = ""
    match = re.search(rf"[.!?。！？…{re.escape(_CLOSING)}]+$", sentence)
    if match and not re.search(r"\.\w+$", sentence[: match.start()]):
        sentence, end = sentence[: match.start()], match.group()
    # the grammars escape quotation marks and backslashes; nobody speaks a backslash
    spoken = _by_grammar(sentence.replace("\\", " ").replace("\n", " "), language)
    return _SPACES.sub(" ", spoken).strip() + end


def _by_grammar(sentence: str, language: str) -> str:
    """By the grammar; where it fails, span by span, and what it cannot read is spelled out."""
    try:
        with _GRAMMARS:
            spoken = _normalizer(language).normalize(sentence)
        return spoken.replace('\\"', '"')
    except AssertionError:  # the grammar's own for a text that it has no path for
        pass
    spans = [span for span in _SPANS.split(sentence) if span]
    if len(spans) == 1:
        spans = [span for span in _NUMBERS.split(sentence) if span]
    if len(spans) > 1:
        return "".join(
            span if span.isspace() or not _READS.search(span) else _by_grammar(span, language) for span in spans
        )
    _log_once(sentence)
    return spelled_out(sentence, language)


@cache
def _log_once(span: str) -> None:
    logger.info("text: the grammar cannot read %r; it is spelled out", _shorten(span))


@cache
def _normalizer(language: str):
    from wetext import Normalizer

    return Normalizer(lang=language, operator="tn")


def speaking_seconds(text: str) -> float:
    """About how long `text` takes to speak, in seconds."""
    ideographs = len(_HAN.findall(text))
    others = len(text) - ideographs - sum(map(str.isspace, text))
    return SECONDS_PER_IDEOGRAPH * ideographs + SECONDS_PER_LETTER * others


def split_sentences(text: str) -> list[str]:
    """The sentences of `text`, stripped, none empty; joined again they lose white space only.

    Ends at Chinese and English enders with the quotation marks that follow, and at empty
    lines; not inside decimals, addresses or abbreviations, nor before a small letter.
    """
    sentences, start = [], 0
    for match in _SENTENCE_END.finditer(text):
        if _ends_sentence(text, match):
            sentences.append(text[start : match.end()])
            start = match.end()
    sentences.append(text[start:])
    return [s.strip() for s in sentences if s.strip()]


def _ends_sentence(text: str, match: re.Match) -> bool:
    mark = match.group().strip(_CLOSING)
    rest = text[match.end() : match.end() + 8].lstrip()
    if rest[:1].islower() and mark.strip():
        return False
    if mark != ".":
        return True
    word = re.search(r"\S*$", text[max(0, match.start() - 40) : match.start()]).group()
    word = word.lstrip(_CLOSING + "“‘(（《「『")
    is_initial = len(word) == 1 and word.isalpha() and word.isupper()
    return not (rest and (word.lower() in _ABBREVIATIONS.split() or is_initial))


def segments(
    text: str, language: str | None = None, *, normalized: bool = True, limit_seconds: float = SEGMENT_SECONDS
) -> list[str]:
    """The pieces in which `text` is spoken, each at most about `limit_seconds` long.

    Sentences are normalised (`normalized`) and packed into as few pieces as fit; a sentence
    that is longer is cut at its clauses, else at white space, else anywhere. A text under the
    limit stays whole. Raises InputError when nothing can be spoken.
    """
    if not isinstance(text, str):
        raise InputError(f"text: must be a string, got {type(text).__name__}")
    language = check_language(language)
    if not text.strip():
        raise InputError("text: is empty")
    # a lone surrogate is no text at all, whatever the caller wants kept
    text_clean = clean(text) if normalized else re.sub("[\ud800-\udfff]", "", text).strip()
    if not normalized and speaking_seconds(text_clean) <= limit_seconds:
        sentences = [text_clean]
    else:
        sentences = split_sentences(text_clean)
    default = detect_language(text_clean)
    packed: list[str] = []
    for sentence in sentences:
        pieces = _cut(sentence, limit_seconds)
        if normalized:
            pieces = [
                cut
                for piece in pieces
                for cut in _cut(_normalize_sentence(piece, language or detect_language(piece, default)), limit_seconds)
            ]
        if packed and len(pieces) == 1:
            joined = _join([packed[-1], pieces[0]])
            if speaking_seconds(joined) <= limit_seconds:
                packed[-1] = joined
                continue
        packed += pieces
    packed = [p for p in packed if speakable(p)]
    if not packed:
        raise InputError(f"text: nothing to speak in {_shorten(text)!r}")
    return packed


def spoken_segments(
    text: str, language: str | None = None, *, normalized: bool = True, pronunciations: Mapping[str, str] | None = None
) -> list[Piece]:
    """`segments` with the pause behind each: of SSML's breaks and of paragraphs, else None.

    pronunciations: word -> spelling, replaced before numbers are. Raises InputError.
    """
    words = check_pronunciations(pronunciations)
    if not normalized or not isinstance(text, str):
        said = pronounce(text, words) if isinstance(text, str) else text
        return [Piece(each) for each in segments(said, language, normalized=normalized)]
    found: list[Piece] = []
    for piece in pieces(text):
        paragraphs = [p for p in _PARAGRAPH.split(piece.text) if speakable(clean(p))]
        for i, paragraph in enumerate(paragraphs):
            spoken = segments(pronounce(paragraph, words), language)
            found += [Piece(each) for each in spoken]
            found[-1] = Piece(spoken[-1], piece.pause if i + 1 == len(paragraphs) else PARAGRAPH_SECONDS)
        if not paragraphs and found and piece.pause is not None:
            found[-1] = Piece(found[-1].text, (found[-1].pause or 0.0) + piece.pause)
    return found or [Piece(each) for each in segments(text, language)]  # which raises


def _join(sentences) -> str:
    """One text; a blank between sentences unless one side is Chinese, a full stop after a title."""
    text = ""
    for sentence in sentences:
        if text:
            chinese = _wide(text[-1]) or _wide(sentence[:1])
            stop = unicodedata.category(text[-1])[0] in "LN"
            text += ("。" if chinese else ". ") if stop else ("" if chinese else " ")
        text += sentence
    return text


def _wide(character: str) -> bool:
    return character != "" and unicodedata.east_asian_width(character) in "WF"


def _cut(sentence: str, limit_seconds: float) -> list[str]:
    """`sentence` in pieces of at most `limit_seconds`, cut where it hurts least."""
    pieces = []
    rest = sentence.strip()
    while (fits := _prefix(rest, limit_seconds)) < len(rest):
        at = max((m.end() for m in _CLAUSE_END.finditer(rest[:fits])), default=0)
        if at < fits // 2:
            at = max((m.end() for m in _SPACE.finditer(rest[:fits])), default=0) or at
        at = at or _before_combining(rest, fits)
        pieces.append(rest[:at].strip())
        rest = rest[at:].strip()
    return [p for p in (*pieces, rest) if p]


def _prefix(text: str, limit_seconds: float) -> int:
    """How many characters of `text` fit in `limit_seconds`; at least one."""
    used = 0.0
    for i, character in enumerate(text):
        if not character.isspace():
            used += SECONDS_PER_IDEOGRAPH if _HAN.match(character) else SECONDS_PER_LETTER
        if used > limit_seconds + 1e-6:
            return max(i, 1)
    return len(text)


def _before_combining(text: str, at: int) -> int:
    """`at`, moved left so that no combining mark loses its letter."""
    cut = at
    while cut > 1 and unicodedata.combining(text[cut]):
        cut -= 1
    return cut if cut > 1 else at


def _shorten(text: str, limit: int = 40) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
