"""Sentences from tables: what README.md, results/README.md and the notebooks say of results.

    make findings    write every such passage again, from the result files

A passage stands between ``<!-- findings: name -->`` and ``<!-- end -->``, and ``PASSAGES`` has a
function of that name. Each lists all comparisons of its kind by a rule, whatever they say: so many
of so many intervals exclude zero, these are left after Holm's correction, no difference is seen in
the rest. Nothing is computed here that is not in the files of ``results/``.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import textwrap

import pandas as pd

from . import statistics
from .statistics import AREA, MEAN, interval, paired_p, spearman
from .workshop.config import ROOT
from .workshop.errors import UserError
from .workshop.store import read_csv, write_text
from .workshop.styles import style_of

UNITS = {
    "ctc": "CTC loss", "cer": "CER", "wer": "WER", "macro_wer": "macro WER",
    "unseen_wer": "WER of unseen words",
}  # fmt: skip
MAIN, LONG = "synthetic-laptop", "synthetic-reference"  # the runs of Figure 1: by default, and more
SEQUEL = "synthetic-sequel"  # our methods in the map's scenarios
TUNING = "synthetic-tuning"  # where ours were chosen
SEARCH = "synthetic-search"  # where the paper's own picture is looked for
BASELINES = "synthetic-baselines"  # what a method has to beat

# ---------------------------------------------------------------- numbers and words


def number(x: float, digits: int = 1, sign: bool = True) -> str:
    """A number with a true minus, and a plus where it is a difference; never "−0.0"."""
    if x in (float("inf"), float("-inf")):
        return "−∞" if x < 0 else "∞"
    text = f"{x:+.{digits}f}" if sign else f"{x:.{digits}f}"
    if not float(text):
        text = text.lstrip("+-")
    return text.replace("-", "−")


def spread(mean: float, low: float, high: float, digits: int = 1, sign: bool = True) -> str:
    """A mean and its 95 % interval, which one seed does not have."""
    bounds = [number(x, digits, sign) for x in (low, high)]
    return number(mean, digits, sign) + ("" if low != low else f" [{', '.join(bounds)}]")


def label(method: str) -> str:
    return style_of(method)[0]


def listed(words) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def markdown(header: list[str], rows: list[list[str]], numbers_from: int = 1) -> str:
    """A table in Markdown; columns from ``numbers_from`` on are set to the right."""
    rule = ["---" if n < numbers_from else "--:" for n in range(len(header))]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in [header, rule, *rows])


def tested(differences) -> dict:
    """``difference, low, high, p`` of paired differences."""
    return dict(zip(("difference", "low", "high"), interval(differences), strict=True)) | {
        "p": paired_p(differences)
    }


def judged(rows: list[dict]) -> pd.DataFrame:
    """Rows of :func:`tested` as one family: corrected by Holm, with a verdict each."""
    return statistics.judged(pd.DataFrame(rows))


def cell(row, digits: int = 1) -> str:
    """A row of :func:`judged` or ``comparisons``: bold where a difference is left."""
    text = spread(row["difference"], row["low"], row["high"], digits)
    return f"**{text}**" if row["verdict"] in ("better", "worse") else text


# ---------------------------------------------------------------- scenarios


def name(scenario: str) -> str:
    return f"*{scenario.replace('_', ' ')}*"


def of(frame: pd.DataFrame, scenario: str) -> pd.DataFrame:
    return frame[frame["scenario"] == scenario]


# ---------------------------------------------------------------- methods against random


DECIDED = ("better", "worse", "no difference")  # and else: not decided, no difference seen


def at(percent) -> str:
    return f"{float(percent):g}" if _single(percent) else str(percent)


def _single(percent) -> bool:
    return str(percent) not in (MEAN, AREA)


def ends(differences: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of ``comparisons`` of the endpoint that was decided on beforehand, and of single
    percentages."""
    single = differences["query_percent"].map(_single)
    return differences[~single], differences[single]


