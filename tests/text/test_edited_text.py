"""Tags in the text of an edit become spans; pieces never split a tag."""

import random

import pytest

from mingcore.text.edits import EditedText

CASES = {
    "plain text < 5 and <b>": ("plain text < 5 and <b>", None),
    "<cot_text>I <edit>really</edit> mean it</cot_text>": (
        "I really mean it",
        (("I ", False), ("really", True), (" mean it", False)),
    ),
    "<cot_text>one <edit><framePatch></edit> two</cot_text>": (
        "one  two",
        (("one ", False), ("", True), (" two", False)),
    ),
    "<edit>a</edit><edit>b</edit>": ("ab", (("a", True), ("b", True))),
    "ends within <edi": ("ends within <edi", None),
}


@pytest.mark.parametrize("text", CASES)
def test_spans(text):
    clean, spans = CASES[text]
    rng = random.Random(0)
    for _ in range(20):
        parser, found, rest = EditedText(), "", text
        while rest:
            n = rng.randint(1, 5)
            piece = parser.push(rest[:n])
            assert not any(tag in piece for tag in ("<edit", "</edit", "<cot", "<frame")) or spans is None
            found, rest = found + piece, rest[n:]
        assert found + parser.flush() == clean
        assert parser.spans() == spans
