"""make book: static pages from the notebooks that ``make all`` has executed.

    executed notebooks, result tables, READMEs, docstrings → build/.book/source → build/book

Nothing is executed and nothing is fetched. Notebooks that are missing are named, one that failed
says so on its page. The pages open from the file system.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import executed
import nbformat
import pages

from alspeech.speech.licences import RESTRICTED
from alspeech.workshop.config import ROOT, load_settings, run_name
from alspeech.workshop.errors import UserError, explain

HERE = Path(__file__).parent
WORK, BOOK = ROOT / "build" / ".book", ROOT / "build" / "book"
PARTIAL, LOOP = ".partial.ipynb", "10_your_own_loop"
HOSTS = ("github", "gitlab")  # whose pages have addresses that the theme and our links can make


class Book:
    """The pages of one run, written into ``source``; ``missing`` notebooks are named there."""

    def __init__(self, settings, source: Path, repository: str = "", branch: str = "main"):
        self.run, self.source = settings.run, source
        self.why_silent = RESTRICTED.get(settings.corpus, "")
        self.links = pages.Links(source, repository, branch)
        self.found = self._find()
        self.committed = {
            path.stem: path.relative_to(ROOT).as_posix()
            for path in sorted([*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("course/**/*.ipynb")])
            if ".ipynb_checkpoints" not in path.parts
        }
        # labs are read as the student gets them, not executed
        self.found |= {name: ROOT / path for name, path in self.committed.items()
                       if path.startswith("course/")}  # fmt: skip
        self.missing = [
            name for name, path in self.committed.items()
            if name not in self.found and path.startswith("notebooks/")
        ]  # fmt: skip
        self.pictures: dict[str, str] = {}
        self.written: set[Path] = set()

    def _find(self) -> dict[str, Path]:
        """Executed notebooks of the run by name, in the order of their numbers; of one that failed
        when it was last executed, what there is of it. Raises ``UserError`` where there are
        none."""
        folder = ROOT / "build" / self.run
        every = [p for p in folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts]
        found = {}
        for path in sorted(every, key=lambda p: (p.name.endswith(PARTIAL), p.name)):
            name = path.name.removesuffix(PARTIAL).removesuffix(".ipynb")
            if name in found and path.stat().st_mtime <= found[name].stat().st_mtime:
                continue  # it has run to its end since
            try:
                executed.read(path)
            except UserError as error:  # cut short: one that is whole, if there is one, or none
                print(error, file=sys.stderr)
            else:
                found[name] = path
        if not found:
            others = sorted({p.parent.name for p in ROOT.glob("build/*/*.ipynb")} - {self.run})
            hint = f"; there are notebooks of {', '.join(others)}" if others else ""
            raise UserError(
                f"no executed notebook in build/{self.run}: run make all with the same PRESET and "
                f"CORPUS (make figures for the first four), then make book{hint}"
            )
        return dict(sorted(found.items(), key=lambda item: _in_order(item[0])))

    def document(self, name: str) -> str:
        """A notebook's document: in the folder in which it is committed."""
        at = self.committed.get(name, f"notebooks/{name}.ipynb")
        return at.removesuffix(".ipynb")

    # ------------------------------------------------------------ writing

    def write(self) -> None:
        """All of the source, what has not changed left as it is; what is not of it removed."""
        texts = {
            path.relative_to(HERE / "pages").with_suffix("").as_posix(): path.read_text("utf-8")
            for path in sorted((HERE / "pages").rglob("*.md"))
        }
        for name in self.found:
            self.links.documents[self.committed.get(name, "")] = f"{self.document(name)}.ipynb"
        self.links.documents |= {"README.md": "index.md", "CONTRIBUTING.md": "add_a_score.md",
                                 "data/README.md": "your_recordings.md"}  # fmt: skip
        for document, text in texts.items():
            for what, rest in pages.MAKE.findall(text):
                if what == "section":
                    self._anchors(document, *rest.split(" ", 1))
        self._notebooks()
        for document, text in texts.items():
            made = pages.MAKE.sub(lambda m, at=document: self._made(m[1], m[2], at), text)
            self._put(f"{document}.md", made)
        for document, text in pages.api().items():
            self._put(f"{document}.md", text)
        for path in self.source.rglob("*"):
            given = (self.source / "files") in path.parents
            if path.is_file() and path not in self.written and not given:
                path.unlink()

    def _put(self, name: str, text: str) -> None:
        path = self.source / name
        self.written.add(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")

    def _anchors(self, document: str, file: str, heading: str) -> None:
        """Headings of a section that the book has: links to them stay within it."""
        self.links.anchors[file, pages.slug(heading)] = document
        for line in pages.section(file, heading).splitlines():
            if line.startswith("#"):
                self.links.anchors[file, pages.slug(line.lstrip("# "))] = document

    def _notebooks(self) -> None:
        for name, path in self.found.items():
            notebook, document = executed.read(path), self.document(name)
            shown = executed.for_the_book(
                notebook, lambda text, at=document: self.links.rewrite(text, f"{at}.ipynb", at),
                self.why_silent,
            )  # fmt: skip
            for kind, text in executed.pictures(shown).items():
                self.pictures[kind] = text  # of the last notebook that has one
            self._head(shown, name, path)
            self._put(f"{document}.ipynb", nbformat.writes(shown) + "\n")

    def _head(self, notebook, name: str, path: Path) -> None:
        """Under the title: where the notebook can be had, and what became of it."""
        at = self.committed.get(name)
        lines = []
        if path.name.endswith(PARTIAL):
            why = executed.failure(notebook).replace("`", "'")  # and no Markdown
            lines += [f":::{{error}}\nThis notebook did not run to its end:\n\n```text\n{why}\n"
                      "```\n:::\n"]  # fmt: skip
        if at:
            copied = self.links.bring(at)
            up = os.path.relpath(copied, os.path.dirname(self.document(name)))
            links = [pages.download("Download the notebook", up)]
            host = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+)", self.links.repository)
            if host:
                branch = self.links.branch
                colab = f"https://colab.research.google.com/github/{host[1]}/blob/{branch}/{at}"
                binder = f"https://mybinder.org/v2/gh/{host[1]}/{branch}?labpath={at}"
                links = [f"[Open in Colab]({colab})", f"[Open in Binder]({binder})", *links]
            if self.links.repository:
                links.append(f"[Source]({self.links.repository}/blob/{self.links.branch}/{at})")
            lines.append(" · ".join(links))
        first = next((c for c in notebook.cells if c.cell_type == "markdown"), None)
        if first is None or not first.source.startswith("# "):
            first = nbformat.v4.new_markdown_cell(f"# {name}", id="title")
            notebook.cells.insert(0, first)
        head, _, rest = first.source.partition("\n")
        first.source = "\n\n".join([head, *lines, rest.strip()])

    # ------------------------------------------------------------ what pages ask for

    def _made(self, what: str, rest: str, document: str) -> str:
        if what == "section":
            file, heading = rest.split(" ", 1)
            return self.links.rewrite(pages.section(file, heading), file, document)
        if what == "picture":
            return self._picture(rest)
        if what == "holds":
            return self.links.rewrite(pages.holds(self.run), "README.md", document)
        if what == "notebooks":
            return self._listed(rest.split(), document)
        if what == "contents":
            return self._contents()
        raise UserError(f"book/pages/{document}.md: nobody makes '{what}'")

    def _picture(self, kind: str) -> str:
        if kind not in self.pictures:
            return f"*The figure that belongs here is in a notebook of `{self.run}` that was not " \
                   "executed by this version: `make figures`.*"  # fmt: skip
        name = f"_figures/{kind}.html"
        self._put(name, self.pictures[kind])
        return f"```{{raw}} html\n:file: {name}\n```"

    def _listed(self, prefixes: list[str], document: str) -> str:
        here, lines = os.path.dirname(document) or ".", []
        for name in sorted({*self.found, *self.missing}, key=_in_order):
            if not name.startswith(tuple(prefixes)):
                continue
            if name in self.found:
                page = os.path.relpath(f"{self.document(name)}.ipynb", here)
                lines.append(f"- [{executed.title(executed.read(self.found[name]))}]({page})")
            else:
                lines.append(f"- {_to_come(name)}: not executed in this run")
        return "\n".join(lines)

    def _contents(self) -> str:
        """The tables of contents: notebooks by folder, systems, and the rest."""
        folders: dict[str, list[str]] = {}
        for name in self.found:
            document = self.document(name)
            folders.setdefault(document.split("/")[0], []).append(document)
        systems = ["egl", "loss_prediction", "pseudo_labels", "aloe"]
        parts = {
            "The notebooks": folders.pop("notebooks", []),
            **{folder.replace("_", " ").capitalize(): names for folder, names in folders.items()},
            "The systems": [f"systems/{name}" for name in systems],
            "What was found": ["results"],
            "Do it yourself": ["add_a_score", "your_recordings"],
            "Reference": ["api/index", "bibliography"],
        }
        told = "".join(
            f"```{{toctree}}\n:caption: {caption}\n:maxdepth: 1\n\n{_lines(names)}\n```\n\n"
            for caption, names in parts.items() if names
        )  # fmt: skip
        if self.missing:
            names = ", ".join(map(_to_come, self.missing))
            told += f"Not executed in `{self.run}`, and so not here: {names}.\n"
        return told


