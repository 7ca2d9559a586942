"""Alphabet: transcripts to symbol numbers and back. Symbol 0 is the CTC blank."""

from __future__ import annotations

from itertools import groupby

BLANK = 0


class Alphabet:
    """Characters numbered from 1; 0 is the blank.

    >>> ENGLISH.decode(ENGLISH.encode("it's on"))
    "it's on"
    """

    def __init__(self, characters: str):
        self.characters = characters
        self._number = {character: i + 1 for i, character in enumerate(characters)}

    def __len__(self) -> int:
        """Number of symbols V, the blank among them."""
        return len(self.characters) + 1

    def encode(self, text: str) -> list[int]:
        """Symbol numbers of a transcript. Raises ``ValueError`` naming a character it lacks."""
        try:
            return [self._number[character] for character in text]
        except KeyError as error:
            raise ValueError(f"character {error} of {text!r} is not in the alphabet") from None

    def decode(self, labels) -> str:
        """Transcript of symbol numbers (no blanks, repeats kept)."""
        return "".join(self.characters[int(label) - 1] for label in labels)

    def collapse(self, path) -> str:
        """Transcript of a CTC path: repeats merged, then blanks dropped.

        >>> Alphabet("ab").collapse([1, 1, 0, 1, 2])
        'aab'
        """
        return self.decode(symbol for symbol, _ in groupby(map(int, path)) if symbol != BLANK)


ENGLISH = Alphabet(" 'abcdefghijklmnopqrstuvwxyz")
