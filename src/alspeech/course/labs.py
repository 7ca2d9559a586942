"""Labs: one source, two versions.

    make course    build/course/<run>/: student/ and solutions/, and what is handed out as a zip;
                   course/lab1.ipynb …: the student's version for the book, Colab and Binder

A source, ``course/lab1.md``, is Markdown whose ``python`` blocks become code cells. What stands
between ``### BEGIN SOLUTION`` and ``### END SOLUTION`` (comments, in prose: ``<!-- BEGIN SOLUTION
-->``) is left out of the student's version; a line that ends in ``# your answer`` is what the
student finds there, and left out of the solution's.
"""

from __future__ import annotations

import io
import re
import shutil
import zipfile
from pathlib import Path
from typing import NamedTuple

from .. import experiment
from ..workshop.config import ROOT, Settings
from ..workshop.errors import UserError
from ..workshop.steps import in_parallel
from ..workshop.store import write_bytes, write_text

SOURCES = Path(__file__).parents[3] / "course"
BEGIN, END = "BEGIN SOLUTION", "END SOLUTION"
MARK = re.compile(r"^\s*(?:###|<!--) (BEGIN|END) SOLUTION(?: -->)?\s*$")
YOURS = "# your answer"
HANDED_OUT = ("assignment.md", "example.py")  # beside the labs
PUBLISHED = "smoke"  # the preset of what is read in the book and opened on Colab
COLAB = """\
if "google.colab" in str(get_ipython()):  # there only: the package, beside Colab's own torch
    address = input("address of the repository that this notebook is from: https://")
    if not (address := address.strip().removeprefix("https://")):
        raise SystemExit("no address: run this cell again")
    get_ipython().system(f"git clone --quiet --depth 1 https://{address} /content/alspeech")
    get_ipython().run_line_magic("pip", "install --quiet /content/alspeech")
    get_ipython().run_line_magic("env", "ALSPEECH_ROOT=/content/alspeech")"""


class Line(NamedTuple):
    number: int
    text: str
    solution: bool  # does it stand between markers?


def sources() -> list[Path]:
    """The labs' sources, in order."""
    return sorted(SOURCES.glob("lab[0-9].md"))


def lines(text: str, file: str) -> list[Line]:
    """The lines of a source but for its markers. Raises ``UserError`` naming file and line where
    markers do not come in pairs within one block of code or prose."""
    found, open_at, fence = [], 0, False
    for number, line in enumerate(text.splitlines(), start=1):
        mark = MARK.match(line)
        if mark and (mark[1] == "BEGIN") == bool(open_at):
            wanted = END if open_at else BEGIN
            raise UserError(f"{file}, line {number}: {mark[0].strip()} where {wanted} is expected")
        if mark:
            open_at = number if mark[1] == "BEGIN" else 0
            continue
        if line.startswith("```"):
            fence = not fence
            if open_at:
                raise UserError(f"{file}, line {open_at}: {BEGIN} has no {END} in its block")
        found.append(Line(number, line, bool(open_at)))
    if open_at:
        raise UserError(f"{file}, line {open_at}: {BEGIN} has no {END}")
    if fence:
        raise UserError(f"{file}: the last block of code has no end (```)")
    return found


def solutions(text: str, file: str = "lab") -> list[str]:
    """What the student's version must not say: the lines between markers, stripped."""
    return [line.text.strip() for line in lines(text, file) if line.solution and line.text.strip()]


def version(text: str, solved: bool, file: str = "lab") -> list[tuple[str, str, list[str]]]:
    """The cells of one version: (kind, source, tags), kind "code" or "markdown"."""
    cells, kind, tags, held = [], "markdown", [], []

    def close():
        source = re.sub(r"\n{4,}", "\n\n\n", "\n".join(held).strip("\n"))
        if source.strip():
            cells.append((kind, source, tags))
        held.clear()

    for line in lines(text, file):
        if line.text.startswith("```python") or (kind == "code" and line.text.startswith("```")):
            close()
            kind = "code" if line.text.startswith("```python") else "markdown"
            tags = line.text.split()[1:] if kind == "code" else []
        elif (line.solution and not solved) or (solved and line.text.endswith(YOURS)):
            continue
        else:
            if kind == "markdown" and line.text.startswith("#"):
                close()
            held.append(line.text)
    close()
    return cells


def notebook(text: str, solved: bool, name: str, preset: str = ""):
    """One version as a notebook, without outputs, and equal at every call; ``preset`` becomes that
    of its parameters."""
    import nbformat

    cells = []
    for number, (kind, source, tags) in enumerate(version(text, solved, f"{name}.md")):
        if "parameters" in tags and preset:
            source = re.sub(r'^preset = "\w+"', f'preset = "{preset}"', source, flags=re.M)
        make = getattr(nbformat.v4, f"new_{kind}_cell")
        cells.append(
            make(source, id=f"{name}-{number:02d}", metadata={"tags": tags} if tags else {})
        )
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def published() -> dict[Path, str]:
    """The notebooks that lie beside the sources, and what they must hold: the student's version,
    with the cell that installs the package on Colab."""
    import nbformat

    found = {}
    for path in sources():
        made = notebook(path.read_text(encoding="utf-8"), False, path.stem, PUBLISHED)
        cell = nbformat.v4.new_code_cell(
            COLAB, id=f"{path.stem}-colab", metadata={"tags": ["colab"]}
        )
        made.cells.insert(1, cell)
        found[path.with_suffix(".ipynb")] = nbformat.writes(made) + "\n"
    return found


def prepare(settings: Settings) -> None:
    """Compute what the labs find ready beside the run, so that nobody waits for it in class: first
    passes of the two seeds that lab 4 looks at."""
    tasks = [(split, seed) for seed in (0, 1) for split in ("pool", "base")]
    in_parallel(experiment.base_model, settings, [(seed,) for seed in (0, 1)], "base models")
    in_parallel(experiment.first_pass, settings, tasks, "first passes")


def make(settings: Settings) -> Path:
    """Write both versions and the zip into ``build/course/<run>``, and what is
    :func:`published`; returns the zip's path.

    Raises ``UserError`` where there are no sources, or one that is not to be read.
    """
    import nbformat

    found = sources()
    if not found:
        raise UserError(f"no labs in {SOURCES}: the course needs the repository, not only the "
                        "package")  # fmt: skip
    folder = ROOT / "build" / "course" / settings.run
    written = {}
    for solved, place in ((False, "student"), (True, "solutions")):
        for path in found:
            text = path.read_text(encoding="utf-8")
            made = notebook(text, solved, path.stem, settings.preset)
            written[f"{place}/{path.stem}.ipynb"] = nbformat.writes(made) + "\n"
    for path, text in published().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
    for name in HANDED_OUT:
        written[f"student/{name}"] = (SOURCES / name).read_text(encoding="utf-8")
    for place in ("student", "solutions"):  # versions of labs that are no more
        shutil.rmtree(folder / place, ignore_errors=True)
        (folder / place).mkdir(parents=True)
    for name, text in written.items():
        write_text(folder / name, text)
    path = folder / f"course-{settings.preset}.zip"
    handed_out = {name: text for name, text in written.items() if name.startswith("student/")}
    write_bytes(path, _zipped(handed_out))
    return path


def _zipped(files: dict[str, str]) -> bytes:
    """A zip of some files, equal at every call."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in sorted(files.items()):
            entry = zipfile.ZipInfo(name.replace("student/", "course/"), (2016, 12, 10, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, text)
    return buffer.getvalue()
