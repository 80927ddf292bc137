"""Readings of everyday texts, from the rules of the language; SSML, lexicons; and that no text crashes."""

import logging
import random
import sys

import pytest

from mingcore import InputError
from mingcore.text.lexicon import read_lexicon
from mingcore.text.normalize import clean, normalize, segments, speakable, spoken_segments
from mingcore.text.symbols import english_number, english_ordinal, roman

ENGLISH = """
It is +7.	It is plus seven.
It is -5 degrees.	It is negative five degrees.
≤3	less than or equal to three
≥18	greater than or equal to eighteen
≈10	about ten
≠0	not equal to zero
±2	plus or minus two
±0.5%	plus or minus zero point five percent
x < 5	x less than five
3>2	three greater than two
5²	five squared
4³	four cubed
10⁻³	ten to the power of minus three
x² + y² = z²	x squared plus y squared equals z squared
√2	the square root of two
#1	number one
№5	number five
5$	five dollars
$5	five dollars
$5.50	five dollars and fifty cents
$3M	three million dollars
5€	five euros
£20	twenty pounds
5¥	five yuan
99¢	ninety nine cents
705A	seven zero five A
Room 705A is free.	Room seven zero five A is free.
A1B2	A one B two
5 ml of water	five milliliters of water
120 mmHg	one hundred and twenty millimeters of mercury
60km/h	sixty kilometers per hour
20 m²	twenty square meters
25°C	twenty five degrees Celsius
77°F	seventy seven degrees Fahrenheit
v2.13.0	v two point thirteen point zero
1,234.56	one thousand two hundred thirty-four point five six
1,000,000	one million
50,000	fifty thousand
the 1990s	the nineteen nineties
the 1920s	the nineteen twenties
the 2000s	the two thousands
the 1910s	the nineteen tens
Henry VIII	Henry the eighth
Louis XIV	Louis the fourteenth
World War II	World War two
Chapter IV	Chapter four
½ cup	one half cup
2½ cups	two and one half cups
call 415 555 1234	call four one five, five five five, one two three four
3/4	three quarters
10^6	ten to the power of six
~5	about five
−5	negative five
©2024	copyright twenty twenty four
H₂O	H two O
＜5	less than five
a\u200db\u200dc	abc
in\u00adter\u00adest	interest
COVID-19	COVID-nineteen
AT&T	AT and T
5‰	five per mille
"""
CHINESE = """
他说60km/h。	他说每小时六十公里。
他说1TB/s。	他说每秒一TB。
他说Qwen3-30B-A3B。	他说Qwen三 三十B A三B。
他说A1B2。	他说A一B二。
他用GPT-4和Qwen3。	他用GPT 四和Qwen三。
今天＋5℃	今天正五摄氏度
面积20m²	面积二十平方米
体积3m³	体积三立方米
≥18岁	大于等于十八岁
≤3个	小于等于三个
他在#3房间	他在三号房间
这是5$	这是五美元
这是€5	这是五欧元
价格5¥	价格五元
血压120mmHg	血压一百二十毫米汞柱
面积是5²	面积是五的平方
根是√2	根是根号二
5%的人	百分之五的人
他跑了10~20公里	他跑了十到二十公里
"""


def rows(table):
    return [line.split("\t") for line in table.strip().splitlines()]


@pytest.mark.parametrize("table", [ENGLISH, CHINESE], ids=["english", "chinese"])
def test_readings(table):
    wrong = [(text, normalize(text), wanted) for text, wanted in rows(table) if normalize(text) != wanted]
    assert not wrong, wrong


ALPHABETS = (
    "abcXYZ019 ",
    "今天是第一2３，。！",
    "+-±×÷=<>≤≥≠≈√∞π²³⁻½¼#№$€£¥%‰°℃™©®§¶",
    ".,:;!?'\"()[]{}/\\|@&*^~`_",
    "\u200b\u200c\u200d\u2060\ufeff\u00ad\u202e\u0301\ud800\ufffd\x00\t\n\r\u2028👍🏽",
    "éñüßøçαβгджאבمرحबाこんにちは한국어",
)


