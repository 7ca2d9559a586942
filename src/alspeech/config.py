"""Presets: everything that a run depends on, read from ``configs/<preset>.yaml``.

A run is named by three words (preset, corpus, data) that every notebook takes as papermill
parameters. Whatever else can be varied stands in the preset's file: to try other values, copy the
file to ``configs/mine.yaml`` and run with ``PRESET=mine``.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path

import yaml

ROOT = Path(os.environ.get("ALSPEECH_ROOT") or Path(__file__).resolve().parents[2])
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


class UserError(Exception):
    """Something that the person at the keyboard can mend: one line, says what to do."""


@dataclass(frozen=True)
class CorpusConfig:
    """Sizes (utterances) of a corpus's four splits, and how it is drawn or read."""

    base: int = 700
    pool: int = 1600
    validation: int = 160
    test: int = 800
    seed: int = 0
    # synthetic corpus only: the language, en or cmn (Mandarin, which wants alphabet: learned), and
    # which of synthesis.DISTRIBUTIONS each split is drawn from
    language: str = "en"
    base_distribution: str = "mixed"
    pool_distribution: str = "mixed"
    validation_distribution: str = "mixed"
    test_distribution: str = "mixed"
    # recordings that were made elsewhere: the sizes are maxima there, and
    alphabet: str = "english"  # or "learned": every letter that occurs in the transcripts
    min_seconds: float = 0.1  # shorter and longer utterances are set aside
    max_seconds: float = 60.0
    outside: bool = False  # may a manifest name audio files that lie outside DATA?


@dataclass(frozen=True)
class ModelConfig:
    """Deep Speech 2 and the features that it reads."""

    # input: "log-mel" (bins = mel bins) or "spectrogram" (bins = FFT bins)
    features: str = "log-mel"
    bins: int = 40
    sample_rate: int = 16000  # Hz
    window: int = 400  # samples
    hop: int = 160  # samples
    round_frames: int = 16  # lengths are rounded up to this many frames, see features.py
    # two convolutions: (time, frequency)
    channels: int = 16
    kernels: tuple = ((5, 5), (5, 5))
    strides: tuple = ((2, 2), (2, 2))
    # recurrent layers
    cell: str = "lstm"  # rnn | gru | lstm
    layers: int = 3
    hidden: int = 128  # per direction; the two directions are summed


@dataclass(frozen=True)
class TrainingConfig:
    """Base training and the training that goes on from it after a query."""

    batch: int = 16  # utterances
    # base model: passes over the base set, peak learning rate
    base_epochs: int = 24
    base_rate: float = 2e-3
    # after a query: passes over base + queried set, peak learning rate
    epochs: int = 6
    rate: float = 1e-3
    # ends early when the validation loss has not improved for this many passes
    patience: int = 4
    weight_decay: float = 1e-2
    clip: float = 5.0  # gradient norm
    # SpecAugment (Park et al. 2019): masks an utterance, widest mask
    frequency_masks: int = 2
    frequency_width: int = 8  # bins
    time_masks: int = 2
    time_width: int = 16  # frames


@dataclass(frozen=True)
class LossPredictionConfig:
    """The joint recogniser of joint.py, and what is asked of it (loss_prediction.py)."""

    hybrid: bool = True  # an attention decoder beside the CTC head
    ctc_weight: float = 0.3  # α: the share of CTC in a hybrid's loss
    decoder: int = 128  # the decoder's hidden units
    # the loss predictor: hidden units a tapped layer, its weight λ in the joint loss, its own loss
    # (ranking | smooth_l1), from which share of a training on it leaves the encoder alone
    predictor: int = 128
    weight: float = 1.0
    criterion: str = "ranking"
    detach: float = 0.6
    target: str = "token"  # what is predicted and estimated: the loss a token, or an utterance
    strategies: tuple = ("random", "least_confidence", "estimated_loss", "loss_prediction", "egl")
    rounds: tuple = (10, 20, 30)  # % of the pool that is queried after each round
    # recognisers that are compared: with the prediction, without (λ = 0), CTC and prediction alone
    variants: tuple = ("joint", "no_prediction", "ctc_only")


