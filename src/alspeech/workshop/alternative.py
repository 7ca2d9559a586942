"""Figures in words: what somebody is told who cannot see them, read off what was drawn.

    describe(figure) -> str

says of every panel what its axes are, what rises and what falls, which lines cross, and which
intervals hold zero. Nothing is written by hand, so a figure that changes has its text changed.
"""

from __future__ import annotations

import base64
import html
import sys
from itertools import combinations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, PolyCollection, QuadMesh
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure

MANY = 6  # series, bars or names that are told one by one; of more, how many there are


def describe(figure: Figure) -> str:
    """A figure in words: a sentence or more a panel."""
    panels = [ax for ax in figure.axes if ax.get_visible() and ax.has_data()]
    panels = [ax for ax in panels if ax.get_label() != "<colorbar>"]
    told = [_panel(ax) for ax in panels]
    if len(told) > 1:
        told = [f"Panel {n} of {len(told)}. {text}" for n, text in enumerate(told, 1)]
    head = figure.get_suptitle()
    return " ".join([f"{_flat(head)}."] * bool(head) + told)


def _panel(ax: Axes) -> str:
    x, y, title = (_flat(f()) for f in (ax.get_xlabel, ax.get_ylabel, ax.get_title))
    across, up = x or "the horizontal axis", y or "the vertical axis"
    series = _series(ax)
    parts = [
        _sentence(title),
        _sentence(f"{up[:1].upper()}{up[1:]} against {across}"),
        *_lines(ax, series),
        *_crossings(series),
        *_at_zero(ax, series),
        *_bars(ax),
        *_pictures(ax),
        *_honeycombs(ax),
        *_clouds(ax),
        *_constants(ax),
    ]
    texts = [_flat(text.get_text()) for text in ax.texts]
    texts = [text for text in texts if text]
    if texts:
        parts.append(_sentence(f"Written in it: {_some(texts, 3 * MANY)}"))
    return " ".join(filter(None, parts))


# ---------------------------------------------------------------- what was drawn


class Series:
    """A line or a row of points: name, x and y [N], and their error bars [N, 2] or None."""

    def __init__(self, name: str, line, bars=()):
        self.name = "" if name.startswith("_") else _flat(name)
        x, y = (np.ravel(np.ma.filled(np.ma.asarray(v, float), np.nan)) for v in line.get_data())
        known = np.isfinite(x) & np.isfinite(y)
        self.x, self.y, self.x_bars, self.y_bars = x[known], y[known], None, None
        for bar in bars:
            segments = np.array([s for s in bar.get_segments() if len(s) == 2])  # [N, 2, xy]
            if len(segments) != len(x):
                continue
            upright = np.allclose(segments[:, 0, 0], segments[:, 1, 0], equal_nan=True)
            ends = np.sort(segments[..., 1 if upright else 0], axis=1)[known]
            setattr(self, "y_bars" if upright else "x_bars", ends)


def _series(ax: Axes) -> list[Series]:
    """Lines and points with data of their own, in the order in which they were drawn."""
    found, used = [], set()
    for container in ax.containers:
        if isinstance(container, ErrorbarContainer):
            line, caps, bars = container.lines
            used |= {id(part) for part in (line, *caps)}
            if line is not None:
                found.append(Series(str(container.get_label()), line, bars))
    for line in ax.lines:
        if id(line) not in used and not _constant(ax, line):
            found.append(Series(str(line.get_label()), line))
    return [series for series in found if len(series.x)]


def _constant(ax: Axes, line) -> str:
    """Which axis a line marks one value of from end to end of the panel: "x", "y" or neither."""
    blended = line.get_transform() != ax.transData
    x, y = (np.ravel(v) for v in line.get_data(orig=False))
    if blended and len(x) == 2:
        return "x" if x[0] == x[1] and y[0] != y[1] else "y" if y[0] == y[1] else ""
    return ""


# ---------------------------------------------------------------- sentences


