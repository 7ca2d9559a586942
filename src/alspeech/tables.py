"""The paper's tables: error curves, scores, Table 1."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from .querying import ALL, BASE
from .speech.corpus import Corpus
from .statistics import bounds
from .workshop.config import Settings
from .workshop.store import read_csv, write_csv, write_text

METRICS = ("ctc", "cer", "wer")  # the paper's
ALL_METRICS = (*METRICS, "macro_wer", "unseen_wer")  # see metrics.summarise


def error_curves(
    settings: Settings, data: Corpus, cells: list[tuple], bought: list, folders: list[Path],
    strategies, extra: tuple = (),
) -> pd.DataFrame:  # fmt: skip
    """A row a cell (strategy, amount, seed): its errors, what it ``bought`` (ids of the pool) and
    how it was trained, by the metrics.json of its folder; ``extra`` ones, if asked for.

    ``query_percent`` is a share of the pool's utterances, or of its seconds where those were the
    budget.
    """
    durations = data.split("pool").set_index("utt_id")["duration"]
    place = {name: i for i, name in enumerate((BASE, *strategies, ALL))}
    found = zip(cells, bought, folders, strict=True)
    rows = []
    for (strategy, amount, seed), chosen, folder in sorted(
        found, key=lambda row: (place[row[0][0]], *row[0][1:])
    ):
        metrics = json.loads((folder / "metrics.json").read_text())
        rows.append({
            "corpus": settings.corpus, "preset": settings.preset,
            **_what(settings, durations, strategy, amount, seed),
            **{name: metrics[name] for name in ALL_METRICS},
            "n_utterances": len(chosen), "hours": durations.loc[chosen].sum() / 3600,
            **{name: metrics[name] for name in ("updates", "infinite_ctc", *extra)},
        })  # fmt: skip
    return pd.DataFrame(rows)


def _what(settings: Settings, durations: pd.Series, strategy: str, amount: float, seed) -> dict:
    """The columns that name a cell."""
    if settings.query_seconds and strategy not in (BASE, ALL):
        amount = round(100 * amount / durations.sum(), 2)
    return {"strategy": strategy, "query_percent": amount, "seed": seed}


def cell_errors(settings: Settings, data: Corpus, cells: list[tuple], folders) -> pd.DataFrame:
    """A row a cell, test speaker and group: ``words`` and ``word_errors``, since errors of one
    speaker hang together (statistics.comparisons)."""
    test = data.split("test").set_index("utt_id")
    by = pd.DataFrame({
        "speaker": test.get("speaker", pd.Series(test.index, test.index)).fillna("unknown"),
        "group": test.get(data.group, "all"),
    })  # fmt: skip
    durations, parts = data.split("pool")["duration"], []
    for cell, folder in zip(cells, folders, strict=True):
        tested = read_csv(folder / "test.csv").set_index("utt_id")[["words", "word_errors"]]
        part = by.join(tested).groupby(["speaker", "group"], as_index=False).sum()
        what = _what(settings, durations, *cell)
        parts.append(part.assign(**what))
    return pd.concat(parts, ignore_index=True)[[*what, *part.columns]]


def scores(data: Corpus, columns: Iterable, by_seed: dict[int, list[pd.Series]]) -> pd.DataFrame:
    """A row a seed and pool utterance: those of the manifest's ``columns`` that there are, and a
    column for each of the seed's series of scores."""
    pool = data.split("pool")
    known = pool[["utt_id", *(name for name in columns if name in pool)]].set_index("utt_id")
    return pd.concat(
        [known.join(series).reset_index().assign(seed=seed) for seed, series in by_seed.items()],
        ignore_index=True,
    )


def table1(curves: pd.DataFrame, paper: pd.DataFrame) -> pd.DataFrame:
    """Table 1: mean and 95 % interval over seeds of CTC, CER and WER by strategy and percentage,
    with the paper's values (``<metric>_paper``) where it has them."""
    rows, by = [], ["strategy", "query_percent"]
    for (strategy, percent), part in curves.groupby(by, sort=False):
        row = {"strategy": strategy, "query_percent": percent, "seeds": len(part)}
        for metric in METRICS:
            row |= bounds(metric, part[metric])
        rows.append(row)
    return pd.DataFrame(rows).merge(paper, "left", by, suffixes=("", "_paper"))


def write_table1(output: Path, curves: pd.DataFrame, paper: pd.DataFrame) -> pd.DataFrame:
    """Write ``table1.csv`` and, for reading, ``table1.md``; returns the table."""
    table = table1(curves, paper)
    lines = [
        "| strategy | query (%) | CTC (nats) | CER (%) | WER (%) | paper: CTC | CER | WER |",
        "| --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for row in table.to_dict("records"):
        papers = [row[f"{metric}_paper"] for metric in METRICS]
        papers = ["" if value != value else f"{value:.2f}" for value in papers]
        ours = [_with_interval(row, metric) for metric in METRICS]
        cells = [row["strategy"], f"{row['query_percent']:g}", *ours, *papers]
        lines.append("| " + " | ".join(cells) + " |")
    seeds = int(table["seeds"].max())
    lines.append(f"\nMean over {seeds} seeds; in brackets the 95 % interval of the mean.")
    write_csv(output / "table1.csv", table)
    write_text(output / "table1.md", "\n".join(lines) + "\n")
    return table


def _with_interval(row: dict, metric: str) -> str:
    low, high = row[f"{metric}_low"], row[f"{metric}_high"]
    shown = "" if low != low else f" [{low:.1f}, {high:.1f}]"
    return f"{row[metric]:.2f}{shown}"