ENDPOINT = {
    MEAN: "mean over percentages",
    AREA: "area under the curve",
}


def against_random(differences: pd.DataFrame) -> str:
    """The endpoint, a row a method; ``differences`` are rows of ``comparisons`` of one scenario."""
    table = ends(differences)[0]
    (endpoint,) = table["query_percent"].unique()
    methods, metrics = table["method"].unique(), table["metric"].unique()
    table = table.set_index(["method", "metric"])
    rows = [[label(m), *(cell(table.loc[(m, k)], 2) for k in metrics)] for m in methods]
    return markdown([f"{ENDPOINT[endpoint]}, − random", *(UNITS[k] for k in metrics)], rows)


def single(differences: pd.DataFrame) -> str:
    """All methods at all percentages, and the endpoint, in sentences that leave none out."""
    whole, table = ends(differences)
    methods, metrics = table["method"].unique(), table["metric"].unique()
    clear = (table["low"] > 0) | (table["high"] < 0)
    percents = sorted(map(float, table["query_percent"].unique()))
    (endpoint,) = whole["query_percent"].unique()
    return (
        f"Of {len(table)} comparisons with random at single percentages "
        f"({listed(map(label, methods))}; {listed(map(at, percents))} %; "
        f"{listed(UNITS[k] for k in metrics)}) {int(clear.sum())} have a 95 % interval without "
        f"zero; Holm's correction, of each measure's {len(table) // len(metrics)} together, "
        f"{_left(table)} Of the {ENDPOINT[endpoint]}, corrected over the "
        f"{len(methods)} methods, it {_left(whole)}"
    )


def counted(differences: pd.DataFrame) -> str:
    """:func:`single` in one sentence: how many of all comparisons have which verdict."""
    table = ends(differences)[1]
    percents = sorted(map(float, table["query_percent"].unique()))
    count = table["verdict"].value_counts()
    words = [*DECIDED, *sorted(set(count.index) - set(DECIDED))]
    said = [f"{count[word]} *{word}*" for word in words if word in count]
    return (
        f"Of {len(table)} comparisons with random at {listed(map(at, percents))} % (every method, "
        f"every measure below): {listed(said)}."
    )


def _left(table: pd.DataFrame) -> str:
    """What a correction leaves of comparisons, all of it, the better and the worse."""
    left = table[table["verdict"].isin(["better", "worse"])]
    said = []
    for word in DECIDED:
        part = table[table["verdict"] == word]
        where = []
        for (metric, method), found in part.groupby(["metric", "method"], sort=False):
            percents = [at(p) for p in found["query_percent"] if _single(p)]
            percents = f" at {listed(percents)} %" if percents else ""
            where.append(f"{label(method)} in {UNITS[metric]}{percents}")
        said += [f"*{word}*: {'; '.join(where)}"] if where else []
    rest = sorted(set(table["verdict"]) - set(DECIDED))
    said += [f"{'In the rest' if said else 'All the same'} *{word}*" for word in rest]
    return f"leaves {len(left) or 'none'}: {'. '.join(said)}."


def gain(curves: pd.DataFrame, metric: str) -> tuple[float, float, float]:
    """What all labels of the pool take off the base model's error."""
    by_seed = curves.pivot_table(metric, "seed", "strategy")
    return interval(by_seed["base"] - by_seed["all"])


def rho(scores: pd.DataFrame, a: str, b: str) -> tuple[float, float, float]:
    return interval([spearman(part[a], part[b]) for _, part in scores.groupby("seed")])


# ---------------------------------------------------------------- result files


@functools.cache
def table(run: str, name: str) -> pd.DataFrame:
    path = ROOT / "results" / run / f"{name}.csv"
    if not path.exists():
        raise UserError(f"{path.relative_to(ROOT)} is missing: the findings are read from it")
    return read_csv(path)