def test_no_text_crashes():
    """Random texts of signs, letters and marks that meet in no order: spoken, or nothing to speak."""
    rng, spoken = random.Random(7), 0
    for _ in range(600):
        alphabet = "".join(rng.sample(ALPHABETS, rng.randint(1, 3)))
        text = "".join(rng.choice(alphabet) for _ in range(rng.randint(1, 24)))
        try:
            found = segments(text)
        except InputError as error:
            assert "nothing to speak" in str(error) or "is empty" in str(error), text
            continue
        spoken += 1
        assert found and all(speakable(each) for each in found), text
        assert clean(clean(text)) == clean(text), text
    assert spoken > 300


@pytest.mark.parametrize("step", [1, 7])
def test_every_character_of_the_basic_plane_beside_a_number(step):
    """None is refused by a grammar; a character that ends up alone has nothing to speak."""
    for code in range(0x20 + step, 0x2FFF, 53):
        text = f"word {chr(code)}5{chr(code)}"
        assert "word" in normalize(text)
    assert sys.maxunicode == 0x10FFFF


def test_what_the_grammar_refuses_is_logged_once(caplog, monkeypatch):
    from mingcore.text import normalize as module

    class Refusing:
        def normalize(self, text):
            assert "!" not in text.replace("word", "")
            if any(c.isdigit() for c in text):
                raise AssertionError
            return text

    monkeypatch.setattr(module, "_normalizer", lambda language: Refusing())
    with caplog.at_level(logging.INFO):
        assert normalize("word 42 words") == normalize("word 42 words") == "word four two words"
    assert sum("spelled out" in record.message for record in caplog.records) == 1


def test_numbers_ordinals_and_roman_numerals():
    assert english_number(1_234_567) == "one million two hundred thirty-four thousand five hundred sixty-seven"
    assert [english_ordinal(n) for n in (1, 2, 3, 5, 8, 12, 20, 21, 100)] == [
        *("first", "second", "third", "fifth", "eighth", "twelfth", "twentieth", "twenty-first", "one hundredth")
    ]
    assert [roman(x) for x in ("IV", "XIV", "MCMXC", "IIII", "", "A")] == [4, 14, 1990, None, None, None]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("hi <break time='1s'/> there", [("hi", 1.0), ("there", None)]),
        ('hi<break time="500ms" />there', [("hi", 0.5), ("there", None)]),
        ("a<break/>b<break strength='strong'/>", [("a", 0.4), ("b", 0.7)]),
        ("one\n\ntwo", [("one", 0.5), ("two", None)]),
        ("<p>one</p><p>two</p>", [("one", 1.0), ("two", 0.5)]),
        ("<sub alias='World Wide Web'>WWW</sub> now", [("World Wide Web now", None)]),
        ("<say-as interpret-as='characters'>abc</say-as>", [("A B C", None)]),
        ("<say-as interpret-as='digits'>123</say-as>", [("one two three", None)]),
        ("the <say-as interpret-as='ordinal'>3</say-as> of", [("the third of", None)]),
        ("<speak><prosody rate='slow'>x &amp; y</prosody></speak>", [("x and y", None)]),
    ],
)
def test_ssml(text, wanted):
    assert [tuple(piece) for piece in spoken_segments(text)] == wanted


def test_other_angle_brackets_are_text():
    assert [piece.text for piece in spoken_segments("a < b and if x<y then")] == [normalize("a < b and if x<y then")]
    assert "hello" in spoken_segments("say <hello> now")[0].text


def test_pronunciations(tmp_path):
    words = {"mingcore": "ming core", "重庆": "虫庆", "GIF": "jif"}
    assert spoken_segments("Mingcore and mingcore's gif, GIF.", pronunciations=words)[0].text == (
        "ming core and ming core's gif, jif."
    )
    assert spoken_segments("我在重庆。", pronunciations=words)[0].text == "我在虫庆。"
    assert spoken_segments("mingcore, 5", normalized=False, pronunciations=words)[0].text == "ming core, 5"
    path = tmp_path / "words.tsv"
    path.write_text("# remarks\nmingcore\tming core\n\n重庆\t虫庆\n", encoding="utf-8")
    assert read_lexicon(path) == {"mingcore": "ming core", "重庆": "虫庆"}
    path.write_text('{"a": "b"}')
    assert read_lexicon(path) == {"a": "b"}
    for content, message in (("a b", "line 1 must be a word, a tab"), ('{"a": 1}', "got 'a': 1"), ("{", "is no JSON")):
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            read_lexicon(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_lexicon(tmp_path / "nowhere")
    with pytest.raises(InputError, match="pronunciations: must map"):
        spoken_segments("hi", pronunciations=["a"])
