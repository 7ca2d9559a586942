"""Figures. ``plot_x(ax, frame) -> ax`` neither loads nor saves; one style for every method."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from scipy.stats import spearmanr

from .statistics import interval
from .store import write_bytes

MPLSTYLE = Path(__file__).with_name("alspeech.mplstyle")

# label, colour (Okabe & Ito's palette), marker, line style: told apart without colour, too
METHOD_STYLE = {
    "random": ("random", "#000000", "o", ":"),
    "entropy": ("entropy", "#0072B2", "s", "--"),
    "pctc": ("pCTC", "#009E73", "^", "-."),
    "egl": ("EGL", "#D55E00", "D", "-"),
    "egl_renormalised": ("EGL, renormalised", "#CC79A7", "v", "-"),
    "margin": ("smallest margin", "#D55E00", "D", "-"),
    "largest_margin": ("largest margin", "#CC79A7", "v", "--"),
    "least_confidence": ("least confidence", "#009E73", "^", "-."),
    "norm": ("norm", "#E69F00", "P", (0, (5, 1))),
    "margin_logits": ("smallest margin, logits", "#D55E00", "d", (0, (1, 1))),
    "least_confidence_logits": ("least confidence, logits", "#009E73", "<", (0, (1, 1))),
    "largest_margin_logits": ("largest margin, logits", "#CC79A7", ">", (0, (1, 1))),
}
METRIC_LABEL = {"ctc": "CTC loss (nats)", "cer": "CER (%)", "wer": "WER (%)"}


def use_style() -> None:
    """Take on the project's Matplotlib style."""
    plt.style.use(MPLSTYLE)