@functools.cache
def provenance(run: str, name: str = "provenance") -> dict:
    return json.loads((ROOT / "results" / run / f"{name}.json").read_text())


def seeds(run: str) -> int:
    return len(provenance(run)["seeds"])


# ---------------------------------------------------------------- results/README.md

RUNS = (  # folder, system's provenance, what, made by, tables
    (MAIN, "", "Figures 1 and 2, Table 1", "make figures",
     "table1.md error_curves.csv comparisons.csv scores.csv"),
    (LONG, "", "the map of scenarios", "make map PRESET=reference",
     "error_curves.csv comparisons.csv claims.csv"),
    (SEARCH, "", "the search for the paper's picture", "make figures PRESET=search",
     "error_curves.csv comparisons.csv claims.csv"),
    *((f"{SEARCH}-k{k}", "", f"… with K = {k}", f"make figures PRESET=search-k{k}",
       "error_curves.csv comparisons.csv claims.csv") for k in (1, 10)),
    (BASELINES, "", "baselines and oracles", "make figures PRESET=baselines",
     "error_curves.csv comparisons.csv"),
    (LONG, "_studies", "… its studies", "make map PRESET=reference", "training.csv rounds.csv"),
    ("fsdd-digits", "", "… on digit strings", "make figures PRESET=digits CORPUS=fsdd DATA=…",
     "table1.md error_curves.csv comparisons.csv scores.csv"),
    ("fsdd-digits-rare_speaker", "", "… one speaker rare", "… SCENARIO=rare_speaker",
     "table1.md error_curves.csv comparisons.csv scores.csv"),
    ("kaldi-recorded", "", "… on read sentences",
     "make figures PRESET=recorded CORPUS=kaldi DATA=…",
     "table1.md error_curves.csv comparisons.csv scores.csv"),
    ("kaldi-recorded-rare_children", "", "… children rare", "… SCENARIO=rare_children",
     "table1.md error_curves.csv comparisons.csv scores.csv"),
    (MAIN, "_beyond", "beyond EGL", "make beyond",
     "beyond_comparisons.csv beyond_steps.csv beyond_settings.csv beyond_rounds.csv "
     "beyond_queries.csv beyond_argument.csv"),
    (TUNING, "_beyond", "… tuning", "make beyond PRESET=tuning",
     "beyond_comparisons.csv beyond_settings.csv beyond_rounds.csv beyond_queries.csv"),
    (SEQUEL, "", "… in the map's scenarios", "make figures PRESET=sequel",
     "error_curves.csv comparisons.csv claims.csv"),
    (MAIN, "_audit", "suspicious transcripts", "make audit", "audit.csv"),
    (MAIN, "_loss_prediction", "loss prediction", "make loss-prediction",
     "lp_curves.csv lp_variants.csv lp_predictions.csv lp_scores.csv"),
    (MAIN, "_pseudo_labels", "pseudo-labels", "make pseudo-labels",
     "pl_runs.csv pl_monitor.csv pl_active.csv"),
    *((run, "_aloe", what, made, "aloe_curves.csv aloe_runs.csv aloe_table1.csv aloe_table2.csv")
      for run, what, made in (
          (MAIN, "ALOE", "make aloe"),
          ("fsdd-laptop", "… on digits and their speakers", "make aloe CORPUS=fsdd DATA=…"),
          ("esc10-laptop", "… on ESC-10's sounds", "make aloe CORPUS=esc10 DATA=…"))),
)  # fmt: skip


