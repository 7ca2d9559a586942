"""Your recordings: which of them should be transcribed next?

    make query CORPUS=jsonl DATA=mine BUDGET=30min     # a list of what to transcribe, best first
    make learn CORPUS=jsonl DATA=mine TRANSCRIPTS=done.csv    # what came back, and what it is worth

What has a transcript is what the recogniser learns from and is tested on; the pool is what has
none (``Settings.unlabelled``). Where hardly anything is transcribed yet, the recogniser is that of
``start:`` in the preset. Everything else is the experiment's: the same base model, the same scores.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ..acquisition import ORACLES, check_strategies, posteriors
from ..decoding import n_best
from ..embeddings import Candidates
from ..experiment import as_read, base_model, first_pass, load_base, read_scores
from ..querying import rank
from ..selection import SELECTIONS, nearest, selection_options
from ..speech import corpus, readers, transcripts
from ..speech.features import FeatureStore
from ..speech.lists import write_lists
from ..speech.manifests import read_manifest
from ..workshop.config import EVEN, LABELLED, ROOT, SPLITS, QueryConfig, Settings, load_settings
from ..workshop.errors import UserError, cut
from ..workshop.steps import Step, in_parallel
from ..workshop.store import read_csv, write_csv
from ..workshop.values import checked
from . import elsewhere
from .stopping import Curve, curve

SEED, SMALL = 0, 4000  # one recogniser; as many are ranked at least
# the shares of what has a transcript, as sizes that no corpus reaches
SIZES = {"base": 70_000_000, "pool": 10**9, "validation": 10_000_000, "test": 20_000_000}


TRANSCRIBED = ("synthetic", "fsdd", "speechcommands", *LABELLED)  # or labelled: whole corpora


def mine(settings: Settings, budget: str = "", method: str = "", format: str = "") -> Settings:
    """The settings of a corpus whose pool is what has no transcript; words of the command line come
    before the preset's. Raises ``UserError`` for a corpus whose every utterance has one, and for
    a word that is none."""
    if settings.corpus in TRANSCRIBED:
        raise UserError(f"CORPUS={settings.corpus} has all of its transcripts: name recordings of "
                        "your own, CORPUS=jsonl, kaldi or librispeech with DATA=")  # fmt: skip
    words = {"budget": budget, "method": method, "format": format}
    words = {x: word for x, word in words.items() if word}
    query = checked({**vars(settings.query), **words}, QueryConfig, "make query")
    check_strategies((query.method,), SELECTIONS)
    if query.method in ORACLES:
        raise UserError(f"method {query.method} is shown transcripts, and there are none yet")
    return replace(
        settings.on(EVEN), unlabelled=True, query=query, seeds=1, strategies=(query.method,),
        query_seconds=(), build=replace(settings.build, **SIZES),
    )  # fmt: skip


# ---------------------------------------------------------------- what there is


def recogniser(settings: Settings) -> tuple[Step, object]:
    """The step of the recogniser that is asked, and what loads it from its settings and a seed:
    the base model of what has a transcript, or, with too little of it, that of ``start:``; or the
    preset's own ``recogniser:``."""
    if settings.recogniser:
        return elsewhere.recogniser(settings)
    counts = corpus.prepare(settings).manifest["split"].value_counts()
    labelled = counts.drop("pool", errors="ignore")
    if labelled.sum() >= settings.query.enough and len(labelled) == 3:
        return base_model(settings, SEED), load_base
    if not settings.start:
        raise UserError(
            f"{labelled.sum()} utterances with a transcript, and {settings.query.enough} are "
            "needed to learn from and to test on: transcribe some, or take a preset that starts "
            "from another recogniser, PRESET=recorded"
        )
    if settings.build.alphabet == "learned":
        raise UserError(f"start: {settings.start} writes English letters: leave out build: "
                        "alphabet, or transcribe more before the first query")  # fmt: skip
    other = load_settings(settings.start).on(EVEN)
    return base_model(other, SEED), lambda _, seed: load_base(other, seed)