def _to_come(name: str) -> str:
    """A notebook that was not executed, and what executes it."""
    target = "loop" if name == LOOP else "all"
    return f"{name.replace('_', ' ')} (`make {target}`)"


def _lines(names: list[str]) -> str:
    return "\n".join(names)


def _in_order(name: str) -> tuple:
    number = re.match(r"\d+", name)
    return (int(number[0]) if number else 10**6, name)


# ---------------------------------------------------------------- the repository's address


def address() -> tuple[str, str]:
    """Where the repository is published (REPOSITORY, or git's origin, as https) and by which branch
    (BRANCH); empty where it is not, or with a host that names its pages in another way."""
    told = os.environ.get("REPOSITORY", "")
    if not told:
        done = subprocess.run(
            ["git", "remote", "get-url", "origin"], cwd=ROOT, capture_output=True, text=True
        )
        told = done.stdout.strip() if done.returncode == 0 else ""
    told = re.sub(r"^(?:ssh://)?git@([\w.-]+)[:/]", r"https://\1/", told).removesuffix(".git")
    told = re.sub(r"^(https://)[^/@]*@", r"\1", told)  # no names, no tokens
    known = re.fullmatch(rf"https://[\w.-]*({'|'.join(HOSTS)})[\w.-]*(/[\w.~-]+){{2,}}", told)
    return (told if known else ""), os.environ.get("BRANCH") or "main"


