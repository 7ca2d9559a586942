"""From scores to a query: score → rank → query are three steps, kept apart."""

from __future__ import annotations

import inspect

import pandas as pd
import torch

from .acquisition import ACQUISITIONS
from .speech.features import FeatureStore
from .workshop.config import Settings
from .workshop.errors import UserError, one_of
from .workshop.store import Checkpoint

BASE, ALL = "base", "all"  # the strategies that query nothing and everything


def score_options(settings: Settings, strategy: str, seed: int) -> dict:
    """What the settings offer an acquisition function, as far as it takes it."""
    one_of("strategy", strategy, ACQUISITIONS)
    offered = {
        "seed": seed,
        "labelings": settings.labelings,
        "method": settings.egl_method,
        "directions": settings.directions,
        "beam": settings.labelings,
        "target": settings.loss_prediction.target,
    }
    taken = inspect.signature(ACQUISITIONS[strategy]).parameters
    return {name: value for name, value in offered.items() if name in taken}


def costly_first(settings: Settings, strategies) -> list[str]:
    """Strategies that take more options do more work; if they go first, no core ends up alone."""
    return sorted(strategies, key=lambda name: -len(score_options(settings, name, 0)))


@torch.no_grad()
def score(
    model, store: FeatureStore, pool: pd.DataFrame, strategy: str, batch: int = 32,
    checkpoint: Checkpoint | None = None, **options,
) -> pd.Series:  # fmt: skip
    """An acquisition function's score of every pool utterance, indexed by ``utt_id``.

    With a ``checkpoint`` an interrupted call goes on from the last batch that was saved.
    """
    model.eval()
    device = next(model.parameters()).device
    scores = (checkpoint and checkpoint.load()) or {}
    # longest first: what the first batch needs in memory is enough for all others
    for index in reversed(store.groups(pool, batch)):
        part = store.batch(pool.iloc[index])
        if scores.keys() >= set(part.utt_ids):
            continue
        values = ACQUISITIONS[strategy](model, part.to(device), **options)
        scores.update(zip(part.utt_ids, values.tolist(), strict=True))
        if checkpoint and checkpoint.due():
            checkpoint.save(scores)
    return pd.Series(scores, name=strategy).loc[pool["utt_id"]].rename_axis("utt_id")


def rank(scores: pd.Series) -> pd.Series:
    """Ranks from 0 (queried first); equal scores in the order of their ids."""
    ranks = scores.sort_index().rank(method="first", ascending=False, na_option="bottom")
    return ranks.astype(int).sub(1).rename("rank").loc[scores.index]


def query(scores: pd.Series, percent: float) -> list[str]:
    """Ids of the ``percent`` % of the pool that rank first, best first (at least one).

    Raises ``UserError`` for a percentage outside (0, 100].
    """
    if not 0 < percent <= 100:
        raise UserError(f"query percentage {percent} is outside (0, 100]: give a share of the pool")
    ranks = rank(scores).sort_values()
    return list(ranks.index[: max(1, round(len(ranks) * percent / 100))])
