"""Pictures that can be clicked: data, and a little JavaScript of our own that draws it.

    figure(kind, title, data) -> HTML

``kind`` names the script beside this file that draws it. All it needs is inside, so that it works
in JupyterLab (in a trusted notebook), in an executed notebook and in the book, without a network.
What the data hold is untrusted text: it is escaped here, and the scripts write it as text only.
"""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

from IPython.display import HTML

KINDS = ("ranking", "error_curves", "egl_by_hand")
NEEDS = {"ranking": "pool"}  # what scripts ask for that earlier versions did not write
BEGIN, END = '<script type="application/json">', "</script>"  # what stands around a figure's data
OPENING = re.compile(r'<div class="alspeech" data-kind="(\w+)" role="group" aria-label="([^"]*)">')
HERE = Path(__file__).parent


def figure(kind: str, title: str, data: dict) -> HTML:
    """A picture of ``KINDS`` that is drawn from ``data`` where it is looked at.

    ``title`` names it to who does not see it. Raises ``ValueError`` for an unknown kind, and for
    data that JSON has no word for (NaN: say None).
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of figure {kind!r}: choose one of {', '.join(KINDS)}")
    style, shared, own = (
        (HERE / name).read_text(encoding="utf-8")
        for name in ("playable.css", "playable.js", f"{kind}.js")
    )
    return HTML(
        f'<div class="alspeech" data-kind="{kind}" role="group" aria-label="{html.escape(title)}">'
        f'<p class="waiting">{html.escape(title)}: drawn by JavaScript, which JupyterLab runs in '
        "notebooks that are trusted (View, Activate Command Palette, Trust Notebook).</p>"
        f"{BEGIN}{written(data)}{END}</div>"
        f"<style>{style}</style><script>(() => {{\n{shared}\n{own}\n}})();</script>"
    )


def written(data: dict) -> str:
    """Data as JSON that cannot end the script around it."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def silenced(text: str, why: str) -> str:
    """The HTML of figures without their recordings; those that had some say ``why``."""
    parts = text.split(BEGIN)
    for n, part in enumerate(parts[1:], 1):
        content, end, rest = part.partition(END)
        data = json.loads(content)
        if data.get("clips"):
            data |= {"clips": {}, "silent": why}
        parts[n] = f"{written(data)}{end}{rest}"
    return BEGIN.join(parts)


def refreshed(text: str) -> str:
    """The HTML of a figure that an earlier version made, drawn by the scripts of this one; where
    its data are not enough for them, drawn as it was, and it says so."""
    found = OPENING.match(text)
    if not found or BEGIN not in text:
        return text
    data = json.loads(text.partition(BEGIN)[2].partition(END)[0])
    if NEEDS.get(found[1]) in (None, *data):
        return figure(found[1], html.unescape(found[2]), data).data
    why = "Drawn as an earlier version did, with ranks and shares of what is shown: make figures."
    style = (HERE / "playable.css").read_text(encoding="utf-8")
    return f"<p><em>{why}</em></p>{text}<style>{style}</style>"


def egl_by_hand(posterior, symbols: list[str], labelings: int) -> HTML:
    """A posterior [T, V] that can be dragged (T = V = 3, the first symbol is CTC's blank), with its
    entropy, pCTC and EGL at the logits over so many ``labelings``."""
    posterior = [[float(p) for p in row] for row in posterior]
    sure, torn, empty = [0.02, 0.96, 0.02], [0.1, 0.45, 0.45], [0.96, 0.02, 0.02]
    examples = {
        "as above": posterior,
        "sure": [sure, empty, [0.02, 0.02, 0.96]],
        "torn about one letter": [torn, empty, empty],
        "torn about its place": [[0.5, 0.48, 0.02], [0.5, 0.48, 0.02], empty],
        "nothing but noise": [[1 / 3] * 3] * 3,
        "silence": [empty] * 3,
    }
    data = {
        "posterior": posterior, "symbols": symbols, "labelings": labelings,
        "examples": [{"label": name, "posterior": p} for name, p in examples.items()],
    }  # fmt: skip
    return figure("egl_by_hand", "A posterior to be dragged, and its three scores", data)
