"""What results/README.md and notebooks 5 to 7 say of the sister systems; see ../findings.py."""

from __future__ import annotations

import pandas as pd

from .. import findings, lessons, sequel
from ..findings import (
    MAIN,
    against_random,
    cell,
    judged,
    label,
    listed,
    markdown,
    provenance,
    single,
    spread,
    table,
    tested,
)  # fmt: skip
from ..statistics import comparisons
from ..tables import METRICS
from .few_labels import ALL, MODES, RANDOM
from .loss_prediction import qualities
from .pseudo_labels import USES

# ---------------------------------------------------------------- loss prediction


def loss_prediction(variants: pd.DataFrame, predictions: pd.DataFrame, curves: pd.DataFrame) -> str:
    """How well the loss is predicted, what joint training costs, and what querying by it buys; of
    the tables ``lp_*.csv``."""
    rows = []
    for row in qualities(predictions[predictions["variant"] == "joint"]).to_dict("records"):
        ends = [[row[f"{name}{end}"] for end in ("", "_low", "_high")] for name in QUALITIES]
        rows.append([label(row["predictor"]), *(spread(*x, 2, sign=False) for x in ends)])
    differences = comparisons(curves)
    wide = variants.pivot_table(list(METRICS), "seed", "variant")
    price = judged([tested(wide[m, "joint"] - wide[m, "no_prediction"]) for m in METRICS])
    change = [
        f"{cell(row, 2)} in {name} ({row['verdict']})"
        for name, row in zip(("CTC loss", "CER", "WER"), price.to_dict("records"), strict=True)
    ]
    return "\n\n".join([
        markdown(["true loss a token of unheard speakers", *QUALITIES.values()], rows),
        f"Joint training, against the same recogniser without the prediction: {listed(change)}.",
        single(differences),
        against_random(differences),
    ])  # fmt: skip


QUALITIES = {"spearman": "ρ of the ranks", "explained": "variance explained, log on log"}

# ---------------------------------------------------------------- pseudo-labels

SEQUENCE = ("sampled_text", "sampled_frames")


def _paired(runs: pd.DataFrame, reference: pd.DataFrame, metric: str = "wer") -> dict:
    return tested(runs.set_index("seed")[metric] - reference.set_index("seed")[metric])


def _collapsed(runs: pd.DataFrame) -> str:
    return f"{runs['collapsed_at'].count()} of {len(runs)}"


def pseudo_labels(runs: pd.DataFrame, config: dict) -> str:
    """Every method against what it is to be held against, with labelled steps and without; of
    pl_runs.csv, and the preset's ``pseudo_labels``."""
    part = dict(list(runs[runs["query_percent"] == 0].groupby(["regime", "method"])))
    methods = [*dict.fromkeys((*config["anchored"], *config["free"]))]
    columns = []
    for _, regime, reference in HELD_AGAINST:
        own = reference[1] in ALONE  # labels only is not held against labels only
        known = [m for m in methods if (regime, m) in part and not (own and m in ALONE)]
        known = known if reference in part else []
        rows = [_paired(part[regime, m], part[reference]) for m in known]
        columns.append(dict(zip(known, _cells(rows), strict=True)))
    rows = []
    for m in methods:
        ends = [_collapsed(part[r, m]) if (r, m) in part else "" for r in ("anchored", "free")]
        found = [column.get(m, "") for column in columns]
        rows.append([label(m), *found[:3], ends[0], found[3], ends[1]])
    names = [name for name, *_ in HELD_AGAINST]
    table = markdown(["WER, points", *names[:3], "collapsed", names[3], "collapsed"], rows)
    changed = [
        f"{name} {config[key]:g} → {config[f'free_{key}']:g}"
        for key, name in FREE.items()
        if config[key] != config[f"free_{key}"]
    ]
    if not changed:
        return table
    return f"{table}\n\nWithout labelled steps that is not all that changes: {listed(changed)}."


