"""The book and its figures that play: the same numbers as the package, nothing from the network,
nothing that must not be published, and in a browser everything can be clicked and heard."""

import base64
import html.parser
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlparse

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import REPOSITORY

from alspeech import listening
from alspeech.acquisition import expected_squared_norm, mean_entropy, path_ctc
from alspeech.ctc import labelings_gradients
from alspeech.decoding import n_best
from alspeech.speech.licences import RESTRICTED
from alspeech.workshop import alternative, playable, plots
from alspeech.workshop.errors import UserError

sys.path.insert(0, str(REPOSITORY / "book"))
import executed
import make
import pages

SCRIPTS = REPOSITORY / "src" / "alspeech" / "workshop"
NODE = shutil.which("node")

# ---------------------------------------------------------------- EGL by hand


@pytest.mark.skipif(NODE is None, reason="no node, which runs the figure's JavaScript here")
def test_the_scores_by_hand_are_those_of_the_package():
    """100 random posteriors of three frames and three symbols, K = 7 and all nine labelings."""
    rng = np.random.default_rng(0)
    posteriors = rng.dirichlet([0.7] * 3, size=(100, 3))
    program = (
        f"const hand = require({json.dumps(str(SCRIPTS / 'egl_by_hand.js'))});"
        "const all = JSON.parse(require('fs').readFileSync(0));"
        "console.log(JSON.stringify(all.map((p) => [7, 9].map((k) => hand.scores(p, k)))))"
    )
    done = subprocess.run(
        [NODE, "-e", program], input=json.dumps(posteriors.tolist()), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    log_probs = torch.tensor(posteriors).log()
    found = json.loads(done.stdout)
    for place, K in enumerate((7, 9)):
        best = n_best(log_probs, k=K)
        gradients = labelings_gradients(log_probs, best.labels, best.lengths)
        norms = gradients.square().sum(dim=(2, 3))
        ours = {
            "egl": expected_squared_norm(best.log_p, norms),
            "entropy": mean_entropy(log_probs),
            "pctc": path_ctc(best.log_p[:, 0], frames=3),
        }
        for name, values in ours.items():
            theirs = [row[place][name] for row in found]
            np.testing.assert_allclose(theirs, values.numpy(), rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.skipif(NODE is None, reason="no node, which runs the figure's JavaScript here")
def test_a_probability_that_is_dragged_leaves_the_others_in_proportion():
    program = (
        f"const hand = require({json.dumps(str(SCRIPTS / 'egl_by_hand.js'))});"
        "console.log(JSON.stringify([hand.moved([0.2, 0.6, 0.2], 0, 0.6),"
        " hand.moved([1, 0, 0], 0, 0.5), hand.collapse([0, 1, 1, 0, 1, 2])]))"
    )
    done = subprocess.run([NODE, "-e", program], capture_output=True, text=True)
    moved, from_nothing, collapsed = json.loads(done.stdout)
    np.testing.assert_allclose(moved, [0.6, 0.3, 0.1])
    np.testing.assert_allclose(from_nothing, [0.5, 0.25, 0.25])
    assert collapsed == [1, 1, 2]


# ---------------------------------------------------------------- what figures hold


def data_of(text: str) -> dict:
    return json.loads(text.partition(playable.BEGIN)[2].partition(playable.END)[0])


def test_a_transcript_cannot_end_the_script_around_it():
    data = {"points": [{"text": "</script><script>alert(1)</script>"}], "clips": {}}
    text = playable.figure("ranking", 'a "title" <b>', data).data
    assert "alert(1)" in data_of(text)["points"][0]["text"] and "<script>alert" not in text
    assert "&quot;title&quot; &lt;b&gt;" in text and 'title" <b>' not in text


def test_a_figure_has_data_that_json_has_words_for():
    with pytest.raises(ValueError):
        playable.figure("ranking", "a title", {"score": float("nan")})
    with pytest.raises(ValueError, match="choose one of"):
        playable.figure("pie", "a title", {})


def test_a_figure_of_an_earlier_version_is_drawn_by_the_scripts_of_this_one():
    text = playable.figure("ranking", 'a "title"', {"clips": {"u": "QUJD"}, "pool": {}}).data
    old = text.replace("queried first", "bought first")
    assert old != text and playable.refreshed(old) == text
    assert playable.refreshed("<p>another output</p>") == "<p>another output</p>"


def test_no_figure_asks_the_network_for_anything():
    for name in ("playable.css", *(f"{kind}.js" for kind in playable.KINDS), "playable.js"):
        text = (SCRIPTS / name).read_text().replace("http://www.w3.org/2000/svg", "")
        assert not any(word in text for word in ("http:", "https:", "import(", "fetch(", "url("))


def test_who_is_heard_are_both_ends_of_the_gap_and_others_by_their_ids_alone():
    ids = [f"u{n:03}" for n in range(100)]
    x = pd.Series(np.arange(100.0), ids)
    sample = listening.to_be_heard(x, -x, recordings=20)
    heard = set(sample.index[sample["heard"]])
    assert len(heard) == 20 and list(sample.index) == ids
    assert set(ids[:5]) | set(ids[-5:]) <= heard
    order = np.random.default_rng(0).permutation(100)
    again = listening.to_be_heard(x.iloc[order], -x.iloc[order], 20)
    assert set(again.index[again["heard"]]) == heard


def test_a_large_pool_is_sampled(monkeypatch):
    monkeypatch.setattr(listening, "MOST", 50)
    x = pd.Series(np.arange(100.0), [f"u{n}" for n in range(100)])
    sample = listening.to_be_heard(x, -x, recordings=20)
    assert len(sample) == 50 and sample["heard"].sum() == 20
    assert sample["weight"].sum() == pytest.approx(100)  # all together stand for the pool


def test_error_curves_hold_every_cell_of_the_table_and_nothing_else():
    rows = [
        {"strategy": s, "query_percent": p, "seed": seed, "wer": 30.0 + seed, "ctc": 5.0,
         "cer": 9.0, "macro_wer": 31.0, "unseen_wer": float("nan"), "n_utterances": 10 * p,
         "hours": p / 100}
        for s, percents in {"base": [0], "random": [10, 20], "egl": [10, 20], "all": [100]}.items()
        for p in percents for seed in (0, 2)
    ]  # fmt: skip
    data = data_of(listening.error_curves(pd.DataFrame(rows)).data)
    assert [m["name"] for m in data["metrics"]] == ["ctc", "cer", "wer", "macro_wer"]
    assert [(r["method"], r["percent"]) for r in data["rows"]] == [
        ("egl", 10), ("egl", 20), ("random", 10), ("random", 20)
    ]  # fmt: skip
    row = data["rows"][0]
    assert (row["utterances"], row["seconds"]) == (100, 360)
    mean, low, high = row["errors"]["wer"]
    assert [mean, low, high] == pytest.approx([31, 31 - 12.7062, 31 + 12.7062], abs=1e-3)


# ---------------------------------------------------------------- figures in words


@pytest.fixture
def panel():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def test_what_rises_what_falls_and_what_crosses_is_told(panel):
    panel.plot([0, 1, 2], [1, 2, 3], label="up")
    panel.errorbar([0, 1, 2], [3, 2.5, 1], yerr=0.1, label="down")
    panel.plot([0, 1, 2], [9, 7, 8], label="bent")
    panel.set(xlabel="pool (%)", ylabel="WER (%)", title="A title")
    text = alternative.describe(panel.figure)
    assert text.startswith("A title. WER (%) against pool (%).")
    assert "From 0 to 2 across: down falls from 3 [2.9, 3.1] to 1 [0.9, 1.1]." in text
    assert "up rises from 1 to 3." in text
    assert "bent falls on the whole, from 9 to 8, between 7 and 9." in text
    assert "Lines that cross: down and up between 1 and 2." in text


def test_lines_that_do_not_cross_are_said_not_to(panel):
    panel.plot([0, 1], [0, 1], label="a")
    panel.plot([0, 1], [2, 3], label="b")
    assert "No two lines cross." in alternative.describe(panel.figure)


def test_intervals_that_hold_zero_are_told_from_those_that_do_not(panel):
    for y, (mean, half) in enumerate([(-1, 0.5), (0.2, 0.5), (2, 1)]):
        panel.errorbar(mean, y, None, [[half], [half]])
    panel.axvline(0)
    panel.set_yticks([0, 1, 2], ["left", "middle", "right"])
    text = alternative.describe(panel.figure)
    assert "left: −1 [−1.5, −0.5]. middle: 0.2 [−0.3, 0.7]. right: 2 [1, 3]." in text
    assert text.endswith("Intervals that hold zero: middle.")


def differences(metric, macro):
    """Rows of comparisons.csv: a difference, half of its interval and a verdict each."""
    rows = [
        {"scenario": scenario, "method": method, "metric": metric, "difference": mean,
         "low": mean - half, "high": mean + half, "verdict": verdict}
        for (scenario, method), (mean, half, verdict) in macro.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_differences_over_shared_axes_tell_method_scenario_and_interval():
    figure, axes = plt.subplots(1, 2, sharey=True)
    left = {("rare_topics", "egl"): (1, 0.5, "worse"), ("even", "egl"): (0.25, 0.5, "open"),
            ("rare_topics", "entropy"): (-2, 0.5, "better"),
            ("even", "entropy"): (-1, 0.5, "better")}  # fmt: skip
    right = {key: (4 * mean, half, "better") for key, (mean, half, _) in left.items()}
    for ax, metric, rows in zip(axes, ("wer", "ctc"), (left, right), strict=True):
        plots.plot_against_random(ax, differences(metric, rows))
        ax.set(xlabel=metric)
    figure.canvas.draw()  # now the inner labels are hidden
    text = alternative.describe(figure)
    plt.close(figure)
    assert text == (
        "Panel 1 of 2. wer. entropy: rare topics −2 [−2.5, −1.5], even −1 [−1.5, −0.5]. "
        "EGL (hollow): even 0.25 [−0.25, 0.75]. EGL: rare topics 1 [0.5, 1.5]. "
        "Intervals that hold zero: EGL (even). "
        "Panel 2 of 2. ctc. entropy: rare topics −8 [−8.5, −7.5], even −4 [−4.5, −3.5]. "
        "EGL: rare topics 4 [3.5, 4.5], even 1 [0.5, 1.5]. No interval holds zero."
    )


def test_a_row_without_an_interval_tells_its_difference_not_its_place(panel):
    table = pd.DataFrame({"difference": [-3.0, 2], "low": np.nan, "high": np.nan, "verdict": ""})
    plots.plot_rows(panel, ["one", "two"], table, "WER")
    assert alternative.describe(panel.figure) == "WER. one (hollow): −3. two (hollow): 2."


def test_rounds_tell_every_seed_and_the_mean_of_each_method(panel):
    wer = {"random": [(40, 44), (42, 42), (44, 43)], "egl": [(50, 46), (50, 48), (53, 47)]}
    rows = [
        {"strategy": strategy, "seed": seed, "how": how, "wer": value}
        for strategy, seeds in wer.items() for seed, values in enumerate(seeds)
        for how, value in zip(("batch", "rounds"), values, strict=True)
    ]  # fmt: skip
    plots.plot_rounds(panel, pd.DataFrame(rows), "wer")
    assert alternative.describe(panel.figure) == (
        "WER (%). random, batch to rounds, each seed: rises from 40 to 44; stays at 42; "
        "falls from 44 to 43. random, batch to rounds, mean rises from 42 to 43. "
        "EGL, batch to rounds, each seed: falls from 50 to 46; falls from 50 to 48; "
        "falls from 53 to 47. EGL, batch to rounds, mean falls from 51 to 47."
    )


def test_the_argument_tells_what_was_predicted_beside_what_was_measured():
    figure, axes = plt.subplots(1, 2, sharey=True)
    rows = [("random", 0, 2, 5), ("random", 1, 4, 5), ("egl", 0, 1, 10), ("egl", 1, 8, 10)]
    argument = pd.DataFrame(rows, columns=["strategy", "seed", "ratio", "variance"])
    for ax in axes:
        plots.plot_argument(ax, argument, "ratio")
        ax.set(xlabel="ratio")
    axes[1].set(ylabel="")  # that of the first panel holds for both
    text = alternative.describe(figure)
    plt.close(figure)
    panel = (
        "variance of the test loss, measured against ratio. random, each seed: 1 at 1, 1 at 1. "
        "random: 1 at 1. EGL, each seed: 2 at 0.5, 2 at 2. EGL: 2 at 1."
    )
    assert text == f"Panel 1 of 2. {panel} Panel 2 of 2. {panel}"


def test_points_are_no_lines_and_too_many_are_told_by_where_they_lie(panel):
    panel.plot([10, 20, 30], [5, 4, 7], "o", label="so far")
    panel.plot([0, 40], [5, 5], label="level")
    text = alternative.describe(panel.figure)
    assert "so far: 5 at 10, 4 at 20, 7 at 30." in text and "Lines that cross" not in text
    panel.plot(np.arange(50), np.arange(50) / 2, "x", label="many")
    assert "many: 50 points, 0 to 24.5 at 0 to 49." in alternative.describe(panel.figure)


def test_lines_moved_apart_cross_only_where_their_values_do(panel):
    rows = [
        {"strategy": s, "query_percent": percent, "seed": seed, "wer": wer + seed}
        for s, wers in {"random": (30, 28, 27), "egl": (30, 27, 28), "base": (31,)}.items()
        for percent, wer in zip((0, 10, 20), wers, strict=False) for seed in (0, 1)
    ]  # fmt: skip
    rows.append({"strategy": "all", "query_percent": 100, "seed": 0, "wer": 20})
    plots.plot_error_curve(panel, pd.DataFrame(rows), "wer")
    text = alternative.describe(panel.figure)
    assert "From 0 to 20 across: random falls from 30.5 [24.1, 36.9] to 27.5" in text
    assert "Lines that cross: random and EGL between 10 and 20." in text
    assert text.endswith("Level lines: all of the pool at 20, base data alone at 31.5.")


def test_what_no_legend_names_has_a_name_all_the_same():
    figure, (left, middle, right) = plt.subplots(1, 3)
    table = pd.DataFrame([[50, -50]], ["rare_topics"], ["entropy", "egl"])
    plots.plot_map(left, table, table.map("{} %".format))
    wer = [(0, 20, 4), (1, 20, 4), (0, 30, 5), (1, 30, 5)]
    columns = ["step", "validation_wer", "seed"]
    monitor = pd.DataFrame(wer, columns=columns).assign(method="soft")
    ends = pd.DataFrame({"method": "soft", "seed": [4, 5], "collapsed_at": [1, np.nan]})
    plots.plot_monitor(middle, monitor, "validation_wer", ends)
    history = pd.DataFrame({"update": [1, 2, 1, 2], "seed": [0, 0, 1, 1]})
    history = history.assign(train_loss=[9, 8, 7, 6], validation_loss=[8, 8, 7, 9])
    plots.plot_history(right, history)
    text = alternative.describe(figure)
    plt.close(figure)
    assert "Panel 1 of 3. rare topics: entropy 50 %, EGL -50 %. Panel 2" in text
    assert "soft stays at 25. soft, collapsed: 20 at 1." in text
    assert "training (masked input): falls from 9 to 8; falls from 7 to 6." in text
    assert "validation: stays at 8; rises from 7 to 9." in text


def test_bars_maps_and_clouds_are_told(panel):
    panel.barh(["pool", "EGL"], [0.7, 0.2], label="command")
    panel.barh(["pool", "EGL"], [0.3, 0.8], left=[0.7, 0.2], label="filler")
    assert "pool: command 0.7, filler 0.3; EGL: filler 0.8, command 0.2" in alternative.describe(
        panel.figure
    )
    figure, (left, right) = plt.subplots(1, 2)
    left.imshow([[0, 1], [9, 2]], origin="lower", extent=(0, 2, 0, 2))
    points = np.linspace(0, 1, 50)
    right.hexbin(points, points, gridsize=10, extent=(0, 1, 0, 1), mincnt=1)
    text = alternative.describe(figure)
    plt.close(figure)
    assert (
        "Panel 1 of 2" in text
        and "2 by 2 cells from 0 to 9, most at 0.5 across and 1.5 up." in text
    )
    assert "100% of it lies within a tenth of the diagonal" in text


def test_a_figure_in_a_notebook_carries_its_text(panel):
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.display import display
    from IPython.utils.capture import capture_output

    panel.plot([0, 1], [1, 0], label="<falls>")
    panel.set(xlabel="x", ylabel="y")
    InteractiveShell.instance()
    try:
        alternative.tell_in_notebooks()
        with capture_output() as captured:
            display(panel.figure)
    finally:
        InteractiveShell.clear_instance()
    (output,) = captured.outputs
    assert "<falls> falls from 1 to 0." in output.metadata["image/png"]["alt"]
    assert 'alt="y against x. From 0 to 1 across: &lt;falls&gt; falls' in output.data["text/html"]


# ---------------------------------------------------------------- pages


COLAB = 'if "google.colab" in str(get_ipython())'


def test_the_colab_cell_is_the_same_everywhere_and_does_nothing_elsewhere():
    sources = set()
    for path in (REPOSITORY / "notebooks").glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        first = next(cell for cell in notebook.cells if cell.cell_type == "code")
        assert "colab" in first.metadata.get("tags", []), f"{path.name}: copy it from notebook 1"
        sources.add(first.source)
    (source,) = sources
    assert source.startswith(COLAB)
    exec(source, {"get_ipython": lambda: None})  # asks for nothing, installs nothing
    told = []
    shell = type("Shell", (SimpleNamespace,), {"__str__": lambda _: "google.colab"})
    there = shell(system=told.append, run_line_magic=lambda *words: told.append(" ".join(words)))
    for typed in ("github.com/a/b", " https://github.com/a/b"):
        told.clear()
        exec(source, {"get_ipython": lambda: there, "input": lambda _, typed=typed: typed})
        assert " https://github.com/a/b " in told[0] and told[1].startswith("pip install")
    with pytest.raises(SystemExit, match="no address"):
        exec(source, {"get_ipython": lambda: there, "input": lambda _: ""})


def notebook_of(*cells, failed=False):
    made = nbformat.v4.new_notebook(cells=list(cells))
    if failed:
        output = nbformat.v4.new_output(
            "error", ename="ValueError", evalue="no such [pool](../nowhere.md)"
        )
        made.cells.append(nbformat.v4.new_code_cell("fail()", execution_count=2, outputs=[output]))
    return made


def shown(**data):
    output = nbformat.v4.new_output("display_data", data={k.replace("_", "/", 1): v
                                                          for k, v in data.items()})  # fmt: skip
    return nbformat.v4.new_code_cell("show()", execution_count=1, outputs=[output])


def test_what_may_not_be_published_stays_out_and_says_why():
    figure = playable.figure("ranking", "t", {"clips": {"u": "QUJD"}, "silent": ""}).data
    audio = '<table><tr><td><audio controls src="data:audio/wav;base64,QUJD"></audio></td></table>'
    notebook = notebook_of(shown(text_html=figure), shown(text_html=audio))
    made = executed.for_the_book(notebook, lambda text: text, "it is not ours")
    text = "".join(c.outputs[0].data["text/html"] for c in made.cells)
    assert "QUJD" not in text and text.count("it is not ours") == 2
    assert data_of(text)["clips"] == {} and data_of(text)["silent"] == "it is not ours"
    assert "QUJD" in notebook.cells[0].outputs[0].data["text/html"]  # what was executed is kept
    untouched = executed.for_the_book(notebook, lambda text: text)
    assert "QUJD" in untouched.cells[1].outputs[0].data["text/html"]
    hidden = notebook_of(shown(text_html='<object data="data:audio/wav;base64,QUJD"></object>'))
    with pytest.raises(UserError, match="must not be published"):
        executed.for_the_book(hidden, lambda text: text, "it is not ours")


def test_widgets_and_pictures_without_words_are_replaced():
    heading = nbformat.v4.new_markdown_cell("## A & B")
    widget = shown(**{"application_vnd.jupyter.widget-view+json": {"model_id": "x"}})
    png = base64.b64encode(b"png").decode()
    made = executed.for_the_book(notebook_of(heading, widget, shown(image_png=png)), str)
    assert list(made.cells[1].outputs[0].data) == ["text/html"]
    assert 'alt="Figure: A &amp; B"' in made.cells[2].outputs[0].data["text/html"]


def test_a_section_is_what_stands_under_its_heading():
    text = pages.section("README.md", "Your own recordings in five lines")
    assert text.startswith("## Your own recordings in five lines\n")
    assert "make check CORPUS=jsonl DATA=mine" in text and "Add a method" not in text
    text = pages.section("CONTRIBUTING.md", "What is computed anew, and when")
    assert "### Interruptions" in text and "## Committing" not in text
    with pytest.raises(UserError, match="no heading 'No such thing'"):
        pages.section("README.md", "No such thing")


def test_links_stay_in_the_book_or_go_to_what_is_committed(tmp_path):
    links = pages.Links(tmp_path, "https://github.com/a/b")
    links.documents["notebooks/4_rankings.ipynb"] = "notebooks/4_rankings.ipynb"
    links.anchors["README.md", "two-commands"] = "index"
    text = (
        "[`four`](../notebooks/4_rankings.ipynb) [here](../README.md#two-commands) "
        "[preset](../configs/smoke.yaml) [five](../notebooks/5_loss_prediction.ipynb) "
        "[out](https://arxiv.org) [csv](paper_table1.csv)"
    )
    made = links.rewrite(text, "results/README.md", "systems/egl")
    assert "[`four`](../notebooks/4_rankings.ipynb)" in made
    assert "[here](../index.md#two-commands)" in made
    assert "[preset](https://github.com/a/b/blob/main/configs/smoke.yaml)" in made
    assert "[out](https://arxiv.org)" in made
    assert "{download}`csv <../files/results/paper_table1.csv>`" in made
    assert (tmp_path / "files/results/paper_table1.csv").exists()
    links.repository = ""
    assert links.rewrite("[preset](configs/smoke.yaml)", "README.md", "index") == "preset"


@pytest.mark.parametrize("told, known", [
    ("git@github.com:a/b.git", "https://github.com/a/b"),
    ("https://name:token@github.com/a/b", "https://github.com/a/b"),
    ("https://gitlab.company.com/team/group/b", "https://gitlab.company.com/team/group/b"),
    ("https://codeberg.org/a/b", ""),
    ("/home/me/b", ""),
])  # fmt: skip
def test_an_address_is_https_and_holds_no_secret(monkeypatch, told, known):
    monkeypatch.setenv("REPOSITORY", told)
    assert make.address()[0] == known


def test_a_book_before_any_run_says_which_command_to_run(tmp_path, monkeypatch):
    monkeypatch.setattr(make, "ROOT", tmp_path)
    settings = SimpleNamespace(run="synthetic-laptop", corpus="synthetic")
    with pytest.raises(UserError, match="no executed notebook in build/synthetic-laptop: run make"):
        make.Book(settings, tmp_path / "source")
    (tmp_path / "build" / "synthetic-smoke").mkdir(parents=True)
    (tmp_path / "build" / "synthetic-smoke" / "1_a.ipynb").write_text("{}")
    with pytest.raises(UserError, match="notebooks of synthetic-smoke"):
        make.Book(settings, tmp_path / "source")


# ---------------------------------------------------------------- a book of two notebooks


needs_sphinx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("sphinx", "myst_nb", "sphinx_book_theme"))),
    reason="no Sphinx: make .venv/book installs what the book needs",
)


