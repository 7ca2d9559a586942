"""The course: right answers pass, plausible mistakes get the hint that fits, and the student's
version holds no solution."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile

import nbformat
import numpy as np
import pytest
import torch
from conftest import EXECUTE, REPOSITORY, shared_folder

from alspeech.course import check, labs
from alspeech.course.checks import Argument, Function, Value, exercises, judge
from alspeech.workshop.config import load_settings
from alspeech.workshop.errors import UserError

LABS = labs.sources()
KNOWN = exercises()
FUNCTIONS = [name for name, one in KNOWN.items() if isinstance(one, Function)]


def text_of(path):
    return path.read_text(encoding="utf-8")


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_right_is_right_and_every_mistake_gets_its_hint(name):
    exercise = KNOWN[name]
    assert judge(name, exercise.right) == (True, "")
    for hint, wrong in exercise.mistakes:
        assert judge(name, wrong) == (False, hint)


def paired(a, b):
    from alspeech.statistics import interval

    return interval(np.asarray(a) - b)


def first_only(path):
    return [v for i, v in enumerate(path) if v and (i == 0 or v != path[i - 1])]


WRONG = [  # as students write them: exercise, answer, part of the hint
    ("1.1", lambda path: [v for v in path if v], "repeats are still there"),
    ("1.1", lambda path: [v for v, _ in itertools.groupby(p for p in path if p)], "merge repeats"),
    ("1.1", lambda path: "".join("·abc"[v] for v in path), "the text"),
    ("1.2", 7, "'a·a' collapses to 'aa'"),
    ("1.2", 3.5, "a whole number"),
    ("1.3", lambda p, y: float(np.log(KNOWN["1.3"].right(p, y))), "logarithm"),
    ("1.4", lambda p, y: KNOWN["1.4"].right(p, y).T, "transposed"),
    ("1.5", lambda p, y: KNOWN["1.5"].right(p, y) * 0.5, "rows must sum to 1"),
    ("1.6", lambda z, y: -KNOWN["1.6"].right(z, y), "the loss is −log p"),
    ("1.7", lambda p: -(p * np.log2(np.clip(p, 1e-12, 1))).sum(1).mean(), "not in bits"),
    ("1.7", lambda p: -(p * np.log(np.where(p > 0, p, np.nan))).sum(1).mean(), "NaN"),
    ("1.7", lambda p: (p * np.log(np.clip(p, 1e-12, 1))).sum(1).mean(), "sign"),
    ("1.7", lambda p: p @ p, "raised ValueError"),
    ("1.8", lambda p: -np.log(p.max(axis=1)).mean(), "most likely path's"),
    ("1.9", ([[0.5, 0.5]], [[0.4, 0.4]]), "sums of 1"),
    ("1.9", ([[1.0, 0.0]], [[0.5, 0.5]]), "entropy must query the first"),
    ("1.9", ([[1.0, 0, 0], [0.1, 0.45, 0.45]], [[0.5, 0.5, 0]] * 2), "exchange the two"),
    ("1.10", "They agree.", "2 words"),
    ("2.1", lambda q, g: g.mean(axis=0), "weigh it by its probability"),
    ("2.2", lambda q, g: float(np.exp(q) @ np.abs(g).sum((1, 2))), "expected_length"),
    ("2.2", lambda q, g: np.square(g * np.sqrt(np.exp(q))[:, None, None]), "where a number is"),
    ("2.3", lambda p: np.square(p).sum(), "this is Σ p²"),
    ("2.4", lambda m, x, y, q: torch.tensor(1.0), "plain_egl"),
    ("2.6", lambda s, share: int((np.cumsum(s**2) / (s**2).sum() < share).sum()), "one too few"),
    ("2.7", lambda H, g: np.square(H.T @ g).sum(), "the bias is a parameter"),
    ("3.1", lambda s, d, b: list(s.sort_values().index), "not as many"),
    ("3.1", lambda s, d, b: KNOWN["3.1"].right(-s, d, b), "a higher score"),
    ("3.2", lambda a, b: paired(b, a), "b − a"),
    ("3.2", lambda a, b: float(np.mean(a - b)), "shape (3,)"),
    ("3.4", lambda p: np.minimum(p * len(p), 1), "Bonferroni"),
    ("3.5", "a", "does not show that there is nothing"),
    ("3.5", "e", "one of a, b, c, d"),
    ("3.6", lambda sd, d, n: 1 - KNOWN["3.6"].right(sd, d, n), "difference is missed"),
    ("3.7", ["rare_topics", "long_tail"], "these are the ones that it wins"),
    ("3.7", "sunny", "is no scenario"),
    ("4.2", lambda z, q: z - q, "softmax"),
    ("4.4", lambda x, y, n: list(range(n)), "not right"),
    ("4.5", {"claim": "It works."}, "'method' is missing"),
    ("4.5", 3, "a number"),
    ("4.6", lambda d: 0.5 * KNOWN["4.6"].right(d), "factor"),
    ("4.7", lambda d, lower: "supported" if np.mean(d) < 0 else "refuted", "not right"),
]  # fmt: skip


@pytest.mark.parametrize(
    "name, answer, told", WRONG, ids=[f"{n}-{i}" for i, (n, *_) in enumerate(WRONG)]
)
def test_plausible_wrong_answers_get_a_hint_that_fits(name, answer, told):
    right, hint = judge(name, answer)
    assert not right and told in hint and "\n" not in hint


def test_a_hint_never_tells_the_answer_and_check_is_a_line(capsys):
    check("1.2", 5)
    check("1.2", 6)
    check("1.2b", 6)
    check("1.3", None)
    check("3.5", "c")
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("1.2: not right") and "6" not in out[0]
    assert out[1] == "1.2: right"
    assert out[2] == "there is no exercise '1.2b': did you mean '1.2'?"
    assert out[3].startswith("1.3: not answered yet") and out[4] == "3.5: right"


@pytest.mark.parametrize(
    "answer", [..., None, "", {}, object(), print, 1j, [[1], [2, 3]], "x", 10**400]
)
def test_an_answer_of_another_type_is_a_line(answer):
    for name in KNOWN:
        right, hint = judge(name, answer)
        assert not right and hint and "\n" not in hint and len(hint) < 500


def test_the_source_keeps_answers_as_digests():
    for exercise in KNOWN.values():
        if isinstance(exercise, Value):
            assert re.fullmatch("[0-9a-f]{12}", exercise.right)
            assert all(re.fullmatch("[0-9a-f]{12}", x) for _, x in exercise.mistakes)


# ---------------------------------------------------------------- versions


@pytest.mark.parametrize("path", LABS, ids=lambda path: path.stem)
def test_no_solution_is_in_the_students_version(path):
    text = text_of(path)
    hidden = [line for line in labs.solutions(text) if len(line) > 9]
    assert len(hidden) > 10
    notebook = labs.notebook(text, False, path.stem)
    for cell in notebook.cells:
        whole = json.dumps(cell.metadata) + cell.source
        assert not [line for line in hidden if line in whole]
        assert "SOLUTION" not in whole
    solved = labs.notebook(text, True, path.stem).cells
    whole = "\n".join(cell.source for cell in solved)
    assert all(line in whole for line in hidden)
    assert not any(labs.YOURS in cell.source for cell in solved if cell.cell_type == "code")


@pytest.mark.parametrize("path", LABS, ids=lambda path: path.stem)
def test_what_the_book_and_colab_show_is_the_students_version(path):
    made = labs.published()[path.with_suffix(".ipynb")]
    assert path.with_suffix(".ipynb").read_text(encoding="utf-8") == made, "make course"
    hidden = [line for line in labs.solutions(text_of(path), path.name) if len(line) > 9]
    shown = {line.strip() for cell in json.loads(made)["cells"] for line in cell["source"]}
    assert hidden and not shown & set(hidden)


@pytest.mark.parametrize("path", LABS, ids=lambda path: path.stem)
def test_a_lab_has_goal_story_exercises_in_order_and_an_argument(path):
    text, number = text_of(path), path.stem[-1]
    own = [name for name in KNOWN if name.startswith(number + ".")]
    assert "**Goal.**" in text and "**Story.**" in text
    assert re.findall(r'^check\("([\d.]+)"', text, re.M) == own
    assert re.findall(r"^### Exercise ([\d.]+):", text, re.M) == own
    assert isinstance(KNOWN[own[-1]], Argument)


def test_versions_are_equal_at_every_call_and_carry_the_preset():
    text = text_of(LABS[0])
    first, second = (labs.notebook(text, False, "lab1", "smoke") for _ in range(2))
    assert first == second
    (parameters,) = [c for c in first.cells if "parameters" in c.metadata.get("tags", [])]
    assert parameters.source.startswith('preset = "smoke"')
    assert all(not cell.get("outputs") for cell in first.cells)


@pytest.mark.parametrize("text, told", [
    ("```python\n### BEGIN SOLUTION\nx = 1\n```\n", "line 2: BEGIN SOLUTION has no END SOLUTION"),
    ("```python\n### END SOLUTION\n```\n", "line 2: ### END SOLUTION where BEGIN SOLUTION"),
    ("<!-- BEGIN SOLUTION -->\na\n<!-- BEGIN SOLUTION -->\n", "line 3"),
    ("<!-- BEGIN SOLUTION -->\nso", "line 1: BEGIN SOLUTION has no END SOLUTION"),
    ("```python\nx = 1\n", "the last block of code has no end"),
])  # fmt: skip
def test_markers_that_do_not_pair_are_named(text, told):
    with pytest.raises(UserError, match=re.escape(told)):
        labs.solutions(text)


def test_the_course_is_both_versions_and_a_zip_for_students(tmp_path, monkeypatch):
    monkeypatch.setattr(labs, "ROOT", tmp_path)
    settings = load_settings("smoke")
    path = labs.make(settings)
    folder = tmp_path / "build" / "course" / "synthetic-smoke"
    assert path == folder / "course-smoke.zip"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        whole = "".join(archive.read(name).decode() for name in names)
    expected = [f"course/lab{n}.ipynb" for n in range(1, 5)]
    assert sorted(names) == ["course/assignment.md", "course/example.py", *expected]
    assert "SOLUTION" not in whole
    assert {path.name for path in (folder / "solutions").iterdir()} == {
        f"lab{n}.ipynb" for n in range(1, 5)
    }
    before = path.read_bytes()
    assert labs.make(settings) == path and path.read_bytes() == before


# ---------------------------------------------------------------- the labs run


@pytest.fixture(scope="module")
def said(tmp_path_factory, spoken):
    """What both versions of every lab print, by version, in one process, with the preset ``tiny``;
    what a run would have left for them they compute themselves."""
    with shared_folder(tmp_path_factory, "course") as folder:
        if not (folder / "said.json").exists():
            for place in ("configs", "data"):
                shutil.copytree(spoken / place, folder / place)
            for run in ("synthetic-reference", "synthetic-laptop"):
                shutil.copytree(REPOSITORY / "results" / run, folder / "results" / run)
            own, paths = {"ALSPEECH_ROOT": str(folder), "ALSPEECH_JOBS": "1"}, []
            for solved in (True, False):
                for path in LABS:
                    made = folder / f"{path.stem}-{solved}.ipynb"
                    notebook = labs.notebook(text_of(path), solved, path.stem)
                    tell = f"print('version', {solved}, {path.stem!r})"
                    notebook.cells.insert(0, nbformat.v4.new_code_cell(tell))
                    nbformat.write(notebook, made)
                    paths.append(str(made))
            done = subprocess.run(
                [sys.executable, "-c", EXECUTE, "tiny", "synthetic", "", *paths],
                env={**os.environ, **own}, capture_output=True, text=True,
            )  # fmt: skip
            parts = re.split(r"^version (True|False) (lab\d)$", done.stdout, flags=re.M)
            found = [parts[i : i + 3] for i in range(1, len(parts), 3)]
            (folder / "said.json").write_text(json.dumps([found, done.stderr[-3000:]]))
        found, error = json.loads((folder / "said.json").read_text())
    return {(solved == "True", lab): text for solved, lab, text in found}, error


@pytest.mark.parametrize("lab", [path.stem for path in LABS])
def test_the_solution_version_runs_and_every_check_is_right(said, lab):
    found, error = said
    assert (True, lab) in found, error
    own = [name for name in KNOWN if name.startswith(lab[-1] + ".")]
    told = dict(re.findall(r"^(\d\.\d+): (.*)$", found[True, lab], re.M))
    assert list(told) == own
    argument = "there is an argument; a person will judge it"
    assert list(told.values()) == ["right"] * (len(own) - 1) + [argument]


@pytest.mark.parametrize("lab", [path.stem for path in LABS])
def test_the_untouched_student_version_gets_a_hint_from_every_check(said, lab):
    found, error = said
    assert (False, lab) in found and "Traceback" not in error, error
    told = re.findall(r"^(\d\.\d+): (.*)$", found[False, lab], re.M)
    own = [name for name in KNOWN if name.startswith(lab[-1] + ".")]
    assert [name for name, _ in told] == own
    assert all(hint.startswith("not answered yet: ") for _, hint in told)


def test_what_the_labs_derive_agrees_with_torch(said):
    text = said[0][True, "lab1"]
    assert float(re.search(r"largest difference: (\S+)", text)[1]) < 1e-12
    by_table, brute, torchs = (
        float(re.search(rf"{name}\s*: (\S+)", text)[1])
        for name in ("the table", "brute force", "PyTorch")
    )
    assert by_table == pytest.approx(brute) == pytest.approx(torchs)
