"""Scenarios: how base, pool, validation and test are drawn; ``configs/scenarios.yaml`` has them."""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass, field, fields, replace
from typing import Annotated

import pydantic
from pydantic import Field

from .errors import UserError, cut
from .values import Count, Section, Share, Whole, checked, read_yaml

SPLITS = ("base", "pool", "validation", "test")
TARGET = "target"  # instead of a split: the settings' target, as much of it as is to be heard
SCENARIOS = "scenarios.yaml"  # beside the presets
EVEN = "even"  # the scenario whose splits are drawn alike; every corpus has it


def shares(value) -> tuple[tuple[str, float], ...]:
    """Shares by name, in the order in which they are drawn, from ``{name: share}`` or from names
    alone, which share equally. They need not sum to 1. Raises ``ValueError`` for what are none.

    >>> shares({"yes": 3, "no": 1}), shares(["yes"])
    ((('yes', 3.0), ('no', 1.0)), (('yes', 1.0),))
    """
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        value = dict.fromkeys(value, 1.0)
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"'{cut(value)}' are no shares: write {{name: share}}, or a list of names")
    for name, share in value.items():
        number = isinstance(share, int | float) and not isinstance(share, bool)
        if not number or not 0 <= share < math.inf:
            raise ValueError(f"the share of {cut(name)} is {cut(share)}: a number of 0 or more")
    if not sum(value.values()) > 0:
        raise ValueError(f"the shares {cut(value)} sum to nothing: one must be above 0")
    return tuple((name, float(share)) for name, share in value.items())


def _sizes(value) -> tuple[tuple[str, int], ...]:
    if not isinstance(value, dict) or not set(value) <= set(SPLITS):
        raise ValueError(f"'{cut(value)}' is no size by split: name {', '.join(SPLITS)}")
    for split, size in value.items():
        if type(size) is not int or size < 1:
            raise ValueError(f"{split} is {cut(size)}: a number of utterances, 1 or more")
    return tuple(value.items())


def _groups(value) -> tuple[tuple[str, tuple], ...]:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"'{cut(value)}': write {{group: [from, to]}} or {{group: [value, …]}}")
    found = []
    for name, values in value.items():
        numbers = isinstance(values, list) and all(type(x) in (int, float) for x in values)
        if numbers and not (len(values) == 2 and values[0] <= values[1]):
            raise ValueError(f"{cut(name)} is {cut(values)}: two numbers, from and to")
        if not numbers and not (isinstance(values, list) and all(type(x) is str for x in values)):
            raise ValueError(f"{cut(name)} is {cut(values)}: write [from, to] or [value, …]")
        found.append((name, tuple(values)))
    return tuple(found)


Shares = Annotated[tuple[tuple[str, float], ...], pydantic.BeforeValidator(shares)]


@dataclass(frozen=True)
class Draw(Section):
    """How one split is drawn; the defaults are those of the scenario *even*."""

    # of the embedded corpus: kinds of utterance, see phrases.py (5 % filler words, 5 % silence with
    # background noise: Figure 2 of Huang et al. is about those two), and espeak-ng's voices
    kinds: Shares = shares({
        "command": 0.50, "digits": 0.16, "name": 0.12, "city": 0.12, "filler": 0.05, "silence": 0.05
    })  # fmt: skip
    accents: Shares = shares([
        "en-us", "en", "en-gb-scotland", "en-029", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd",
        "en-us-nyc",
    ])  # fmt: skip
    snr_db: tuple[float, float] = (8.0, 35.0)  # signal to noise, dB: from, to
    # requests an utterance: from, to; and the longest pause around and between them
    parts: tuple[Count, Count] = (1, 1)
    pause: Annotated[float, Field(ge=0.05, le=10)] = 0.25  # seconds
    repeats: Share = 0.0  # how many of the utterances say one of the scenario's phrases again
    # how many name places beyond the scenario's head (kind: place); not given: as Zipf's law does
    tail: Share | None = None
    # of recordings: shares of the scenario's groups; not given: as they come
    groups: Shares = ()

    def __post_init__(self):
        for name in ("snr_db", "parts"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} is [{low:g}, {high:g}]: from the lower to the higher")