@dataclass(frozen=True)
class PseudoLabelConfig:
    """Continuous pseudo-labels (pseudo_labels.py): slimIPL's settings, and what is compared."""

    # the labelled set: utterances of the base split, drawn anew for every seed (0: all of it)
    labelled: int = 0
    # which of synthesis.DISTRIBUTIONS it is drawn from ("": as under build; synthetic corpus only)
    labelled_distribution: str = ""
    # supervised warm-up: updates M, peak learning rate, dropout of the recurrent layers
    warm_up: int = 400
    warm_up_rate: float = 5e-3
    warm_up_dropout: float = 0.3
    # then blocks of N_L supervised and N_U unsupervised steps, with less dropout
    blocks: int = 200
    supervised: int = 1
    unsupervised: int = 3
    rate: float = 2e-3
    dropout: float = 0.1
    # cached batches C; how probably a used one makes room for a fresh one
    cache: int = 30
    replacement: float = 0.3
    # regularisers of soft labels (pseudo_labels.recipe): hard labels' share in the mixture; weight
    # of the divergence from the labelled prior; the teacher's temperature; its decay where it is
    # an average of the student's weights
    mixture: float = 0.5
    prior: float = 1.0
    temperature: float = 0.5
    decay: float = 0.999
    # monitor: steps between two measurements, utterances that are watched; a run has collapsed
    # when its labels get less than this share of the words right that they did after the warm-up
    every: int = 100
    watched: int = 160
    collapsed: float = 0.33
    # what is compared, see pseudo_labels.recipe: with labelled steps, and without any
    anchored: tuple = (
        "supervised", "supervised_longer", "hard", "ema_hard", "soft", "mixture", "prior",
        "temperature", "ema", "sampled_text", "sampled_frames",
    )  # fmt: skip
    free: tuple = (
        "hard", "soft", "mixture", "prior", "temperature", "ema", "sampled_text", "sampled_frames",
    )  # fmt: skip
    # without labelled steps a run is as hard as can be: labels that are young, and a high rate
    free_blocks: int = 200
    free_rate: float = 5e-3
    free_cache: int = 4
    free_replacement: float = 1.0
    # label a share of the pool by these strategies, pseudo-label the rest
    strategies: tuple = ("random", "egl")
    query_percents: tuple = (10, 30)


@dataclass(frozen=True)
class AloeConfig:
    """Few labels on a frozen encoder (aloe.py); the defaults are Lee, Saeed and Bertozzi's."""

    # clips at most in each split: what is spoken of the embedded corpus, what is read of others
    pool: int = 4000
    validation: int = 600
    test: int = 1500
    # which of the corpus's tasks, and of encoders.ENCODERS; the first encoder is Figure 2's, the
    # others are compared with it
    tasks: tuple = ()  # empty: all
    encoders: tuple = ("recogniser", "recogniser_first", "recogniser_last", "logmel")
    weights: str = ""  # folder with the files of wav2vec2, hubert, wavlm; empty: fetched when used
    # the protocol
    strategies: tuple = (
        "random", "margin", "largest_margin", "least_confidence", "entropy", "norm",
        "margin_logits", "least_confidence_logits",
    )  # fmt: skip
    runs: int = 10
    steps: int = 100
    seed_clips: int = 5  # of each class, labelled before the first step
    # the linear classifier, trained anew at every step
    epochs: int = 100
    batch: int = 32
    rate: float = 1e-3
    # when to stop: validation accuracy has not risen by so many points in so many steps
    patience: int = 10
    plateau: float = 0.5


