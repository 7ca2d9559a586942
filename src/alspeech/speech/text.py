"""Transcripts: normalised, and turned to symbol numbers and back. Symbol 0 is the CTC blank."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from itertools import groupby
from pathlib import Path

from ..workshop.errors import cut
from ..workshop.store import write_json

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
            told = f"character '{cut(error.args[0])}' of '{cut(text)}' is not in the alphabet"
            raise ValueError(told) from None

    def lacks(self, text: str) -> set[str]:
        """Characters of a transcript that have no symbol."""
        return set(text) - self._number.keys()

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


def write_alphabet(folder: Path, alphabet: Alphabet) -> None:
    """Write ``folder/alphabet.json``."""
    write_json(folder / "alphabet.json", {"characters": alphabet.characters})


def read_alphabet(folder: Path) -> Alphabet:
    """The alphabet of a corpus folder: English where it keeps none."""
    path = folder / "alphabet.json"
    return Alphabet(json.loads(path.read_text())["characters"]) if path.exists() else ENGLISH


# Chinese characters and Japanese kana, which are written without spaces
_UNSPACED = re.compile("([\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])")


def words(text: str) -> list[str]:
    """What stands between spaces; a Chinese character or kana is a word of its own, as in the
    mixed error rate that is usual for such languages."""
    return _UNSPACED.sub(r" \1 ", text).split()


_APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ‛′＇`´", "'"))
# Marks of category "punctuation" that stand for something spoken ("5 %", "me @ home") or enclose a
# remark ("[noise]"): they stay, so that whoever checks the transcripts sees them.
_MEANT = set("%&@#*/\\§†‡‰‱[]{}()")
_QUOTES = set("「」『』《》〈〉【】〔〕„‚〝〞〟")  # brackets by category, quotation marks by use


@cache
def _is_punctuation(character: str) -> bool:
    meant = character == "'" or character in _MEANT
    by_category = unicodedata.category(character) in ("Pc", "Pd", "Pf", "Pi", "Po")
    return character in _QUOTES or (by_category and not meant)


def _without_punctuation(text: str) -> str:
    # a space instead: "well-known" is two words, and so is "yes,please"
    without = "".join(" " if _is_punctuation(character) else character for character in text)
    without = re.sub(r"(?<!\w)'(?!\w)", " ", without)
    return text if without == text else " ".join(without.split())


def _without_odd_space(text: str) -> str:
    invisible = "\u00ad\u200b\u2060\ufeff"  # soft hyphen, zero-width spaces, byte-order mark
    return " ".join(text.translate(dict.fromkeys(map(ord, invisible))).split())


# in this order: NFKC would take the acute accent, a typist's apostrophe, for a combining mark
NORMALISATION = {
    "apostrophes": lambda text: text.translate(_APOSTROPHES),
    "Unicode NFKC": lambda text: unicodedata.normalize("NFKC", text),
    "case": str.lower,
    "punctuation": _without_punctuation,
    "white space": _without_odd_space,
}


def normalise(text: str) -> tuple[str, list[str]]:
    """A transcript as the model sees it, and the names of the steps that changed it.

    >>> normalise("“It’s  on,” SHE said.")
    ("it's on she said", ['apostrophes', 'case', 'punctuation'])
    """
    changed = []
    for name, step in NORMALISATION.items():
        before, text = text, step(text)
        if text != before:
            changed.append(name)
    return text, changed


def learn_alphabet(texts: Iterable[str]) -> Alphabet:
    """Every letter, mark and digit of some normalised transcripts, the apostrophe and the space.

    Other signs get no symbol, and a transcript that has one teaches nothing: "%" and "[noise]" are
    no way to write down what was said.

    >>> learn_alphabet(["你好", "ok", "[noise]"]).characters
    'ko你好'
    """
    found = set().union(*(text for text in texts if all(map(can_be_said, text))))
    return Alphabet("".join(sorted(found)))


@cache
def can_be_said(character: str) -> bool:
    """Is a character of a normalised transcript one that a model can learn to write?"""
    return character in " '" or unicodedata.category(character)[0] in "LMN"


def unusable(utterance, alphabet: Alphabet) -> str | None:
    """Why nothing is to be learned from a labelled utterance (a row of the manifest): a reason of
    ``validation.REASONS``; None where its transcript can be used."""
    if alphabet.lacks(utterance.text):
        return "transcript outside the alphabet"
    # of the embedded corpus's silence we know that nothing is said
    silence = getattr(utterance, "kind", None) == "silence"
    return None if utterance.text or silence else "no transcript"
