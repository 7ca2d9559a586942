"""What is said in the embedded corpus: household commands, digits, names, cities; fillers, silence.

The grammars, English and Mandarin, are data: embedded.yaml.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml

EMBEDDED = yaml.safe_load(Path(__file__).with_name("embedded.yaml").read_text(encoding="utf-8"))
GRAMMARS, DISTRIBUTIONS = EMBEDDED["grammars"], EMBEDDED["distributions"]
DIGITS = GRAMMARS["en"]["words"]["digits"]
SPACE = {"en": " ", "cmn": ""}  # between digits


def _zipf(rng: np.random.Generator, items) -> str:
    """Draw an item with a probability that falls as 1 / rank."""
    weights = 1 / np.arange(1, len(items) + 1)
    return items[int(rng.choice(len(items), p=weights / weights.sum()))]


def sentence(kind: str, rng: np.random.Generator, language: str = "en") -> str:
    """Draw a transcript of one kind in "en" or "cmn"; the empty string for silence."""
    words, kinds = GRAMMARS[language]["words"], GRAMMARS[language]["kinds"]
    if kind == "silence":
        return ""
    if kind == "digits":
        drawn = (words["digits"][int(rng.integers(10))] for _ in range(int(rng.integers(3, 7))))
        return SPACE[language].join(drawn)
    if kind not in kinds:
        raise ValueError(f"unknown kind {kind!r}")
    template, slots = _zipf(rng, kinds[kind]["templates"]), kinds[kind]["slots"]
    return template.format(**{slot: _zipf(rng, words[name]) for slot, name in slots.items()})