def save(figure, folder: Path, name: str) -> list[Path]:
    """Write ``folder/name.png`` and ``.pdf``, whole; equal figures give equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    unwanted = {"png": ["Software"], "pdf": ["CreationDate", "Producer", "Creator"]}
    paths = [folder / f"{name}.{kind}" for kind in unwanted]
    for path, (kind, keys) in zip(paths, unwanted.items(), strict=True):
        file = io.BytesIO()
        figure.savefig(file, format=kind, metadata=dict.fromkeys(keys))
        write_bytes(path, file.getvalue())
    return paths


def plot_error_curve(ax: Axes, curves: pd.DataFrame, metric: str, x: str = "query_percent") -> Axes:
    """Figure 1: error against what was queried; mean and 95 % interval over seeds.

    ``curves`` are the rows of error_curves.csv; ``x`` is ``query_percent`` or ``hours``. The base
    model and the one trained on everything are dashed lines.
    """
    present = [name for name in METHOD_STYLE if name in set(curves["strategy"])]
    offsets = np.linspace(-0.5, 0.5, len(present)) if x == "query_percent" else [0] * len(present)
    short = x == "hours" and curves.loc[curves["strategy"].isin(present), "hours"].max() < 2
    for strategy, offset in zip(present, offsets, strict=True):
        label, colour, marker, line = METHOD_STYLE[strategy]
        part = curves[curves["strategy"] == strategy].groupby("query_percent")
        at = part[x].mean().to_numpy() * (60 if short else 1)
        at = at + offset  # a little apart, so that bars do not hide
        mean, low, high = np.array([interval(values) for _, values in part[metric]]).T
        ax.errorbar(
            at, mean, [mean - low, high - mean], label=label, color=colour, marker=marker,
            linestyle=line, capsize=2, elinewidth=0.8,
        )  # fmt: skip
    right = ax.get_xlim()[1]
    for strategy, label in (("base", "base model"), ("all", "all of the pool")):
        value = curves.loc[curves["strategy"] == strategy, metric].mean()
        ax.axhline(value, color="0.45", linestyle=(0, (6, 3)), linewidth=0.8, zorder=0)
        ax.text(right, value, f"{label} ", ha="right", va="bottom", fontsize=7, color="0.35")
    unit = "minutes" if short else "hours"
    ax.set_xlabel("pool queried (%)" if x == "query_percent" else f"audio queried ({unit})")
    ax.set_ylabel(METRIC_LABEL[metric])
    return ax


def plot_rankings(ax: Axes, scores: pd.DataFrame, x: str, y: str) -> Axes:
    """Figure 2: an utterance's rank by method ``y`` against its rank by method ``x``.

    ``scores`` are the rows of scores.csv: a column of scores a method, and ``seed``. Ranks are
    shares of the pool within a seed, 0 = queried first; colour is the density of utterances;
    Spearman's ρ (mean over seeds) stands in the corner.
    """
    by_seed = scores.groupby("seed")
    ranks = {name: by_seed[name].rank(ascending=False, pct=True) for name in (x, y)}
    cells = ax.hexbin(
        ranks[x], ranks[y], gridsize=22, extent=(0, 1, 0, 1), cmap="Greys", mincnt=1,
        linewidths=0.1,
    )  # fmt: skip
    cells.set_clim(0, np.quantile(np.asarray(cells.get_array()), 0.98))
    ax.plot([0, 1], [0, 1], color="#D55E00", linewidth=0.8)
    rho = np.mean([spearmanr(part[x], part[y])[0] for _, part in by_seed])
    ax.text(
        0.96, 0.04, f"Spearman ρ = {rho:.2f}", transform=ax.transAxes, ha="right", va="bottom",
        fontsize=8, bbox={"facecolor": "white", "edgecolor": "0.8", "boxstyle": "round,pad=0.3"},
    )  # fmt: skip
    label = {name: METHOD_STYLE[name][0] for name in (x, y)}
    ax.set(
        xlabel=f"rank by {label[x]} (0 = queried first)",
        ylabel=f"rank by {label[y]} (0 = queried first)",
        xlim=(0, 1), ylim=(0, 1), aspect="equal",
    )  # fmt: skip
    ax.grid(False)
    return ax


def plot_history(ax: Axes, history: pd.DataFrame) -> Axes:
    """Training and validation loss by pass; ``history`` as fit() returns it, with ``seed``."""
    for column, label, colour in (
        ("train_loss", "training (masked input)", "0.6"),
        ("validation_loss", "validation", "#0072B2"),
    ):
        sns.lineplot(
            history, x="epoch", y=column, estimator=None, units="seed", color=colour, ax=ax,
        )  # fmt: skip
        ax.lines[-1].set_label(label)
    ax.set(xlabel="pass over the base set", ylabel=METRIC_LABEL["ctc"], ylim=(0, None))
    ax.legend()
    return ax


def plot_error_by(ax: Axes, tested: pd.DataFrame, column: str) -> Axes:
    """WER by the values of a manifest column, a dot a seed; ``tested`` has rows of evaluate()."""
    sums = tested.groupby([column, "seed"])[["word_errors", "words"]].sum().reset_index()
    sums = sums[sums["words"] > 0].assign(wer=lambda f: 100 * f["word_errors"] / f["words"])
    order = sums.groupby(column)["wer"].mean().sort_values().index
    sns.stripplot(sums, x="wer", y=column, order=order, color="#0072B2", size=4, ax=ax)
    ax.set(xlabel=METRIC_LABEL["wer"], ylabel="", xlim=(0, None))
    ax.grid(axis="y")
    return ax


def plot_features(ax: Axes, features, seconds: float) -> Axes:
    """Features [T, F] as a picture, time in seconds."""
    ax.imshow(
        np.asarray(features).T, origin="lower", aspect="auto", cmap="magma",
        extent=(0, seconds, 0, features.shape[1]),
    )  # fmt: skip
    ax.set(xlabel="time (s)", ylabel="mel bin")
    ax.grid(False)
    return ax


def plot_posterior(ax: Axes, probabilities, symbols: list[str], seconds: float) -> Axes:
    """Frame posteriors [T, V] of the symbols that matter (over 5 % in some frame)."""
    probabilities = np.asarray(probabilities)
    shown = [v for v in range(probabilities.shape[1]) if probabilities[:, v].max() > 0.05]
    ax.imshow(
        probabilities[:, shown].T, aspect="auto", cmap="Blues", vmin=0, vmax=1,
        extent=(0, seconds, len(shown) - 0.5, -0.5),
    )  # fmt: skip
    ax.set(xlabel="time (s)", ylabel="symbol")
    ax.set_yticks(range(len(shown)), [symbols[v] for v in shown])
    ax.grid(False)
    return ax


def plot_spectrum(ax: Axes, left: pd.DataFrame, percent: float = 0.9) -> Axes:
    """What is left of A after so many directions (a row an utterance): median, and the middle
    ``percent`` of utterances."""
    middle, tail = left.median(), (1 - percent) / 2
    ax.fill_between(left.columns, left.quantile(tail), left.quantile(1 - tail), color="0.85")
    ax.plot(left.columns, middle, color="#D55E00")
    ax.set(xlabel="directions", ylabel="share of Σ p‖g‖² left", xlim=(0, 60))
    ax.set(yscale="log", ylim=(1e-4, 1.3))
    return ax


def plot_directions_error(ax: Axes, study: pd.DataFrame) -> Axes:
    """Relative error of EGL from R directions: median and middle 80 %, with Spearman's ρ; ``study``
    as notebooks.directions_study returns it."""
    few = study[~study["directions"].isin(["exact", "plain"])]
    for R, part in few.groupby("directions"):
        error = 100 * (part["score"] / part["exact"] - 1)
        low, middle, high = error.quantile([0.1, 0.5, 0.9])
        ax.errorbar(R, middle, [[middle - low], [high - middle]], color="#D55E00", marker="D",
                    capsize=2)  # fmt: skip
        rho = spearmanr(part["score"], part["exact"])[0]
        ax.annotate(f"{rho:.3f}", (R, high), (0, 4), textcoords="offset points", ha="center",
                    fontsize=6)  # fmt: skip
    ax.axhline(0, color="0.45", linewidth=0.8)
    ax.margins(y=0.15)
    ax.set(xlabel="directions R", ylabel="error of EGL (%)")
    return ax


def plot_directions_cost(ax: Axes, study: pd.DataFrame) -> Axes:
    """Milliseconds an utterance of EGL from R directions, exact and plain (median over batches)."""
    ms = study.groupby("directions")["ms"].median()
    few = ms.drop(["exact", "plain"])
    ax.plot(few.index.astype(float), few.astype(float), color="#D55E00", marker="D")
    for name, label in (("exact", "exact"), ("plain", "one pass a transcript")):
        ax.axhline(ms[name], color="0.45", linestyle=(0, (6, 3)), linewidth=0.8)
        ax.text(few.index.max(), ms[name] * 1.08, label, ha="right", va="bottom", fontsize=7)
    ax.set(yscale="log", xlabel="directions R", ylabel="ms an utterance", ylim=(1, ms.max() * 2))
    return ax


def plot_composition(ax: Axes, shares: pd.DataFrame) -> Axes:
    """What each method picks: ``shares`` has a row a method and a column a kind, summing to 1."""
    left = np.zeros(len(shares))
    names = [METHOD_STYLE[n][0] if n in METHOD_STYLE else n for n in shares.index]
    colours = sns.color_palette("cividis", shares.shape[1])
    for kind, colour in zip(shares.columns, colours, strict=True):
        ax.barh(names, shares[kind], left=left, label=kind, color=colour, edgecolor="white")
        left += shares[kind].to_numpy()
    ax.set(xlabel="share of the query", xlim=(0, 1))
    ax.invert_yaxis()
    ax.legend(ncol=3, loc="lower left", bbox_to_anchor=(0, 1))
    ax.grid(False)
    return ax


def plot_accuracy(ax: Axes, curves: pd.DataFrame, band: bool = True) -> Axes:
    """Validation accuracy by acquisition step, a line a strategy: the mean over runs and, with
    ``band``, its 95 % interval. ``curves`` are one task's, encoder's and mode's rows of
    aloe.simulate(); those of strategy ``all`` are a dashed line."""
    present = [name for name in METHOD_STYLE if name in set(curves["strategy"])]
    for at, strategy in enumerate(present):
        label, colour, marker, line = METHOD_STYLE[strategy]
        part = curves[curves["strategy"] == strategy].groupby("step")["validation"]
        mean, low, high = np.array([interval(values) for _, values in part]).T
        steps = np.array(sorted(part.groups))
        every = max(1, len(steps) // 8)
        ax.plot(
            steps, mean, label=label, color=colour, linestyle=line, linewidth=1.1, marker=marker,
            markersize=3.2, markevery=(at * every // max(1, len(present)), every),
        )  # fmt: skip
        if band:
            ax.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    bound = curves.loc[curves["strategy"] == "all", "validation"].mean()
    ax.axhline(bound, color="0.45", linestyle=(0, (6, 3)), linewidth=0.8, zorder=0)
    ax.set(xlabel="acquisition step", ylabel="validation accuracy (%)")
    return ax


def accuracy_figure(curves: pd.DataFrame, strategies: list[str], band: bool = True):
    """A figure with a panel of :func:`plot_accuracy` for each task (across) and mode (down)."""
    tasks, modes = curves["task"].unique(), [m for m in curves["mode"].unique() if m != "all"]
    figure, axes = plt.subplots(
        len(modes), len(tasks), figsize=(2.2 * max(2, len(tasks)), 2.1 * len(modes)), sharex=True,
        squeeze=False,
    )  # fmt: skip
    for (row, column), ax in np.ndenumerate(axes):
        part = curves[curves["task"] == tasks[column]]
        part = part[part["mode"].isin([modes[row], "all"])]
        plot_accuracy(ax, part[part["strategy"].isin([*strategies, "all"])], band)
        ax.set(title=f"{tasks[column]}, class-{modes[row]}", xlabel="", ylabel="")
    figure.supxlabel("acquisition step", fontsize=9)
    figure.supylabel("validation accuracy (%)", fontsize=9)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure


def plot_embedding(ax: Axes, points, labels, steps, classes):
    """A two-dimensional view ``points`` [P, 2] of the pool: colours are classes, named where their
    middle is, crosses the seed set (``steps`` 0), circles the clips labelled later, the darker the
    later (NaN: never). Returns the circles, for a colour bar."""
    points, steps = np.asarray(points), np.asarray(steps, dtype=float)
    colours = sns.color_palette("Set2", len(classes))
    for c, name in enumerate(classes):
        own = np.asarray(labels) == c
        ax.scatter(*points[own].T, s=3, color=[colours[c]], linewidths=0, zorder=1)
        ax.annotate(
            name, np.mean(points[own], axis=0), fontsize=6, ha=("right", "left")[c % 2], zorder=4,
            bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.5},
        )  # fmt: skip
    seed, later = steps == 0, steps > 0
    ax.scatter(*points[seed].T, s=14, marker="x", color="black", linewidths=0.8, zorder=2)
    dots = ax.scatter(
        *points[later].T, s=12, c=steps[later], cmap="Greys", edgecolor="black", linewidths=0.4,
        zorder=3, vmin=0,
    )  # fmt: skip
    ax.set(xticks=[], yticks=[], xlabel="first direction", ylabel="second direction")
    return dots
