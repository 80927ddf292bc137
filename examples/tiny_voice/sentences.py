"""What the tiny voice learns to say: strings of digits, and sentences of some 150 words."""

from __future__ import annotations

import random

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ADJECTIVES = (
    "red",
    "blue",
    "green",
    "white",
    "black",
    "big",
    "small",
    "old",
    "new",
    "good",
    "happy",
    "quiet",
    "warm",
    "cold",
)
NOUNS = (
    "cat",
    "dog",
    "bird",
    "horse",
    "house",
    "door",
    "window",
    "car",
    "book",
    "boy",
    "girl",
    "man",
    "woman",
    "friend",
    "garden",
    "river",
    "tree",
    "table",
    "letter",
    "song",
)
PEOPLE = ("the boy", "the girl", "the man", "the woman", "my friend", "my mother", "your father", "the teacher")
ACTIONS = ("sees", "likes", "wants", "finds", "opens", "knows", "remembers", "follows", "paints", "watches")
PLACES = (
    "in the house",
    "near the river",
    "under the tree",
    "at home",
    "on the table",
    "behind the door",
    "in the garden",
    "at school",
    "by the window",
    "in the city",
)
TIMES = (
    "today",
    "tomorrow",
    "now",
    "again",
    "every day",
    "in the morning",
    "at night",
    "on monday",
    "on sunday",
    "this evening",
)
FIXED = (
    "hello",
    "good morning",
    "good night",
    "thank you very much",
    "how are you today",
    "my name is ming",
    "this is ming speaking from a plain CPU",
    "hello, this is ming speaking from a plain CPU",
    "hello, this is ming",
    "nice to meet you",
    "please open the window",
    "please close the door",
    "I can speak and I can listen",
    "this is a small voice on a small machine",
    "the weather is good today",
    "it is cold and quiet at night",
    "what is your name",
    "where is my book",
    "yes, I know",
    "no, thank you",
)


def digits(rng: random.Random, low: int = 1, high: int = 7) -> str:
    """A string of `low` to `high` digits in words."""
    return " ".join(rng.choices(DIGITS, k=rng.randint(low, high)))


def thing(rng: random.Random) -> str:
    """A noun with its article or number, and perhaps an adjective."""
    before = rng.choice(("the", "a", "my", "your", "this"))
    adjective = f" {rng.choice(ADJECTIVES)}" if rng.random() < 0.6 else ""
    return f"{before}{adjective} {rng.choice(NOUNS)}"


def sentence(rng: random.Random) -> str:
    """One English sentence, as a person would type it."""
    kind = rng.random()
    if kind < 0.2:
        text = rng.choice(FIXED)
    elif kind < 0.65:
        text = f"{rng.choice(PEOPLE)} {rng.choice(ACTIONS)} {thing(rng)}"
        text += f" {rng.choice(PLACES)}" if rng.random() < 0.4 else ""
        text += f" {rng.choice(TIMES)}" if rng.random() < 0.4 else ""
    elif kind < 0.8:
        text = f"{thing(rng)} is {rng.choice(ADJECTIVES)} and {rng.choice(ADJECTIVES)}"
    elif kind < 0.9:
        text = f"{thing(rng)} is {rng.choice(PLACES)} {rng.choice(TIMES)}"
    else:
        text = f"I see {rng.choice(DIGITS[2:])} {rng.choice(NOUNS[:5])}s {rng.choice(PLACES)}"
    return text[0].upper() + text[1:] + "."


def text(rng: random.Random) -> str:
    """A training text: half of them digits."""
    return digits(rng) if rng.random() < 0.5 else sentence(rng)
