"""From scores to a query: score → rank → query are three steps, kept apart."""

from __future__ import annotations

import inspect

import numpy as np
import pandas as pd
import torch

from .acquisition import ACQUISITIONS, IN_TURN, ORACLES, cluster, embedding, in_turn, needed
from .speech.features import FeatureStore
from .speech.text import Alphabet, unusable
from .workshop.config import Settings
from .workshop.errors import UserError, cut, one_of
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
    for name in needed(ACQUISITIONS[strategy]):
        if name not in offered:
            raise UserError(f"score {strategy} asks for '{cut(name)}', which has no default: a run "
                            f"has {', '.join(offered)}")  # fmt: skip
    return {name: value for name, value in offered.items() if name in taken}


def costly_first(settings: Settings, strategies) -> list[str]:
    """Strategies that take more options do more work; if they go first, no core ends up alone."""
    return sorted(strategies, key=lambda name: -len(score_options(settings, name, 0)))


@torch.no_grad()
def score(
    model, store: FeatureStore, pool: pd.DataFrame, strategy: str, batch: int = 32,
    checkpoint: Checkpoint | None = None, alphabet: Alphabet | None = None,
    group: str | None = None, **options,
) -> pd.Series:  # fmt: skip
    """An acquisition function's score of every pool utterance, indexed by ``utt_id``.

    Only an oracle is shown transcripts, by the ``alphabet`` in which they are written; an utterance
    from whose transcript nothing can be learned has no score there (NaN), and comes last.
    ``group`` is the manifest's column that the oracle of rare groups reads. With a ``checkpoint``
    an interrupted call goes on from the last batch that was saved.
    """
    known, encode = pool, None

    def function(model, batch, **options):
        return _numbers(strategy, ACQUISITIONS[strategy](model, batch, **options), batch.utt_ids)

    if strategy in ORACLES and strategy not in IN_TURN:
        known = pool[[unusable(row, alphabet) is None for row in pool.itertuples()]]
        encode = alphabet.encode
    scores = _by_batch(model, store, known, function, batch, encode, checkpoint, options)
    found = pd.Series(scores, name=strategy).reindex(pool["utt_id"]).rename_axis("utt_id")
    if strategy in IN_TURN:
        if strategy == "random_clusters":
            points = _by_batch(model, store, pool, embedding, batch)
            rows = [points[utt_id] for utt_id in sorted(points)]  # k-means looks at the order
            names = cluster(torch.tensor(rows), seed=options.get("seed", 0))
            groups = pool["utt_id"].map(dict(zip(sorted(points), names, strict=True)))
        else:
            groups = pool[group] if group else pd.Series("all", pool.index)
        found[:] = in_turn(groups, found).numpy()
    return found


def _numbers(strategy: str, scores, utt_ids: tuple[str, ...]) -> torch.Tensor:
    """The scores, if they are one number an utterance. Raises ``UserError`` for what else a
    function may have returned."""
    wanted = f"a tensor [{len(utt_ids)}], a number for each utterance of the batch"
    if not torch.is_tensor(scores):
        raise UserError(f"score {strategy} returned a {type(scores).__name__}: return {wanted}")
    if scores.shape != (len(utt_ids),):
        shape = list(scores.shape)
        raise UserError(f"score {strategy} returned a tensor {shape}: return {wanted}")
    for number in scores.isnan().nonzero()[:1, 0]:
        raise UserError(f"score {strategy} of {cut(utt_ids[number])} is NaN: a ranking needs a "
                        "number (infinity is one)")  # fmt: skip
    return scores


def _by_batch(
    model, store, utterances, function, batch: int, encode=None, checkpoint=None, options=None
) -> dict:
    """What a function of model and batch says of every utterance: numbers, or lists of them."""
    model.eval()
    device = next(model.parameters()).device
    found = (checkpoint and checkpoint.load()) or {}
    # longest first: what the first batch needs in memory is enough for all others
    for index in reversed(store.groups(utterances, batch)):
        part = store.batch(utterances.iloc[index], encode)
        if found.keys() >= set(part.utt_ids):
            continue
        values = function(model, part.to(device), **(options or {}))
        found.update(zip(part.utt_ids, values.tolist(), strict=True))
        if checkpoint and checkpoint.due():
            checkpoint.save(found)
    return found


def affordable(seconds, amount: float, by_seconds: bool) -> int:
    """How many utterances of a pool a budget, see :func:`query`, pays for at most."""
    if not by_seconds:
        return max(1, round(len(seconds) * amount / 100))
    return max(1, int((np.cumsum(np.sort(seconds)) <= amount + 1e-9).sum()))


def rank(scores: pd.Series) -> pd.Series:
    """Ranks from 0 (queried first); equal scores in the order of their ids."""
    ranks = scores.sort_index().rank(method="first", ascending=False, na_option="bottom")
    return ranks.astype(int).sub(1).rename("rank").loc[scores.index]


def query(scores: pd.Series, amount: float, seconds: pd.Series | None = None) -> list[str]:
    """Ids of the utterances that rank first, best first: ``amount`` % of the pool (at least one),
    or, where the pool's ``seconds`` are told by id, as many as ``amount`` seconds pay for.

    Raises ``UserError`` for a percentage outside (0, 100], and for a budget that pays for nothing
    or for more than there is.
    """
    order = list(rank(scores).sort_values().index)
    if seconds is None:
        if not 0 < amount <= 100:
            raise UserError(
                f"query percentage {amount} is outside (0, 100]: give a share of the pool"
            )
        return order[: affordable(order, amount, by_seconds=False)]
    costs = seconds.loc[order]
    if not costs.min() <= amount <= costs.sum():
        raise UserError(
            f"query_seconds {amount:g}: the pool's shortest utterance takes {costs.min():.2f} s, "
            f"all of them {costs.sum():.0f} s: give a number between the two"
        )
    spent = int((costs.cumsum() <= amount + 1e-9).sum())
    # where not even the first one can be paid for, the first that can
    return order[:spent] or [costs.index[costs.to_numpy() <= amount][0]]
