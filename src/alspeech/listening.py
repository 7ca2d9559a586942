"""Figures that play: utterances by their ranks, to be heard, and error curves, to be pointed at.

They are drawn by workshop/playable.py; here is what goes into them. Legend: K labelings.
"""

from __future__ import annotations

from itertools import permutations

import pandas as pd
import torch
from IPython.display import HTML

from . import experiment
from .acquisition import uniform
from .decoding import n_best
from .findings import label
from .querying import ALL, BASE
from .speech.corpus import prepare
from .speech.players import CLIP_TYPE, clip
from .statistics import interval
from .workshop import playable
from .workshop.config import Settings
from .workshop.plots import METRIC_LABEL
from .workshop.styles import ENDS, in_order, style_of

BATCH = 16  # utterances
LEAST = 10  # utterances in a red circle: of fewer there are no shares to speak of
MOST = 1600  # dots: more are a blot, and a browser's patience
ABOUT = {  # columns of the manifest that colour dots: name, whether it is a quantity, unit
    "kind": ("kind", False, ""), "accent": ("accent", False, ""), "snr_db": ("SNR", True, "dB"),
    "duration": ("length", True, "s"), "speaker": ("speaker", False, ""),
}  # fmt: skip


@torch.no_grad()
def beliefs(settings: Settings, seed: int = 0, likeliest: int = 5) -> pd.DataFrame:
    """What a seed's base model believes of every utterance of the pool, indexed by ``utt_id``: the
    ``mass`` Σp of its beam of K labelings (``settings.labelings``), and its ``nbest``, the
    ``likeliest`` of them as (transcript, p)."""
    speech, model, rows = prepare(settings), experiment.load_base(settings, seed), {}
    device = next(model.parameters()).device
    for batch in speech.store.batches(speech.split("pool"), BATCH):
        log_probs = model(batch.features.to(device)).log_softmax(-1)
        found = n_best(log_probs, settings.labelings)
        p, mass = found.log_p.double().exp().tolist(), found.mass().tolist()
        for b, utt_id in enumerate(batch.utt_ids):
            known = [k for k in range(min(likeliest, settings.labelings)) if p[b][k] > 0]
            texts = [(speech.alphabet.decode(found.labeling(b, k)), p[b][k]) for k in known]
            rows[utt_id] = mass[b], texts
    return pd.DataFrame.from_dict(rows, orient="index", columns=["mass", "nbest"])