def _lines(ax: Axes, series: list[Series]) -> list[str]:
    named = [s for s in series if s.name] or series
    told = [_line(ax, s) for s in named[: 2 * MANY]]
    if len(named) > 2 * MANY:
        told.append(f"And {len(named) - 2 * MANY} more.")
    return told


def _line(ax: Axes, s: Series) -> str:
    name = s.name or "The line"
    if len(s.x) == 1:
        level = s.x_bars is not None  # the value is told by the horizontal axis
        value, bars = (s.x[0], s.x_bars) if level else (s.y[0], s.y_bars)
        place = _tick(ax.yaxis, s.y[0]) if level else _tick(ax.xaxis, s.x[0])
        place = place or f"at {_number(s.y[0] if level else s.x[0])}"
        return f"{s.name or place}: {_number(value)}{_interval(bars, 0)}."
    order = np.argsort(s.x, kind="stable")
    y = s.y[order]
    steps, first, last = np.diff(y), y[0], y[-1]
    span = f"from {_number(first)} to {_number(last)}"
    if not steps.any():
        return f"{name} stays at {_number(first)}."
    if (steps >= 0).all() or (steps <= 0).all():
        return f"{name} {'rises' if last > first else 'falls'} {span}."
    way = "ends as it began"
    if last != first:
        way = f"{'rises' if last > first else 'falls'} on the whole"
    low, high = _number(y.min()), _number(y.max())
    return f"{name} {way}, {span}, between {low} and {high}."


def _crossings(series: list[Series]) -> list[str]:
    named = [s for s in series if s.name and len(s.x) > 1]
    if len(named) < 2 or len(named) > 2 * MANY:
        return []
    told = []
    for a, b in combinations(named, 2):
        low, high = max(a.x.min(), b.x.min()), min(a.x.max(), b.x.max())
        x = np.unique(np.concatenate([a.x, b.x]))
        x = x[(x >= low) & (x <= high)]
        gap = np.sign(_along(a, x) - _along(b, x))
        x, gap = x[gap != 0], gap[gap != 0]
        at = np.flatnonzero(np.diff(gap))
        if len(at) == 1:
            between = f"between {_number(x[at[0]])} and {_number(x[at[0] + 1])}"
            told.append(f"{a.name} and {b.name} {between}")
        elif len(at):
            told.append(f"{a.name} and {b.name} {len(at)} times")
    if not told:
        return ["No two lines cross."]
    return [_sentence(f"Lines that cross: {_some(told, MANY)}")]


def _along(s: Series, x: np.ndarray) -> np.ndarray:
    order = np.argsort(s.x, kind="stable")
    return np.interp(x, s.x[order], s.y[order])


def _at_zero(ax: Axes, series: list[Series]) -> list[str]:
    """Which intervals hold zero, where a line marks it."""
    marks = {(_constant(ax, line), float(np.ravel(line.get_data()[0])[0])) for line in ax.lines
             if _constant(ax, line) == "x"}  # fmt: skip
    marks |= {("y", float(np.ravel(line.get_data()[1])[0])) for line in ax.lines
              if _constant(ax, line) == "y"}  # fmt: skip
    holds, clear = [], []
    for s in series:
        bars, values, axis = (
            (s.x_bars, s.y, ax.yaxis) if ("x", 0.0) in marks and s.x_bars is not None
            else (s.y_bars, s.x, ax.xaxis) if ("y", 0.0) in marks and s.y_bars is not None
            else (None, [], None)
        )  # fmt: skip
        for n, value in enumerate(values):
            low, high = bars[n]
            name = ", ".join(filter(None, [s.name, _tick(axis, value)])) or f"at {_number(value)}"
            if np.isfinite([low, high]).all() and low < high:
                shown = f"{name} ({_number(low)} to {_number(high)})"
                (holds if low <= 0 <= high else clear).append(shown)
    told = {"Intervals that hold zero": holds, "Intervals that do not": clear}
    return [_sentence(f"{what}: {_some(who, 2 * MANY)}") for what, who in told.items() if who]