# ---------------------------------------------------------------- building


def build(book: Book) -> Path:
    """Write the source and let Sphinx build it; the finished book takes the place of the old one.
    Raises ``UserError`` where Sphinx warns of anything."""
    from sphinx.cmd.build import build_main

    html, doctrees, before = WORK / "html", WORK / "doctrees", WORK / "pages"
    book.write()
    names = "\n".join(sorted(str(p.relative_to(book.source)) for p in book.written))
    names += (HERE / "conf.py").read_text(encoding="utf-8")  # Sphinx looks at its values only
    if not before.exists() or before.read_text() != names:  # no page of before stays behind
        shutil.rmtree(html, ignore_errors=True)
        shutil.rmtree(doctrees, ignore_errors=True)
        before.write_text(names)
    os.environ["BOOK_REPOSITORY"] = book.links.repository
    told = [] if sys.stdout.isatty() else ["-q"]
    status = build_main(
        ["-W", "--keep-going", *told, "-b", "html", "-c", str(HERE), "-d", str(doctrees),
         str(book.source), str(html)]
    )  # fmt: skip
    if status:
        raise UserError("the book has mistakes, named above: build/book is as it was before")
    new = BOOK.with_name(".book.new")
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(html, new, ignore=shutil.ignore_patterns(".buildinfo*", "objects.inv"))
    shutil.rmtree(BOOK, ignore_errors=True)
    new.rename(BOOK)
    for made in WORK.glob("made-*"):
        made.unlink()
    (WORK / f"made-{book.run}").touch()  # until something changes, there is nothing to do
    return BOOK / "index.html"


def main() -> int:
    parser = argparse.ArgumentParser(prog="make book", description=__doc__.split("\n\n")[0])
    for name in ("preset", "corpus", "data", "scenario", "target"):
        parser.add_argument(f"--{name}", default="")
    o = parser.parse_args()
    words = (o.preset or "laptop", o.corpus or "synthetic", o.data, o.scenario, o.target)
    log = ROOT / "build" / run_name(words[1], words[0], *words[3:]) / "error.log"
    try:
        book = Book(load_settings(*words), WORK / "source", *address())
        if book.missing:
            names = ", ".join(map(_to_come, book.missing))
            print(f"not executed, so not in the book: {names}")
        print(f"{len(book.found)} notebooks of {book.run}", flush=True)
        print(f"read it: {build(book).relative_to(ROOT)}")
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("\ninterrupted: the same command goes on from here", file=sys.stderr)
        return 130
    except Exception as error:
        return explain(error, log)
    return 0


if __name__ == "__main__":
    sys.exit(main())
