"""What an editing instruction asks for, and the words that it begins with in training (docs/editing.md)."""

import re
from typing import Literal

from .prompts import unmarked

PREFIX = "Please recognize the language of this speech and transcribe it. And "
_PREFIXED = re.compile(
    r"please\s+recogni[sz]e\s+the\s+language\s+of\s+this\s+speech\s+and\s+transcribe\s+it\b", re.IGNORECASE
)

# Words of acoustic edits; an instruction with none of them edits the content.
_ACOUSTIC = re.compile(
    r"\b(denois\w*|noises?|reverb\w*|speed|tempo|faster|slower|pitch\w*|semitones?|volume|loud(er|ness)?|quiet(er)?|"
    r"emotions?|happy|happier|sad(der)?|angry|angrier|accent|dialect|background|music|rain|ambien\w+)\b"
    r"|降噪|去噪|噪[音声]|混响|语速|速度|加快|减慢|放慢|音[高调量]|声调|响度|情[感绪]|高兴|开心|悲伤|难过|生气|愤怒|口音|方言|背景"
    r"|音乐|雨声|[川粤沪湘]话|四川话|东北话|普通话",
    re.IGNORECASE,
)
# An instruction whose verb is one of these, at a place of the text, edits the content whatever the words are about.
_CONTENT = re.compile(
    r"^\W*(please\s+)?(insert|delete|remove\s+(the\s+)?(word|phrase|character|['\"‘“])|substitute|replace)\b"
    r"|^\W*请?(在|把|将).{0,60}(插入|删除|删掉|替换)|^\W*请?(插入|删除|删掉|替换)"
    r"|\b(insert|delete|substitute|replace)\b.{0,40}(['\"‘’“”]|\b(word|character|phrase)s?\b)",
    re.IGNORECASE,
)
_QUOTED = re.compile(r"(?<!\w)'[^']*'(?!\w)|\"[^\"]*\"|‘[^’]*’|“[^”]*”|「[^」]*」")


def kind_of(instruction: str) -> Literal["content", "acoustic"]:
    """Whether an instruction, English or Chinese, changes what is said or how it sounds.

    By keywords: a verb of insertion, deletion or substitution makes it "content"; else a word of denoising, speed,
    pitch, volume, emotion, accent or background outside quotes "acoustic"; else "content".
    """
    text = without_prefix(instruction)
    if re.search(r"降噪|去噪|denois", text, re.IGNORECASE) and not _QUOTED.search(text):
        return "acoustic"
    if _CONTENT.search(text):
        return "content"
    return "acoustic" if _ACOUSTIC.search(_QUOTED.sub("", text)) else "content"


def without_prefix(instruction: str) -> str:
    """`instruction` without `<prompt>` marks and without the sentence that official instructions begin with."""
    text = unmarked(instruction)
    found = _PREFIXED.match(text)
    if not found:
        return text
    return re.sub(r"^[\s.,]*(and\s+)?", "", text[found.end() :], flags=re.IGNORECASE)


def with_prefix(instruction: str) -> str:
    """The official form: `PREFIX` before an instruction that does not begin so, in any case and spacing."""
    text = unmarked(instruction)
    return text if _PREFIXED.match(text) else PREFIX + text


# marks in the text that an edit writes: of its reasoning, of what it changed, of the place of its sound
TAGS = ("<cot_text>", "</cot_text>", "<edit>", "</edit>", "<framePatch>")


class EditedText:
    """The text that an edit writes, token by token: tags are taken out, and say which spans were changed."""

    def __init__(self) -> None:
        self._held, self._inside, self._marked = "", False, False
        self._spans: list[tuple[str, bool]] = []

    def push(self, text: str) -> str:
        """The text without tags, as far as it can no longer begin one."""
        self._held += text
        found = ""
        while self._held:
            at = self._held.find("<")
            if at < 0:
                return found + self._take(len(self._held))
            found += self._take(at)
            tag = next((tag for tag in TAGS if self._held.startswith(tag)), None)
            if tag is not None:
                self._tag(tag)
                self._held = self._held[len(tag) :]
            elif any(tag.startswith(self._held) for tag in TAGS):
                return found  # it may become one
            else:
                found += self._take(1)
        return found

    def flush(self) -> str:
        """What was held back when the text ends."""
        return self._take(len(self._held))

    def spans(self) -> tuple[tuple[str, bool], ...] | None:
        """(text, whether it was changed) in order; None where nothing was marked."""
        return tuple(span for span in self._spans if span[0] or span[1]) if self._marked else None

    def _tag(self, tag: str) -> None:
        if tag == "<edit>":
            self._inside = self._marked = True
            self._spans.append(("", True))
        elif tag == "</edit>":
            self._inside = False
            self._spans.append(("", False))

    def _take(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        if text:
            if not self._spans or self._spans[-1][1] != self._inside:
                self._spans.append(("", self._inside))
            self._spans[-1] = (self._spans[-1][0] + text, self._inside)
        return text