def _tick(axis, value: float) -> str:
    """The name of a place on an axis whose ticks are names."""
    for place, text in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=False):
        shown = _flat(text.get_text())
        if abs(place - value) < 0.5 and shown and not _numeric(shown):
            return shown
    return ""


def _bars(ax: Axes) -> list[str]:
    """Of bars, all values where they are few, and where they are stacked the largest part."""
    groups = [c for c in ax.containers if isinstance(c, BarContainer) and len(c.patches)]
    if not groups:
        return []
    flat = groups[0].orientation == "horizontal"
    rows: dict[str, list[tuple[str, float]]] = {}
    for group in groups:
        name = str(group.get_label())
        for patch in group.patches:
            place = patch.get_y() + patch.get_height() / 2 if flat else patch.get_x()
            place = place if flat else place + patch.get_width() / 2
            value = patch.get_width() if flat else patch.get_height()
            row = _tick(ax.yaxis if flat else ax.xaxis, place) or _number(place)
            rows.setdefault(row, []).append(("" if name.startswith("_") else name, float(value)))
    told = []
    for row, parts in rows.items():
        parts = sorted(parts, key=lambda part: -part[1])
        text = ", ".join(f"{name} {_number(value)}".strip() for name, value in parts[:3])
        told.append(f"{row}: {text}")
    return [_sentence(f"Bars, the largest first. {_some(told, 2 * MANY, '; ')}")]


def _pictures(ax: Axes) -> list[str]:
    """Of images and of meshes: how large, from what to what, and where the most is."""
    told = []
    for image in [*ax.images, *(c for c in ax.collections if isinstance(c, QuadMesh))]:
        values = image.get_array()
        if values is None or np.ma.getmaskarray(values).all() or np.ndim(values) == 3:
            continue
        if isinstance(image, QuadMesh):
            corners = image.get_coordinates()  # [rows + 1, columns + 1, xy]
            values = np.ma.reshape(values, (corners.shape[0] - 1, corners.shape[1] - 1))
            centres = (corners[:-1, :-1] + corners[1:, 1:]) / 2
        else:
            left, right, bottom, top = image.get_extent()
            rows, columns = values.shape
            if image.origin == "upper":
                bottom, top = top, bottom
            x = left + (np.arange(columns) + 0.5) / columns * (right - left)
            y = bottom + (np.arange(rows) + 0.5) / rows * (top - bottom)
            centres = np.stack(np.meshgrid(x, y), axis=-1)
        at = np.unravel_index(np.ma.argmax(values), values.shape)
        place = (
            _tick(axis, value) or _number(value)
            for axis, value in zip((ax.xaxis, ax.yaxis), centres[at], strict=True)
        )
        shape = f"{values.shape[0]} by {values.shape[1]} cells"
        told.append(
            f"A picture of {shape} from {_number(values.min())} to {_number(values.max())}, "
            f"most at {' and '.join(place)}.{_share_near_diagonal(centres, values)}"
        )
    return told


def _honeycombs(ax: Axes) -> list[str]:
    """Of hexagons with counts: where the most are, and how many lie near the diagonal."""
    told = []
    for comb in ax.collections:
        counts = comb.get_array() if isinstance(comb, PolyCollection) else None
        centres = np.asarray(comb.get_offsets(), float)
        if counts is None or len(counts) != len(centres):
            continue
        counts, fullest = np.ma.filled(counts, 0), centres[np.ma.argmax(counts)]
        told.append(
            f"{len(counts)} hexagons, the darkest at {_number(fullest[0])} across and "
            f"{_number(fullest[1])} up.{_share_near_diagonal(centres, counts)}"
        )
    return told