ALONE = ("supervised", "supervised_longer")
HELD_AGAINST = (  # column, regime, what is held against it
    ("− labels only", "anchored", ("anchored", "supervised")),
    ("− labels only, as many updates in all", "anchored", ("anchored", "supervised_longer")),
    ("− the warm-up", "anchored", ("none", "warm_up")),
    ("without labelled steps: − the warm-up", "free", ("none", "warm_up")),
)
FREE = {"rate": "learning rate", "cache": "cache", "replacement": "replacement"}


def _cells(rows: list[dict]) -> list[str]:
    """A column of a table: one family."""
    return [cell(row) for row in judged(rows).to_dict("records")] if rows else []


def sequence(runs: pd.DataFrame) -> str:
    """One drawn alignment as a text less the same one frame by frame."""
    part = dict(list(runs[runs["query_percent"] == 0].groupby(["regime", "method"])))
    words = {"anchored": "with labelled steps", "free": "without"}
    both = {r: [part.get((r, method)) for method in SEQUENCE] for r in words}
    both = {r: pair for r, pair in both.items() if all(x is not None for x in pair)}
    columns = [_cells([_paired(*x, m) for x in both.values()]) for m in ("wer", "wer_best")]
    rows = [
        [words[regime], last, best, *(f"{_collapsed(x)}, {_updates(x)}" for x in both[regime])]
        for regime, last, best in zip(both, *columns, strict=True)
    ]
    header = ["text − frames, WER, points", "last weights", "best measured after the start",
              "text: collapsed, updates", "frames: collapsed, updates"]  # fmt: skip
    return markdown(header, rows)


def joined(runs: pd.DataFrame) -> str:
    """Pseudo-labels for the rest of the pool against labels alone; and EGL against random."""
    own = runs[runs["regime"] == "joined"]
    part = dict(list(own.groupby(["strategy", "query_percent", "method"])))
    asked = sorted(
        {key[:2] for key in part if key[0] != "all"}, key=lambda q: (q[1], q[0] != RANDOM)
    )
    columns = [
        _cells([_paired(part[(*q, "hard")], part[(*q, method)]) for q in asked]) for method in ALONE
    ]
    rows = [
        [f"{percent:g} % by {label(name)}" if percent else "nothing", *both]
        for (name, percent), *both in zip(asked, *columns, strict=True)
    ]
    counts = {m: _updates(own[own["method"] == m]) for m in USES}
    alone, longer = (counts[m] for m in ALONE)
    header = ["labelled", f"and pseudo-labels − labels alone ({alone} updates)",
              f"− labels alone, longer ({longer})"]  # fmt: skip
    text = f"With pseudo-labels a run makes {counts['hard']} labelled + unlabelled updates."
    tables = [text, markdown(header, rows)]
    to_random = [q for q in asked if q[0] != RANDOM and (RANDOM, q[1], "hard") in part]
    if to_random:
        columns = [
            _cells([_paired(part[(*q, m)], part[RANDOM, q[1], m]) for q in to_random]) for m in USES
        ]
        rows = [
            [f"{label(name)} − random at {percent:g} %", *cells]
            for (name, percent), *cells in zip(to_random, *columns, strict=True)
        ]
        tables.append(markdown(["WER, points", *USES.values()], rows))
    bought = [q for q in sorted(part) if q[2] == "hard" or q[0] == "all"]
    bought = sorted({q[:2] for q in bought if q[1]}, key=lambda q: (q[1], q[0] != RANDOM))
    columns = []
    for use in USES:
        known = [q for q in bought if (*q, use) in part]
        cells = _cells([_paired(part[(*q, use)], part["none", 0, use]) for q in known])
        columns.append(dict(zip(known, cells, strict=True)))
    rows = [
        [f"{q[1]:g} % by {label(q[0])} − nothing" if q[0] != "all" else "all − nothing",
         *(column.get(q, "") for column in columns)]
        for q in bought
    ]  # fmt: skip
    tables.append(markdown(["what labels add, WER, points", *USES.values()], rows))
    return "\n\n".join(tables)