def runs() -> str:
    """Every committed run: how it is made, how often, how long one core takes, and its files."""
    rows = []
    for run, system, what, made, names in RUNS:
        found = provenance(run, f"provenance{system}")
        often = len(found["seeds"])
        if system == "_aloe":
            often = f"{found['config']['aloe']['runs']} runs"
        # of its steps, by the clock of the process that each ran in: a run may be done in parts;
        # records of before "steps" left out what cells and scores were made of
        over = "" if "steps" in found else "over "
        took = f"{over}{found['process_seconds'] / 60:.0f} min"
        links = [f"[{name}]({run}/{name})" for name in names.split()]
        figures = f" ([figures](../figures/{run}))" if (ROOT / "figures" / run).is_dir() else ""
        dirty = ", of a working tree with uncommitted changes" * found["uncommitted_changes"]
        rows.append([
            what + figures, f"`{made}`", often, took, ", ".join(links),
            f"[provenance]({run}/provenance{system}.json){dirty}",
        ])  # fmt: skip
    return markdown(["run", "made by", "seeds", "one core takes", "tables", "comes from"], rows, 9)


RECORDED = {  # preset: its runs
    "digits": ("fsdd-digits", "fsdd-digits-rare_speaker"),
    "recorded": ("kaldi-recorded", "kaldi-recorded-rare_children"),
}


def recorded(preset: str) -> str:
    """What the runs of a preset on recorded speech say, each in its scenarios."""
    parts, title = [], f"From the laptop preset's base model (`{preset}`)"
    runs = RECORDED[preset]
    every = [(run, s) for run in runs for s in table(run, "error_curves")["scenario"].unique()]
    for run, scenario in every:
        curves, scores, differences = (
            of(table(run, what), scenario) for what in ("error_curves", "scores", "comparisons")
        )
        mean = curves.groupby(["strategy", "query_percent"])[["cer", "wer"]].mean()
        pool = int(curves.loc[curves["strategy"] == "all", "n_utterances"].iloc[0])
        cer, wer = (
            f"{mean.loc[('base', 0), m]:.1f} to {mean.loc[('all', 100), m]:.1f} %"
            for m in ("cer", "wer")
        )
        random = ", ".join(f"{p:g} %: {x:.1f} %" for p, x in mean.loc["random", "wer"].items())
        pctc, egl = (spread(*rho(scores, n, "entropy"), 2, sign=False) for n in ("pctc", "egl"))
        parts += [
            f"**{title}**, {name(scenario)}, {seeds(run)} seeds. From the base data alone to all "
            f"{pool} of the pool CER falls from {cer}, WER from {wer}; WER after random queries "
            f"{random}. {single(differences)} Spearman's ρ of pCTC and entropy is {pctc}, of EGL "
            f"and entropy {egl}.",
            against_random(differences),
        ]
    return "\n\n".join(parts)


SPEED = {  # how rows of make bench begin, and what they are called
    "EGL, K = 100, R = 5, against": "EGL, K = 100, by five directions, against 100 backward passes",
    "EGL, K = 100, R = 5: Spearman": "… Spearman's ρ between the two",
    "EGL, K = 100, R = 5, in training": "… in training passes over the same utterances",
    "EGL, K = 100, exact": "EGL, exact, against 100 backward passes",
    "EGL, exact: largest": "… largest relative error",
    "100 best, beam 100, against f": "100-best beam search, beam 100, against flashlight",
    "100 best, beam 120, against f": "… pruned as far as its mass allows, beam 120",
    "100 best, beam 100, against p": "… beam 100, against pyctcdecode",
    "training step": "training step, against packed sequences in fp32",
    "loss prediction": "predicted loss, in forward passes over the same utterances",
    "wav2vec 2.0 of": "EGL of a small wav2vec 2.0, by five directions, against 100 backward passes",
    "HuBERT of": "… of a small HuBERT",
    "Conformer of": "… of a small Conformer",
    "wav2vec 2.0, 94 M parameters, 3 s: EGL, K = 100, R = 5": "… of wav2vec 2.0, 94 M parameters, "
    "against 100 times one pass",
    "wav2vec 2.0, 94 M parameters, 3 s: EGL of the last layer, ag": "… of its last layer alone",
    "wav2vec 2.0, 94 M parameters, 3 s: EGL, R = 5": "… in forward passes: five directions",
    "a Conformer trained here: EGL as printed: Sp": "last layer's EGL of a Conformer: ρ with the "
    "full one",
    "a Conformer trained here: EGL as printed: of": "… of the best tenth on a shortlist of 30 %",
    "a Conformer trained here: EGL, renormalised: Sp": "… renormalised: ρ with the full one",
    "a Conformer trained here: EGL, renormalised: of": "… of the best tenth on a shortlist of 30 %",
    "ALOE: a fresh classifier, 50": "ALOE: a classifier of 50 labels, against nn.Linear with Adam",
    "ALOE: a fresh classifier, 630": "… of 630 labels",
    "EGL scoring by two": "EGL's scores by two processes, against one",
    "query of 1100 k": "what to ask for among 1.1 million utterances, scored in four shards",
    "    peak memory of the process, torch": "… most memory of that process",
}


