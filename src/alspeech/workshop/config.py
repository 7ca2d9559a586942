"""Presets: everything that a run depends on, read from ``configs/<preset>.yaml``; and scenarios,
how base, pool, validation and test are drawn, read from ``configs/scenarios.yaml``.

A run is named by four words (preset, corpus, data, scenario) that every notebook takes as papermill
parameters. Whatever else can be varied stands in the preset's file: to try other values, copy the
file to ``configs/mine.yaml`` and run with ``PRESET=mine``. A scenario of your own is an entry of
``configs/scenarios.yaml``, run with ``SCENARIO=mine``.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from .errors import UserError, cut, one_of
from .scenarios import EVEN, SCENARIOS, SPLITS, Draw, Scenario, read_scenarios, shares  # noqa: F401
from .sections import (
    AIMS,
    AloeConfig,
    BeyondConfig,
    CorpusConfig,
    LossPredictionConfig,
    ModelConfig,
    PseudoLabelConfig,
    QueryConfig,
    SelectionConfig,
    StudiesConfig,
    TrainingConfig,
)  # fmt: skip
from .values import Count, Names, Percents, Positive, Section, checked, dataclass_of, read_yaml

ROOT = Path(os.environ.get("ALSPEECH_ROOT") or Path(__file__).resolve().parents[3])
CORPORA = {  # what DATA is
    "synthetic": "not needed: it is spoken by espeak-ng on this machine",
    "fsdd": "the folder that holds recordings/; get it by make data CORPUS=fsdd, or from "
    "https://github.com/Jakobovski/free-spoken-digit-dataset",
    "jsonl": 'a .jsonl file, or its folder; a line is {"audio_filepath": "a.wav", "text": "yes"}',
    "kaldi": "a folder that holds wav.scp and text, or one whose sub-folders do",
    "librispeech": "the folder that holds LibriSpeech/, or one of its subsets; get it by make data "
    "CORPUS=librispeech SUBSET=train-clean-100",
    "speechcommands": "the folder that holds the words' folders; get it by make data "
    "CORPUS=speechcommands",
    "esc10": "the folder of ESC-50 (meta/esc50.csv, audio/), or one with a labels.csv that has the "
    "columns path, label, fold; from https://github.com/karolpiczak/ESC-50",
    "vocalsound": "the folder that holds audio_16k/ and meta/; from "
    "https://github.com/YuanGongND/vocalsound",
}
LABELLED = ("esc10", "vocalsound")  # sounds: clips with labels and no transcripts, for aloe only


@dataclass(frozen=True)
class Settings(Section):
    """One run: a preset on a corpus."""

    preset: str
    corpus: str = "synthetic"
    data: str = ""
    # the scenarios of the run, and the current one: its name and what it says; was it named on the
    # command line?
    scenarios: Annotated[Names, Field(min_length=1)] = (EVEN,)
    scenario: str = ""
    drawn: Scenario = field(default_factory=Scenario)
    named: bool = False
    aimed: bool = False  # was the target?
    # is the pool what has no transcript? (Else it is what has one, and is held back.)
    unlabelled: bool = False
    # the preset whose base model on the embedded corpus the base training starts from ("": none)
    start: str = ""
    # a recogniser that was trained elsewhere, for make query: package.module:function, and the file
    # of weights that the function is handed ("": none); see recognisers.py
    recogniser: str = ""
    weights: str = ""
    # the grid
    strategies: Names = ("random", "entropy", "pctc", "egl")
    query_percents: Percents = (10, 20, 30, 40)
    # instead of percentages of the pool's utterances, if given: seconds of its audio
    query_seconds: tuple[Positive, ...] = ()
    seeds: Count = 3
    # EGL: labelings from the beam search, how their sum is computed (gradients.METHODS), and from
    # how many directions
    labelings: Count = 100
    egl_method: Literal["rank", "unbiased", "exact", "last_layer", "logits"] = "rank"
    directions: Count = 5
    # parts in which the pool is scored, each by a process of its own; the scores are the same
    shards: Count = 1
    # peak learning rates to choose training: base_rate from, by the validation loss after so many
    # updates (none: base_rate as it is)
    rates: tuple[Positive, ...] = ()
    rate_updates: Count = 2000
    build: CorpusConfig = field(default_factory=CorpusConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    studies: StudiesConfig = field(default_factory=StudiesConfig)
    beyond: BeyondConfig = field(default_factory=BeyondConfig)
    loss_prediction: LossPredictionConfig = field(default_factory=LossPredictionConfig)
    pseudo_labels: PseudoLabelConfig = field(default_factory=PseudoLabelConfig)
    aloe: AloeConfig = field(default_factory=AloeConfig)
    query: QueryConfig = field(default_factory=QueryConfig)

    def __post_init__(self):
        if self.recogniser and not re.fullmatch(r"\w+(\.\w+)*:\w+", self.recogniser):
            raise ValueError(f"recogniser is {cut(self.recogniser)}: write package.module:function")
        if self.weights and not self.recogniser:
            raise ValueError("weights are read by a recogniser: name one, or leave them out")
        needed = "english" if self.build.language == "en" else "learned"
        if self.corpus == "synthetic" and self.build.alphabet != needed:
            raise ValueError(
                f"build: alphabet {self.build.alphabet} with language {self.build.language}: "
                f"the embedded corpus needs alphabet: {needed} there"
            )

    @property
    def run(self) -> str:
        """Name of the run's folders under ``figures/``, ``results/`` and ``build/``."""
        target = self.selection.target if self.aimed else ""
        return run_name(self.corpus, self.preset, self.scenarios[0] if self.named else "", target)

    @property
    def built(self) -> CorpusConfig:
        """The section ``build`` with the sizes of the current scenario."""
        return replace(self.build, **dict(self.drawn.sizes))

    def on(self, name: str) -> Settings:
        """The settings with another current scenario. Raises ``UserError`` for one that there is
        not, or that this corpus cannot be drawn like."""
        scenario = load_scenario(name)
        if why := scenario.misfit(self.corpus):
            fit = [name for name, other in scenarios().items() if not other.misfit(self.corpus)]
            raise UserError(f"scenario {cut(name)} is not for CORPUS={self.corpus}: {why}: choose "
                            f"one of {', '.join(fit)}")  # fmt: skip
        return replace(self, scenario=name, drawn=scenario)

    def of(self, section: str) -> Settings:
        """The settings on the scenario of a sister's section (``"aloe"``), unless one was named on
        the command line; on *even* where the corpus cannot be drawn like that one."""
        if self.named:
            return self
        name = getattr(self, section).scenario
        return self.on(EVEN if load_scenario(name).misfit(self.corpus) else name)