def minutes(settings: Settings) -> str:
    """How much there is with and without a transcript, in words."""
    manifest = read_manifest(corpus.corpus(settings).folder() / "manifest.jsonl")
    silent = manifest["split"] == "pool"
    typed = len(transcripts.typed(settings))
    told = [
        f"{len(part)} utterances, {part['duration'].sum() / 60:.1f} min, {what} a transcript"
        for what, part in (("with", manifest[~silent]), ("without", manifest[silent]))
    ]
    return f"{told[0]} ({typed} of them brought by make learn); {told[1]}"


def looked_at(settings: Settings, check) -> str:
    """What ``check`` (a system's, of settings) says of a corpus; where some of it has no
    transcript, how many minutes that is, too. Where most has none, no system can use it as it is:
    then what is said is what ``make query`` sees."""
    if settings.corpus in TRANSCRIBED:
        return check(settings)
    rows = readers.read(settings.corpus, settings.data, settings.build.outside).rows
    silent = rows["text"].str.strip() == ""
    if not silent.any():
        return check(settings)
    own = mine(settings)
    told = check(settings) if 2 * silent.sum() <= len(rows) else corpus.check(own)
    return f"{told}\n{minutes(own)}: make query says which are worth one"


# ---------------------------------------------------------------- budgets


UNITS = {"s": 1, "min": 60, "h": 3600}


def budget(text: str, seconds: pd.Series) -> tuple[float, bool]:
    """(amount, is it seconds?) of "30min", "10%" or "200", for a pool of these ``seconds``.

    Raises ``UserError`` for one that pays for nothing or for more than there is.
    """
    number, unit = re.fullmatch(r"([\d.]+)(\D*)", text).groups()
    amount, longest = float(number), float(seconds.sum())
    if unit in UNITS:
        amount *= UNITS[unit]
        if not seconds.min() <= amount <= longest:
            least, most = f"{seconds.min():.2f} s", f"{longest / 60:.1f} min"
            if longest < 120:
                most = f"{longest:.2f} s"
            raise UserError(f"budget {text}: the shortest utterance without a transcript takes "
                            f"{least}, all of them {most}: give a number between")  # fmt: skip
        return amount, True
    count = math.ceil(len(seconds) * amount / 100) if unit == "%" else amount
    if not 1 <= count <= len(seconds) or count != int(count):
        raise UserError(f"budget {text}: {len(seconds)} utterances have no transcript: give 1 to "
                        f"{len(seconds)}, a percentage, or minutes (30min)")  # fmt: skip
    return count, False


def taken(
    order: list[str], pool: pd.DataFrame, content: dict, amount: float, by_seconds: bool,
    speaker: float = 1.0, known=frozenset(),
) -> list[str]:  # fmt: skip
    """Ids from the best on, until the budget is spent: none whose ``content`` (by id) is that of
    one before it or ``known``, and of one speaker at most the share ``speaker`` of the budget."""
    rows, seen, spent, chosen = pool.set_index("utt_id"), set(known), 0.0, []
    by_speaker = Counter()
    for utt_id in order:
        row = rows.loc[utt_id]
        cost = row["duration"] if by_seconds else 1
        who = row["speaker"]
        many = who != "unknown" and by_speaker[who] + cost > max(speaker * amount, cost)
        if content[utt_id] in seen or many:
            continue
        if spent + cost > amount + 1e-9:
            break
        seen.add(content[utt_id])
        by_speaker[who] += cost
        spent += cost
        chosen.append(utt_id)
    return chosen


def contents(store: FeatureStore, utterances: pd.DataFrame) -> dict[str, str]:
    """A hash of every utterance's features by its id: recordings that are the same have the same
    one."""
    return {
        utt_id: hashlib.sha256(np.ascontiguousarray(store[utt_id]).tobytes()).hexdigest()
        for utt_id in utterances["utt_id"]
    }


# ---------------------------------------------------------------- why


def reasons(pool: Candidates, labelled: Candidates) -> pd.DataFrame:
    """Why an utterance may be worth asking for, by ``utt_id``: the share of the pool that is
    shorter, that the recogniser is surer of, and that is nearer to what has a transcript."""
    novelty = np.zeros(len(pool))
    if len(labelled):
        novelty = nearest(pool.embeddings, labelled.embeddings)
    values = {"long": pool.seconds, "uncertain": pool.scores["entropy"], "new": novelty}
    table = pd.DataFrame(values, index=pd.Index(pool.utt_ids, name="utt_id"))
    return (table.rank(method="min") - 1) / max(1, len(table) - 1)