def _updates(runs: pd.DataFrame) -> str:
    """How many labelled and unlabelled updates runs made: "300 + 270", "299–300 + 0"."""
    kinds = (runs[f"{kind}_updates"] for kind in ("labelled", "unlabelled"))
    return " + ".join("–".join(dict.fromkeys(f"{x:g}" for x in (k.min(), k.max()))) for k in kinds)


# ---------------------------------------------------------------- ALOE

UNCERTAINTY = "margin"


def _leads(runs: pd.DataFrame, a: str, b: str, what: str) -> dict:
    """``a`` minus ``b`` paired by run, as one family: a row of it by (task, mode)."""
    rows = {}
    for key, part in runs.groupby(["task", "mode"], sort=False):
        wide = part.pivot_table(what, "run", "strategy")
        if {a, b} <= set(wide):
            rows[key] = tested(wide[a] - wide[b])
    found = judged([*rows.values()]).to_dict("records") if rows else []
    return dict(zip(rows, found, strict=True))


def aloe(by_corpus: dict) -> str:
    """Uncertainty (smallest margin) against random, on every corpus, task and mode: at the end, and
    over the steps that both have taken; of aloe_runs.csv by corpus."""
    rows = []
    for corpus, runs in by_corpus.items():
        own = _first_encoder(runs)
        ends, all_steps = (_leads(own, UNCERTAINTY, RANDOM, what) for what in ("test", "mean_test"))
        mean = own.groupby(["task", "mode", "strategy"], sort=False)[["test", "labels"]].mean()
        for task, mode in ends:
            bound, random, margin = (
                mean.loc[(task, *key)] for key in ((ALL, ALL), (mode, RANDOM), (mode, UNCERTAINTY))
            )
            used_up = random["labels"] == margin["labels"] == bound["labels"]
            rows.append([
                f"{corpus}: {task.replace('_', ' ')}, class-{mode}",
                *(f"{row['test']:.1f}" for row in (bound, random, margin)),
                "the pool is used up" if used_up else cell(ends[task, mode]),
                cell(all_steps[task, mode]),
            ])  # fmt: skip
    header = ["test accuracy (%)", "all labels", "random", "uncertainty", "lead at the end",
              "lead over all steps"]  # fmt: skip
    return markdown(header, rows)


def _first_encoder(runs: pd.DataFrame) -> pd.DataFrame:
    return runs[runs["encoder"] == runs["encoder"].iloc[0]]


def aloe_functions(by_corpus: dict) -> str:
    """Every acquisition function against random, over all steps; one family a corpus."""
    names, rows = {}, []
    for corpus, runs in by_corpus.items():
        own, leads = _first_encoder(runs), {}
        for (task, mode), part in own[own["mode"].isin(MODES)].groupby(
            ["task", "mode"], sort=False
        ):
            wide = part.pivot_table("mean_test", "run", "strategy", sort=False)
            for name in wide.columns.drop(RANDOM):
                names[name], leads[task, mode, name] = (
                    label(name),
                    tested(wide[name] - wide[RANDOM]),
                )
        cells = dict(zip(leads, _cells([*leads.values()]), strict=True))
        for task, mode in dict.fromkeys(key[:2] for key in cells):
            what = f"{corpus}: {task.replace('_', ' ')}, class-{mode}"
            rows.append([what, *(cells.get((task, mode, name), "") for name in names)])
    return markdown(["lead over all steps", *names.values()], rows)