@dataclass(frozen=True)
class Settings:
    """One run: a preset on a corpus."""

    preset: str
    corpus: str = "synthetic"
    data: str = ""
    # the preset whose base model on the embedded corpus the base training starts from ("": none)
    start: str = ""
    # the grid
    strategies: tuple = ("random", "entropy", "pctc", "egl")
    query_percents: tuple = (10, 20, 30, 40)
    seeds: int = 3
    # EGL: labelings from the beam search, how their sum is computed (gradients.METHODS), and from
    # how many directions
    labelings: int = 100
    egl_method: str = "rank"
    directions: int = 5
    build: CorpusConfig = field(default_factory=CorpusConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    loss_prediction: LossPredictionConfig = field(default_factory=LossPredictionConfig)
    pseudo_labels: PseudoLabelConfig = field(default_factory=PseudoLabelConfig)
    aloe: AloeConfig = field(default_factory=AloeConfig)

    @property
    def run(self) -> str:
        """Name of the run's folders under ``figures/``, ``results/`` and ``build/``."""
        return f"{self.corpus}-{self.preset}"


def as_dict(config) -> dict:
    """A config as plain JSON types (tuples become lists)."""
    return _plain(dataclasses.asdict(config))


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def presets() -> list[str]:
    """Names of the presets at hand."""
    return sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))


def load_settings(preset: str = "laptop", corpus: str = "synthetic", data: str = "") -> Settings:
    """Read ``configs/<preset>.yaml`` for a corpus.

    Raises ``UserError`` for an unknown preset, corpus, strategy or key, and for a query percentage
    outside (0, 100].
    """
    if preset not in presets():
        raise UserError(f"unknown preset '{preset}': choose one of {', '.join(presets())}")
    if corpus not in CORPORA:
        raise UserError(f"unknown corpus '{corpus}': choose one of {', '.join(CORPORA)}")
    file = ROOT / "configs" / f"{preset}.yaml"
    values = yaml.safe_load(file.read_text()) or {}
    sections = {
        "build": CorpusConfig,
        "model": ModelConfig,
        "training": TrainingConfig,
        "loss_prediction": LossPredictionConfig,
        "pseudo_labels": PseudoLabelConfig,
        "aloe": AloeConfig,
    }
    parts = {
        name: _from_dict(kind, values.pop(name, {}), f"{file.name}: {name}")
        for name, kind in sections.items()
    }
    data = str(ROOT / data) if data else ""  # a relative path is taken from the repository
    names = {"preset": preset, "corpus": corpus, "data": data}
    settings = _from_dict(Settings, {**values, **parts, **names}, file.name)
    _check(settings, file.name)
    return settings


def _from_dict(kind, values: dict, where: str):
    known = {item.name for item in dataclasses.fields(kind)}
    for key in values:
        if key not in known:
            valid = ", ".join(sorted(known))
            raise UserError(f"{where}: unknown key '{key}': choose one of {valid}")
    return kind(**{key: _tuples(value) for key, value in values.items()})