def _bench(what: str = "rows"):
    return json.loads((ROOT / "results" / "bench.json").read_text())[what]


def speed() -> str:
    """The rows of ``make bench`` that say what a score costs."""
    rows = _bench()
    shown = []
    for start, text in SPEED.items():
        row = next((row for row in rows if row["name"].startswith(start)), None)
        if row is None:  # that part has not been measured
            continue
        values = [
            f"{row[x]:.3g}" if row[x] is not None else "" for x in ("ours", "theirs", "ratio")
        ]
        unit = row["unit"] if row["unit"].startswith(("ms", "CPU s", "MiB")) else ""
        shown.append([text, *values[:2], unit, values[2] and f"{values[2]} ×"])
    machines = dict.fromkeys(
        f"{part['hardware']['processor']}, {part['finished'][:10]}"
        for part in _bench("where").values()
    )
    measured = f"Measured on {listed(machines)}."
    return "\n\n".join([measured, markdown(["", "ours", "theirs", "", "ratio"], shown)])


def selecting() -> str:
    """What ``make bench`` says that selections cost, every one of them."""
    rows = _bench()
    look = next(row for row in rows if row["name"].startswith("first pass of a selection"))
    large = [row for row in rows if ": 10 % of " in row["name"] and ", lazily" not in row["name"]]
    size, cores = large[0]["name"].rsplit(maxsplit=1)[1], large[0]["unit"].split()[1]
    seconds = lambda x: f"{x:.0f}" if x >= 1 else "less than 1"  # noqa: E731
    told = [f"{row['name'].split(': 10 %')[0]} {seconds(row['ours'])}" for row in large]
    few = next(row["name"] for row in rows if ", lazily" in row["name"]).rsplit(maxsplit=1)[1]
    memory = next(row for row in rows if row["name"].startswith("… most memory, candidates"))
    lazily = [
        f"{row['name'].split(', lazily')[0]} {100 * share['ours']:.0f} % ({row['ratio']:.1f} times "
        "as fast)"
        for row, share in itertools.pairwise(rows) if ", lazily" in row["name"]
    ]  # fmt: skip
    return (
        f"A selection's first pass takes {look['ours']:.1f} forward passes an utterance. To choose "
        f"10 % of {size} candidates (mixtures of pairs of the laptop's pool) then takes, in "
        f"seconds on {cores} cores: {'; '.join(told)}. "
        f"Most memory, candidates and all: {memory['ours']:.1f} GiB. Of {few} candidates lazy "
        f"choices are plain greedy's to: {'; '.join(lazily)}."
    )


def profile() -> str:
    """The rows of ``make bench`` that say where a cell's seconds go."""
    rows = _bench()
    shown = [
        [row["name"].removeprefix("cell: "), f"{row['ours']:.3g}", row["unit"]]
        for row in rows if row["name"].startswith("cell: ")
    ]  # fmt: skip
    return markdown(["", "", ""], shown)