@pytest.fixture(scope="module")
def small_book(tmp_path_factory):
    """A book of one notebook that ran and one that failed; (its folder, seconds of a second build,
    addresses that were asked for)."""
    root, asked = tmp_path_factory.mktemp("book"), []
    own = root / "build" / "synthetic-tiny"
    own.mkdir(parents=True)
    (root / "notebooks").mkdir()
    for name in ("1_base_training", "2_querying", "9_beyond_egl"):
        shutil.copy(REPOSITORY / "notebooks" / f"{name}.ipynb", root / "notebooks")
    curves = playable.egl_by_hand([[1 / 3] * 3] * 3, ["·", "a", "b"], 7).data
    title = nbformat.v4.new_markdown_cell(
        "# One\n\n$$\\mathrm{EGL}(x) = \\sum_{k} p_k \\lVert g_k \\rVert^2$$\n\n"
        "[nine](9_beyond_egl.ipynb) and [two](2_querying.ipynb)"
    )
    nbformat.write(notebook_of(title, shown(text_html=curves)), own / "1_base_training.ipynb")
    failed = notebook_of(nbformat.v4.new_markdown_cell("# Two"), failed=True)
    nbformat.write(failed, own / "2_querying.partial.ipynb")
    for name in ("1_base_training", "9_beyond_egl"):  # cut short by a full disk
        (own / f"{name}.partial.ipynb").write_text('{"cells": [')
    connect = socket.socket.connect
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make, "ROOT", root)
        patch.setattr(make, "WORK", root / "build" / ".book")
        patch.setattr(make, "BOOK", root / "build" / "book")
        patch.setattr(pages, "api", lambda: {"api/index": "# The package\n"})
        patch.setattr(socket.socket, "connect", lambda s, to: (asked.append(to), connect(s, to)))
        settings = SimpleNamespace(run="synthetic-tiny", corpus="synthetic")
        for _ in range(2):
            begun = time.perf_counter()
            make.build(make.Book(settings, make.WORK / "source"))
            took = time.perf_counter() - begun
    return root / "build" / "book", took, asked


