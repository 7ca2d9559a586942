"""What the experiment leaves open, tried once, in its first scenario: how long must a cell be
trained, does it matter where it begins, and does it pay to query in rounds?

    training.csv    cells trained for fewer updates, as many, and more (`factors`), and from scratch
    rounds.csv      a query in rounds, each by the model of the round before, and in one batch

Sequential queries are what Huang et al. (2016, § 5) leave to future work. Both ways of querying end
with as many labels after as many updates in as many cycles of the learning rate, so that only the
rounds differ.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd

from . import experiment
from .acquisition import check_strategies
from .devices import device
from .embeddings import first_pass
from .experiment import base_model, cell
from .model import DeepSpeech2
from .querying import ALL, BASE, query, score, score_options
from .selection import SELECTIONS, choose, selection_options
from .speech import corpus
from .tables import ALL_METRICS
from .training import load_weights, train_and_test
from .workshop.config import Settings
from .workshop.errors import UserError
from .workshop.provenance import publish
from .workshop.steps import Step, in_parallel
from .workshop.store import read_csv, torch_bytes, write_bytes, write_csv


def longer(settings: Settings, refit: str, updates: int, *what) -> Step:
    """A cell (strategy, amount, seed) after so many updates, going on or from scratch."""
    training = replace(settings.training, refit=refit, updates=updates)
    return cell(replace(settings, training=training), *what)


def leg(settings: Settings, how: str, number: int, strategy: str, seed: int) -> Step:
    """One of a query's rounds: what is queried by then, and the model trained on with it.

    ``how`` is "rounds": each queries its share of the pool by the model of the leg before; or
    "batch": the first one queries it all. Folder: as :func:`experiment.base_model`'s, and
    ``queried.csv``.
    """
    studies, config = settings.studies, experiment.training_of(settings)
    before = (
        leg(settings, how, number - 1, strategy, seed) if number > 1 else base_model(settings, seed)
    )
    if strategy in SELECTIONS:
        choose, options = _selected, {"selection": vars(settings.selection), "seed": seed}
        aims = experiment.target_folder(settings)
    else:
        choose, options, aims = _scored, score_options(settings, strategy, seed), ()

    def compute(folder: Path) -> dict:
        data = corpus.prepare(settings)
        model = load_weights(DeepSpeech2(settings.model, len(data.alphabet)).to(device()), before)
        pool, chosen = data.split("pool"), []
        if number > 1:
            chosen = list(read_csv(before.folder() / "queried.csv")["utt_id"])
        share = studies.amount / (studies.rounds if how == "rounds" else 1)
        wanted = round(len(pool) * share * (number if how == "rounds" else 1) / 100) - len(chosen)
        if wanted > 0:
            left = pool[~pool["utt_id"].isin(chosen)]
            bought = pool[pool["utt_id"].isin(chosen)]
            chosen += choose(settings, data, model, strategy, seed, left, bought, wanted, options)
        write_csv(folder / "queried.csv", pd.DataFrame({"utt_id": chosen}))
        metrics = train_and_test(
            folder, data, model, data.labelled(chosen), config, seed=seed + 1000 * number,
            updates=config.updates // studies.rounds, rate=config.rate,
        )  # fmt: skip
        write_bytes(folder / "model.pt", torch_bytes(model.state_dict()))
        return metrics | {"queried": len(chosen)}

    given = {
        "strategy": options, "amount": studies.amount, "rounds": studies.rounds,
        "updates": config.updates, "rate": config.rate,
    }  # fmt: skip
    return Step(
        f"{strategy}-{how}-{number}-seed{seed}", compute, after=(before, *aims), given=given
    )


# Ids of ``wanted`` utterances of those that are ``left``, by a model that need not be a base model,
# where some have been ``bought`` already.


def _scored(settings, data, model, strategy, seed, left, bought, wanted, options) -> list[str]:
    scores = score(
        model, data.store, left, strategy, alphabet=data.alphabet, group=data.group, **options
    )
    return query(scores, 100 * wanted / len(left))


def _selected(settings, data, model, strategy, seed, left, bought, wanted, _) -> list[str]:
    splits, taken = selection_options(settings.selection, strategy, seed)
    options, sets = experiment.pass_options(settings, seed), dict.fromkeys(splits)

    def look(utterances, store=data.store):
        utterances = utterances.drop(columns="text", errors="ignore")
        return first_pass(model, store, utterances, **options)

    if "labelled" in splits:
        sets["labelled"] = look(pd.concat([data.split("base"), bought]))
    if splits.get("target"):
        sets["target"] = look(*experiment.heard(settings, data, splits["target"], seed))
    candidates = look(left)
    order = choose(strategy, candidates, wanted, **sets, **taken)
    return list(candidates.utt_ids[order])


def row_of(folder: Path, **what) -> dict:
    """A row of a table: what a cell is, its errors, and how it was trained."""
    metrics = json.loads((folder / "metrics.json").read_text())
    return {
        **what,
        **{name: metrics[name] for name in (*ALL_METRICS, "updates", "train_utterances")},
    }


def check(settings: Settings) -> str:
    """:func:`experiment.check`, of what is tried here, too. Raises ``UserError`` where a length or
    a method has nothing to be held against."""
    studies, where = settings.studies, f"configs/{settings.preset}.yaml: studies"
    also = studies.longer + studies.strategies
    check_strategies(also, SELECTIONS)
    longer = set(studies.longer) & set(settings.strategies)
    if "random" not in longer:
        raise UserError(f"{where}: longer: name random, which is also one of strategies: all else "
                        "is held against it")  # fmt: skip
    if 1 not in studies.factors:
        raise UserError(f"{where}: factors: name 1.0: what is trained from scratch is held against "
                        "what goes on for as many updates")  # fmt: skip
    named = tuple(dict.fromkeys(settings.strategies + also))
    return experiment.check(replace(settings, strategies=named))


def run(settings: Settings) -> SimpleNamespace:
    """The experiment, and both studies in its first scenario. Writes ``training.csv`` and
    ``rounds.csv`` into ``results/<run>``; returns them as ``training`` and ``rounds``, beside what
    the experiment returns."""
    done = experiment.run(settings)
    begun, studies, config = time.perf_counter(), settings.studies, settings.training
    seeds = range(min(studies.seeds, settings.seeds))
    first = experiment.amounts(settings)[0]
    methods = [name for name in studies.longer if name in settings.strategies]
    cells = [(BASE, 0), *((name, first) for name in methods), (ALL, 100)]
    longs = [("on", round(config.updates * factor)) for factor in studies.factors]
    ways = [(*way, *what) for way in reversed(longs) for what in cells]
    ways = [("scratch", config.updates, *what) for what in (cells[1], cells[-1])] + ways
    tasks = [(*way, seed) for way in ways for seed in seeds]
    folders = in_parallel(longer, settings, tasks, "longer")
    names = ("refit", "given", "strategy", "query_percent", "seed")
    training = pd.DataFrame([
        row_of(folder, scenario=settings.scenario, **dict(zip(names, task, strict=True)))
        for folder, task in zip(folders, tasks, strict=True)
    ])  # fmt: skip
    rounds, legs = in_rounds(settings, studies.strategies)
    found = {"training": training, "rounds": rounds}
    few = replace(settings, seeds=len(seeds))
    publish(few, found, "provenance_studies", [*folders, *legs], begun)
    return SimpleNamespace(**vars(done), **found)


def in_rounds(settings: Settings, strategies) -> tuple[pd.DataFrame, list[Path]]:
    """A row a strategy, seed and way of querying, in the current scenario; and the folders of all
    legs."""
    studies = settings.studies
    tasks = [
        (how, studies.rounds, strategy, seed)
        for strategy in strategies for how in ("rounds", "batch")
        for seed in range(min(studies.seeds, settings.seeds))
    ]  # fmt: skip
    legs = in_parallel(leg, settings, tasks, "rounds")
    earlier = [
        leg(settings, how, number, *what).folder()
        for how, count, *what in tasks for number in range(1, count)
    ]  # fmt: skip
    rounds = pd.DataFrame([
        row_of(folder, scenario=settings.scenario, strategy=strategy, how=how, rounds=count,
             query_percent=studies.amount, seed=seed)
        for folder, (how, count, strategy, seed) in zip(legs, tasks, strict=True)
    ])  # fmt: skip
    return rounds, [*earlier, *legs]