def because(shares: pd.Series) -> str:
    """The strongest of :func:`reasons`, in words."""
    what = shares.idxmax()
    than = {"long": "longer", "uncertain": "less certain", "new": "less like what is transcribed"}
    return f"{what}: {than[what]} than {100 * shares[what]:.0f} % of the others"


@torch.no_grad()
def guesses(model, store: FeatureStore, utterances: pd.DataFrame, alphabet) -> dict[str, str]:
    """The most likely labeling of each utterance, by id."""
    found = {}
    for batch in store.batches(utterances, 32):
        batch = batch.to(next(model.parameters()).device)
        best = n_best(posteriors(model(batch.features), batch), k=1, beam=40)
        for b, utt_id in enumerate(batch.utt_ids):
            found[utt_id] = alphabet.decode(best.labeling(b, 0))
    return found


# ---------------------------------------------------------------- the commands


def ranked(settings: Settings) -> tuple[pd.DataFrame, pd.Series, list[Path]]:
    """The pool, its scores by the settings' method, and the folders of two first passes: over the
    pool, and over what has a transcript (if anything has)."""
    data = corpus.prepare(settings)
    pool = data.split("pool")
    if pool.empty:
        raise UserError("every utterance has a transcript: there is nothing to ask for")
    amount, by_seconds = budget(settings.query.budget, pool["duration"])
    count = amount / pool["duration"].mean() if by_seconds else amount
    # more than it pays for: some are short, some come twice
    percent = (
        100 if len(pool) <= SMALL else min(100, math.ceil(100 * (3 * count + 100) / len(pool)))
    )
    settings = replace(settings, query_percents=(percent,))
    if settings.query.method in SELECTIONS:
        aim = selection_options(settings.selection, settings.query.method, SEED)[0].get("target")
        if aim and settings.selection.target in set(SPLITS) - set(data.manifest["split"]):
            raise UserError(
                f"method {settings.query.method}: nothing is in the target, "
                f"{settings.selection.target}: name another, TARGET=pool or a folder"
            )
    model, load = recogniser(settings)
    splits = ["pool"] + ["base"] * bool((data.manifest["split"] == "base").any())
    in_parallel(_described, settings, [(split, SEED) for split in splits], "first passes")
    passes = [_described(settings, split, SEED).folder() for split in splits]
    asked = settings.query.method, SEED, model, load
    scores = read_scores(elsewhere.pool_scores(settings, *asked, count).folder())
    return pool, scores, passes


def _described(settings: Settings, split: str, seed: int) -> Step:
    return first_pass(settings, split, seed, *recogniser(settings))


def query(settings: Settings) -> tuple[pd.DataFrame, list[Path]]:
    """What to transcribe, best first: the manifest's rows with ``rank`` (from 1), ``score, guess``
    and ``why``; and the files in ``build/<run>`` that say so."""
    pool, scores, passes = ranked(settings)
    data, (_, load) = corpus.prepare(settings), recogniser(settings)
    candidates = [Candidates.load(path / "candidates.npz") for path in passes]
    labelled = candidates[1] if len(candidates) > 1 else candidates[0].rows([])
    order = list(rank(scores).sort_values().index)
    content = contents(data.store, data.manifest)
    others = data.manifest.loc[data.manifest["split"] != "pool", "utt_id"]
    known, config = {content[utt_id] for utt_id in others}, settings.query
    chosen = taken(
        order, pool, content, *budget(config.budget, pool["duration"]), config.speaker, known
    )
    if not chosen:
        raise UserError(f"budget {config.budget}: the first utterance already takes more, or all "
                        "of them are known: give more")  # fmt: skip
    rows = pool.set_index("utt_id", drop=False).loc[chosen].reset_index(drop=True)
    model = load(settings, SEED)
    alphabet = getattr(model, "alphabet", data.alphabet)  # of one from elsewhere its own
    guessed = guesses(model, as_read(model, rows, data.store), rows, alphabet)
    why = reasons(candidates[0], labelled)
    rows = rows.assign(
        rank=range(1, len(rows) + 1), score=[float(scores[x]) for x in chosen],
        guess=[guessed[x] for x in chosen], why=[because(why.loc[x]) for x in chosen],
    )  # fmt: skip
    return rows, write_lists(ROOT / "build" / settings.run, rows, config.format)


