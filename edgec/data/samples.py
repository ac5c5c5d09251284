"""Texts that every bundle's golden vectors start from: ordinary ones, and those that tokenizers stumble over."""

from __future__ import annotations

from typing import Final

SAMPLE_TEXTS: Final[tuple[str, ...]] = (
    "The ferry to the island leaves at nine and takes forty minutes.",
    "How do I reset the password of my account?",
    "Crème brûlée, jalapeño and smörgåsbord: the menu of the naïve café in Zürich.",
    "Ada Lovelace wrote to Charles Babbage from London in 1843.",
    "東京の天気は晴れです。 Погода хорошая. الطقس جميل 🌤️",
    "tabs\tand\nline breaks, a zero-width\u200bspace, a control\x07character and CAPITALS",
    "",
    # Longer than most models' limits divided by eight: several sentences, so that masks and positions matter.
    "A model that is meant for a phone has to answer the same way on the phone as on the desk where it was made. "
    "The tokenizer must cut the text into the same pieces, the numbers must be rounded in the same places, and when a "
    "text is longer than the model can read, the person who asked should be told so. Small differences are natural, "
    "because two processors add numbers in different orders; large ones are a sign that something went wrong.",
)

SAMPLE_PAIR: Final = (
    "The ferry to the island leaves at nine and takes forty minutes.",
    "Whoever misses the boat in the morning waits until noon.",
)
"""For models that tell the two texts of a pair apart."""
