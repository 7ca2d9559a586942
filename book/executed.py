"""An executed notebook, as it stands in the book.

What needs a kernel, a network or somebody's permission is taken out or replaced: widgets,
recordings that may not be published, links to pages that the book does not have.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path

import nbformat

from alspeech.workshop import playable
from alspeech.workshop.errors import UserError, cut, cut_path

KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
WIDGET = "application/vnd.jupyter.widget-view+json"
AUDIO = re.compile(r"<audio\b.*?</audio>", re.DOTALL)
LINK = re.compile(r"(!?)\[([^\[\]]*)\]\(([^()\s]+)\)")


def read(path: Path):
    """The notebook; ``UserError`` where the file is none."""
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat has no one class for what a file may hold
        told = cut(" ".join(str(error).split()), 80)
        raise UserError(
            f"{cut_path(path)} is no notebook ({told}): remove it and run make all"
        ) from None


def title(notebook) -> str:
    """The first heading."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("# "):
            return cell.source.splitlines()[0].removeprefix("# ").strip()
    return "A notebook"


def failure(notebook) -> str:
    """Which cell failed and why, or which was the last that was begun."""
    last = 0
    shown = [c for c in notebook.cells if not set(c.metadata.get("tags", [])) & ADDED]
    for n, cell in enumerate(shown, 1):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                why = cut(f"{output.ename}: {output.evalue}".split("\n")[0], 200)
                return f"cell {n}: {why}"
        if cell.get("execution_count"):
            last = n
    return f"it was ended after cell {last}"


ADDED = {"injected-parameters", "papermill-error-cell-tag"}  # cells that papermill put in


def for_the_book(notebook, links: Callable[[str], str], why_silent: str = ""):
    """A copy to be shown; ``links`` rewrites Markdown's links. ``why_silent``: its recordings may
    not be published, for this reason."""
    made = copy.deepcopy(notebook)
    made.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    hidden = {"colab", "papermill-error-cell-tag"}
    made.cells = [c for c in made.cells if not hidden & set(c.metadata.get("tags", []))]
    heading = ""
    for cell in made.cells:
        cell.metadata = nbformat.NotebookNode()
        if cell.cell_type == "markdown":
            cell.source = links(cell.source)
            heading = ([heading] + re.findall(r"^#+ (.*)", cell.source, re.MULTILINE))[-1]
        elif cell.cell_type == "code":
            cell.outputs = [_output(x, heading, why_silent) for x in cell.outputs if _wanted(x)]
    return made


def _wanted(output) -> bool:
    return not (output.output_type == "stream" and output.name == "stderr")


def _output(output, heading: str, why_silent: str):
    data = output.get("data")
    if data is None:
        return output
    if WIDGET in data:
        del data[WIDGET]
        data["text/html"] = "<p><em>Something to be moved in JupyterLab: make lab.</em></p>"
    if "image/png" in data and "<img" not in _text(data.get("text/html", "")):
        # a figure without words, drawn by something that is not ours
        data["text/html"] = (
            f'<img alt="Figure: {_escaped(heading)}" src="data:image/png;base64,'
            f'{_text(data["image/png"]).strip()}">'
        )
    if "image/png" in data:  # the HTML has the picture and its alternative text
        del data["image/png"]
    if "text/html" in data:
        text = playable.refreshed(_text(data["text/html"]))
        data["text/html"] = silent(text, why_silent) if why_silent else text
    return output


def silent(text: str, why: str) -> str:
    """HTML without recordings. Raises ``UserError`` for one that is hidden where this does not
    look: better no book than one that gives away what it must not."""
    made = AUDIO.sub(f"<em>not to be heard here: {_escaped(why)}</em>", text)
    made = playable.silenced(made, why) if playable.BEGIN in made else made
    if "data:audio" in made:
        told = f"an output holds a recording that must not be published ({why})"
        raise UserError(f"{told}: {cut(made)}")
    return made


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")


def _text(value) -> str:
    return "".join(value)


def pictures(notebook) -> dict[str, str]:
    """The HTML of a notebook's playable figures by their kind, the first of each."""
    found = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            text = _text(output.get("data", {}).get("text/html", ""))
            for kind in playable.KINDS:
                if f'<div class="alspeech" data-kind="{kind}"' in text:
                    found.setdefault(kind, text)
    return found
