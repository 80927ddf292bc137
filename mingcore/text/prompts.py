"""Text to token ids and back, and the prompts of the tasks (docs/model.md section 5).

The ids of special tokens are asked of the checkpoint's tokenizer.json, never assumed. Every
piece of a prompt is tokenised by itself and the ids are concatenated, as in training.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer as _Tokenizer

from ..config.files import read_text
from ..errors import CheckpointError, InputError

END_OF_TEXT = "<|endoftext|>"
GEN_AUDIO = "<gen_audio>"
HUMAN, ASSISTANT = ("<role>", "HUMAN", "</role>"), ("<role>", "ASSISTANT", "</role>")
TTS_INSTRUCTION = "Please translate the text to speech.\n"
ASR_INSTRUCTION = "Please recognize the language of this speech and transcribe it. Format: oral."
HOTWORDS = " This audio may contains the following words or phrases:"
# the names by which recognition's answers begin, and what users write for them
LANGUAGES = {
    "Chinese": ("zh", "zh-cn", "cmn", "mandarin", "中文", "普通话"),
    "English": ("en", "en-us", "en-gb", "英文", "英语"),
    "Canton": ("yue", "zh-hk", "zh-yue", "cantonese", "粤", "粤语", "广东话"),
    "川渝": ("sichuan", "sichuanese", "四川", "四川话", "重庆话", "川渝话"),
    "湖南": ("hunan", "hsn", "湖南话", "湘语"),
    "闽南": ("minnan", "hokkien", "nan", "闽南语", "闽南话"),
    "上海": ("shanghai", "shanghainese", "wuu", "上海话"),
}
_LANGUAGE_NAMES = {alias: name for name, aliases in LANGUAGES.items() for alias in (name.lower(), *aliases)}
# a UTF-8 character has at most 4 bytes, so at most 4 tokens; what is longer will never decode
_PENDING_TOKENS = 4


class Tokenizer:
    """A checkpoint's tokenizer.json: text to ids, ids to text, special tokens by name."""

    def __init__(self, tokenizer: _Tokenizer, label: str = "tokenizer.json"):
        self._tokenizer, self._label = tokenizer, label
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._special = {token.content: i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}

    @classmethod
    def from_folder(cls, folder: str | Path) -> "Tokenizer | None":
        """The tokenizer of a checkpoint folder; None when it has no tokenizer.json.

        Raises CheckpointError when the file is damaged.
        """
        path = Path(folder) / "tokenizer.json"
        if not path.exists() and not path.is_symlink():
            return None
        text = read_text(path)
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: not a tokenizer ({error})") from None
        if not isinstance(content, dict) or "model" not in content:
            raise CheckpointError(f"{path}: not a tokenizer (no entry 'model')")
        try:
            return cls(_Tokenizer.from_str(text), str(path))
        except Exception as error:
            if type(error) is not Exception:  # the library raises no narrower type
                raise
            raise CheckpointError(f"{path}: not a tokenizer ({error})") from None

    def special(self, name: str, task: str) -> int:
        """The id of the special token `name`; raises CheckpointError, naming `task`, where there is none."""
        i = self._tokenizer.token_to_id(name)
        if i is None:
            raise CheckpointError(f"{self._label}: has no token {name!r}, which {task} needs")
        return i

    def has(self, name: str) -> bool:
        """Whether `name` is one token."""
        return self._tokenizer.token_to_id(name) is not None

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ones included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """The ids of what a user wrote: names of special tokens in it are ordinary text.

        Raises InputError when the tokenizer cannot but read one as special.
        """
        if not any(name in text for name in self._special):
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        ids = self._literal.encode(text, add_special_tokens=False).ids
        smuggled = set(ids) & set(self._special.values())
        if smuggled:
            name = next(n for n, i in self._special.items() if i in smuggled)
            raise InputError(f"text: holds the control token {name!r}")
        return ids

    @cached_property
    def _literal(self) -> _Tokenizer:
        literal = _Tokenizer.from_str(self._tokenizer.to_str())
        literal.encode_special_tokens = True
        return literal

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of `ids`; special tokens are left out unless `skip_special` is False."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special)

    def stream(self) -> "TextStream":
        """A decoder that takes ids one by one."""
        return TextStream(self)


