"""Text normalisation, and segmentation of long texts."""

import subprocess
import sys

import pytest

from mingcore.errors import InputError
from mingcore.text.normalize import (
    check_language,
    clean,
    detect_language,
    normalize,
    segments,
    speakable,
    speaking_seconds,
    split_sentences,
)


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("It costs $3.50.", "It costs three dollars and fifty cents."),
        ("On 2024-05-01 it snowed.", "On the first of may twenty twenty four it snowed."),
        ("Is 5°C cold?", "Is five degrees Celsius cold?"),
        ("Dr. Smith has 123 cats!", "doctor Smith has one hundred and twenty three cats!"),
        ("今天是2024年5月1日，价格3.5元。", "今天是二零二四年五月一日，价格三点五元。"),
        ("打开 Windows 11 的 10 个窗口", "打开 Windows 十一 的 十个窗口"),
        ("有10个。It has 10.", "有十个。It has ten."),
        ("１２３个", "一百二十三个"),
        ('He said "I have 3" twice.', 'He said "I have three" twice.'),
        ("what? No.", "what? No."),
        ("a\\b 5", "a b five"),
        ("没有数字。", "没有数字。"),
        ("Nothing to change here, is there?", "Nothing to change here, is there?"),
    ],
)
def test_numbers_in_words(text, spoken):
    assert normalize(text) == spoken


def test_language_overrides_detection():
    assert normalize("12", "zh") == "十二" and normalize("12", "en") == "twelve"
    assert normalize("我有 12", "en") == "我有 twelve"
    assert segments("12", "zh-CN") == ["十二"] and segments("12", normalized=False) == ["12"]


@pytest.mark.parametrize(
    ("tag", "language"),
    [
        (None, None),
        ("auto", None),
        ("zh", "zh"),
        ("zh-CN", "zh"),
        ("EN_us", "en"),
        ("Chinese", "zh"),
        (" English ", "en"),
    ],
)
def test_language_tags(tag, language):
    assert check_language(tag) == language


@pytest.mark.parametrize("tag", ["fr", "", "klingon", 5])
def test_unknown_languages(tag):
    with pytest.raises(InputError, match="language: must be one of auto, zh, en, got"):
        segments("hello", tag)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("hello", "en"),
        ("你好", "zh"),
        ("打开 Windows", "zh"),
        ("I love 北京 in spring", "en"),
        ("123", "en"),
        ("!", "en"),
    ],
)
def test_dominant_language(text, language):
    assert detect_language(text) == language


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("第一句。第二句！第三句？", ["第一句。", "第二句！", "第三句？"]),
        ("他说：“走！”然后走了。", ["他说：“走！”", "然后走了。"]),
        ('"Go!" He went. "Why?" she asked.', ['"Go!"', "He went.", '"Why?" she asked.']),
        ("Pi is 3.14 or so. See www.x.org. End", ["Pi is 3.14 or so.", "See www.x.org.", "End"]),
        ("Mr. Fox met Dr. J. R. Hen. They ate.", ["Mr. Fox met Dr. J. R. Hen.", "They ate."]),
        ("e.g. this, i.e. that etc. and so on.", ["e.g. this, i.e. that etc. and so on."]),
        ("Wait... what?! No", ["Wait... what?!", "No"]),
        ("A title\n\nA body", ["A title", "A body"]),
        ("走了……真的。", ["走了……", "真的。"]),
        ("one line\nwrapped. Two", ["one line\nwrapped.", "Two"]),
        ("", []),
    ],
)
def test_sentences(text, sentences):
    assert split_sentences(text) == sentences


def test_nothing_is_lost_by_splitting():
    text = "Mr. A said: 3.5! 他说：“走吧！”好。Then e.g. www.b.cn? 完"
    assert "".join("".join(split_sentences(text)).split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("hi 😀 there", "hi there"),
        ("👨‍👩‍👧", ""),
        ("a\u200bb", "a b"),
        ("a\x00\x07b", "a b"),
        ("x\ud800y", "x y"),
        ("tab\there", "tab here"),
        ("a\r\nb", "a\nb"),
        ("★☂ok", "ok"),
        ("50% & café – “q”", "50% & café – “q”"),
        ("\ufeffbom", "bom"),
        ("Ａ１", "A1"),
    ],
)
def test_what_nobody_can_say_is_dropped(text, cleaned):
    assert clean(text) == cleaned


