"""The loop that turns prompts into speech and text; the only place where data crosses devices."""