def aloe_details(runs: pd.DataFrame) -> str:
    """Encoders, logits instead of probabilities, and stopping; of one corpus's aloe_runs.csv."""
    own = _first_encoder(runs)
    logits = [
        _leads(own, f"{name}_logits", name, "mean_test")
        for name in (UNCERTAINTY, "least_confidence")
    ]
    stop = own[own["strategy"] == UNCERTAINTY]
    saved, lost = 100 * (1 - stop["stop_labels"] / stop["labels"]), stop["stop_test"] - stop["test"]
    by_task = dict(list(stop.assign(saved=saved, lost=lost).groupby(["task", "mode"], sort=False)))
    points = _cells([tested(part["lost"]) for part in by_task.values()])
    rows = [
        [f"{task.replace('_', ' ')}, class-{mode}",
         *(cell(t[task, mode]) if t else "" for t in logits),
         f"{by_task[task, mode]['saved'].mean():.0f}", found]
        for (task, mode), found in zip(by_task, points, strict=True)
    ]  # fmt: skip
    header = ["points of accuracy", "logits − probabilities, margin", "least confidence",
              "stopping at a plateau: labels saved (%)", "points"]  # fmt: skip
    aware = runs[runs["mode"].isin([MODES[0], ALL])]
    found, keys = [], []
    for key, part in aware.groupby(["task", "encoder"], sort=False):
        wide = part.pivot_table("mean_test", "run", "strategy")
        found.append(tested(wide[UNCERTAINTY] - wide[RANDOM]) | {"all": wide[ALL].mean()})
        keys.append(key)
    encoders = [
        [task.replace("_", " "), encoder, f"{row['all']:.1f}", cell(row)]
        for (task, encoder), row in zip(keys, judged(found).to_dict("records"), strict=True)
    ]
    of_encoders = ["task", "encoder", "all labels (%)", "lead over all steps, class-aware"]
    return "\n\n".join([markdown(header, rows), markdown(of_encoders, encoders, 2)])


def protocol() -> str:
    """How many classifiers a task takes, and what its encoder has learned from."""
    config = provenance(MAIN, "provenance_aloe")["config"]
    own = config["aloe"]
    count = own["runs"] * len(own["strategies"]) * len(MODES) * (own["steps"] + 1)
    base = config["build"]["base"]
    return (
        f"{own['runs']} runs × {len(own['strategies'])} strategies × {len(MODES)} modes × "
        f"{own['steps'] + 1} classifiers make {count:,} of a task of the embedded corpus. The "
        f"encoder is the companion's own recogniser, trained on {base} transcripts of the embedded "
        "corpus: that it separates its first words is no surprise. All runs share one encoder and "
        "one division of the clips; the intervals are over seed sets, weights and random choices."
    )


# ---------------------------------------------------------------- passages

CORPORA = {"synthetic": MAIN, "FSDD": "fsdd-laptop", "ESC-10": "esc10-laptop"}


def _by_corpus() -> dict:
    return {name: table(run, "aloe_runs") for name, run in CORPORA.items()}


def _of_pseudo_labels(passage, *more) -> str:
    return passage(table(MAIN, "pl_runs"), *more)


PASSAGES = {
    "loss prediction": lambda: loss_prediction(
        *(table(MAIN, f"lp_{name}") for name in ("variants", "predictions", "curves"))
    ),
    "pseudo-labels": lambda: _of_pseudo_labels(
        pseudo_labels, provenance(MAIN, "provenance_pseudo_labels")["config"]["pseudo_labels"]
    ),
    "sequence": lambda: _of_pseudo_labels(sequence),
    "joined": lambda: _of_pseudo_labels(joined),
    "aloe": lambda: aloe(_by_corpus()),
    "aloe functions": lambda: aloe_functions(_by_corpus()),
    "aloe details": lambda: aloe_details(table(MAIN, "aloe_runs")),
    "protocol": protocol,
}


def write() -> list[str]:
    """Write every passage of README.md and results/README.md again; the pages that changed."""
    return findings.write(findings.PASSAGES | lessons.PASSAGES | sequel.PASSAGES | PASSAGES)
