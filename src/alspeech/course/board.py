"""The leaderboard: acquisition functions that others wrote, held against random, EGL and ours.

    make leaderboard SUBMISSIONS=folder [SEEDS=hidden.txt]

A submission is a file with one function of a model and a batch, as in acquisition.py; its name is
the file's. It scores the pool in a confined process (isolation.py), once in batches as everything
else here is scored, and once in others: scores that are not the same are refused. What it queries
is trained on like any other query. Differences are paired by seed; a rank is told as far as they
allow one.

Hidden seeds are a file of lines ``seed N``, one ``corpus N`` (the number that the pool is drawn
by, so that nobody has its transcripts) and one ``salt …``. The file's SHA-256 is published before,
the file itself when all is over: ``sha256sum`` compares.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from .. import experiment, tables
from ..acquisition import ORACLES
from ..costs import scoring_cost
from ..querying import ALL, BASE, query
from ..speech import corpus
from ..statistics import holm, paired_difference, verdict
from ..workshop.config import ROOT, Settings
from ..workshop.errors import UserError, cut
from ..workshop.steps import Step, in_parallel
from ..workshop.store import read_csv, write_csv, write_text
from .confined import entry
from .isolation import LIMITS, NEEDED, Isolation, Limits, Refused
from .page import lines, page

METRIC = "macro_wer"
OURS = ("random", "entropy", "pctc", "egl", "egl_renormalised", "oracle_loss", "oracle_gradient")
SUBMITTED = "board-"  # before a submission's name, wherever ours stand beside it

# ---------------------------------------------------------------- what is read


@dataclass(frozen=True)
class Seeds:
    """What a board is run with: seeds, the number that the corpus is drawn by (None: the preset's),
    and the digest that is published of hidden ones ("": they are public)."""

    seeds: tuple[int, ...]
    corpus: int | None = None
    commitment: str = ""


def read_seeds(path: Path) -> Seeds:
    """Hidden seeds from their file. Raises ``UserError`` naming the line that is none."""
    try:
        content = path.read_bytes()
        lines = content.decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"SEEDS={cut(path)}: {cut(error)}: name a file of text, or one that is not "
                        "there yet, to have it made") from None  # fmt: skip
    found = {"seed": [], "corpus": [], "salt": []}
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or line.startswith("#"):
            continue
        known = len(words) == 2 and words[0] in found
        if not known or (words[0] != "salt" and not re.fullmatch(r"\d{1,9}", words[1])):
            raise UserError(f"{path.name}, line {number}: '{cut(line)}': write 'seed 123', "
                            "'corpus 123' (at most nine digits) or 'salt …'")  # fmt: skip
        found[words[0]].append(words[1])
    seeds = tuple(map(int, found["seed"]))
    if twice := [seed for seed, count in Counter(seeds).items() if count > 1]:
        raise UserError(f"{path.name}: seed {twice[0]} stands there twice: each seed is one sample")
    if len(seeds) < 2:
        raise UserError(f"{path.name}: {len(seeds)} seed: a difference without an interval decides "
                        "nothing: give two at least, ten are better")  # fmt: skip
    if len(found["salt"]) != 1 or len(found["salt"][0]) < 16 or len(found["corpus"]) > 1:
        raise UserError(f"{path.name}: one line 'salt …' of 16 characters at least is needed, and "
                        "one 'corpus N' at most: without a salt seeds can be guessed")  # fmt: skip
    drawn = int(found["corpus"][0]) if found["corpus"] else None
    return Seeds(seeds, drawn, hashlib.sha256(content).hexdigest())


def new_seeds(path: Path, number: int = 10) -> Seeds:
    """Make a file of so many hidden seeds, drawn by the operating system's chance."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["# hidden seeds: publish this file's SHA-256 now, and the file when all is over"]
    lines += [f"salt {secrets.token_hex(16)}", f"corpus {secrets.randbelow(10**9)}"]
    drawn = set()
    while len(drawn) < number:
        drawn.add(secrets.randbelow(10**9))
    write_text(path, "\n".join([*lines, *(f"seed {seed}" for seed in drawn)]) + "\n")
    path.chmod(0o600)
    return read_seeds(path)


@dataclass(frozen=True)
class Submission:
    """A file of one function."""

    name: str
    source: str

    @property
    def strategy(self) -> str:
        return SUBMITTED + self.name


def read_submissions(folder: str) -> tuple[list[Submission], dict[str, str]]:
    """The submissions in a folder and in its folders, and, by name, why others are none.

    Raises ``UserError`` where there is no such folder, nothing in it, or two of one name.
    """
    place = Path(folder)
    if not folder or not place.is_dir():
        raise UserError(f"SUBMISSIONS={cut(folder)}: name the folder of the submissions' files")
    paths = sorted(path for path in place.rglob("*.py") if not path.name.startswith((".", "_")))
    if not paths:
        raise UserError(f"SUBMISSIONS={cut(folder)}: no file that ends in .py: a submission is one")
    by_name = {}
    for path in paths:
        other = by_name.setdefault(path.stem.lower(), path)
        if other is not path:
            both = " and ".join(cut(x.relative_to(place), 60) for x in (other, path))
            raise UserError(f"two submissions are called {cut(path.stem)}: {both}: rename one")
    found, refused = [], {}
    for path in paths:
        try:
            found.append(_submission(path))
        except Refused as reason:
            refused[cut(path.stem)] = str(reason)
    return found, refused


def _submission(path: Path) -> Submission:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", path.stem):
        raise Refused(
            "its file's name is longer than 40, or has more than letters, digits, _ and -"
        )
    try:
        if path.stat().st_size > 100_000:
            raise Refused("its file has more than 100,000 bytes")
        source = path.read_text(encoding="utf-8")
        entry(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OSError) as error:
        what = "no Python" if isinstance(error, SyntaxError | UnicodeDecodeError) else "refused"
        line = f", line {error.lineno}" if getattr(error, "lineno", None) else ""
        told = error.msg if isinstance(error, SyntaxError) else error
        raise Refused(f"{what}{line}: {cut(told, 120)}") from None
    return Submission(path.stem, source)


# ---------------------------------------------------------------- scores


def batches_of(data: corpus.Corpus, model, size: int, rng=None) -> tuple[list, list[str]]:
    """The pool in batches without transcripts, and its ids in their order: longest first, as all
    scores are computed, or by ``rng`` in another order and other company.

    In the batches utterances have names that are made of their features and the model's weights,
    which a submission has anyway: they say nothing, and are others for each seed.
    """
    pool = data.split("pool")[["utt_id"]]
    groups = data.store.groups(pool, size, rng)
    groups = groups if rng is not None else groups[::-1]
    key = hashlib.sha256()
    for weights in model.state_dict().values():
        key.update(weights.numpy().tobytes())
    found, utt_ids = [], []
    for index in groups:
        batch = data.store.batch(pool.iloc[index])
        utt_ids += batch.utt_ids
        digests = (hashlib.sha256(key.digest() + x.numpy().tobytes()) for x in batch.features)
        found.append(replace(batch, utt_ids=tuple(x.hexdigest()[:16] for x in digests)))
    return found, utt_ids


def submitted(settings: Settings, submission: Submission, seed: int, isolation: Isolation) -> Step:
    """One submission's scores of the pool. Folder: ``scores.csv``; metrics.json has its cost in
    ``forward_passes``. Computing it raises ``Refused``."""
    base = experiment.base_model(settings, seed)

    def compute(folder: Path) -> dict:
        data, model = corpus.prepare(settings), experiment.load_base(settings, seed).cpu()
        runs, found = [], []
        for size, rng in ((32, None), (7, np.random.default_rng(0))):
            batches, utt_ids = batches_of(data, model, size, rng)
            runs.append(isolation.score(submission.name, submission.source, model, batches))
            found.append(pd.Series(runs[-1].scores, pd.Index(utt_ids, name="utt_id")))
        scores, again = found[0].rename(submission.name), found[1].loc[found[0].index]
        off = ~np.isclose(scores, again, rtol=1e-2, atol=1e-2 * max(scores.std(), 1e-12))
        if off.any():
            raise Refused(f"{off.sum()} of {len(off)} scores change with the batches that the "
                          "utterances come in: a score is of one utterance")  # fmt: skip
        order = data.split("pool")["utt_id"]
        scores.loc[order].to_csv(folder / "scores.csv")
        cost = {"forward_passes": runs[0].forward_passes, "confined_by": runs[0].layers}
        return {"utterances": len(scores), **cost}

    given = {"source": hashlib.sha256(submission.source.encode()).hexdigest()}
    return Step(f"{submission.strategy}-seed{seed}", compute, after=(base,), given=given,
                resume=False)  # fmt: skip


def trial(settings: Settings, name: str, chosen, amount: float, seed: int) -> Step:
    """The cell of a query of one's own: base + the utterances ``chosen`` (ids)."""
    return experiment.cell(settings, name, amount, seed, chosen=list(chosen))


def cell(settings: Settings, name: str, scores: str, amount: float, seed: int) -> Step:
    """The cell of a strategy of ours or, with the folder of its ``scores``, of a submission."""
    if not scores:
        return experiment.cell(settings, name, amount, seed)
    found = read_csv(Path(scores) / "scores.csv").set_index("utt_id").iloc[:, 0]
    seconds = None
    if settings.query_seconds:
        pool = corpus.prepare(settings).split("pool").set_index("utt_id")
        seconds = pool["duration"]
    return trial(settings, name, query(found, amount, seconds), amount, seed)


# ---------------------------------------------------------------- the board


@dataclass(frozen=True)
class Board:
    """What was found: rows of the board, the curves behind it, who was refused and why, and what
    submissions were confined by."""

    rows: pd.DataFrame
    curves: pd.DataFrame
    refused: dict
    layers: tuple[str, ...]
    amount: float
    seeds: Seeds


def of_board(settings: Settings, seeds: Seeds) -> Settings:
    """The settings with what a board compares, on the corpus that its seeds name."""
    settings = replace(settings, strategies=OURS)
    if seeds.corpus is None:
        return settings
    return replace(settings, build=replace(settings.build, seed=seeds.corpus))


def run(
    settings: Settings, submissions: str, seeds_file: str = "", isolation: str = "",
    limits: Limits = LIMITS,
) -> Board:  # fmt: skip
    """Run every submission of a folder, and ours, at the preset's first percentage; nothing that is
    there already is computed again. ``isolation`` "none" runs them on machines that lack what
    confines them.

    Raises ``UserError`` for a folder or seeds that are none, and where nothing can be confined.
    """
    found, refused = read_submissions(submissions)
    seeds = read_seeds(Path(seeds_file)) if seeds_file else Seeds(tuple(range(settings.seeds)))
    if len(seeds.seeds) < 2:
        raise UserError("the preset has one seed: a difference without an interval decides nothing")
    if isolation not in ("", "none"):
        raise UserError(f"ISOLATION={cut(isolation)}: leave it out, or write none")
    settings, amount = of_board(settings, seeds), experiment.amounts(settings)[0]
    in_parallel(experiment.base_model, settings, [(s,) for s in seeds.seeds], "base models")
    names = [name for name in OURS if name != BASE]
    pairs = [(name, seed) for name in names for seed in seeds.seeds]
    in_parallel(experiment.pool_scores, settings, pairs, "our scores")
    scored = {}
    with Isolation(limits, NEEDED if isolation == "" else ()) as isolated:
        for one in tqdm(found, "submissions", unit="file"):
            try:
                scored[one] = [submitted(settings, one, s, isolated).folder() for s in seeds.seeds]
            except Refused as reason:
                refused[one.name] = str(reason)
    tasks = [(name, "", amount, seed) for name in names for seed in seeds.seeds]
    tasks += [(BASE, "", 0, seed) for seed in seeds.seeds]
    tasks += [(ALL, "", 100, seed) for seed in seeds.seeds]
    for one, found in scored.items():
        own = zip(seeds.seeds, map(str, found), strict=True)
        tasks += [(one.strategy, folder, amount, seed) for seed, folder in own]
    folders = in_parallel(cell, settings, tasks, "cells")
    data, cells = corpus.prepare(settings), [(name, much, seed) for name, _, much, seed in tasks]
    bought = [[] for _ in cells]  # what was bought is nobody's business
    order = [*names, *(one.strategy for one in scored)]
    curves = tables.error_curves(settings, data, cells, bought, folders, order)
    spent, layers = _spent(settings, data, names, scored, seeds.seeds[0])
    return Board(ranked(curves, amount, order, spent), curves, refused, layers, amount, seeds)


def _spent(settings, data, names, scored: dict, seed: int) -> tuple[dict, tuple]:
    """What every strategy but the oracles costs, in forward passes, and what submissions were
    confined by."""
    model = experiment.load_base(settings, seed)
    batches = batches_of(data, model.cpu(), 32)[0][:4]
    known = [name for name in names if name not in ORACLES]
    costs = scoring_cost(model, batches, known, settings)["forward passes"].to_dict()
    layers = set()
    for one, folders in scored.items():
        metrics = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
        costs[one.strategy] = float(np.mean([x["forward_passes"] for x in metrics]))
        layers |= {layer for x in metrics for layer in x["confined_by"]}
    return costs, tuple(sorted(layers))


def ranked(curves: pd.DataFrame, amount: float, strategies, costs: dict) -> pd.DataFrame:
    """A row a strategy: error, paired differences from random and from EGL with their intervals,
    and the ranks that intervals allow.

    Strategy i is surely better than j where the paired interval of their difference is below 0
    after Holm's correction over all pairs. Its rank lies between one more than those that are
    surely better, and the number of all less those that are surely worse.
    """
    rows, pairs = [], []
    names = [name for name in strategies if name not in ORACLES]
    for a in names:
        for b in names:
            if a < b:
                row = _difference(curves, a, b, amount)
                pairs.append({"a": a, "b": b, **row})
    found = pd.DataFrame(pairs)
    found["p_holm"] = holm(found["p"])
    better, worse = Counter(), Counter()
    for row in found.itertuples():
        said = verdict(row.low, row.high, row.p_holm)
        if said in ("better", "worse"):
            first, second = (row.a, row.b) if said == "better" else (row.b, row.a)
            worse[first] += 1
            better[second] += 1
    for name in strategies:
        own = curves.loc[curves["strategy"] == name, METRIC]
        row = {"name": name.removeprefix(SUBMITTED), "submitted": name.startswith(SUBMITTED)}
        row |= {METRIC: own.mean(), "seeds": len(own)}
        for other in ("random", "egl"):
            d = _difference(curves, name, other, amount)
            row |= {f"{x}_{other}": d[x] for x in ("difference", "low", "high")}
        ranks = (1 + better[name], len(names) - worse[name]) if name in names else (None, None)
        rows.append(row | dict(zip(("rank_from", "rank_to"), ranks, strict=True))
                    | {"forward_passes": costs.get(name)})  # fmt: skip
    return pd.DataFrame(rows).sort_values(METRIC, kind="stable", ignore_index=True)


def _difference(curves: pd.DataFrame, a: str, b: str, amount: float) -> dict:
    if a == b:
        return dict.fromkeys(("difference", "low", "high", "p"), 0.0) | {"p": 1.0}
    renamed = curves[curves["strategy"].isin([a, b])]
    found = paired_difference(renamed, a, b, METRIC)
    # of one amount the mean over amounts is that of the amount
    return found.iloc[0][["difference", "low", "high", "p"]].to_dict()


def publish(settings: Settings, board: Board) -> Path:
    """Write the board's page and table into ``build/course/<run>/board``; returns the page. Neither
    says a seed, nor what anybody queried."""
    folder = ROOT / "build" / "course" / settings.run / "board"
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "board.csv", board.rows)
    refused = pd.DataFrame(sorted(board.refused.items()), columns=["name", "why"])
    write_csv(folder / "refused.csv", refused)
    write_text(folder / "index.html", page(settings, board))
    return folder / "index.html"


def told(board: Board) -> str:
    """The board in lines, for a terminal."""
    return "\n".join(lines(board))


def leaderboard(settings: Settings, submissions: str, seeds: str = "", isolation: str = "") -> str:
    """Run, publish and tell; without ``submissions`` make the file of hidden ``seeds``, if it is
    not there, and tell what commits to it."""
    if seeds and not submissions:
        path = Path(seeds)
        made = read_seeds(path) if path.exists() else new_seeds(path)
        return (f"{len(made.seeds)} hidden seeds in {path}: keep the file to yourself, and publish "
                f"this now: sha256 {made.commitment}")  # fmt: skip
    board = run(settings, submissions, seeds, isolation)
    return f"{told(board)}\npage: {publish(settings, board).relative_to(ROOT)}"
