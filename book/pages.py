"""The book's other pages: written from pages/, from the READMEs and from the result tables.

In pages/ a line ``<!-- make: what … -->`` is replaced by what make.py's ``Book`` has for it:
``picture kind``, ``holds``, ``contents``, ``notebooks prefix …``, ``section file heading``.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

from alspeech import findings, lessons
from alspeech.workshop.config import ROOT
from alspeech.workshop.errors import UserError

MAKE = re.compile(r"^<!-- make: (\w+) ?(.*?) -->$", re.MULTILINE)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+)\)")
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
GIVEN_ALONG = (".csv", ".json", ".png", ".md")  # files that the book brings with it


def section(file: str, heading: str) -> str:
    """A heading of a page, as one of the second level, with what stands under it, its sub-headings
    too. Raises ``UserError`` where there is no such heading."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    begin = level = None
    fenced = False
    for n, line in enumerate(lines):
        fenced ^= line.startswith("```")
        found = None if fenced else re.match(r"(#+) (.*)", line)
        if begin is None and found and found[2].strip() == heading:
            begin, level = n, len(found[1])
        elif begin is not None and found and len(found[1]) <= level:
            lines = lines[:n]
            break
    if begin is None:
        raise UserError(f"{file} has no heading '{heading}', which a page of the book asks for")
    raised, fenced, found = level - 2, False, []
    for line in lines[begin:]:
        fenced ^= line.startswith("```")
        found.append(line[raised:] if line.startswith("#") and not fenced else line)
    return "\n".join(found).strip()


def download(text: str, path: str) -> str:
    """A link to a file, of whatever kind, to be kept and not to be opened."""
    return f"{{download}}`{text.replace('`', '')} <{path}>`"