def learned(settings: Settings) -> pd.DataFrame:
    """The rows of ``results/<run>/learned.csv`` that are this corpus's: its trainings so far."""
    path = ROOT / "results" / settings.run / "learned.csv"
    if not path.exists():
        return pd.DataFrame(columns=LEARNED)
    table = read_csv(path).reindex(columns=LEARNED)
    return table[table["corpus"] == transcripts.kept(settings).stem]


LEARNED = (
    "corpus", "utterances", "minutes", "wer", "cer", "ctc", "tested_on", "model", "alphabet",
)  # fmt: skip


def keep_learned(settings: Settings, rows: pd.DataFrame) -> None:
    """Write ``learned.csv`` again with these rows for this corpus."""
    path, own = ROOT / "results" / settings.run / "learned.csv", learned(settings)
    before = read_csv(path) if path.exists() else own
    table = pd.concat([before.drop(index=own.index), rows], ignore_index=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_csv(path, table.sort_values(["corpus", "minutes"], kind="stable"))


def keep(settings: Settings, file: str | Path) -> None:
    """Keep the transcripts of a file, all or none, see :func:`transcripts.bring`."""
    found = readers.read(settings.corpus, settings.data, settings.build.outside)
    before = transcripts.typed(settings)
    new, every = transcripts.bring(settings, str(file), found.rows)
    corpus.corpus.cache_clear()  # it has these transcripts now
    after = transcripts.typed(settings)
    corrected = sum(before[utt_id] != after[utt_id] for utt_id in before)
    told = f", {corrected} corrected" if corrected else ""
    print(f"{new} new transcripts{told}, {every} brought in all: {transcripts.kept(settings)}")
    there = set(corpus.prepare(settings).manifest["utt_id"])
    lost = [utt_id for utt_id in after if utt_id not in there]
    if lost:
        print(f"{len(lost)} of all cannot be used, {cut(lost[0])} for one: make check says why")


def learn(settings: Settings, file: str | Path = "") -> Curve | None:
    """:func:`keep` the transcripts of a file (if one is named) and train with all that there are;
    what all trainings so far make of the validation set, or None with too little to learn from.

    Every training's errors on the test set are a row of ``results/<run>/learned.csv``.
    """
    if file:
        keep(settings, file)
    data = corpus.prepare(settings)
    step, load = recogniser(settings)
    if load is not load_base:
        return None
    folder = step.folder()
    metrics = json.loads((folder / "metrics.json").read_text())
    base = data.split("base")
    row = {
        "corpus": transcripts.kept(settings).stem, "utterances": len(base),
        "minutes": round(base["duration"].sum() / 60, 3),
        **{name: metrics[name] for name in ("wer", "cer", "ctc")},
        "tested_on": int((data.manifest["split"] == "test").sum()), "model": folder.name,
        "alphabet": "".join(data.alphabet.characters),
    }  # fmt: skip
    before = learned(settings)
    table = pd.concat([before[before["model"] != row["model"]], pd.DataFrame([row])])
    keep_learned(settings, table)
    return curve(settings, table)


def said(settings: Settings, found: Curve | None) -> str:
    """What :func:`learn` found, for a person to read."""
    if found is None:
        return f"{minutes(settings)}; too little to learn from yet: make query goes on"
    shown = found.rounds.drop(columns=["corpus", "model", "alphabet"]).round(2)
    folder = recogniser(settings)[0].folder().relative_to(ROOT)
    return (f"{minutes(settings)}\n{shown.to_string(index=False)}\n{found.gain()}\n"
            f"the recogniser: {folder / 'model.pt'}")  # fmt: skip


def told(rows: pd.DataFrame, paths: list[Path], most: int = 10) -> str:
    """What :func:`query` found, for a person to read."""
    lines = [
        f"{row.rank:4}  {row.duration:6.2f} s  {cut(row.guess, 40):40}  {row.why}"
        for row in rows[:most].itertuples()
    ]
    more = [f"      … {len(rows) - most} more"] if len(rows) > most else []
    size = f"{len(rows)} utterances, {rows['duration'].sum() / 60:.1f} min"
    where = "\n".join(str(path.relative_to(ROOT)) for path in paths)
    return "\n".join([*lines, *more, f"{size}:", where])
