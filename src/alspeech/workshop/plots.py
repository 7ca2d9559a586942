"""Figures. ``plot_x(ax, frame) -> ax`` neither loads nor saves; one style for every method.
A ``gid`` names, for a figure's text (``alternative.py``), what is in no legend. seaborn is imported
where it is used: scipy.stats, which comes with it, takes a second."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ..statistics import ALL, BASE, interval, spearman
from .alternative import tell_in_notebooks
from .store import write_bytes
from .styles import ENDS, METRIC_LABEL, MONITOR_LABEL, in_order, style_of

MPLSTYLE = Path(__file__).with_name("alspeech.mplstyle")

# the first of these that is installed draws what Matplotlib's own font lacks
CHINESE_FONTS = (
    "Noto Sans SC", "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC",
    "WenQuanYi Micro Hei", "PingFang SC", "Hiragino Sans GB", "Microsoft YaHei", "SimHei",
)  # fmt: skip


def use_style() -> None:
    """Take on the project's Matplotlib style, and a font for Chinese characters if there is one."""
    plt.style.use(MPLSTYLE)
    installed = set(font_manager.get_font_names())
    chinese = [name for name in CHINESE_FONTS if name in installed][:1]
    plt.rcParams["font.family"] = ["sans-serif", *chinese]
    tell_in_notebooks()