def red_circle(x: pd.Series, y: pd.Series) -> list[str]:
    """Over whom two scores fall out, as the paper circles them in red: those that ``y`` ranks
    furthest before ``x``, the furthest first. A twentieth of the utterances that have both, at
    least ``LEAST``; of equal gaps the first ids. Scores are indexed by ``utt_id``."""
    ranks = [scores.sort_index().rank(ascending=False, pct=True) for scores in (x, y)]
    gap = (ranks[0] - ranks[1]).dropna().sort_values(ascending=False, kind="stable")
    return list(gap.index[: max(LEAST, len(gap) // 20)])


def ranking(
    settings: Settings, scores: pd.DataFrame, believed: pd.DataFrame, recordings: int = 320
) -> HTML:
    """The pool by the ranks of any two scores, to be clicked and heard.

    ``scores`` are one seed's, indexed by ``utt_id``, a column a strategy; ``believed`` is what
    :func:`beliefs` returned. So many ``recordings`` are embedded: a quarter from either end of the
    gap between the two ranks that are shown first, the others at random. Of a pool of more than
    ``MOST`` a sample is shown, which depends on ids alone; ranks, circles and shares stay those of
    the whole pool.
    """
    names = [name for name in settings.strategies if name in scores]
    x, y = _first_axes(names)
    pool = prepare(settings).split("pool").set_index("utt_id", drop=False)
    scores = scores.loc[pool.index]
    sample = to_be_heard(scores[x], scores[y], recordings)
    shown = list(sample.index)
    about = {name: ABOUT[name] for name in ABOUT if name in pool and pool[name].notna().any()}
    axes = {name: (label(name), scores[name]) for name in names}
    axes |= {f"by_{name}": (about[name][0], pool[name]) for name in about if about[name][1]}
    places = {name: values.rank(ascending=False) for name, (_, values) in axes.items()}
    data = {
        "x": x, "y": y, "mime": CLIP_TYPE, "silent": "",
        "axes": [
            {"name": name, "label": text, "method": name in names, "of": int(values.count())}
            for name, (text, values) in axes.items()
        ],
        "colours": [
            {"name": name, "label": text, "ordered": ordered, "unit": unit}
            for name, (text, ordered, unit) in about.items()
        ],
        "pool": _summary(pool, about),
        "circles": _circles(axes, pool, about, shown),
        "points": [
            {
                "id": utt_id, "text": str(pool.at[utt_id, "text"]),
                "weight": float(sample.at[utt_id, "weight"]),
                "about": {name: _plain(pool.at[utt_id, name]) for name in about},
                "scores": {name: _plain(values[utt_id]) for name, (_, values) in axes.items()},
                "places": {name: _plain(places[name][utt_id]) for name in axes},
                "nbest": [[text, float(f"{p:.4g}")] for text, p in believed.at[utt_id, "nbest"]],
            }
            for utt_id in shown
        ],
        "clips": {i: clip(row) for i, row in pool.loc[shown][sample["heard"]].iterrows()},
    }  # fmt: skip
    many = f"{len(shown)} of {len(pool)}" if len(shown) < len(pool) else str(len(pool))
    title = f"{many} utterances of the pool by the ranks of two scores, to be heard"
    return playable.figure("ranking", title, data)


def _first_axes(names: list[str]) -> tuple[str, str]:
    """Figure 2b's, entropy across and EGL up, or the nearest that there is."""
    if {"entropy", "egl"} <= set(names):
        return "entropy", "egl"
    chosen = [name for name in names if name != "random"] or names
    return chosen[0], chosen[-1]


def to_be_heard(x: pd.Series, y: pd.Series, recordings: int) -> pd.DataFrame:
    """The utterances that are shown, a row each, in the pool's order: whether they are ``heard``,
    and the ``weight``, how many of the pool each stands for: the ends of the gap, which are always
    shown, for themselves, those drawn at random for the others too. Of two scores indexed by
    ``utt_id``."""
    gap = x.rank(ascending=False) - y.rank(ascending=False)
    order = gap.sort_values(ascending=False, kind="stable").index
    quarter = recordings // 4
    ends = dict.fromkeys([*order[:quarter], *order[len(order) - min(quarter, len(order)) :]])
    drawn = x.index[uniform(x.index, 0).argsort(stable=True).numpy()]
    everybody = list(dict.fromkeys([*ends, *drawn]))
    shown = everybody[:MOST]
    weight = (len(x) - len(ends)) / max(1, len(shown) - len(ends))
    heard = set(everybody[:recordings])
    rows = [(i in heard, 1 if i in ends else weight) for i in shown]
    sample = pd.DataFrame(rows, shown, ["heard", "weight"])
    return sample.loc[[i for i in x.index if i in sample.index]]


def _summary(rows: pd.DataFrame, about: dict) -> dict:
    """How many these are, how long on average, and how many there are of each kind and the like,
    as pairs: what is unknown has no name."""
    kinds = [name for name, (_, ordered, _) in about.items() if not ordered]
    return {
        "size": len(rows),
        "seconds": _plain(rows["duration"].mean()) if "duration" in about else None,
        "counts": {
            name: [[_plain(v), n] for v, n in rows[name].value_counts(dropna=False).items()]
            for name in kinds
        },
    }  # fmt: skip


def _circles(axes: dict, pool: pd.DataFrame, about: dict, shown: list[str]) -> dict:
    """The red circle of any two axes, x and then y: which of the points that are ``shown`` lie in
    it and, where these are a sample, what all of it are."""
    place, found = {utt_id: n for n, utt_id in enumerate(shown)}, {}
    for x, y in permutations(axes, 2):
        circle = red_circle(axes[x][1], axes[y][1])
        whole = {} if len(shown) == len(pool) else {"whole": _summary(pool.loc[circle], about)}
        points = [place[utt_id] for utt_id in circle if utt_id in place]
        found.setdefault(x, {})[y] = {"points": points, **whole}
    return found


def _plain(value):
    """A value as JSON has it; what is missing is None."""
    if pd.isna(value):
        return None
    return float(f"{value:.6g}") if isinstance(value, float) else str(value)


MARKERS = {"o": "circle", "s": "square", "^": "triangle", "D": "diamond", "v": "down", "P": "plus"}
DASHES = {"-": "", "--": "7 4", ":": "2 3", "-.": "7 3 2 3"}


def error_curves(curves: pd.DataFrame) -> HTML:
    """Error against what was labelled, to be pointed at; ``curves`` are the rows of
    error_curves.csv of one scenario. Mean and 95 % interval over seeds."""
    metrics = {name: text for name, text in METRIC_LABEL.items() if curves[name].notna().any()}
    methods = in_order(name for name in curves["strategy"] if name not in (BASE, ALL))

    def errors(rows: pd.DataFrame) -> dict:
        return {m: [_plain(float(v)) for v in interval(rows[m].dropna())] for m in metrics}

    queried = curves[curves["strategy"].isin(methods)]
    data = {
        "seeds": int(curves["seed"].nunique()),
        "metrics": [{"name": name, "label": text} for name, text in metrics.items()],
        "along": [
            {"name": "utterances", "label": "utterances labelled"},
            {"name": "seconds", "label": "seconds of audio labelled"},
        ],
        "methods": [_styled(name) for name in methods],
        "rows": [
            {
                "method": method, "percent": float(percent), "errors": errors(part),
                "utterances": float(part["n_utterances"].mean()),
                "seconds": _plain(3600 * part["hours"].mean()),
            }
            for (method, percent), part in queried.groupby(["strategy", "query_percent"])
        ],
        "ends": [
            {"label": text, "errors": errors(curves[curves["strategy"] == name])}
            for name, text in ENDS.items()
        ],
    }  # fmt: skip
    return playable.figure("error_curves", "Error against what was labelled", data)


def _styled(method: str) -> dict:
    text, colour, marker, line = style_of(method)
    dashes = DASHES[line] if isinstance(line, str) else " ".join(map(str, line[1]))
    return {
        "name": method, "label": text, "colour": colour, "dashes": dashes,
        "marker": MARKERS.get(marker, "hexagon"),
    }  # fmt: skip