def _tuples(value):
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _check(settings: Settings, where: str) -> None:
    if settings.start and settings.start not in presets():
        known = ", ".join(presets())
        raise UserError(f"{where}: start: unknown preset '{settings.start}': choose one of {known}")
    build = settings.build
    for split in ("base", "pool", "validation", "test"):
        if getattr(build, split) < 1:
            raise UserError(
                f"{where}: build: {split} is {getattr(build, split)}: at least one is needed"
            )
    if build.language not in ("en", "cmn"):
        raise UserError(f"{where}: build: unknown language '{build.language}': choose en or cmn")
    if build.alphabet not in ("english", "learned"):
        raise UserError(
            f"{where}: build: unknown alphabet '{build.alphabet}': choose one of english, learned"
        )
    if settings.corpus == "synthetic":
        needed = "english" if build.language == "en" else "learned"
        if build.alphabet != needed:
            raise UserError(
                f"{where}: build: alphabet {build.alphabet} with language {build.language}: "
                f"the embedded corpus needs alphabet: {needed} there"
            )
    if not 0 < build.min_seconds < build.max_seconds:
        raise UserError(
            f"{where}: build: min_seconds {build.min_seconds} and max_seconds {build.max_seconds}: "
            "the first must be above 0 and below the second"
        )
    for percent in settings.query_percents:
        if not 0 < percent <= 100:
            raise UserError(
                f"{where}: query percentage {percent} is outside (0, 100]: give a share of the pool"
            )
    _check_loss_prediction(settings.loss_prediction, f"{where}: loss_prediction")
    for name in ("seeds", "labelings", "directions"):
        if getattr(settings, name) < 1:
            raise UserError(f"{where}: {name} is {getattr(settings, name)}: at least 1 is needed")
    _check_pseudo_labels(settings.pseudo_labels, f"{where}: pseudo_labels")
    aloe = settings.aloe
    for name in ("pool", "validation", "test", "runs", "steps", "seed_clips", "epochs", "batch"):
        if getattr(aloe, name) < 1:
            raise UserError(f"{where}: aloe: {name} is {getattr(aloe, name)}: at least 1 is needed")
    if not aloe.encoders or "random" not in aloe.strategies:
        raise UserError(f"{where}: aloe: name at least one of encoders, and random of strategies")


def _check_loss_prediction(config: LossPredictionConfig, where: str) -> None:
    for name, known in (
        ("criterion", ("ranking", "smooth_l1")),
        ("target", ("token", "utterance")),
    ):
        if getattr(config, name) not in known:
            raise UserError(
                f"{where}: unknown {name} '{getattr(config, name)}': choose one of "
                f"{', '.join(known)}"
            )
    for name, high in (("ctc_weight", 1), ("detach", 1), ("weight", float("inf"))):
        if not 0 <= getattr(config, name) <= high:
            raise UserError(f"{where}: {name} is {getattr(config, name)}: it lies in [0, {high}]")
    known = {"joint", "no_prediction", "ctc_only"}
    if not {"joint", "no_prediction"} <= set(config.variants) <= known:
        raise UserError(
            f"{where}: variants {list(config.variants)}: name joint, no_prediction and, for the "
            "light one, ctc_only"
        )
    rounds = (0, *config.rounds)
    if len(rounds) < 2 or any(a >= b for a, b in zip(rounds, rounds[1:], strict=False)):
        raise UserError(
            f"{where}: rounds {list(config.rounds)}: give rising percentages of the pool"
        )
    if rounds[-1] > 100:
        raise UserError(f"{where}: rounds: {rounds[-1]} % is more than the pool")


def _check_pseudo_labels(config: PseudoLabelConfig, where: str) -> None:
    at_least = {"warm_up": 1, "blocks": 1, "free_blocks": 1, "supervised": 1, "unsupervised": 1}
    at_least |= {"cache": 1, "free_cache": 1, "every": 1, "watched": 1, "labelled": 0}
    for name, least in at_least.items():
        if getattr(config, name) < least:
            raise UserError(
                f"{where}: {name} is {getattr(config, name)}: at least {least} is needed"
            )
    for name in ("replacement", "free_replacement", "collapsed", "mixture"):
        if not 0 <= getattr(config, name) <= 1:
            raise UserError(f"{where}: {name} is {getattr(config, name)}: give a share in [0, 1]")
    for name in ("warm_up_dropout", "dropout", "decay"):
        if not 0 <= getattr(config, name) < 1:
            raise UserError(f"{where}: {name} is {getattr(config, name)}: give a number in [0, 1)")
    if config.temperature <= 0:
        raise UserError(f"{where}: temperature is {config.temperature}: it must be above 0")
    for percent in config.query_percents:
        if not 0 < percent < 100:
            raise UserError(
                f"{where}: query percentage {percent} is outside (0, 100): labels for all of the "
                "pool leave no audio to pseudo-label"
            )