class TextStream:
    """Ids in, text out, never half a character; the pieces joined equal the whole's text."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        # text up to _read is out; decoding starts at _prefix, as some tokens lose their blank
        # at the start of a text
        self._prefix = self._read = 0

    def push(self, token: int) -> str:
        """The text that `token` completes, perhaps none."""
        self._ids.append(token)
        return self._emit(final=False)

    def flush(self) -> str:
        """What is left at the end: bytes that never became a character, as replacement marks."""
        return self._emit(final=True)

    def _emit(self, final: bool) -> str:
        before = self._tokenizer.decode(self._ids[self._prefix : self._read])
        now = self._tokenizer.decode(self._ids[self._prefix :])
        waits = now.endswith("\ufffd") and len(self._ids) - self._read <= _PENDING_TOKENS
        if waits and not final:
            return ""
        self._prefix, self._read = self._read, len(self._ids)
        return now[len(before) :]


@dataclass(frozen=True)
class Audio:
    """An audio block in a message: `patches` placeholders."""

    patches: int


@dataclass(frozen=True)
class Prompt:
    """Token ids of a prompt, and where its audio placeholders are.

    `spans`: (first position, number of patches) per audio block, in order; the embeddings at
    these positions are replaced by projected latents.
    """

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...] = ()

    @property
    def audio_mask(self) -> list[bool]:
        """True at the audio placeholders, one entry per id."""
        mask = [False] * len(self.ids)
        for start, patches in self.spans:
            mask[start : start + patches] = [True] * patches
        return mask


class _PromptBuilder:
    """Collects the pieces of a prompt for `task`."""

    def __init__(self, tokenizer: Tokenizer, task: str):
        self.tokenizer, self.task = tokenizer, task
        self.ids: list[int] = []
        self.spans: list[tuple[int, int]] = []

    def special(self, name: str) -> None:
        self.ids.append(self.tokenizer.special(name, self.task))

    def text(self, text: str) -> None:
        self.ids += self.tokenizer.encode(text)

    def role(self, role: tuple[str, str, str]) -> None:
        self.special(role[0])
        self.text(role[1])
        self.special(role[2])

    def audio(self, patches: int, *, close: bool = True) -> None:
        self.special("<audio>")
        if patches:
            self.spans.append((len(self.ids), patches))
        self.ids += [self.tokenizer.special("<audioPatch>", self.task)] * patches
        if close:
            self.special("</audio>")

    def build(self) -> Prompt:
        return Prompt(tuple(self.ids), tuple(self.spans))


def tts_prompt(tokenizer: Tokenizer, text: str, transcript: str, patches: int) -> Prompt:
    """Speech in a reference voice: the voice's `transcript`, `text`, then `patches` of the voice.

    The audio block stays open: generation continues it. Instruction and transcript are one
    piece, the text another; without a voice (0 patches) all three are one piece.
    """
    b = _PromptBuilder(tokenizer, "tts")
    b.role(HUMAN)
    if patches:
        b.text(TTS_INSTRUCTION + transcript)
        b.text(text)
    else:
        b.text(TTS_INSTRUCTION + transcript + text)
    b.role(ASSISTANT)
    b.audio(patches, close=False)
    return b.build()


def answer_language(language: str | None) -> str | None:
    """The name in `LANGUAGES` for a tag or another spelling of it; other names are passed on, stripped."""
    if language is None:
        return None
    language = language.strip()
    return _LANGUAGE_NAMES.get(language.lower().replace("_", "-"), language)


def with_hotwords(instruction: str, hotwords: Sequence[str]) -> str:
    """`instruction`, and behind it the words that the recording may hold; without any it is unchanged."""
    return instruction + HOTWORDS + ",".join(hotwords) if hotwords else instruction


def understanding_prompt(tokenizer: Tokenizer, parts: Sequence[str | Audio], language: str | None = None) -> Prompt:
    """Recognition and questions: `parts` of the message in their order, then the answer's start.

    `language`, when known, is the name that the answer begins with ("Chinese", "English", …).
    """
    b = _PromptBuilder(tokenizer, "understanding")
    b.role(HUMAN)
    for part in parts:
        if isinstance(part, Audio):
            b.audio(part.patches)
        else:
            b.text(part)
    b.role(ASSISTANT)
    if language is not None:
        b.text(f"{language}\t")
    return b.build()


def unmarked(instruction: str) -> str:
    """`instruction` without the `<prompt>` marks around it."""
    return instruction.strip().removeprefix("<prompt>").removesuffix("</prompt>").strip()


def edit_prompt(tokenizer: Tokenizer, instruction: str, patches: int, *, reasoning: bool = True) -> Prompt:
    """Editing: the audio, the instruction in `<prompt>` marks, then the answer's start.

    `reasoning` appends `<answer>`, the form in which the model first writes what it will say.
    An instruction that already carries the marks is taken as it is.
    """
    instruction = unmarked(instruction)
    b = _PromptBuilder(tokenizer, "editing")
    b.role(HUMAN)
    b.audio(patches)
    b.special("<prompt>")
    if tokenizer.has("</prompt>"):
        b.text(instruction + "\n")
        b.special("</prompt>")
    else:
        b.text(instruction + "\n</prompt>")
    b.role(ASSISTANT)
    if reasoning:
        b.special("<answer>")
    return b.build()