@needs_sphinx
def test_a_book_is_built_without_the_network_and_again_in_no_time(small_book):
    folder, took, asked = small_book
    assert asked == [] and took < 20
    assert (folder / "index.html").exists()


@needs_sphinx
def test_a_notebook_that_failed_says_so_and_the_rest_is_built(small_book):
    folder = small_book[0]
    two = (folder / "notebooks" / "2_querying.html").read_text()
    assert "did not run to its end" in two
    assert "cell 2: ValueError: no such [pool](../nowhere.md)" in two  # told, not a broken link
    one = (folder / "notebooks" / "1_base_training.html").read_text()
    assert "<math" in one and 'data-kind="egl_by_hand"' in one and "did not run" not in one
    assert "2_querying.html" in one and "9_beyond_egl" not in one.partition("<h1>One")[2]
    front = (folder / "index.html").read_text()
    assert "9 beyond egl (<code" in front


SMOKE = "synthetic-smoke"


def test_the_front_page_judges_by_the_committed_runs_and_leaves_no_kind_out(monkeypatch):
    """Also where the book's own notebooks are of a run that is as small as the smoke preset's; here
    as in a clone, where nobody has made that one."""
    there = pages._has
    monkeypatch.setattr(pages, "_has", lambda run, name: run != SMOKE and there(run, name))
    told = pages.holds(SMOKE)
    places = [told.index(x) for x in ("### The run of the README", "### The paper's claims, by "
              "`synthetic-laptop`", "### Where a query pays", "### On recorded speech, by preset "
              "`digits`", "### On recorded speech, by preset `recorded`")]  # fmt: skip
    assert places == sorted(places) and SMOKE not in told
    every = [text for *_, text in pages.MAKE.findall("".join(
        path.read_text() for path in (REPOSITORY / "book" / "pages").rglob("*.md")))]  # fmt: skip
    headings = {
        line[3:] for line in (REPOSITORY / "results" / "README.md").read_text().splitlines()
        if line.startswith("## ")
    }  # fmt: skip
    assert headings - {text.removeprefix("results/README.md ") for text in every} == {"Every run"}