def save(figure, folder: Path, name: str) -> None:
    """Write ``folder/name.png`` and ``.pdf``, whole; equal figures give equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    unwanted = {"png": ["Software"], "pdf": ["CreationDate", "Producer", "Creator"]}
    for kind, keys in unwanted.items():
        file = io.BytesIO()
        figure.savefig(file, format=kind, metadata=dict.fromkeys(keys))
        write_bytes(folder / f"{name}.{kind}", file.getvalue())


def _style(method: str) -> dict:
    return dict(zip(("label", "color", "marker", "linestyle"), style_of(method), strict=True))


def _unlabelled(style: dict, more: str = "") -> dict:
    return style | {"label": None, "gid": style["label"] + more}


def _by_method(frame: pd.DataFrame, column: str) -> list[tuple[str, pd.DataFrame]]:
    """The methods that ``column`` names, in their order, and their rows."""
    present = in_order(name for name in frame[column] if name not in (BASE, ALL))
    return [(name, frame[frame[column] == name]) for name in present]


def _means(groups) -> np.ndarray:
    """Mean and 95 % interval of each group: [3, groups]."""
    return np.array([interval(values) for _, values in groups]).T


def _curves(ax: Axes, lines, metric: str, x="query_percent", apart=0.5, scale=1) -> None:
    """A line of each (style, rows): mean and 95 % interval over seeds, by query percentage.
    Each is moved by ``apart`` at most, so that bars do not hide."""
    for offset, (style, rows) in zip(np.linspace(-apart, apart, len(lines)), lines, strict=True):
        by = rows.groupby("query_percent")
        mean, low, high = _means(by[metric])
        at = by[x].mean().to_numpy() * scale + offset
        bars = ax.errorbar(at, mean, [mean - low, high - mean], capsize=2, elinewidth=0.8, **style)
        bars.moved = offset  # a figure's text tells where they belong


def _bound(ax: Axes, y: float, text: str, written: bool = True, dashes=(6, 3), label=None) -> None:
    """A dashed line, and what it is at its right end (or in the legend, as its ``label``)."""
    ax.axhline(
        y, color="0.45", linestyle=(0, dashes), linewidth=0.9, zorder=0, gid=text, label=label
    )
    if written:
        right = {"x": ax.get_xlim()[1], "ha": "right", "va": "bottom"}
        ax.text(y=y, s=f"{text} ", fontsize=7, color="0.35", zorder=0, **right)


def _corner(ax: Axes, rho: float) -> None:
    y, va = (0.04, "bottom") if rho >= 0 else (0.96, "top")  # where fewer points are
    box = {"facecolor": "white", "edgecolor": "0.8", "boxstyle": "round,pad=0.3"}
    text = f"Spearman ρ = {rho:.2f}".replace("-", "−")
    ax.text(0.96, y, text, transform=ax.transAxes, ha="right", va=va, fontsize=8, bbox=box)


def plot_error_curve(ax: Axes, curves: pd.DataFrame, metric: str, x: str = "query_percent") -> Axes:
    """Figure 1: error against what was queried; mean and 95 % interval over seeds.

    ``curves`` are the rows of error_curves.csv; ``x`` is ``query_percent`` or ``hours``. The base
    model and the one trained on everything are dashed lines.
    """
    places = curves.loc[~curves["strategy"].isin([BASE, ALL]), x]
    percents, short = x == "query_percent", x == "hours" and places.max() < 2
    lines = [(_style(strategy), rows) for strategy, rows in _by_method(curves, "strategy")]
    _curves(ax, lines, metric, x, 0.5 if percents else 0, 60 if short else 1)
    if percents:
        ax.set(xticks=sorted(places.unique()), xlim=(places.min() - 3, places.max() + 3))
    dashes = {BASE: (9, 3), ALL: (2, 2)}
    means = curves[curves["strategy"].isin(ENDS)].groupby("strategy")[metric].mean()
    for strategy, y in means.items():  # told in the legend: beside the line a name hides curves
        _bound(ax, y, ENDS[strategy], False, dashes[strategy], ENDS[strategy])
    unit = "minutes" if short else "hours"
    xlabel = "pool queried (%)" if percents else f"audio queried ({unit})"
    ax.set(xlabel=xlabel, ylabel=METRIC_LABEL[metric])
    return ax


def plot_against_random(ax: Axes, differences: pd.DataFrame) -> Axes:
    """The difference to random of every method in every scenario: mean and 95 % interval.

    ``differences`` are the rows of comparisons.csv of one metric and one percentage, or the area. A
    filled marker: the difference is left after Holm's correction. Left of zero is better.
    """
    scenarios = list(differences["scenario"].unique())
    methods = _by_method(differences, "method")
    for offset, (method, rows) in zip(
        np.linspace(-0.3, 0.3, max(2, len(methods))), methods, strict=False
    ):
        style = _style(method) | {"linestyle": "none"}
        for left, part in rows.groupby(rows["verdict"].isin(["better", "worse"])):
            at = part["scenario"].map(scenarios.index) + offset
            spread = [part["difference"] - part["low"], part["high"] - part["difference"]]
            ax.errorbar(
                part["difference"], at, xerr=spread, capsize=2, elinewidth=0.8, markersize=4,
                **_unlabelled(style), markerfacecolor=style["color"] if left else "white",
            )  # fmt: skip
        ax.plot([], [], **style)
    ax.axvline(0, color="0.45", linewidth=0.8, zorder=0)
    ax.set_yticks(range(len(scenarios)), [name.replace("_", " ") for name in scenarios])
    ax.set(ylim=(len(scenarios) - 0.5, -0.5))
    for y in range(1, len(scenarios)):
        ax.axhline(y - 0.5, color="0.9", linewidth=0.6, zorder=0)
    ax.grid(axis="y", visible=False)
    return ax


def plot_map(ax: Axes, table: pd.DataFrame, text: pd.DataFrame, limit: float = 100) -> Axes:
    """Numbers of scenarios (rows) and methods (columns), each with its text; blue is more."""
    shown = table.clip(-limit, limit).to_numpy(dtype=float)
    ax.imshow(shown, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto", alpha=0.45)
    for (row, column), words in np.ndenumerate(text.to_numpy()):
        ax.text(column, row, words, ha="center", va="center", fontsize=7)
    ax.set_xticks(range(table.shape[1]), [style_of(name)[0] for name in table.columns])
    ax.set_yticks(range(table.shape[0]), [name.replace("_", " ") for name in table.index])
    ax.xaxis.tick_top()
    ax.tick_params(length=0, labelsize=7)
    ax.grid(False)
    return ax


def plot_longer(ax: Axes, training: pd.DataFrame, metric: str = "macro_wer") -> Axes:
    """Error against the length of a training: mean and 95 % interval of each cell of training.csv;
    hollow: from scratch."""
    ends = {BASE: (ENDS[BASE], "0.65"), ALL: (ENDS[ALL], "0.35")}
    for strategy, rows in training.groupby("strategy", sort=False):
        for refit, part in rows.groupby("refit", sort=False):
            by = part.groupby("updates")[metric]
            mean, low, high = _means(by)
            label, colour = ends.get(strategy) or style_of(strategy)[:2]
            scratch = refit == "scratch"
            ax.errorbar(
                list(by.groups), mean, [mean - low, high - mean], capsize=2, color=colour,
                marker="s" if strategy in ENDS else "o", linestyle="none" if scratch else "-",
                markerfacecolor="white" if scratch else None,
                label=None if scratch else label, gid=f"{label}, from scratch" * scratch or None,
            )  # fmt: skip
    ax.set(xlabel="updates of the training", ylabel=METRIC_LABEL[metric])
    ax.legend()
    return ax


def plot_rounds(ax: Axes, rounds: pd.DataFrame, metric: str = "macro_wer") -> Axes:
    """Error after a query in one batch and in rounds, a line a seed, by strategy; rows of
    rounds.csv."""
    names = [name for name, _ in _by_method(rounds, "strategy")]
    for number, name in enumerate(names):
        part = rounds[rounds["strategy"] == name].pivot(index="seed", columns="how", values=metric)
        at = np.array([number - 0.18, number + 0.18])
        label, colour, *_ = style_of(name)
        seeds, mean = f"{label}, batch to rounds, each seed", f"{label}, batch to rounds, mean"
        ax.plot(at, part[["batch", "rounds"]].T, color="0.7", linewidth=0.8, gid=seeds)
        ax.plot(at, part[["batch", "rounds"]].mean(), marker="o", color=colour, gid=mean)
    ax.set_xticks(range(len(names)), [f"{style_of(name)[0]}\nbatch → rounds" for name in names])
    ax.set(ylabel=METRIC_LABEL[metric])
    ax.grid(axis="x", visible=False)
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
    ax.plot([0, 1], [0, 1], color="#D55E00", linewidth=0.8, gid="the diagonal")
    _corner(ax, np.mean([spearman(part[x], part[y]) for _, part in by_seed]))
    xlabel, ylabel = (f"rank by {style_of(m)[0]} (0 = queried first)" for m in (x, y))
    ax.set(xlabel=xlabel, ylabel=ylabel, xlim=(0, 1), ylim=(0, 1), aspect="equal")
    ax.grid(False)
    return ax


def plot_predicted_loss(ax: Axes, table: pd.DataFrame, predictor: str) -> Axes:
    """True loss a token against what a predictor says, a dot an utterance, coloured by kind.

    ``table`` are one seed's rows of lp_predictions.csv. Both axes are logarithmic; that of a
    learned ranking, which has no unit, is the standardised logarithm.
    """
    shown = table[np.isfinite(table["true_token"])]
    unitless = predictor == "loss_prediction"
    if unitless:
        log = np.log(shown[predictor])
        shown = shown.assign(**{predictor: (log - log.mean()) / log.std()})
    kinds = shown["kind"] if "kind" in shown else pd.Series("utterance", shown.index)
    markers = "osD^vP*Xh"
    for number, (kind, part) in enumerate(shown.groupby(kinds)):
        ax.scatter(
            part[predictor], part["true_token"], s=9, marker=markers[number % 9], alpha=0.6,
            color=f"C{number}", linewidths=0, label=kind,
        )  # fmt: skip
    _corner(ax, spearman(shown[predictor], shown["true_token"]))
    ax.set(
        xscale="linear" if unitless else "log", yscale="log", ylabel="true loss (nats a token)",
        xlabel=f"{style_of(predictor)[0]} ({'standardised' if unitless else 'nats a token'})",
    )  # fmt: skip
    for axis in (ax.yaxis,) if unitless else (ax.xaxis, ax.yaxis):
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1,) if high > 100 * low else (1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    return ax


def plot_history(ax: Axes, history: pd.DataFrame) -> Axes:
    """Training and validation loss; ``history`` as fit() returns it, with ``seed``."""
    for column, label, colour in (
        ("train_loss", "training (masked input)", "0.6"),
        ("validation_loss", "validation", "#0072B2"),
    ):
        losses = history.pivot(index="update", columns="seed", values=column)
        ax.plot(losses, color=colour, gid=label)
        ax.lines[-1].set_label(label)
    ax.set(xlabel="update", ylabel=METRIC_LABEL["ctc"], ylim=(0, None))
    ax.legend()
    return ax


def plot_error_by(ax: Axes, tested: pd.DataFrame, column: str) -> Axes:
    """WER by the values of a manifest column, a dot a seed; ``tested`` has rows of evaluate()."""
    import seaborn as sns

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
    shown = np.flatnonzero(probabilities.max(axis=0) > 0.05)
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
    low, high, name = left.quantile(tail), left.quantile(1 - tail), f"median [middle {percent:.0%}]"
    ax.fill_between(left.columns, low, high, color="0.85", gid=name)
    ax.plot(left.columns, middle, color="#D55E00", gid=name)
    ax.set(xlabel="directions", ylabel="share of Σ p‖g‖² left", xlim=(0, 60))
    ax.set(yscale="log", ylim=(1e-4, 1.3))
    return ax


def plot_directions_error(ax: Axes, study: pd.DataFrame) -> Axes:
    """Relative error of EGL from R directions: median and middle 80 %, with Spearman's ρ; ``study``
    as costs.directions_study returns it."""
    few = study[~study["directions"].isin(["exact", "plain"])]
    for R, part in few.groupby("directions"):
        error = 100 * (part["score"] / part["exact"] - 1)
        low, middle, high = error.quantile([0.1, 0.5, 0.9])
        ax.errorbar(R, middle, [[middle - low], [high - middle]], color="#D55E00", marker="D",
                    capsize=2)  # fmt: skip
        rho = spearman(part["score"], part["exact"])
        ax.annotate(f"{rho:.3f}", (R, high), (0, 4), textcoords="offset points", ha="center",
                    fontsize=6, rotation=90, gid=f"ρ at {R}")  # fmt: skip
    ax.axhline(0, color="0.45", linewidth=0.8)
    ax.margins(x=0.1, y=0.25)
    ax.set(xlabel="directions R", ylabel="error of EGL (%)")
    return ax


def plot_directions_cost(ax: Axes, study: pd.DataFrame) -> Axes:
    """Milliseconds an utterance of EGL from R directions, exact and plain (median over batches)."""
    ms = study.groupby("directions")["ms"].median()
    few = ms.drop(["exact", "plain"])
    ax.plot(few.index.astype(float), few.astype(float), color="#D55E00", marker="D", gid="EGL")
    for name, label in (("exact", "exact"), ("plain", "one pass a transcript")):
        ax.axhline(ms[name], color="0.45", linestyle=(0, (6, 3)), linewidth=0.8, gid=label)
        ax.text(few.index.max(), ms[name] * 1.08, label, ha="right", va="bottom", fontsize=7)
    ax.set(yscale="log", xlabel="directions R", ylabel="ms an utterance", ylim=(1, ms.max() * 2))
    return ax


def plot_composition(ax: Axes, shares: pd.DataFrame) -> Axes:
    """What each method picks: ``shares`` has a row a method and a column a kind, summing to 1."""
    left = np.zeros(len(shares))
    names = [style_of(name)[0] for name in shares.index]
    colours = plt.get_cmap("cividis")(np.linspace(0, 1, shares.shape[1] + 2)[1:-1])
    for kind, colour in zip(shares.columns, colours, strict=True):
        ax.barh(names, shares[kind], left=left, label=kind, color=colour, edgecolor="white")
        left += shares[kind].to_numpy()
    ax.set(xlabel="share of the query", xlim=(0, 1))
    ax.invert_yaxis()
    ax.legend(ncol=3, loc="lower left", bbox_to_anchor=(0, 1))
    ax.grid(False)
    return ax


def accuracy_figure(curves: pd.DataFrame, strategies: list[str], band: bool = True):
    """Validation accuracy by acquisition step, a panel a task (across) and mode (down), a line a
    strategy: the mean over runs and, with ``band``, its 95 % interval. ``curves`` are one encoder's
    rows of few_labels.simulate(); those of strategy ``all`` are a dashed line."""
    tasks, modes = curves["task"].unique(), [m for m in curves["mode"].unique() if m != "all"]
    size = 2.2 * max(2, len(tasks)), 2.1 * len(modes)
    figure, axes = plt.subplots(len(modes), len(tasks), figsize=size, sharex=True, squeeze=False)
    for (row, column), ax in np.ndenumerate(axes):
        panel = (curves["task"] == tasks[column]) & curves["mode"].isin([modes[row], "all"])
        shown = curves[panel & curves["strategy"].isin(strategies)]
        lines = _by_method(shown, "strategy")
        for at, (strategy, part) in enumerate(lines):
            by, style = part.groupby("step")["validation"], _style(strategy)
            mean, low, high = _means(by)
            steps, every = list(by.groups), max(1, by.ngroups // 8)
            marked = at * every // len(lines), every
            ax.plot(steps, mean, linewidth=1.1, markersize=3.2, markevery=marked, **style)
            if band:
                shade = {"color": style["color"], "gid": style["label"]}
                ax.fill_between(steps, low, high, alpha=0.15, linewidth=0, **shade)
        everything = curves.loc[panel & (curves["strategy"] == "all"), "validation"].mean()
        _bound(ax, everything, "all labels of the pool", written=False)
        ax.set_title(f"{tasks[column]}, class-{modes[row]}")
    figure.supxlabel("acquisition step", fontsize=9)
    figure.supylabel("validation accuracy (%)", fontsize=9)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def plot_embedding(ax: Axes, points, labels, steps, classes):
    """A two-dimensional view ``points`` [P, 2] of the pool: colours and shapes are classes (for a
    legend), crosses the seed set (``steps`` 0), circles the clips labelled later, the darker the
    later (NaN: never). Returns the circles, for a colour bar."""
    import seaborn as sns

    points, steps = np.asarray(points), np.asarray(steps, dtype=float)
    colours, markers = sns.color_palette("husl", len(classes)), "o^sDvP*X<>ph"
    for c, name in enumerate(classes):
        ax.scatter(
            *points[np.asarray(labels) == c].T, s=8, color=[colours[c]], marker=markers[c % 12],
            alpha=0.5, linewidths=0, zorder=1, label=name,
        )  # fmt: skip
    seed, later = steps == 0, steps > 0
    cross = {"marker": "x", "color": "black", "linewidths": 0.8}
    ax.scatter(*points[seed].T, s=14, zorder=2, gid="the seed set", **cross)
    dots = ax.scatter(
        *points[later].T, s=12, c=steps[later], cmap="Greys", edgecolor="black", linewidths=0.4,
        zorder=3, vmin=0, gid="those labelled later (the later, the darker)",
    )  # fmt: skip
    ax.set(xticks=[], yticks=[], xlabel="first direction", ylabel="second direction")
    return dots


def plot_monitor(ax: Axes, monitor: pd.DataFrame, column: str, ends: pd.DataFrame) -> Axes:
    """What a monitor measured, by step: a line a method, the mean over the seeds that still run;
    a black cross where a run of ``ends`` (rows of pl_runs.csv) collapsed."""
    for method, part in _by_method(monitor, "method"):
        style = _style(method)
        ax.plot(part.groupby("step")[column].mean(), **style, markersize=3)
        for row in ends[(ends["method"] == method) & ends["collapsed_at"].notna()].itertuples():
            at = part[(part["seed"] == row.seed) & (part["step"] == row.collapsed_at)]
            gid = f"{style['label']}, collapsed"
            ax.plot(at["step"], at[column], "kx", markersize=7, zorder=5, gid=gid)
    ax.set(xlabel="steps after the warm-up", ylabel=MONITOR_LABEL[column])
    return ax


def plot_differences(ax: Axes, table: pd.DataFrame, xlabel: str) -> Axes:
    """A row a method: difference in error and its 95 % interval over seeds, and how many of them
    collapsed, if any; ``table`` is indexed by method, as pseudo_labels.differences returns it."""
    names = []
    for y, (method, row) in enumerate(table.iterrows()):
        name, colour, marker, _ = style_of(method)
        bars = [[row["difference"] - row["low"]], [row["high"] - row["difference"]]]
        bars = bars if np.isfinite(bars).all() else None  # one seed has no interval
        ax.errorbar(row["difference"], y, None, bars, color=colour, marker=marker, capsize=2)
        ended = f"\n({row['collapsed']:.0f} of {row['seeds']:.0f} collapsed)"
        names.append(name + ended * bool(row["collapsed"]))
    ax.axvline(0, color="0.45", linewidth=0.8, zorder=0)
    ax.set_yticks(range(len(table)), names)
    ax.set(xlabel=xlabel, ylim=(len(table) - 0.5, -0.7))
    return ax


def plot_rows(ax: Axes, names: list[str], table: pd.DataFrame, xlabel: str) -> Axes:
    """A named row a difference, with its 95 % interval; ``table`` are rows with a ``verdict``.
    Filled: left after Holm's correction."""
    for y, (_, row) in enumerate(table.iterrows()):
        bars = [[row["difference"] - row["low"]], [row["high"] - row["difference"]]]
        left = row["verdict"] in ("better", "worse")
        ax.errorbar(
            row["difference"], y, None, bars if np.isfinite(bars).all() else None, capsize=2,
            color="#882255", marker="o", markerfacecolor="#882255" if left else "white",
        )  # fmt: skip
    ax.axvline(0, color="0.45", linewidth=0.8, zorder=0)
    ax.set_yticks(range(len(table)), names)
    ax.set(xlabel=xlabel, ylim=(len(table) - 0.5, -0.5))
    return ax


