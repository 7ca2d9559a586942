"""The paper's tables: error curves, scores, Table 1."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from .querying import ALL, BASE
from .speech.corpus import Corpus
from .statistics import bounds
from .workshop.config import Settings
from .workshop.store import write_csv, write_text

METRICS = ("ctc", "cer", "wer")


def error_curves(
    settings: Settings, data: Corpus, cells: list[tuple], bought: list, folders: list[Path],
    strategies, extra: tuple = (),
) -> pd.DataFrame:  # fmt: skip
    """A row a cell (strategy, percent, seed): its errors, what it ``bought`` (ids of the pool) and
    how it was trained, by the metrics.json of its folder; ``extra`` ones, if asked for."""
    durations = data.split("pool").set_index("utt_id")["duration"]
    place = {name: i for i, name in enumerate((BASE, *strategies, ALL))}
    found = zip(cells, bought, folders, strict=True)
    rows = []
    for (strategy, percent, seed), chosen, folder in sorted(
        found, key=lambda row: (place[row[0][0]], *row[0][1:])
    ):
        metrics = json.loads((folder / "metrics.json").read_text())
        rows.append({
            "corpus": settings.corpus, "preset": settings.preset,
            "strategy": strategy, "query_percent": percent, "seed": seed,
            **{name: metrics[name] for name in METRICS},
            "n_utterances": len(chosen), "hours": durations.loc[chosen].sum() / 3600,
            **{name: metrics[name] for name in ("epochs", "infinite_ctc", *extra)},
        })  # fmt: skip
    return pd.DataFrame(rows)


def scores(data: Corpus, columns: tuple, by_seed: dict[int, list[pd.Series]]) -> pd.DataFrame:
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
