"""What is said in the embedded corpus: household commands, digits, names, cities, places; fillers,
silence.

The grammars, English and Mandarin, are data: embedded.yaml.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import yaml

GRAMMARS = yaml.safe_load(Path(__file__).with_name("embedded.yaml").read_text(encoding="utf-8"))[
    "grammars"
]
DIGITS = GRAMMARS["en"]["words"]["digits"]
SPACE = {"en": " ", "cmn": ""}  # between digits
WITHOUT_WORDS = "silence"  # the kind of which nothing is said
UNINTELLIGIBLE = "unintelligible"  # the kind that nobody can transcribe: a command in loud noise
UNTRANSCRIBED = "[unintelligible]"  # what the transcriber writes of it


def kinds(language: str) -> list[str]:
    """The kinds of utterance that there are in "en" or "cmn"."""
    return [*GRAMMARS[language]["kinds"], "digits", WITHOUT_WORDS, UNINTELLIGIBLE]


def zipf(rng: np.random.Generator, items, first: int = 1):
    """Draw an item with a probability that falls as 1 / rank, from rank ``first`` on."""
    weights = 1 / np.arange(first, first + len(items))
    return items[int(rng.choice(len(items), p=weights / weights.sum()))]


def one(shares, rng: np.random.Generator) -> str:
    """Draw a name by its share, from pairs of both."""
    names, weights = zip(*shares, strict=True)
    if len(set(weights)) == 1:
        return names[int(rng.integers(len(names)))]
    return str(rng.choice(names, p=np.array(weights) / np.sum(weights)))


@functools.cache
def places() -> tuple[str, ...]:
    """Names of places, a word each, the most frequent first: every stem with every ending.

    How frequent a name is, is the product of what Zipf's law says of its stem and its ending, and
    of chance (log-normal, the same always).
    """
    words = GRAMMARS["en"]["words"]
    names = [stem + ending for stem in words["stems"] for ending in words["endings"]]
    law = [1 / np.arange(1, len(words[part]) + 1) for part in ("stems", "endings")]
    chance = np.random.default_rng(0).normal(0, 0.5, len(names))
    frequency = np.outer(*law).ravel() * np.exp(chance)
    return tuple(dict.fromkeys(names[i] for i in np.argsort(-frequency, kind="stable")))


def rarest(text: str) -> int:
    """The rank of the rarest place that a text names, counted from 0; -1 where it names none."""
    return max(_ranks().get(word, -1) for word in text.split() or [""])


@functools.cache
def _ranks() -> dict[str, int]:
    return {name: rank for rank, name in enumerate(places())}


def sentence(
    kind: str, rng: np.random.Generator, language: str = "en", ranks: slice = slice(0, None)
) -> str:
    """Draw a transcript of one kind in "en" or "cmn"; the empty string for silence. Places are
    those of the given ``ranks``, counted from 0."""
    words, kinds = GRAMMARS[language]["words"], GRAMMARS[language]["kinds"]
    if kind == WITHOUT_WORDS:
        return ""
    if kind == "digits":
        drawn = (words["digits"][int(rng.integers(10))] for _ in range(int(rng.integers(3, 7))))
        return SPACE[language].join(drawn)
    if kind not in kinds:
        raise ValueError(f"unknown kind {kind!r}")
    template, slots = zipf(rng, kinds[kind]["templates"]), kinds[kind]["slots"]
    known = {name: (words[name], 1) for name in slots.values() if name != "places"}
    known["places"] = (places()[ranks], 1 + ranks.start)
    return template.format(**{slot: zipf(rng, *known[name]) for slot, name in slots.items()})
