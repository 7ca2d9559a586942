"""slimIPL: training goes on with what the model itself says of unlabelled audio.

Likhomanenko et al. 2020 (arXiv 2010.11524), and its soft-label sequel, Likhomanenko et al. 2022
(arXiv 2211.06007). Supervised warm-up; then blocks of N_L supervised and N_U unsupervised steps.
The unsupervised ones draw from a cache of C batches, each with the label that it got when it
entered. What is compared by it stands in pseudo_labels.py.

Legend: B batch, T frames, V symbols (0 = blank), N frames of all utterances, C cached batches.
"""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from ..ctc import best_path, ctc_losses
from ..devices import autocast
from ..metrics import errors, evaluate, summarise
from ..model import Bidirectional, DeepSpeech2
from ..speech.features import Batch, FeatureStore, output_frames, spec_augment
from ..speech.text import BLANK, Alphabet
from ..workshop.config import PseudoLabelConfig, Settings
from ..workshop.errors import UserError
from ..workshop.store import Checkpoint

# ---------------------------------------------------------------- mathematics


@dataclass(frozen=True)
class Recipe:
    """What the unsupervised loss is made of, and how a teacher makes its target."""

    hard: float = 0.0  # weight of the CTC loss of transcripts
    soft: float = 0.0  # weight of the cross-entropy of distributions, frame by frame
    prior: float = 0.0  # weight of KL(average distribution of the batch ‖ labelled prior)
    temperature: float = 1.0  # of the teacher: below 1 surer
    sampled: bool = False  # one alignment drawn from the teacher, instead of what it says
    decay: float = 0.0  # the teacher is an average of the student's weights (0: the student)


@dataclass(frozen=True)
class Target:
    """A batch and what a teacher said of it: ``rows`` of the unlabelled set, [B] transcripts as
    lists of symbol numbers, distributions [B, T, V]; None where the loss needs none."""

    rows: list
    labels: list | None = None
    probs: Tensor | None = None


