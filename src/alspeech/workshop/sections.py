"""The sections of a preset: what can be varied, in which range, and what holds where a file says
nothing. ``config.py`` reads them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, StrictFloat, StrictInt

from .errors import cut
from .scenarios import EVEN
from .values import AtLeast0, Count, Names, Part, Percents, Positive, Section, Share, Whole


@dataclass(frozen=True)
class CorpusConfig(Section):
    """Sizes (utterances) of a corpus's four splits, and how it is drawn or read."""

    base: Count = 700
    pool: Count = 1600
    validation: Count = 160
    test: Count = 800
    seed: Whole = 0
    # synthetic corpus only: the language, en or cmn (Mandarin, which wants alphabet: learned)
    language: Literal["en", "cmn"] = "en"
    # recordings that were made elsewhere: the sizes are maxima there, and
    alphabet: Literal["english", "learned"] = "english"  # learned: all letters of the transcripts
    min_seconds: Positive = 0.1  # shorter and longer utterances are set aside
    max_seconds: Positive = 60.0
    outside: bool = False  # may a manifest name audio files that lie outside DATA?

    def __post_init__(self):
        if self.min_seconds >= self.max_seconds:
            raise ValueError(
                f"min_seconds {self.min_seconds:g} must be below max_seconds {self.max_seconds:g}"
            )


@dataclass(frozen=True)
class ModelConfig(Section):
    """Deep Speech 2 and the features that it reads."""

    # input: bins are mel bins, or FFT bins of the spectrogram
    features: Literal["log-mel", "spectrogram"] = "log-mel"
    bins: Count = 40
    sample_rate: Count = 16000  # Hz
    window: Count = 400  # samples
    hop: Count = 160  # samples
    round_frames: Count = 16  # lengths are rounded up to this many frames, see features.py
    # two convolutions: (time, frequency)
    channels: Count = 16
    kernels: tuple[tuple[Count, Count], ...] = ((5, 5), (5, 5))
    strides: tuple[tuple[Count, Count], ...] = ((2, 2), (2, 2))
    # recurrent layers
    cell: Literal["rnn", "gru", "lstm"] = "lstm"
    layers: Count = 3
    hidden: Count = 128  # per direction; the two directions are summed

    def __post_init__(self):
        if len(self.kernels) != len(self.strides):
            raise ValueError("kernels and strides must be as many as there are convolutions")


@dataclass(frozen=True)
class TrainingConfig(Section):
    """Base training, and the training after a query, which is as long for every cell."""

    batch: Count = 16  # utterances
    # base model: updates, peak learning rate
    base_updates: Count = 1000
    base_rate: Positive = 5e-3
    # after a query, whatever was queried: updates, peak learning rate; "on" goes on from the base
    # model, "scratch" begins anew, with the base model's updates and rate before these
    updates: Count = 700
    rate: Positive = 2e-3
    refit: Literal["on", "scratch"] = "on"
    # the weights that are kept: their mean over this last share of the updates (0: the last ones)
    average: Part = 0.2
    weight_decay: AtLeast0 = 1e-2
    clip: Positive = 5.0  # gradient norm
    # SpecAugment (Park et al. 2019): masks an utterance, widest mask
    frequency_masks: Whole = 2
    frequency_width: Whole = 8  # bins
    time_masks: Whole = 2
    time_width: Whole = 16  # frames


AIMS = ("validation", "test", "pool", "none")  # or a folder


@dataclass(frozen=True)
class SelectionConfig(Section):
    """What selections (selection.py) are told, beside the pool and the base set."""

    # what the recogniser is for, as audio without transcripts: a split, or a folder of audio files;
    # and how many of its utterances are heard, drawn by the seed (0: all)
    target: Annotated[str, Field(min_length=1)] = "test"
    heard: Whole = 160
    # the last layer's gradients: labelings K that they are of (fewer than EGL's: three forward
    # passes an utterance instead of six), directions R, numbers d that they are projected to
    labelings: Count = 40
    directions: Count = 5
    numbers: Count = 256
    # λ of the Fisher information, in mean eigenvalues of the base set's; is a gain divided by what
    # an utterance costs?
    ridge: AtLeast0 = 1.0
    per_second: bool = False
    # how far from the target a candidate may be: as far as this share of the target is from itself
    reach: Part = 0.95
    # ridge of the classifier that tells the target from the pool, for what is aimed: the larger,
    # the less is made of the difference
    smooth: Positive = 0.2
    # FLQMI: weight of nearness to the target; power EGL: exponent (large: no chance)
    eta: AtLeast0 = 1.0
    beta: Positive = 1.0