def slug(heading: str) -> str:
    """A heading as links name it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


class Links:
    """Where the links of the repository's pages lead to in the book.

    ``documents`` are repository paths and the book's documents made of them, ``anchors``
    (file, heading's slug) and the document that has this section. ``repository`` is the address of
    what is committed, if it has one: what the book has not is linked there, or not at all.
    """

    def __init__(self, source: Path, repository: str, branch: str = "main"):
        self.source, self.repository, self.branch = source, repository, branch
        self.documents: dict[str, str] = {}
        self.anchors: dict[tuple[str, str], str] = {}

    def rewrite(self, text: str, file: str, document: str) -> str:
        """Markdown of a repository's ``file`` as it stands in the book's ``document``."""
        parts = FENCE.split(text)
        parts[::2] = [LINK.sub(lambda m: self._one(m, file, document), x) for x in parts[::2]]
        return "".join(parts)

    def _one(self, match, file: str, document: str) -> str:
        image, text, target = match[1], match[2], match[3]
        if LINK.search(text):  # a picture that is a link
            text = LINK.sub(lambda m: self._one(m, file, document), text)
        if re.match(r"[a-z]+:", target):
            return f"{image}[{text}]({target})"
        path, _, anchor = target.partition("#")
        at = os.path.normpath(os.path.join(os.path.dirname(file), unquote(path))) if path else file
        here = os.path.dirname(document) or "."
        if (at, anchor) in self.anchors:
            other = self.anchors[at, anchor]
            page = "" if other == document else os.path.relpath(f"{other}.md", here)
            return f"[{text}]({page}#{anchor})"
        if not anchor and at in self.documents:
            return f"[{text}]({os.path.relpath(self.documents[at], here)})"
        if path and at.endswith(GIVEN_ALONG) and (ROOT / at).is_file() and not anchor:
            copied = os.path.relpath(self.bring(at), here)
            return f"![{text}]({copied})" if image else download(text, copied)
        if self.repository and (ROOT / at).exists() and not at.startswith(".."):
            kind = "tree" if (ROOT / at).is_dir() else "blob"
            anchor = f"#{anchor}" * bool(anchor)
            return f"[{text}]({self.repository}/{kind}/{self.branch}/{at}{anchor})"
        return text

    def bring(self, at: str) -> str:
        """Copy a file of the repository into the book; returns its path there."""
        copied = self.source / "files" / at
        copied.parent.mkdir(parents=True, exist_ok=True)
        if not copied.exists() or copied.read_bytes() != (ROOT / at).read_bytes():
            shutil.copyfile(ROOT / at, copied)
        return f"files/{at}"


# ---------------------------------------------------------------- what holds


def holds(run: str) -> str:
    """What the result tables say: of those that are committed, and of the run that the notebooks
    show, if it is another one. Which comes last: it may be as small as the smoke preset's."""
    parts, main, long = [], findings.MAIN, findings.LONG
    if _has(main, "comparisons"):
        title = "This book's run" if run == main else "The run of the README"
        parts += [f"### {title}, `{main}`", lessons.main_run()]
    if _has(main, "claims"):
        parts += [f"### The paper's claims, by `{main}`", claims(main)]
    if _has(long, "comparisons"):
        rules = lessons.rules(findings.table(long, "comparisons"))
        parts += [f"### Where a query pays, by `{long}`", *rules]
    for preset, runs in findings.RECORDED.items():
        if all(_has(one, "comparisons") for one in runs):
            parts += [f"### On recorded speech, by preset `{preset}`", findings.recorded(preset)]
    if run != main and _has(run, "comparisons"):
        parts.append(f"### This book's own run, `{run}`: what its notebooks show")
        differences = findings.table(run, "comparisons")
        for scenario in differences["scenario"].unique():
            own = findings.of(differences, scenario)
            seeds = findings.seeds(run)
            told = f"{findings.name(scenario)}, {seeds} seeds. {findings.single(own)}"
            parts += [told, findings.against_random(own)]
        parts += [claims(run)] if _has(run, "claims") else []
    return "\n\n".join(parts) or "There are no result tables yet: `make figures` writes them."


def _has(run: str, name: str) -> bool:
    return (ROOT / "results" / run / f"{name}.csv").exists()


def claims(run: str) -> str:
    """A row a claim, scenario and measure: what was decided and by which interval."""
    rows = []
    for row in findings.table(run, "claims").to_dict("records"):
        known = row["value"] == row["value"]
        shown = findings.spread(row["value"], row["low"], row["high"], 2) if known else ""
        shown += f", {100 * row['level']:.0f} %" * known
        unit = findings.UNITS.get(row["metric"], "")
        what = f"{row['compared']}, {unit}" if known and unit else ""
        rows.append([row["text"], findings.name(row["scenario"]), f"**{row['decision']}**",
                     what, shown])  # fmt: skip
    header = ["the paper", "scenario", "", "compared", "interval and its level"]
    return findings.markdown(header, rows, 9)


# ---------------------------------------------------------------- the package

ROOMS = {
    "": ("The paper", "src/alspeech"),
    "speech": ("Where utterances come from", "src/alspeech/speech"),
    "sisters": ("The other systems", "src/alspeech/sisters"),
    "field": ("Your own recordings and recognisers", "src/alspeech/field"),
    "course": ("The course", "src/alspeech/course"),
    "workshop": ("What all use", "src/alspeech/workshop"),
}


def api() -> dict[str, str]:
    """Pages of the package, by document: one a module, and an index."""
    pages, index = {}, [
        "# The package",
        "Rooms from top to bottom; imports run one way, and the first to be read is "
        "[acquisition](alspeech.acquisition.md). Shapes, units, errors and sources stand with "
        "every function.",
    ]  # fmt: skip
    for room, (title, folder) in ROOMS.items():
        index.append(f"## {title}")
        names = []
        for path in sorted((ROOT / folder).glob("[!_]*.py")):
            module = ".".join(filter(None, ["alspeech", room, path.stem]))
            told = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").strip()
            first = " ".join(told.split("\n\n")[0].split())
            names.append((path.stem, module, first))
            pages[f"api/{module}"] = (
                f"# {path.stem}\n\n```{{eval-rst}}\n.. automodule:: {module}\n   :members:\n```\n"
            )
        if room == "":
            names.sort(key=lambda x: x[0] != "acquisition")
        index.append("\n".join(f"- [{name}]({module}.md): {_plain(told)}"
                               for name, module, told in names))  # fmt: skip
        listed = "\n".join(f"{name} <{module}>" for name, module, _ in names)
        index.append(f"```{{toctree}}\n:hidden:\n\n{listed}\n```")
    return pages | {"api/index": "\n\n".join(index) + "\n"}


def _plain(text: str) -> str:
    """A docstring's first paragraph in Markdown."""
    text = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text.replace("``", "`"))
    return re.sub(r"([*_|<])(?![^`]*`)", r"\\\1", text)
