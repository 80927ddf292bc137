"""The tokenizer, the prompts as ids, and text that streams without halves of characters."""

import json

import pytest

from mingcore.errors import CheckpointError, InputError
from mingcore.text.prompts import Audio, Prompt, Tokenizer, edit_prompt, tts_prompt, understanding_prompt


def ids_of(text: str) -> list[int]:
    return [(7 * ord(c) + 10) % 480 for c in text]


HUMAN = [503, *ids_of("HUMAN"), 504]
ASSISTANT = [503, *ids_of("ASSISTANT"), 504]


def test_speech_prompt(stub):
    prompt = tts_prompt(stub, "new text", "what is heard", 2)
    told = ids_of("Please translate the text to speech.\nwhat is heard" + "new text")
    assert list(prompt.ids) == HUMAN + told + ASSISTANT + [500, 501, 501]
    assert prompt.spans == ((len(prompt.ids) - 2, 2),)
    assert prompt.audio_mask == [False] * (len(prompt.ids) - 2) + [True, True]


def test_understanding_prompt_keeps_the_order_of_the_parts(stub):
    audio = [500, 501, 501, 501, 502]
    first = understanding_prompt(stub, ["who?", Audio(3)])
    assert list(first.ids) == HUMAN + ids_of("who?") + audio + ASSISTANT
    assert first.spans == ((len(HUMAN) + 5, 3),)
    last = understanding_prompt(stub, [Audio(3), "who?"], "English")
    assert list(last.ids) == HUMAN + audio + ids_of("who?") + ASSISTANT + ids_of("English\t")
    two = understanding_prompt(stub, [Audio(1), "or", Audio(2)])
    assert two.spans == ((len(HUMAN) + 1, 1), (len(HUMAN) + 6, 2)) and sum(two.audio_mask) == 3


def test_edit_prompt(stub):
    audio = [500, 501, 502]
    wanted = HUMAN + audio + [509, *ids_of("swap it\n</prompt>")] + ASSISTANT
    assert list(edit_prompt(stub, "swap it", 1, reasoning=False).ids) == wanted
    prompt = edit_prompt(stub, "swap it", 1)
    assert list(prompt.ids) == [*wanted, 508] and prompt.spans == ((len(HUMAN) + 1, 1),)
    # the official wording carries the marks already
    assert edit_prompt(stub, "<prompt>swap it\n</prompt>", 1) == prompt


def test_each_piece_is_tokenised_by_itself():
    """With a tokenizer that merges, a piece's end never merges with the next one's start."""
    vocab = {"a": 0, "b": 1, "ab": 2, "\n": 3, "<role>": 4, "</role>": 5}
    letters = [c for c in "HUMANSITPlesrntxohcp. d" if c not in vocab]
    vocab |= {c: 6 + i for i, c in enumerate(sorted(set(letters)))}
    n = len(vocab)
    model = {"type": "BPE", "vocab": vocab, "merges": ["a b"], "unk_token": None}
    added = [
        {
            "id": i,
            "content": name,
            "special": True,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for i, name in ((4, "<role>"), (5, "</role>"), (n, "<audio>"), (n + 1, "<audioPatch>"))
    ]
    tokenizer = Tokenizer(_from({"model": model, "added_tokens": added}))
    assert tokenizer.encode("ab") == [2]
    ids = list(tts_prompt(tokenizer, "b", "a", 1).ids)
    at = ids.index(3)
    assert ids[at + 1 : at + 3] == [0, 1]
    assert list(tts_prompt(tokenizer, "ab", "", 1).ids)[at + 1] == 2


def _from(content: dict):
    from tokenizers import Tokenizer as HFTokenizer

    full = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
    }
    return HFTokenizer.from_str(json.dumps(full | content))


def test_a_token_that_is_missing_is_named(stub):
    with pytest.raises(CheckpointError, match=r"no token '<edit>', which editing needs"):
        stub.special("<edit>", "editing")
    assert stub.special("<role>", "tts") == 503 and not stub.has("<edit>")


def test_special_tokens_in_a_user_s_text_are_text(stub):
    ids = stub.encode("x<audio>y")
    assert 500 not in ids and stub.decode(ids, skip_special=False).replace(" ", "") == "x<audio>y"
    assert stub.special("<audio>", "tts") == 500


def test_special_tokens_that_cannot_be_text_are_refused():
    """Whole-word models know the name only as the token."""
    vocab = {"hello": 0, "<audio>": 1}
    added = [
        {
            "id": 1,
            "content": "<audio>",
            "special": True,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
    ]
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "hello"}
    tokenizer = Tokenizer(_from({"model": model, "added_tokens": added}))
    with pytest.raises(InputError, match="control token '<audio>'"):
        tokenizer.encode("<audio>")


@pytest.mark.parametrize(
    ("content", "reason"), [("{", "not a tokenizer"), ('{"a": 1}', "no entry 'model'"), ("[]", "no entry 'model'")]
)
def test_a_damaged_file(tmp_path, content, reason):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=reason):
        Tokenizer.from_folder(tmp_path)


def test_no_file_no_tokenizer(tmp_path):
    assert Tokenizer.from_folder(tmp_path) is None


@pytest.fixture(scope="module")
def bytes_tokenizer():
    """One token per byte, as the bundled checkpoint has it."""
    from tokenizers import Tokenizer as HFTokenizer
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = HFTokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return Tokenizer(tokenizer)


@pytest.mark.parametrize("text", ["plain", "naïve café", "今天，天气好。", "a😀b👨‍👩‍👧", " lead and  two", ""])
def test_streamed_text_is_the_text(bytes_tokenizer, text):
    stream = bytes_tokenizer.stream()
    ids = bytes_tokenizer.encode(text)
    pieces = [stream.push(i) for i in ids]
    assert all("\ufffd" not in p for p in pieces)
    assert "".join(pieces) + stream.flush() == text
    assert len(ids) == len(text.encode())


def test_streamed_text_comes_as_soon_as_it_can(bytes_tokenizer):
    stream = bytes_tokenizer.stream()
    pieces = [stream.push(i) for i in bytes_tokenizer.encode("a今b")]
    assert pieces == ["a", "", "", "今", "b"]


def test_bytes_that_are_no_text_do_not_hold_the_rest_back(bytes_tokenizer):
    bad = [bytes_tokenizer.encode("今")[0]] * 40
    stream = bytes_tokenizer.stream()
    pieces = [stream.push(i) for i in bad + bytes_tokenizer.encode("ok")]
    assert "".join(pieces).endswith("ok") and any(pieces[:10])
    half = bytes_tokenizer.stream()
    assert half.push(bad[0]) == "" and half.flush() == "\ufffd" and half.flush() == ""


def test_prompt_is_plain_data():
    assert Prompt((1, 2)) == Prompt((1, 2), ()) and Prompt((1, 2)).audio_mask == [False, False]