def _aimed(selection: SelectionConfig, target: str, file: str) -> SelectionConfig:
    """The section with another target, if one is named; a folder's path is taken from the
    repository. Raises ``UserError`` where there is no such folder."""
    target, where = (
        (target, "target") if target else (selection.target, f"{file}: selection: target")
    )
    if target not in AIMS:
        folder = ROOT / target
        try:
            there = folder.is_dir()
        except (OSError, ValueError):
            there = False
        if not there:
            raise UserError(f"{where} is {cut(target)}: choose one of {', '.join(AIMS)}, or name "
                            "a folder of audio")  # fmt: skip
        target = str(folder)
    return replace(selection, target=target)


def run_name(corpus: str, preset: str, scenario: str = "", target: str = "") -> str:
    """Name of a run's folders; ``scenario`` and ``target`` where they were named on the command
    line."""
    return "-".join(filter(None, [corpus, preset, scenario, target and f"for-{Path(target).name}"]))


def presets() -> list[str]:
    """Names of the presets at hand."""
    found = (ROOT / "configs").glob("*.yaml")
    return sorted(path.stem for path in found if path.name != SCENARIOS)


def scenarios() -> dict[str, Scenario]:
    """The scenarios of ``configs/scenarios.yaml`` by name; *even* is there without it.

    Raises ``UserError``, in one line that names file, scenario, key and value, for what cannot be
    read.
    """
    file = ROOT / "configs" / SCENARIOS
    return dict(read_scenarios(file.read_bytes() if file.exists() else b""))


def load_scenario(name: str) -> Scenario:
    """A scenario by its name. Raises ``UserError`` where there is none of it."""
    known = scenarios()
    one_of("scenario", name, known)
    return known[name]


def load_settings(
    preset: str = "laptop", corpus: str = "synthetic", data: str = "", scenario: str = "",
    target: str = "",
) -> Settings:  # fmt: skip
    """Read ``configs/<preset>.yaml`` for a corpus, on the named scenario, else on the first of the
    preset's; selections aim at the ``target``, else at the preset's.

    Of the preset's scenarios those stay that the corpus can be drawn like, *even* if none can.

    Raises ``UserError``, in one line, for an unknown preset, corpus or scenario, and for a file
    that is no YAML, has an unknown key, or a value of another kind or range than is declared above.
    """
    one_of("preset", preset, presets())
    one_of("corpus", corpus, CORPORA)
    known = scenarios()
    if scenario:
        one_of("scenario", scenario, known)
    file = ROOT / "configs" / f"{preset}.yaml"
    # a relative path is taken from the repository
    words = {"preset": preset, "corpus": corpus, "data": str(ROOT / data) if data else ""}
    values = read_yaml(file.read_bytes(), file.name)
    for name in (*words, "scenario", "drawn", "named", "aimed", "unlabelled"):
        if name in values:
            raise UserError(f"{file.name}: {name} is no key of a preset: name it to make, instead")
    settings = checked({**values, **words}, Settings, file.name)
    settings = replace(settings, selection=_aimed(settings.selection, target, file.name))
    settings = replace(settings, aimed=bool(target))
    if settings.start and settings.start not in presets():
        raise UserError(f"{file.name}: start: unknown preset '{cut(settings.start)}': "
                        f"choose one of {', '.join(presets())}")  # fmt: skip
    sections = (item.name for item in fields(Settings) if dataclass_of(Settings, item.name))
    sisters = {f"{x}: scenario": getattr(settings, x).scenario for x in sections
               if hasattr(getattr(settings, x), "scenario")}  # fmt: skip
    for where, name in [*(("scenarios", x) for x in settings.scenarios), *sisters.items()]:
        if name not in known:
            raise UserError(f"{file.name}: {where}: unknown scenario '{cut(name)}': choose one of "
                            f"{', '.join(known)}")  # fmt: skip
    if scenario:
        return replace(settings.on(scenario), scenarios=(scenario,), named=True)
    fit = tuple(x for x in settings.scenarios if not known[x].misfit(corpus)) or (EVEN,)
    return replace(settings.on(fit[0]), scenarios=fit)