@dataclass(frozen=True)
class StudiesConfig(Section):
    """What studies.py tries in the first scenario, with so many seeds at most."""

    seeds: Count = 3
    # trainings after a query that are so many times as long, and the queries that are looked at
    factors: tuple[Positive, ...] = (0.5, 1.0, 3.0)
    longer: Names = ("random", "entropy")
    # queries of so many percent, in rounds and in one batch
    rounds: Count = 4
    amount: Annotated[StrictInt | StrictFloat, Field(gt=0, lt=100)] = 20
    strategies: Names = ("random", "entropy", "egl_renormalised")


@dataclass(frozen=True)
class BeyondConfig(Section):
    """What notebook 9 compares (beyond.py)."""

    # from the paper's method to ours, one difference a step; entropy aimed likewise; then others'
    strategies: Names = (
        "random", "entropy", "egl", "egl_renormalised", "egl_last_layer", "d_optimal",
        "fisher_ratio_pool", "fisher_ratio", "fisher_ratio_near", "fisher_ratio_aimed",
        "entropy_aimed", "badge", "flqmi", "uncertainty_herding", "power_egl",
    )  # fmt: skip
    # other values of selection's settings at the first amount, one at a time, with so many seeds at
    # most: of fisher_ratio; then of fisher_ratio_near (reach), fisher_ratio_aimed (smooth) and
    # power_egl (beta)
    seeds: Count = 3
    ridge: tuple[AtLeast0, ...] = (0.01, 0.1, 10.0, 100.0)
    directions: tuple[Count, ...] = (1, 2)
    numbers: tuple[Count, ...] = (64, 1024)
    heard: tuple[Count, ...] = (5, 20, 50)
    target: Names = ("validation", "pool", "none")
    reach: tuple[Part, ...] = (0.5,)
    smooth: tuple[Positive, ...] = (0.05, 1.0)
    beta: tuple[Positive, ...] = (3.0,)
    # the argument (theory.py): seeds at most, components, labelled and test utterances, trainings
    argued: Count = 5
    components: Count = 8
    labelled: Count = 100
    tested: Count = 200
    resamples: Annotated[StrictInt, Field(ge=2)] = 40


@dataclass(frozen=True)
class LossPredictionConfig(Section):
    """The joint recogniser of joint.py, and what is asked of it (loss_prediction.py)."""

    scenario: str = EVEN  # where none is named on the command line
    hybrid: bool = True  # an attention decoder beside the CTC head
    ctc_weight: Share = 0.3  # α: the share of CTC in a hybrid's loss
    decoder: Count = 128  # the decoder's hidden units
    # the loss predictor: hidden units a tapped layer, its weight λ in the joint loss, its own loss,
    # from which share of a training on it leaves the encoder alone
    predictor: Count = 128
    weight: AtLeast0 = 1.0
    criterion: Literal["ranking", "smooth_l1"] = "ranking"
    detach: Share = 0.6
    target: Literal["token", "utterance"] = "token"  # the loss that is predicted and estimated
    strategies: Names = ("random", "least_confidence", "estimated_loss", "loss_prediction", "egl")
    rounds: Percents = (10, 20, 30)  # of the pool that is queried after each round
    # recognisers that are compared: with the prediction, without (λ = 0), CTC and prediction alone
    variants: tuple[Literal["joint", "no_prediction", "ctc_only"], ...] = (
        "joint", "no_prediction", "ctc_only",
    )  # fmt: skip

    def __post_init__(self):
        if not {"joint", "no_prediction"} <= set(self.variants):
            raise ValueError("variants must name joint, no_prediction and, if you like, ctc_only")
        if not self.rounds or list(self.rounds) != sorted(set(self.rounds)):
            raise ValueError("rounds must be rising percentages of the pool")


