"""What the grammars cannot read, or read wrongly, in words: signs, powers, units, codes, decades, Roman numerals.

Tables and patterns by language, applied to a sentence before its grammar. A number itself is left to the grammar; so a
rule puts words around it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

Rule = tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋", "0123456789+-")
_FRACTIONS = {
    "½": "1/2",
    "⅓": "1/3",
    "⅔": "2/3",
    "¼": "1/4",
    "¾": "3/4",
    "⅕": "1/5",
    "⅛": "1/8",
    "⅜": "3/8",
    "⅝": "5/8",
}
_FRACTIONS |= {"⅞": "7/8", "⅖": "2/5", "⅗": "3/5", "⅘": "4/5", "⅙": "1/6", "⅚": "5/6"}
_ROMAN = re.compile(r"M{0,3}(CM|CD|D?C{0,3})(XC|XL|L?X{0,3})(IX|IV|V?I{0,3})")
_ROMAN_VALUES = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TENS = ("", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_TEENS = ("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
_UNITS = ((10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred"))
_ORDINALS = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth"}
_ORDINALS |= {"twelve": "twelfth"}
_NUMBERED = (
    "Chapter|Part|Act|Scene|Volume|Section|Book|Phase|Type|Class|Appendix|War|Episode|Level|Grade|Stage|Title|Article|"
    "Bowl|Figure|Table|Unit|Lesson|Round|Division|Schedule|Annex|Mark"
)
_REGNAL = (
    "King|Queen|Pope|Emperor|Henry|Louis|Elizabeth|George|Charles|James|William|Edward|Richard|Philip|Napoleon|Peter|"
    "Catherine|Frederick|John|Paul|Pius|Benedict|Ferdinand|Alexander|Nicholas|Leo|Gregory|Innocent|Clement|Mary"
)

# a digit with nothing of a number or a word before it
_NUMBER = r"\d[\d,]*(?:\.\d+)?"
_BEFORE = r"(?<![\w.)\]])"
_APART = r"(?<![A-Za-z0-9.])"


def english_number(n: int) -> str:
    """0..999,999,999,999 in words."""
    if n < 10:
        return _DIGITS[n]
    if n < 20:
        return _TEENS[n - 10]
    if n < 100:
        return _TENS[n // 10] + (f"-{_DIGITS[n % 10]}" if n % 10 else "")
    unit, name = next((size, name) for size, name in _UNITS if n >= size)
    rest = f" {english_number(n % unit)}" if n % unit else ""
    return f"{english_number(n // unit)} {name}{rest}"


def english_ordinal(n: int) -> str:
    """1..9999 as "first", "twenty-third"."""
    words = english_number(n)
    start, separator, last = re.fullmatch(r"(.*?)([ -]?)(\w+)", words).groups()
    last = _ORDINALS.get(last, f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th")
    return f"{start}{separator}{last}"


def roman(numeral: str) -> int | None:
    """The value of a Roman numeral in capitals, or None."""
    if not numeral or not _ROMAN.fullmatch(numeral):
        return None
    values = [_ROMAN_VALUES[c] for c in numeral]
    return sum(-v if i + 1 < len(values) and v < values[i + 1] else v for i, v in enumerate(values))


def _decade(match: re.Match[str]) -> str:
    century, decade = int(match[1]), int(match[2]) // 10
    if decade == 0:
        return "two thousands" if century == 20 else f"{english_number(century)} hundreds"
    tens = _TENS[decade]
    return f"{english_number(century)} {'tens' if decade == 1 else tens[:-1] + 'ies'}"


def _regnal(match: re.Match[str]) -> str:
    value = roman(match[2])
    return match[0] if not value else f"{match[1]} the {english_ordinal(value)}"


def _numbered(match: re.Match[str]) -> str:
    value = roman(match[2])
    return match[0] if not value else f"{match[1]} {english_number(value)}"


def _digit_by_digit(number: str) -> str:
    groups = re.findall(r"\d+", number)
    return ("plus " if number.startswith("+") else "") + ", ".join(" ".join(_DIGITS[int(d)] for d in g) for g in groups)


def _spelled(match: re.Match[str]) -> str:
    return " ".join(_DIGITS[int(d)] for d in match[1]) + f" {match[2]}"


def _power(match: re.Match[str], words: dict[str, str], general: str) -> str:
    exponent = match[0].translate(_SUPERSCRIPTS)
    return words.get(exponent) or general.format(exponent.replace("-", "−"))


def _rules(*pairs: tuple[str, str | Callable[[re.Match[str]], str]]) -> tuple[Rule, ...]:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in pairs)


_POWERS = r"[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹ⁿ]+"
_COMPARISONS = {
    "en": {"≤": "less than or equal to", "≥": "greater than or equal to", "≠": "not equal to", "≈": "about"},
    "zh": {"≤": "小于等于", "≥": "大于等于", "≠": "不等于", "≈": "约等于"},
}
_SIGNS = {
    "en": {
        "±": "plus or minus",
        "√": "the square root of",
        "∞": "infinity",
        "π": "pi",
        "‰": "per mille",
        "×": "times",
        "÷": "divided by",
        "→": "to",
        "°": "degrees",
        "µ": "micro",
        "§": "section",
        "¶": "paragraph",
    },
    "zh": {
        "±": "正负",
        "√": "根号",
        "∞": "无穷大",
        "π": "派",
        "‰": "千分之一",
        "×": "乘",
        "÷": "除以",
        "→": "到",
        "°": "度",
    },
}
_SIGNS["en"] |= _COMPARISONS["en"]
_SIGNS["zh"] |= _COMPARISONS["zh"]

_ENGLISH = _rules(
    (r"(?<![\w.])(?:\+\d{1,3}[ .-]?)?\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4}(?![\w.])", lambda m: _digit_by_digit(m[0])),
    # the grammar loses the one of "1,234", and reads "1234.5" as a year
    (
        r"(?<![\d.,$€£¥])(\d{1,3}(?:,\d{3}){1,3}|\d{4,9}(?=\.\d))(?:\.(\d+))?(?![\d,]|\.\d)",
        lambda m: english_number(int(m[1].replace(",", ""))) + (f" point {' '.join(m[2])}" if m[2] else ""),
    ),
    (r"(?<![\d.])(\d+)\.(\d+)\.(\d+)(?!\.?\d)", r" \1 point \2 point \3"),
    (r"~\s?(?=\d)", "about "),
    (r"[−–](?=\d)(?<!\d.)", "-"),
    (r"(?<=\w)\s?\^\s?(?=[\w-])", " to the power of "),
    (r"\s?(?<![=<>!])=(?!=)\s?", " equals "),
    (r"©\s?", "copyright "),
    (rf"({_NUMBER})\s?¢", r"\1 cents"),
    (rf"\$({_NUMBER})\s?(k|K|M|bn|B|million|billion|trillion|thousand)\b", lambda m: f"{m[1]} {_scale(m[2])} dollars"),
    (r"\$(\d[\d,]*)\.(\d\d)(?!\d)", r"\1 dollars and \2 cents"),
    (rf"{_BEFORE}({_NUMBER})\s?\$(?!\d)", r"$\1"),
    (rf"{_BEFORE}({_NUMBER})\s?€", r"\1 euros"),
    (rf"€\s?({_NUMBER})", r"\1 euros"),
    (rf"{_BEFORE}({_NUMBER})\s?£", r"\1 pounds"),
    (rf"£\s?({_NUMBER})", r"\1 pounds"),
    (rf"[¥￥]\s?({_NUMBER})", r"\1 yuan"),
    (rf"{_BEFORE}({_NUMBER})\s?[¥￥]", r"\1 yuan"),
    (rf"₹\s?({_NUMBER})", r"\1 rupees"),
    (r"(?:#|№|\bNo\.\s?)(?=\d)", "number "),
    (r"\b(1[1-9]|20)(\d)0s\b", lambda m: _decade(_as_decade(m))),
    (rf"\b({_REGNAL})\s+([IVX]{{1,6}})\b(?!\.)", _regnal),
    (rf"\b({_NUMBERED})\s+([IVXLC]{{1,7}})\b", _numbered),
    (rf"({_NUMBER})\s?mmHg\b", r"\1 millimeters of mercury"),
    (rf"({_NUMBER})\s?°\s?C\b", r"\1 degrees Celsius"),
    (rf"({_NUMBER})\s?°\s?F\b", r"\1 degrees Fahrenheit"),
    (rf"({_NUMBER})\s?(k|c|m)?m²", lambda m: f"{m[1]} square {_METRES[m[2] or '']}"),
    (rf"({_NUMBER})\s?(k|c|m)?m³", lambda m: f"{m[1]} cubic {_METRES[m[2] or '']}"),
    (rf"({_NUMBER})\s?([kKMGTP])B/s\b", lambda m: f"{m[1]} {m[2].upper()} B per second"),
    (rf"({_NUMBER})\s?[µμ]m\b", r"\1 micrometers"),
    (rf"({_NUMBER})\s?[µμ]s\b", r"\1 microseconds"),
    (rf"({_NUMBER})\s?[µμ]g\b", r"\1 micrograms"),
    (r"(?<![\w.,])(\d{3,})([A-Z])(?!\w)(?<![KMBGT])", _spelled),
    (r"(?<=\d)\s?<\s?(?=\d)|(?<![\w<])<\s?(?=\d)", " less than "),
    (r"(?<=\d)\s?>\s?(?=\d)|(?<![\w>])>\s?(?=\d)", " greater than "),
    (r"(?<![\w+)\]])\+\s?(?=\d)", "plus "),
    (
        rf"(?<=\w){_POWERS}",
        lambda m: _power(m, {"2": " squared", "3": " cubed"}, " to the power of {} ").replace("−", "minus "),
    ),
)
_METRES = {"": "meters", "k": "kilometers", "c": "centimeters", "m": "millimeters"}
_CHINESE = _rules(
    (r"[−–](?=\d)(?<!\d.)", "-"),
    (rf"({_NUMBER})\s?[¥￥]", r"\1元"),
    (rf"\$\s?({_NUMBER})", r"\1美元"),
    (rf"{_APART}({_NUMBER})\s?\$", r"\1美元"),
    (rf"{_APART}({_NUMBER})\s?€|€\s?({_NUMBER})", lambda m: f"{m[1] or m[2]}欧元"),
    (rf"{_APART}({_NUMBER})\s?£|£\s?({_NUMBER})", lambda m: f"{m[1] or m[2]}英镑"),
    (rf"(?:#|№)\s?({_NUMBER})", r"\1号"),
    (rf"({_NUMBER})\s?([kKMGTP])B/s", r"每秒\1\2B"),
    (rf"({_NUMBER})\s?mmHg", r"\1毫米汞柱"),
    (rf"({_NUMBER})\s?m²|({_NUMBER})\s?平米", lambda m: f"{m[1] or m[2]}平方米"),
    (rf"({_NUMBER})\s?m³", r"\1立方米"),
    (rf"({_NUMBER})\s?km²", r"\1平方千米"),
    # a hyphen in a name is no minus: Qwen3-30B, GPT-4
    (r"(?<=[A-Za-z])-(?=[A-Za-z0-9])|(?<=[A-Za-z]\d)-(?=[A-Za-z0-9])|(?<=[0-9])-(?=[A-Za-z])", " "),
    (r"(?<=\d)\s?<\s?(?=\d)|(?<![\w<])<\s?(?=\d)", "小于"),
    (r"(?<=\d)\s?>\s?(?=\d)|(?<![\w>])>\s?(?=\d)", "大于"),
    (r"(?<![\dA-Za-z+)\]])\+\s?(?=\d)", "正"),
    (rf"(?<=[\dA-Za-z]){_POWERS}", lambda m: _power(m, {"2": "的平方", "3": "的立方"}, "的{}次方").replace("−", "负")),
)
_BY_LANGUAGE: dict[str, Sequence[Rule]] = {"en": _ENGLISH, "zh": _CHINESE}


def _as_decade(match: re.Match[str]) -> re.Match[str]:
    return re.fullmatch(r"(\d\d)(\d\d)", f"{match[1]}{match[2]}0")


def _scale(name: str) -> str:
    return {"k": "thousand", "K": "thousand", "M": "million", "bn": "billion", "B": "billion"}.get(name, name)


def readable(sentence: str, language: str) -> str:
    """`sentence` with signs, powers, units, codes and numerals in words that the grammar of `language` reads."""
    for character, fraction in _FRACTIONS.items():
        if character in sentence:
            sentence = re.sub(rf"(?<=\d){character}", f" {'又' if language == 'zh' else 'and'} {fraction}", sentence)
            sentence = sentence.replace(character, fraction)
    sentence = sentence.translate(_SUBSCRIPTS)
    for pattern, replacement in _BY_LANGUAGE[language]:
        sentence = pattern.sub(replacement, sentence)
    for sign, words in _SIGNS[language].items():
        if sign in sentence:
            sentence = sentence.replace(sign, words if language == "zh" else f" {words} ")
    return re.sub(r" {2,}", " ", sentence).strip() if language == "en" else sentence


def spelled_out(span: str, language: str) -> str:
    """`span` digit by digit and sign by sign: what is left to do where a grammar fails."""
    digits = _DIGITS if language == "en" else tuple("零一二三四五六七八九")
    words = {
        "+": "plus",
        "-": "minus",
        "=": "equals",
        "#": "number",
        "%": "percent",
        "<": "less than",
        ">": "greater than",
    }
    if language == "zh":
        words = {"+": "加", "-": "减", "=": "等于", "#": "号", "%": "百分号", "<": "小于", ">": "大于", ".": "点"}
    gap = " " if language == "en" else ""
    return re.sub(
        r"[0-9+=#%<>]|(?<=\d)[.-](?=\d)",
        lambda m: f"{gap}{digits[int(m[0])] if m[0].isdigit() else words.get(m[0], 'point')}{gap}",
        span,
    )
