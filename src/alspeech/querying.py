"""From scores to a query: score → rank → query are three steps, kept apart."""

from __future__ import annotations

import pandas as pd
import torch

from .acquisition import ACQUISITIONS
from .config import UserError
from .features import FeatureStore


@torch.no_grad()
def score(
    model, store: FeatureStore, pool: pd.DataFrame, strategy: str, batch: int = 32,
    known=None, report=None, **options,
) -> pd.Series:  # fmt: skip
    """An acquisition function's score of every pool utterance, indexed by ``utt_id``.

    ``report(scores)`` is called after each batch with a dict of all scores so far; ``known`` is
    such a dict of an earlier call, whose batches are not scored again.
    """
    model.eval()
    device = next(model.parameters()).device
    scores = dict(known or {})
    # longest first: what the first batch needs in memory is enough for all others
    for index in reversed(store.groups(pool, batch)):
        part = store.batch(pool.iloc[index])
        if scores.keys() >= set(part.utt_ids):
            continue
        values = ACQUISITIONS[strategy](model, part.to(device), **options)
        scores.update(zip(part.utt_ids, values.tolist(), strict=True))
        if report:
            report(scores)
    return pd.Series(scores, name=strategy).loc[pool["utt_id"]].rename_axis("utt_id")


def rank(scores: pd.Series) -> pd.Series:
    """Ranks from 0 (queried first); equal scores in the order of their ids."""
    by_id = scores.sort_index()
    order = by_id.sort_values(ascending=False, kind="stable").index
    return pd.Series(range(len(order)), index=order, name="rank").loc[scores.index]


def query(scores: pd.Series, percent: float) -> list[str]:
    """Ids of the ``percent`` % of the pool that rank first, best first (at least one).

    Raises ``UserError`` for a percentage outside (0, 100].
    """
    if not 0 < percent <= 100:
        raise UserError(f"query percentage {percent} is outside (0, 100]: give a share of the pool")
    ranks = rank(scores).sort_values()
    return list(ranks.index[: max(1, round(len(ranks) * percent / 100))])