def plot_argument(ax: Axes, argument: pd.DataFrame, x: str) -> Axes:
    """Measured variance of the test loss against what is to predict it, each as a multiple of the
    random query's of the same seed: small a seed, large their geometric mean. ``argument`` are rows
    of beyond_argument.csv."""
    columns = [x, "variance"]
    random = argument[argument["strategy"] == "random"].set_index("seed")[columns]
    for strategy, rows in _by_method(argument, "strategy"):
        shown, style = rows.set_index("seed")[columns] / random, _style(strategy)
        style["linestyle"] = "none"
        seeds = _unlabelled(style, ", each seed")
        ax.plot(shown[x], shown["variance"], alpha=0.35, markersize=3, **seeds)
        mean = np.exp(np.log(shown).mean())
        ax.plot(mean[x], mean["variance"], markersize=8, **style)
    ax.set(xscale="log", yscale="log", ylabel="variance of the test loss, measured")
    for axis in (ax.xaxis, ax.yaxis):  # multiples of one, all of them near it
        axis.set_major_locator(LogLocator(subs=(0.5, 0.7, 1, 1.5, 2, 3)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
    return ax


def plot_joined(ax: Axes, active: pd.DataFrame, metric: str = "wer") -> Axes:
    """Error against the share of the pool that is labelled, with and without pseudo-labels for the
    rest; mean and 95 % interval over seeds. ``active`` are the rows of pl_active.csv."""
    alone = {
        "labels alone": {"markerfacecolor": "white", "linestyle": ":"},
        "labels alone, longer": {"markerfacecolor": "white", "linestyle": "--"},
    }
    known = active[active["query_percent"] < 100]
    lines = []
    for (use, strategy), rows in known.groupby(["use", "strategy"], sort=False):
        label = {"label": f"{style_of(strategy)[0]}, {use}"}
        lines.append((_style(strategy) | alone.get(use, {"linestyle": "-"}) | label, rows))
    _curves(ax, lines, metric)
    longer = active[active["use"] == "labels alone, longer"]
    everything = longer.loc[longer["query_percent"] == 100, metric].mean()
    _bound(ax, everything, "all of the pool labelled")
    ax.set(xlabel="pool labelled (%)", ylabel=METRIC_LABEL[metric])
    return ax