@dataclass(frozen=True)
class Scenario(Section):
    """How the four splits are drawn, and over which groups the macro WER is averaged."""

    about: str = ""  # a sentence or two for a reader
    # column of the manifest whose values weigh the same in the macro WER
    group: Annotated[str, Field(min_length=1)] = "kind"
    base: Draw = field(default_factory=Draw)
    # a split that is not named is drawn as base is; one that is {}, as in the scenario even
    pool: Draw | None = None
    validation: Draw | None = None
    test: Draw | None = None
    # utterances of a split, in place of the preset's
    sizes: Annotated[tuple[tuple[str, int], ...], pydantic.BeforeValidator(_sizes)] = ()
    # of the embedded corpus: is no text said twice, but for repeats of so many phrases? which place
    # names are frequent (the head; the rest is the tail)?
    distinct: bool = False
    phrases: Whole = 0
    head: Count = 200
    # of recordings: groups of what a column of the manifest says, each [from, to] or [value, …];
    # the column ``group`` holds their names
    column: str = ""
    groups: Annotated[tuple[tuple[str, tuple], ...], pydantic.BeforeValidator(_groups)] = ()

    def __post_init__(self):
        named = {split: draw for split in SPLITS if (draw := getattr(self, split))}
        for split, draw in named.items():
            if draw.repeats and not self.phrases:
                raise ValueError(f"{split}: repeats, but of nothing: say how many phrases")
            for name, _ in draw.groups:
                if name not in dict(self.groups):
                    known = ", ".join(dict(self.groups)) or "none"
                    raise ValueError(f"{split}: unknown group '{cut(name)}': groups has {known}")
        if bool(self.column) != bool(self.groups):
            raise ValueError("column and groups go together: which column, and groups of what")
        if self.column and self.group in ("kind", "speaker", self.column):
            raise ValueError(f"group is {cut(self.group)}: name a new column, for groups' names")

    def draw(self, split: str) -> Draw:
        """How a split is drawn."""
        return getattr(self, split) or self.base

    @property
    def content(self) -> Scenario:
        """What decides what the utterances are and how they are counted: without what is said to
        readers, and the sizes, which stand in :attr:`Settings.built`."""
        draws = {split: self.draw(split) for split in SPLITS}
        return replace(self, about="", sizes=(), **draws)

    def misfit(self, corpus: str) -> str:
        """Why a corpus cannot be drawn like that ("" where it can)."""
        if corpus == "synthetic":
            told = f"it groups recordings by their column '{self.column}', and none is recorded"
            return told if self.column else ""
        plain, said = Draw(), Scenario(phrases=self.phrases, distinct=self.distinct)
        keys = {
            item.name
            for split in SPLITS
            for item in fields(Draw)
            if item.name != "groups"
            and getattr(self.draw(split), item.name) != getattr(plain, item.name)
        }
        keys |= {"distinct"} if said != Scenario() else set()
        return f"it says {', '.join(sorted(keys))}, and recordings are as they are" if keys else ""


@functools.lru_cache(maxsize=8)
def read_scenarios(content: bytes) -> dict[str, Scenario]:
    """The scenarios of a file by name; *even* is there without it. Raises ``UserError``."""
    found = {EVEN: Scenario()} | (read_yaml(content, SCENARIOS) if content.strip() else {})
    for name in found:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
            raise UserError(f"{SCENARIOS}: '{cut(name)}' is no name of a scenario: it begins with "
                            "a letter and has letters, digits and _")  # fmt: skip
    return {name: checked(value, Scenario, SCENARIOS, name) for name, value in found.items()}