def test_a_notebook_that_was_not_executed_is_told_with_what_executes_it():
    makefile = (REPOSITORY / "Makefile").read_text()
    assert f"notebooks/{make.LOOP}.ipynb" in makefile.partition("\nloop:")[2].split("\n\n")[0]
    assert "$(SYSTEMS) loop; do" in makefile
    assert make._to_come(make.LOOP) == "10 your own loop (`make loop`)"


@pytest.mark.parametrize("corpus, silent", [
    ("synthetic", False), ("fsdd", False), ("librispeech", False), ("jsonl", True),
    ("kaldi", True), ("speechcommands", True), ("esc10", True),
])  # fmt: skip
def test_recordings_that_may_be_anybody_s_are_not_published(corpus, silent):
    assert bool(RESTRICTED.get(corpus)) == silent


class Page(html.parser.HTMLParser):
    """Links, anchors, and what a page makes a browser ask for."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.anchors, self.loads = [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        known = dict(attributes)
        self.anchors |= {known[x] for x in ("id", "name") if known.get(x)}
        if tag == "a" and known.get("href"):
            self.links.append(known["href"])
        if tag == "link" and known.get("rel") != "canonical":
            self.loads.append(known.get("href", ""))
        if tag in ("script", "img", "audio", "iframe", "source"):
            self.loads.append(known.get("src") or "")


def pages_of(folder: Path) -> list[Path]:
    """All that is read; the theme keeps a template among its scripts."""
    return sorted(p for p in folder.rglob("*.html") if p.relative_to(folder).parts[0] != "_static")


def check_links(folder: Path) -> None:
    """No link of a book leads nowhere, and no page asks another machine for anything."""
    parsed = {path: Page(path.read_text(encoding="utf-8")) for path in pages_of(folder)}
    for path, page in parsed.items():
        assert not [x for x in page.loads if urlparse(x).scheme in ("http", "https")], path
        for link in page.links:
            there = urlparse(link)
            if there.scheme:
                continue
            target = (path.parent / unquote(there.path)).resolve() if there.path else path
            assert target.exists(), f"{path}: {link}"
            if there.fragment and target in parsed:
                anchors = parsed[target].anchors | {"", "top"}
                assert unquote(there.fragment) in anchors, f"{path}: {link}"


@needs_sphinx
def test_no_link_of_the_small_book_is_broken(small_book):
    check_links(small_book[0])


# ---------------------------------------------------------------- the book of this checkout

BOOK = REPOSITORY / "build" / "book"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()
AXE = Path(os.environ.get("ALSPEECH_AXE") or REPOSITORY / "build" / "axe" / "axe.min.js")
needs_book = pytest.mark.skipif(not (BOOK / "index.html").exists(), reason="no book: make book")
needs_browser = pytest.mark.skipif(
    not CHROMIUM or not importlib.util.find_spec("playwright"),
    reason="no Chromium, or no playwright: apt-get install chromium; pip install playwright",
)


@needs_book
def test_no_link_of_the_book_is_broken():
    check_links(BOOK)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as player:
        yield player.chromium.launch(executable_path=CHROMIUM, args=FLAGS)


def opened(browser, width: int):
    """A page, and what went wrong on it: console errors, requests to other machines."""
    page, wrong = browser.new_page(viewport={"width": width, "height": 900}), []
    page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:"))
            else wrong.append(r.url))  # fmt: skip
    return page, wrong


def address_of(name: str) -> str:
    return (BOOK / name).as_uri()


@needs_book
@needs_browser
@pytest.mark.parametrize("width", [375, 1440])
def test_every_page_opens_without_an_error_and_fits_its_window(browser, width):
    page, wrong = opened(browser, width)
    for path in pages_of(BOOK):
        if width > 1000 and path.parent.name == "api":
            continue  # seventy of one make: the narrow window sees them all
        page.goto(path.as_uri())
        over = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert over <= 0 and not wrong, (path.name, over, wrong)


@pytest.fixture
def ranking(browser):
    if not (BOOK / "notebooks" / "4_rankings.html").exists():
        pytest.skip("this book has no notebook 4")
    page, wrong = opened(browser, 1440)
    begun = time.perf_counter()
    page.goto(address_of("notebooks/4_rankings.html"))
    figure = page.locator('.alspeech[data-kind="ranking"]')
    figure.locator("path.dot").first.wait_for(state="attached")
    yield SimpleNamespace(page=page, figure=figure, took=time.perf_counter() - begun)
    assert wrong == []
    page.close()


def heard(ranking, before=None) -> str:
    """The utterance that is played, when ``play()`` has kept its promise."""
    ranking.page.wait_for_function(
        "before => { const now = document.querySelector('.alspeech[data-kind=ranking]').dataset;"
        "return now.heard && now.heard === now.current && now.heard !== before }", arg=before,
    )  # fmt: skip
    return ranking.figure.get_attribute("data-heard")


@needs_book
@needs_browser
def test_the_ranking_page_is_small_soon_there_and_has_much_to_hear(ranking):
    assert (BOOK / "notebooks" / "4_rankings.html").stat().st_size < 10e6
    assert ranking.took < 2 or os.getloadavg()[0] > 2  # a busy machine proves nothing
    text = ranking.figure.locator('script[type="application/json"]').text_content()
    data = json.loads(text)
    assert len(data["clips"]) >= min(300, len(data["points"]))


@needs_book
@needs_browser
def test_a_click_on_a_dot_plays_it_and_shows_what_was_said_and_believed(ranking):
    dot = ranking.figure.locator("path.dot:not(.mute)").nth(7)
    dot.scroll_into_view_if_needed()
    box = dot.bounding_box()
    ranking.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    utt_id = heard(ranking)
    text = ranking.figure.locator('script[type="application/json"]').text_content()
    (point,) = [p for p in json.loads(text)["points"] if p["id"] == utt_id]
    told = ranking.figure.locator(".about").text_content()
    assert (point["text"] or "(no words)") in told
    rows = ranking.figure.locator("table.nbest tbody tr")
    assert rows.count() == len(point["nbest"])
    assert (point["nbest"][0][0] or "(nothing)") in rows.first.text_content()


@needs_book
@needs_browser
def test_the_keyboard_alone_plays_switches_axes_and_selects(ranking):
    keyboard = ranking.page.keyboard
    ranking.figure.locator('select[data-axis="x"]').focus()
    before = ranking.figure.get_attribute("data-x")
    keyboard.press("ArrowDown")
    ranking.page.wait_for_function(
        "x => document.querySelector('.alspeech[data-kind=ranking]').dataset.x !== x", arg=before
    )
    for _ in range(12):  # on, by the Tab key, to the picture
        keyboard.press("Tab")
        if ranking.page.evaluate("document.activeElement.className") == "board":
            break
    keyboard.press("ArrowUp")
    first = heard(ranking)
    keyboard.press("ArrowLeft")
    heard(ranking, before=first)
    keyboard.press("Shift+ArrowLeft")
    keyboard.press("Shift+ArrowUp")
    assert int(ranking.figure.get_attribute("data-selected")) >= 1
    keyboard.press("Escape")
    assert ranking.figure.get_attribute("data-selected") == ""


@needs_book
@needs_browser
def test_a_region_says_what_is_over_represented_in_it(ranking):
    ranking.figure.locator('[data-preset="circle"]').click()
    count = int(ranking.figure.get_attribute("data-selected"))
    dots = ranking.figure.locator("path.dot").count()
    text = ranking.figure.locator('script[type="application/json"]').text_content()
    data = json.loads(text)
    circle = data["circles"][data["x"]][data["y"]]
    assert count == len(circle["points"])
    size = circle.get("whole", {}).get("size", count)
    told = ranking.figure.locator(".over").text_content()
    assert f"In the region: {size} of {data['pool']['size']} utterances" in told
    ranking.figure.locator('[data-preset="none"]').click()
    box = ranking.figure.locator(".board svg").bounding_box()
    mouse = ranking.page.mouse
    mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.1 * box["height"])
    mouse.down()
    mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.6 * box["height"], steps=4)
    mouse.up()
    assert 0 < int(ranking.figure.get_attribute("data-selected")) < dots
    ranking.figure.locator("summary").click()  # the same as a table
    rows = ranking.figure.locator("details tbody tr")
    rows.first.wait_for()
    assert rows.count() == int(ranking.figure.get_attribute("data-selected"))


@needs_book
@needs_browser
def test_search_finds_pctc(browser):
    page, _ = opened(browser, 1440)
    page.goto(address_of("search.html") + "?q=pCTC")
    page.locator("#search-results li a").first.wait_for(timeout=20_000)
    assert page.locator("#search-results li").count() > 1


@needs_book
@needs_browser
@pytest.mark.skipif(not AXE.exists(), reason="no build/axe/axe.min.js: npm pack axe-core has it")
def test_axe_finds_no_serious_violation(browser):
    page, _ = opened(browser, 1440)
    names = ["index.html", "systems/egl.html", "add_a_score.html", "api/alspeech.acquisition.html"]
    names += [f"notebooks/{p.name}" for p in sorted((BOOK / "notebooks").glob("*.html"))]
    found = []
    for name in names:
        page.goto(address_of(name))
        page.wait_for_timeout(200)
        page.add_script_tag(path=str(AXE))
        result = page.evaluate("axe.run(document, {resultTypes: ['violations'], preload: false})")
        found += [
            (name, v["id"], v["nodes"][0]["html"][:160], len(v["nodes"]))
            for v in result["violations"] if v["impact"] in ("serious", "critical")
        ]  # fmt: skip
    assert found == []