@dataclass(frozen=True)
class PseudoLabelConfig(Section):
    """Continuous pseudo-labels (pseudo_labels.py): slimIPL's settings, and what is compared."""

    scenario: str = EVEN  # where none is named on the command line
    # the labelled set: utterances of the base split, drawn anew for every seed (0: all of it)
    labelled: Whole = 0
    # supervised warm-up: updates M, peak learning rate, dropout of the recurrent layers
    warm_up: Count = 400
    warm_up_rate: Positive = 5e-3
    warm_up_dropout: Part = 0.3
    # then blocks of N_L supervised and N_U unsupervised steps, with less dropout
    blocks: Count = 200
    supervised: Count = 1
    unsupervised: Count = 3
    rate: Positive = 2e-3
    dropout: Part = 0.1
    # cached batches C; how probably a used one makes room for a fresh one
    cache: Count = 30
    replacement: Share = 0.3
    # regularisers of soft labels (pseudo_labels.recipes): hard labels' share in the mixture; weight
    # of the divergence from the labelled prior; the teacher's temperature; its decay where it is
    # an average of the student's weights
    mixture: Share = 0.5
    prior: AtLeast0 = 1.0
    temperature: Positive = 0.5
    decay: Part = 0.999
    # monitor: steps between two measurements, utterances that are watched; a run has collapsed when
    # it gets less than this share of the validation set's words right that it did after the warm-up
    every: Count = 100
    watched: Count = 160
    collapsed: Share = 0.33
    # what is compared, see pseudo_labels.recipes: with labelled steps, and without any
    anchored: Names = (
        "supervised", "supervised_longer", "hard", "ema_hard", "soft", "mixture", "prior",
        "temperature", "ema", "sampled_text", "sampled_frames",
    )  # fmt: skip
    free: Names = (
        "hard", "soft", "mixture", "prior", "temperature", "ema", "sampled_text", "sampled_frames",
    )  # fmt: skip
    # without labelled steps a run is as hard as can be: labels that are young, and a high rate
    free_blocks: Count = 200
    free_rate: Positive = 5e-3
    free_cache: Count = 4
    free_replacement: Share = 1.0
    # label a share of the pool by these strategies, pseudo-label the rest; with as many labelled
    # steps as unlabelled ones, so that the labels are used
    joined_blocks: Count = 300
    joined_supervised: Count = 1
    joined_unsupervised: Count = 1
    strategies: Names = ("random", "egl")
    # labels for all of the pool would leave no audio to pseudo-label
    query_percents: tuple[Annotated[StrictInt | StrictFloat, Field(gt=0, lt=100)], ...] = (10, 30)


@dataclass(frozen=True)
class AloeConfig(Section):
    """Few labels on a frozen encoder (aloe.py); the defaults are Lee, Saeed and Bertozzi's."""

    scenario: str = EVEN  # where none is named on the command line
    # clips at most in each split: what is spoken of the embedded corpus, what is read of others
    pool: Count = 4000
    validation: Count = 600
    test: Count = 1500
    # which of the corpus's tasks, and of encoders.ENCODERS; the first encoder is Figure 2's, the
    # others are compared with it
    tasks: Names = ()  # empty: all
    encoders: Annotated[Names, Field(min_length=1)] = (
        "recogniser", "recogniser_first", "recogniser_last", "logmel",
    )  # fmt: skip
    weights: str = ""  # folder with the files of wav2vec2, hubert, wavlm; empty: fetched when used
    # the protocol
    strategies: Names = (
        "random", "margin", "largest_margin", "least_confidence", "entropy", "norm",
        "margin_logits", "least_confidence_logits",
    )  # fmt: skip
    runs: Count = 10
    steps: Count = 100
    seed_clips: Count = 5  # of each class, labelled before the first step
    # the linear classifier, trained anew at every step
    epochs: Count = 100
    batch: Count = 32
    rate: Positive = 1e-3
    # when to stop: validation accuracy has not risen by so many points in so many steps
    patience: Count = 10
    plateau: AtLeast0 = 0.5

    def __post_init__(self):
        if "random" not in self.strategies:
            raise ValueError("strategies must name random, which the others are held against")


@dataclass(frozen=True)
class QueryConfig(Section):
    """What to transcribe next of your own recordings (yours.py)."""

    budget: str = "10%"  # of what has no transcript; or "30min" (s, h) of audio, or "200" of them
    method: str = "fisher_ratio_pool"  # a score or a selection
    format: Literal["jsonl", "label-studio", "audiofolder", "lhotse", "audacity", "kaldi"] = "jsonl"
    speaker: Annotated[float, Field(gt=0, le=1)] = 1.0  # of the budget, for one speaker at most
    # so many transcripts are enough for a base model; with fewer, that of start: is asked
    enough: Count = 30
    # EGL by a recogniser of more than 20 million parameters: its last layer's for all, and in full
    # for so many times what the budget pays for (0: for all)
    shortlist: AtLeast0 = 3.0

    def __post_init__(self):
        if not re.fullmatch(r"\d+(\.\d+)?(s|min|h|%)?", self.budget):
            raise ValueError(f"budget is {cut(self.budget)}: write 30min (or s, h) of audio, 10%, "
                             "or a number of utterances")  # fmt: skip