def _share_near_diagonal(centres: np.ndarray, values) -> str:
    """Of a square map of counts, how much of it lies on the diagonal, a tenth to either side."""
    x, y = centres[..., 0], centres[..., 1]
    counts = np.ma.filled(values, 0)
    square = np.isclose([x.min(), x.max()], [y.min(), y.max()], atol=0.1).all()
    if not square or counts.min() < 0 or not counts.sum():
        return ""
    near = np.abs(x - y) <= 0.1 * (x.max() - x.min())
    return f" {counts[near].sum() / counts.sum():.0%} of it lies within a tenth of the diagonal."


def _clouds(ax: Axes) -> list[str]:
    told = []
    for cloud in ax.collections:
        if not isinstance(cloud, PathCollection):
            continue
        points = np.ma.filled(np.ma.asarray(cloud.get_offsets(), float), np.nan)
        points = points[np.isfinite(points).all(axis=1)]
        if len(points) == 0:
            continue
        name = str(cloud.get_label())
        name = _tick(ax.yaxis, points[:, 1].mean()) if name.startswith("_") else _flat(name)
        name = f" of {name}" * bool(name)
        (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
        text = f"{len(points)} points{name}, {_number(x0)} to {_number(x1)} across and "
        text += f"{_number(y0)} to {_number(y1)} up"
        if len(points) > 2 and x0 < x1 and y0 < y1:
            text += f", correlation {np.corrcoef(points.T)[0, 1]:.2f}"
        told.append(f"{text}.")
    rest = len(told) - 2 * MANY
    return [*told[: 2 * MANY], f"And {rest} more clouds of points."] if rest > 0 else told


def _constants(ax: Axes) -> list[str]:
    found = {}
    for line in ax.lines:
        along = _constant(ax, line)
        if along:
            value = np.ravel(line.get_data()[0 if along == "x" else 1])[0]
            found.setdefault("upright" if along == "x" else "level", set()).add(float(value))
    return [
        f"{way.capitalize()} lines at {_some([_number(v) for v in sorted(values)], MANY)}."
        for way, values in found.items()
        if values != {0.0}
    ]


# ---------------------------------------------------------------- words


def _number(value) -> str:
    """Three digits, with a true minus."""
    text = f"{float(value):.3g}"
    if "e" in text and 1e-3 <= abs(float(value)) < 1e7:
        text = f"{float(value):.0f}"
    return "0" if float(text) == 0 else text.replace("-", "−")


def _numeric(text: str) -> bool:
    try:
        float(text.replace("−", "-").replace(",", "").rstrip("%"))
    except ValueError:
        return False
    return True


def _interval(bars, n: int) -> str:
    known = bars is not None and np.isfinite(bars[n]).all()
    return f" [{_number(bars[n][0])}, {_number(bars[n][1])}]" if known else ""


def _flat(text: str) -> str:
    return " ".join(text.replace("$", "").split())


def _sentence(text: str) -> str:
    return f"{text}." if text and text[-1] not in ".?!" else text


def _some(words: list[str], most: int, between: str = ", ") -> str:
    rest = len(words) - most
    return between.join(words[:most]) + (f"{between}and {rest} more" if rest > 0 else "")


# ---------------------------------------------------------------- in notebooks


def tell_in_notebooks() -> None:
    """From now on, figures that a notebook displays carry their text: as an image with its
    ``alt`` in HTML, for JupyterLab, and in the metadata of the PNG, for nbconvert and the book.
    Outside of a notebook nothing happens."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    formatter = getattr(shell, "display_formatter", None)
    if formatter is not None:
        formatter.ipython_display_formatter.for_type(Figure, _show)


def _show(figure: Figure) -> None:
    from IPython.core.pylabtools import print_figure
    from IPython.display import display

    png, text = print_figure(figure, "png", bbox_inches="tight"), describe(figure)
    coded = base64.b64encode(png).decode()
    image = f'<img alt="{html.escape(text)}" src="data:image/png;base64,{coded}">'
    display(
        {"image/png": coded, "text/html": image, "text/plain": text},
        metadata={"image/png": {"alt": text}}, raw=True,
    )  # fmt: skip