@pytest.mark.parametrize("text", ["", "   ", "\n\t", "😀", "!!!", "…", "\ud800", "👨‍👩‍👧 ⭐", "——"])
@pytest.mark.parametrize("normalized", [True, False])
def test_nothing_to_speak(text, normalized):
    with pytest.raises(InputError, match=r"^text: (is empty|nothing to speak in )") as error:
        segments(text, normalized=normalized)
    assert "\n" not in str(error.value)
    str(error.value).encode()


def test_text_that_is_no_string():
    with pytest.raises(InputError, match="text: must be a string, got bytes"):
        segments(b"hello")


@pytest.mark.parametrize("text", ["a", "我", "7", "&"])
def test_one_character_is_a_text(text):
    assert len(segments(text)) == 1 and speakable(segments(text)[0])


def test_short_texts_stay_whole():
    text = "First sentence. Second sentence!  第三句。"
    assert segments(text) == ["First sentence. Second sentence!第三句。"]
    assert segments("as it  is,\nno?", normalized=False) == ["as it  is,\nno?"]


@pytest.mark.parametrize(
    "text",
    [
        "The year 1999 had 365 days. " * 360,
        "今天有365天。" * 1250,
        "a" * 10_000,
        "我" * 10_000,
        "word " * 2000,
        "1234567890" * 1000,
        "e\u0301" * 5000,
        "，".join(["很长的一句话"] * 1430),
        "?! " * 3000 + "x",
        "x" * 9_999 + ".",
        "(\"'" * 3000 + "ok",
        "a." * 5000,
        "\n\n".join("ab" * 2500),
    ],
    ids=lambda t: f"{t[:8]!r}x{len(t)}",
)
@pytest.mark.parametrize("normalized", [True, False])
def test_ten_thousand_characters(text, normalized):
    pieces = segments(text, normalized=normalized)
    assert all(speaking_seconds(p) <= 20.001 and speakable(p) for p in pieces)
    if not normalized:
        letters = [c for c in text if c.isalnum()]
        assert [c for p in pieces for c in p if c.isalnum()] == letters


def test_cuts_where_it_hurts_least():
    text = "a clause of some length, " * 20
    pieces = segments(text, normalized=False, limit_seconds=5)
    assert len(pieces) > 3 and all(p.endswith(",") for p in pieces)
    words = segments("word " * 100, normalized=False, limit_seconds=2)
    assert all(set(p.split()) == {"word"} for p in words)
    accents = segments("e\u0301" * 200, normalized=False, limit_seconds=1)
    assert all(p.startswith("e") for p in accents)


def test_sentences_are_packed_into_few_pieces():
    text = "A short one. " * 60
    pieces = segments(text, normalized=False, limit_seconds=6)
    assert all(speaking_seconds(p) > 4 for p in pieces[:-1])
    assert all(p.endswith(".") for p in pieces)


def test_a_title_gets_its_full_stop():
    assert segments("Chapter 1\n\nIt was cold.\n\n第二章\n\n他走了") == ["Chapter one. It was cold.第二章。他走了"]


def test_longer_takes_longer():
    assert speaking_seconds("你好") == pytest.approx(0.44)
    assert speaking_seconds("hello world") == pytest.approx(0.66)
    assert speaking_seconds("") == 0


def test_the_grammars_are_loaded_when_used():
    code = (
        "import sys, mingcore, mingcore.text.normalize, mingcore.audio, mingcore.errors\n"
        "heavy = {'torch', 'wetext', 'soundfile', 'soxr', 'tokenizers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert 'MingAudio' in dir(mingcore)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