def soft_loss(log_probs: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """−mean over frames of Σ_v p_teacher log p_student, in nats a frame: ``log_probs`` and
    ``teacher`` (probabilities) [B, T, V]; ``valid`` [B, T], False where a frame is padding."""
    return -(teacher * log_probs).sum(dim=-1)[valid].mean()


def unsupervised_loss(
    log_probs: Tensor, target: Target, valid: Tensor, recipe: Recipe, labelled: Tensor | None = None
) -> Tensor:
    """What a student [B, T, V] loses against a teacher's labels, in nats an utterance.

    ``recipe.hard`` × CTC loss of the target's transcripts + ``recipe.soft`` × :func:`soft_loss` of
    its distributions + ``recipe.prior`` × KL(average distribution of the batch ‖ ``labelled`` [V]);
    the last two are times the valid frames of an utterance, so that like is weighed with like.
    """
    frames = valid.sum() / len(valid)
    loss = log_probs.new_zeros(())
    if recipe.hard:
        loss = loss + recipe.hard * ctc_losses(log_probs, target.labels).mean()
    if recipe.soft:
        teacher = target.probs.to(log_probs.device)
        loss = loss + recipe.soft * frames * soft_loss(log_probs, teacher, valid)
    if recipe.prior:
        average = log_probs.exp()[valid].mean(dim=0)  # [V]
        terms = torch.special.xlogy(average, average) - torch.special.xlogy(average, labelled)
        loss = loss + recipe.prior * frames * terms.sum()  # KL, with 0 · log 0 = 0
    return loss


def sharpen(log_probs: Tensor, temperature: float) -> Tensor:
    """Log of p^(1/temperature), renormalised: below 1 surer, above 1 less sure."""
    return (log_probs / temperature).log_softmax(-1)


def make_target(
    log_probs: Tensor, rows, alphabet: Alphabet, recipe: Recipe, generator=None
) -> Target:
    """A teacher's log posteriors [B, T, V] of some ``rows`` as a target.

    Transcripts are best paths, collapsed; distributions are the posteriors, at
    ``recipe.temperature``. With ``recipe.sampled`` both are made of one alignment a_1 … a_T drawn
    from the posteriors: its collapsed text, and the distributions that are sure of a_t in frame t.
    Utterances whose transcript is empty are left out wherever transcripts or samples are learned
    from: CTC would reward the student for saying nothing.
    """
    log_probs = sharpen(log_probs, recipe.temperature)
    if recipe.sampled:
        draws = torch.multinomial(log_probs.exp().flatten(0, 1), 1, generator=generator)
        path = draws.view(log_probs.shape[:2])  # [B, T]
        probs = functional.one_hot(path, log_probs.shape[-1]).to(log_probs)
    else:
        path, probs = best_path(log_probs), log_probs.exp()
    texts = [alphabet.collapse(symbols) for symbols in path.tolist()]
    all_of_them = not (recipe.hard or recipe.sampled)
    kept = [b for b, text in enumerate(texts) if all_of_them or text.strip()]
    return Target(
        [int(rows[b]) for b in kept],
        [alphabet.encode(texts[b]) for b in kept] if recipe.hard else None,
        probs[kept] if recipe.soft else None,
    )


# ---------------------------------------------------------------- dropout, cache, teacher


@contextlib.contextmanager
def recurrent_dropout(model: DeepSpeech2, p: float):
    """Dropout of a model's recurrent layers while it trains; afterwards the model is as it was."""

    def drop(layer, inputs, output: Tensor) -> Tensor:
        return functional.dropout(output, p, layer.training)

    with contextlib.ExitStack() as hooks:
        for layer in model.modules():
            if isinstance(layer, Bidirectional):
                hooks.enter_context(layer.register_forward_hook(drop))
        yield


class Cache:
    """C targets, each as it was when it entered.

    ``step(fresh)`` is an unsupervised step: until the cache is full it only stores ``fresh()``,
    and returns None; afterwards it returns a random target to train on, and with probability p has
    put ``fresh()`` in its place, which is called before the caller updates the model.
    """

    def __init__(self, size: int, replacement: float, generator: torch.Generator):
        self.size, self.replacement, self.generator = size, replacement, generator
        self.targets: list[Target] = []

    def step(self, fresh) -> Target | None:
        if len(self.targets) < self.size:
            self.targets.append(fresh())
            return None
        slot = int(torch.randint(self.size, (), generator=self.generator))
        old = self.targets[slot]
        if float(torch.rand((), generator=self.generator)) < self.replacement:
            self.targets[slot] = fresh()
        return old


def passes(store: FeatureStore, utterances: pd.DataFrame, size: int, seed, skip: int = 0):
    """Row numbers of batches of one length, for ever: pass after pass, each in a random order; all
    but the first ``skip`` batches."""
    rng = np.random.default_rng(seed)
    endless = (rows for _ in itertools.count() for rows in store.groups(utterances, size, rng))
    return itertools.islice(endless, skip, None)


@torch.no_grad()
def average(teacher: torch.nn.Module, student: torch.nn.Module, decay: float) -> None:
    """Move a teacher's weights and statistics by (1 − decay) towards its student's."""
    for old, new in zip(teacher.state_dict().values(), student.state_dict().values(), strict=True):
        if old.is_floating_point():
            old.lerp_(new, 1 - decay)
        else:
            old.copy_(new)  # batch norm counts its batches


# ---------------------------------------------------------------- training

SUPERVISED, UNSUPERVISED = "supervised", "unsupervised"


def plan(config: PseudoLabelConfig) -> list[str]:
    """What each step is: M supervised ones, then blocks of N_L supervised, N_U unsupervised."""
    block = [SUPERVISED] * config.supervised + [UNSUPERVISED] * config.unsupervised
    return [SUPERVISED] * config.warm_up + block * config.blocks


def valid_frames(utterances: pd.DataFrame, config) -> np.ndarray:
    """Output frames of each utterance that are not padding (features.py rounds lengths up)."""
    samples = (utterances["duration"].to_numpy() * config.sample_rate).round().astype(int)
    return np.array([output_frames(config, max(1, n // config.hop)) for n in samples])


def train(
    model: DeepSpeech2, data, labelled: pd.DataFrame, unlabelled: pd.DataFrame, settings: Settings,
    steps: list[str], recipe: Recipe, *, seed: int, checkpoint: Checkpoint, measure,
) -> dict:  # fmt: skip
    """Take ``steps`` on utterances of a corpus (speech/corpus.py), by what ``pseudo_labels`` in the
    settings says, under a one-cycle learning rate; the model ends as its last step left it.

    ``measure(model, step)`` is called before the first step, every ``every`` steps and after the
    last; the training ends early when it returns True. ``measure.state`` is a list or dict that
    travels with the checkpoint, from which an interrupted training goes on, to end with the bits of
    an undisturbed one (on a CPU). Returns counts: ``labelled_updates``, ``unlabelled_updates``,
    ``stored`` (steps that only filled the cache), ``pseudo_labelled`` utterances, in how many
    ``batches``, and how many of them were ``empty`` and dropped.

    Raises ``UserError`` when the loss is no longer finite, and where the unlabelled set is empty or
    has fewer batches than the cache.
    """
    device, training = next(model.parameters()).device, settings.training
    config = settings.pseudo_labels
    torch.manual_seed(seed)  # dropout
    masks, slots, samples = generators = [torch.Generator().manual_seed(seed) for _ in range(3)]
    if UNSUPERVISED in steps:
        check_unlabelled(data.store, unlabelled, settings)
    cache, prior, teacher = Cache(config.cache, config.replacement, slots), None, model
    if recipe.prior:  # as the model has it now: what share of frames is blank, no transcript tells
        frames = frames_of(model, data.store, labelled, settings.model)
        prior = torch.cat(list(frames.values())).exp().mean(dim=0).to(device)  # [V]
    if recipe.decay:
        teacher = DeepSpeech2(settings.model, len(data.alphabet)).to(device).eval()
        teacher.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.rate, weight_decay=training.weight_decay, fused=True
    )
    parts = {"model": model, "teacher": teacher, "optimizer": optimizer}
    names = "labelled_updates unlabelled_updates stored batches pseudo_labelled empty"
    counts, first = dict.fromkeys(names.split(), 0), 0

    if saved := checkpoint.load():
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        for generator, state in zip(generators, saved["generators"], strict=True):
            generator.set_state(state)
        cache.targets = [Target(**target) for target in saved["cache"]]
        counts, first, measure.state = saved["counts"], saved["step"], saved["measured"]
        torch.set_rng_state(saved["torch"])
        torch.cuda.set_rng_state_all(saved["cuda"])
    # from where an interrupted training was
    known = passes(data.store, labelled, training.batch, [seed, 1], counts["labelled_updates"])
    others = passes(data.store, unlabelled, training.batch, [seed, 2], counts["batches"])

    def posteriors(features: Tensor, by) -> Tensor:
        with autocast(device):
            logits = by(features.to(device))
        return logits.float().log_softmax(-1)

    def student(batch: Batch) -> Tensor:
        model.train()
        with recurrent_dropout(model, config.dropout):
            return posteriors(spec_augment(batch.features, training, masks), model)

    @torch.no_grad()
    def fresh() -> Target:
        rows = next(others)
        teacher.eval()
        log_probs = posteriors(data.store.batch(unlabelled.iloc[rows]).features, teacher).cpu()
        target = make_target(log_probs, rows, data.alphabet, recipe, samples)
        counts["batches"] += 1
        counts["pseudo_labelled"] += len(rows)
        counts["empty"] += len(rows) - len(target.rows)
        return target

    def supervised() -> Tensor:
        batch = data.store.batch(labelled.iloc[next(known)], data.alphabet.encode)
        return ctc_losses(student(batch), batch.labels, zero_infinity=True).mean()

    def unsupervised() -> Tensor | None:
        target = cache.step(fresh)
        if target is None or not target.rows:
            counts["stored"] += target is None
            return None
        utterances = unlabelled.iloc[target.rows]
        log_probs = student(data.store.batch(utterances))
        real = torch.from_numpy(valid_frames(utterances, settings.model))
        valid = torch.arange(log_probs.shape[1]) < real[:, None]
        return unsupervised_loss(log_probs, target, valid.to(device), recipe, prior)

    for step in range(first, len(steps)):
        if step % config.every == 0 and measure(model, step):
            break
        loss = supervised() if steps[step] == SUPERVISED else unsupervised()
        if loss is not None:
            if not torch.isfinite(loss):
                raise UserError(
                    f"the loss is {loss.item()} at step {step} ({steps[step]}): lower the learning "
                    f"rate ({config.rate})"
                )
            # one cycle: the rate climbs over the first 15 % and falls to 0 by the end
            done = (step + 1) / (len(steps) + 1)
            optimizer.param_groups[0]["lr"] = config.rate * min(done / 0.15, (1 - done) / 0.85)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip)
            optimizer.step()
            counts["labelled_updates" if steps[step] == SUPERVISED else "unlabelled_updates"] += 1
            if recipe.decay:
                average(teacher, model, recipe.decay)
        if checkpoint.due():
            checkpoint.save({
                **{name: part.state_dict() for name, part in parts.items()},
                "generators": [generator.get_state() for generator in generators],
                "cache": [vars(target) for target in cache.targets],
                "counts": counts, "step": step + 1, "measured": measure.state,
                "torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all(),
            })  # fmt: skip
    else:
        measure(model, len(steps))
    model.eval()
    return counts


def check_unlabelled(store: FeatureStore, unlabelled: pd.DataFrame, settings: Settings) -> None:
    """Raise ``UserError`` where there is no unlabelled audio, or less than the cache holds."""
    where, cache = f"configs/{settings.preset}.yaml", settings.pseudo_labels.cache
    batches = len(store.groups(unlabelled, settings.training.batch))
    if batches == 0:
        raise UserError(
            f"{where}: no unlabelled audio is left: raise build: pool, or lower pseudo_labels: "
            "query_percents"
        )
    if cache > batches:
        raise UserError(
            f"{where}: pseudo_labels: cache is {cache} batches, but the unlabelled set has only "
            f"{batches}: lower cache to {batches} at most"
        )


# ---------------------------------------------------------------- monitor


def entropies(log_probs: Tensor) -> tuple[float, float]:
    """Entropy of the average distribution of frames [N, V], and their mean entropy, in nats. The
    first is at least the second, and equal to it where all frames say the same."""
    probs = log_probs.exp()
    mean = probs.mean(dim=0)
    return float(torch.special.entr(mean).sum()), float(torch.special.entr(probs).sum(-1).mean())


@torch.no_grad()
def frames_of(model, store, utterances: pd.DataFrame, config) -> dict[str, Tensor]:
    """Log posteriors [T, V] of each utterance's valid frames, in evaluation mode, by ``utt_id``."""
    model.eval()
    device = next(model.parameters()).device
    valid = dict(zip(utterances["utt_id"], valid_frames(utterances, config), strict=True))
    found = {}
    for batch in store.batches(utterances, 32):
        log_probs = model(batch.features.to(device)).log_softmax(-1).cpu()
        found |= zip(batch.utt_ids, log_probs, strict=True)
    return {utt_id: frames[: valid[utt_id]] for utt_id, frames in found.items()}


class Monitor:
    """Measures a model on watched unlabelled utterances, whose transcripts only we know, and on the
    validation set; keeps the weights that had the lowest validation WER; tells a collapse, by the
    validation set alone: what nobody has labelled decides nothing."""

    def __init__(self, data, settings: Settings):
        self.data, self.settings = data, settings
        pool = data.split("pool")
        chosen = np.random.default_rng(0).permutation(len(pool))[: settings.pseudo_labels.watched]
        self.watched = pool.iloc[np.sort(chosen)].reset_index(drop=True)
        with_text = self.watched[self.watched["text"] != ""].sort_values(["duration", "utt_id"])
        kept = with_text if len(with_text) else self.watched
        self.shown = kept["utt_id"].iloc[len(with_text) // 2]
        self.state = {"rows": [], "posteriors": [], "best": None}

    def __call__(self, model: DeepSpeech2, step: int) -> bool:
        data, rows = self.data, self.state["rows"]
        frames = frames_of(model, data.store, self.watched, self.settings.model)
        average, mean = entropies(torch.cat(list(frames.values())))
        blank = torch.cat([best_path(part) == BLANK for part in frames.values()])
        texts = self.watched.set_index("utt_id")["text"]
        said = {name: data.alphabet.collapse(best_path(part)) for name, part in frames.items()}
        counts = pd.DataFrame([errors(texts[name], said[name].strip()) for name in said]).sum()
        validated = summarise(evaluate(model, data.store, data.split("validation"), data.alphabet))
        row = {
            "step": step,
            "blank_share": blank.float().mean(),
            "frame_entropy": mean,
            "average_entropy": average,
            "length_ratio": sum(map(len, said.values())) / max(1, counts["chars"]),
            "empty_share": sum(not text.strip() for text in said.values()) / len(said),
            "pseudo_cer": 100 * counts["char_errors"] / max(1, counts["chars"]),
            "pseudo_wer": 100 * counts["word_errors"] / max(1, counts["words"]),
            "validation_ctc": validated["ctc"],
            "validation_wer": validated["wer"],
        }
        rows.append({name: float(value) for name, value in row.items()})
        self.state["posteriors"].append(frames[self.shown].exp())
        best = min(rows[1:] or rows, key=lambda row: row["validation_wer"])
        if best is rows[-1]:
            self.state["best"] = {k: v.cpu().clone() for k, v in model.state_dict().items()}
        return self.collapsed()

    def collapsed(self) -> bool:
        """Is the share of the validation set's words that the model gets right below ``collapsed``
        of what it was at the first step? One that got hardly one in ten right has none to lose."""
        rows = self.state["rows"]
        first, last = (100 - rows[n]["validation_wer"] for n in (0, -1))
        return first > 10 and last < self.settings.pseudo_labels.collapsed * first
