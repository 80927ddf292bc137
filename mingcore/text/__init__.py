"""Text: made speakable and cut into sentences (`normalize`); tokens and prompts (`prompts`)."""