def variance() -> str:
    """What ``make bench`` says of cells of several lengths, by their last weights and by means."""
    cells: dict[str, list[str]] = {}
    for row in _bench():
        part, _, rest = row["name"].partition(": ")
        if part == "variance":
            cells.setdefault(rest.partition(": ")[0], []).append(f"{row['ours']:.3g}")
    header = ["a cell of", "macro WER (%)", "standard deviation", "seconds", "variance × seconds"]
    return markdown(header, [[name, *numbers] for name, numbers in cells.items()])


def audit() -> str:
    """How well transcripts that are not theirs are found among those of the main run."""
    found = table(MAIN, "audit").set_index("by")
    own, loss = found.loc["suspicion"], found.loc["loss"]
    share = 100 * own["swapped"] / own["transcripts"]
    percents = [name.removeprefix("found_in_") for name in found if name.startswith("found_in_")]
    heard = listed(f"{own[f'found_in_{p}']:.0f} % in the first {p} %" for p in percents)
    return (
        f"Of {own['transcripts']:.0f} transcripts {own['swapped']:.0f} ({share:.0f} %) were "
        f"exchanged. The list finds them with an average precision of "
        f"{own['average_precision']:.2f} (a list in random order: {share / 100:.2f}): {heard} of "
        f"it. By the loss a label alone, without the recogniser's own best guess held against it, "
        f"it is {loss['average_precision']:.2f}."
    )


def tried() -> str:
    """What was tried to be faster, with what came of it, kept or not."""
    found = pd.read_csv(ROOT / "benchmarks" / "tried.csv", dtype=str, keep_default_na=False)
    return markdown(["", "of", "before", "after", "", "kept"], found.values.tolist(), 2)


def sizes() -> str:
    """The laptop preset's corpus and model, beside the paper's."""
    settings, curves = provenance(MAIN)["config"], table(MAIN, "error_curves")
    build, model = settings["build"], settings["model"]
    hours = curves.loc[curves["strategy"] == "all", "hours"].iloc[0]
    rows = [
        ["base", "190 h", f"{build['base']:,} utterances"],
        ["pool", "1,700 h", f"{build['pool']:,} utterances, {hours:.2f} h"],
        ["test", "156 h", f"{build['test']:,} utterances"],
        ["recurrent layers", "7, GRU, both directions",
         f"{model['layers']}, {model['cell'].upper()}, both directions, {model['hidden']} units"],
        ["seeds", "1", str(seeds(MAIN))],
    ]  # fmt: skip
    return markdown(["", "the paper", "`make figures`"], rows, 9)


# ---------------------------------------------------------------- passages

PASSAGES = {
    "runs": runs, "speed": speed, "selecting": selecting, "profile": profile,
    "variance": variance, "tried": tried,
    "sizes": sizes, "audit": audit,
    **{preset: functools.partial(recorded, preset) for preset in RECORDED},
}  # fmt: skip
FILES = ("README.md", "results/README.md", "benchmarks/README.md")
PASSAGE = re.compile("(<!-- findings: (.*?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def written(text: str, passages: dict) -> str:
    """A page with its passages as the result files have it. Raises ``UserError`` for one that
    nobody writes."""

    def one(match) -> str:
        if match[2] not in passages:
            raise UserError(f"no passage is called '{match[2]}': use one of {', '.join(passages)}")
        blocks = passages[match[2]]().strip().split("\n\n")
        filled = [b if b.startswith("|") else textwrap.fill(b, 120, **WHOLE) for b in blocks]
        text = "\n\n".join(filled)
        return f"{match[1]}\n{text}\n\n{match[4]}"

    return PASSAGE.sub(one, text)


WHOLE = {"break_long_words": False, "break_on_hyphens": False}


def write(passages: dict) -> list[str]:
    """Write the passages of every page again, or of none; names of the pages that have changed."""
    pages = {name: (ROOT / name).read_text(encoding="utf-8") for name in FILES}
    new = {name: written(text, passages) for name, text in pages.items()}
    changed = [name for name in pages if new[name] != pages[name]]
    for name in changed:
        write_text(ROOT / name, new[name])
    return changed
