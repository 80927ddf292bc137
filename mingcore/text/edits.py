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
