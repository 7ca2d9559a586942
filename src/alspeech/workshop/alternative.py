"""Figures in words: what somebody is told who cannot see them, read off what was drawn.

    describe(figure) -> str

says of every panel what its axes are, what rises and what falls, which lines cross, where points
are, and which intervals hold zero. A name is an artist's label or, where it is to stay out of
legends, its gid; error bars are told where they were before they were ``moved`` apart. Nothing is
written by hand, so a figure that changes has its text changed.
"""

from __future__ import annotations

import base64
import html
import sys
from collections import Counter
from itertools import combinations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, PolyCollection, QuadMesh
from matplotlib.colors import same_color
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
    x, y = _flat(figure.get_supxlabel()), _flat(figure.get_supylabel())
    common = " against ".join(filter(None, [y, x]))
    head = [_flat(figure.get_suptitle()), f"In every panel {common}" if common else ""]
    return " ".join([*(_sentence(text) for text in head if text), *told])


def _panel(ax: Axes) -> str:
    series = _series(ax)
    lines = [s for s in series if s.joined]
    cells, in_cells = _cells(ax)
    level, of_lines = _constants(ax)
    parts = [
        _sentence(_flat(ax.get_title())),
        _sentence(" against ".join(filter(None, [_label(ax, "y"), _label(ax, "x")]))),
        *_lines(ax, lines),
        *_crossings(lines),
        *_points(ax, [s for s in series if not s.joined]),
        *_at_zero(ax, series),
        *_bars(ax),
        *(cells or _pictures(ax)),
        *_honeycombs(ax),
        *_clouds(ax),
        *level,
    ]
    texts = [
        ": ".join(filter(None, [text.get_gid(), _flat(text.get_text())])) for text in ax.texts
        if text not in in_cells and _flat(text.get_text()) not in ("", *of_lines)
    ]  # fmt: skip
    if texts:
        parts.append(_sentence(f"Written in it: {_some(texts, 3 * MANY)}"))
    return " ".join(filter(None, parts))


def _label(ax: Axes, axis: str) -> str:
    """An axis's label; of panels that share it, one may bear it for all."""
    name, together = f"get_{axis}label", getattr(ax, f"get_shared_{axis}_axes")()
    shared = {_flat(getattr(other, name)()) for other in together.get_siblings(ax)} - {""}
    return _flat(getattr(ax, name)()) or (shared.pop() if len(shared) == 1 else "")


# ---------------------------------------------------------------- what was drawn


class Series:
    """A line (``joined``) or points: name, x and y [N], and their error bars [N, 2] or None."""

    def __init__(self, name: str, line, bars=(), moved: float = 0):
        self.name = name
        self.x_bars = self.y_bars = None
        x, y = (np.ravel(np.ma.filled(np.ma.asarray(v, float), np.nan)) for v in line.get_data())
        known = np.isfinite(x) & np.isfinite(y)
        # rounded: without that, places that are one would differ in the last bit, and lines cross
        self.x, self.y = np.round(x[known] - moved, 9) if moved else x[known], y[known]
        self.joined = len(self.x) > 1 and line.get_linestyle() != "None"
        face = line.get_markerfacecolor()
        white = str(face) == "none" or bool(same_color(face, "white"))
        self.hollow = white and not self.joined
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
                moved = getattr(container, "moved", 0)
                found.append(Series(_name(container, line), line, bars, moved))
    for line in ax.lines:
        if id(line) not in used and not _constant(ax, line):
            found.append(Series(_name(line), line))
    for band in ax.collections:  # what is filled around a line of the same name is its interval
        for s in found if isinstance(band, PolyCollection) and band.get_gid() else ():
            if s.name == _name(band) and s.y_bars is None:
                corners = np.concatenate([path.vertices for path in band.get_paths()])
                at = [corners[corners[:, 0] == x, 1] for x in s.x]
                s.y_bars = np.array([(y.min(), y.max()) if len(y) else (np.nan,) * 2 for y in at])
    return [series for series in found if len(series.x)]


def _name(*artists) -> str:
    """What the first of them that has a name is called."""
    labels = [str(artist.get_label()) for artist in artists]
    labels = [label for label in labels if label != "None" and not label.startswith("_")]
    gids = [artist.get_gid() for artist in artists if hasattr(artist, "get_gid")]
    return next((_flat(name) for name in (*labels, *gids) if name), "")


def _constant(ax: Axes, line) -> str:
    """Which axis a line marks one value of from end to end of the panel: "x", "y" or neither."""
    blended = line.get_transform() != ax.transData
    x, y = (np.ravel(v) for v in line.get_data(orig=False))
    if blended and len(x) == 2:
        return "x" if x[0] == x[1] and y[0] != y[1] else "y" if y[0] == y[1] else ""
    return ""


# ---------------------------------------------------------------- sentences


def _lines(ax: Axes, lines: list[Series]) -> list[str]:
    if not lines:
        return []
    groups: dict[str, list[Series]] = {}
    for s in lines:
        groups.setdefault(s.name, []).append(s)
    unnamed = groups.pop("", [])
    ((most, count),) = Counter(_range(s.x) for s in lines).most_common(1)
    shared = most if count > 1 or len(lines) == 1 else "none"
    shared = "" if _named(ax.xaxis) else shared
    told = [f"From {most} across:"] if shared == most else []
    for name in list(groups)[: 2 * MANY]:
        courses = [_course(s, shared) for s in groups[name]]
        told.append(f"{name}{':' * (len(courses) > 1)} {_some(courses, 2 * MANY, '; ')}.")
    if len(groups) > 2 * MANY:
        told.append(f"Lines, too: {', '.join(list(groups)[2 * MANY :])}.")
    if unnamed and groups:
        told.append(f"{len(unnamed)} more without a name.")
    elif unnamed:
        told.append(f"The line {_some([_course(s) for s in unnamed], MANY, ', another ')}.")
    return told


def _course(s: Series, shared: str = "") -> str:
    """Which way a line goes; and along what, if not along what it shares with the others."""
    order = np.argsort(s.x, kind="stable")
    y, own = s.y[order], _range(s.x)
    where = f", from {own} across" if shared and own != shared else ""
    steps, (first, last) = np.diff(y), (_number(y[0]), _number(y[-1]))
    if not steps.any() and s.y_bars is None:
        return f"stays at {first}{where}"
    span = f"from {first}{_interval(s.y_bars, order[0])} to {last}{_interval(s.y_bars, order[-1])}"
    way = "rises" if y[-1] > y[0] else "falls"
    if (steps >= 0).all() or (steps <= 0).all():
        return f"{way if first != last else 'hardly changes,'} {span}{where}"
    way = f"{way} on the whole" if first != last else "ends as it began"
    low, high = _number(y.min()), _number(y.max())
    between = "" if {low, high} == {first, last} else f", between {low} and {high}"
    return f"{way}, {span}{between}{where}"


def _points(ax: Axes, points: list[Series]) -> list[str]:
    """Where points are that no line joins, by name: what each row or column has, or each place;
    of too many without either, from where to where they lie."""
    level, named = _level(ax, points), _named(ax.yaxis) or _named(ax.xaxis)
    many = not named and sum(len(s.x) for s in points) > 4 * MANY
    groups: dict[str, list[str]] = {}
    for s in points:
        name = f"{s.name}{' (hollow)' * s.hollow}" if s.name else ""
        if many and len(s.x) > 1:
            text = f"{len(s.x)} points, {_range(s.y)} at {_range(s.x)}"
            groups.setdefault(name or "Points", []).append(text)
            continue
        values, bars = (s.x, s.x_bars) if level else (s.y, s.y_bars)
        for n, (place, value) in enumerate(zip(_places(ax, s, level), values, strict=True)):
            text = f"{_number(value)}{_interval(bars, n)}"
            if not name:
                groups.setdefault(f"{place}{' (hollow)' * s.hollow}", []).append(text)
            else:
                text = f"{text} {place}" if place.startswith("at ") else f"{place} {text}"
                groups.setdefault(name, []).append(text)
    return [f"{name}: {', '.join(texts)}." for name, texts in groups.items()]


def _level(ax: Axes, series: list[Series]) -> bool:
    """Whether it is the horizontal axis that tells the values: rows have names, or bars lie."""
    lying = [s for s in series if s.x_bars is not None and s.y_bars is None]
    return _named(ax.yaxis) or (bool(lying) and not _named(ax.xaxis))


def _places(ax: Axes, s: Series, level: bool) -> list[str]:
    axis, places = (ax.yaxis, s.y) if level else (ax.xaxis, s.x)
    return [_tick(axis, place) or f"at {_number(place)}" for place in places]


def _crossings(lines: list[Series]) -> list[str]:
    names = [s.name for s in lines]
    named = [s for s in lines if s.name and names.count(s.name) == 1]
    if len(named) > 2 * MANY:
        return []
    told, together = [], False
    for a, b in combinations(named, 2):
        low, high = max(a.x.min(), b.x.min()), min(a.x.max(), b.x.max())
        together |= bool(low < high)
        x = np.unique(np.concatenate([a.x, b.x]))
        x = x[(x >= low) & (x <= high)]
        gap = np.sign(_along(a, x) - _along(b, x))
        x, gap = x[gap != 0], gap[gap != 0]
        at, pair = np.flatnonzero(np.diff(gap)), f"{_quoted(a.name)} and {_quoted(b.name)}"
        if len(at) == 1:
            told.append(f"{pair} between {_number(x[at[0]])} and {_number(x[at[0] + 1])}")
        elif len(at):
            told.append(f"{pair} {len(at)} times")
    if told:
        return [_sentence(f"Lines that cross: {_some(told, MANY, '; ')}")]
    return ["No two lines cross."] * (together and len(named) == len(lines))


def _quoted(name: str) -> str:
    return f"“{name}”" if "," in name or " and " in name else name


def _along(s: Series, x: np.ndarray) -> np.ndarray:
    order = np.argsort(s.x, kind="stable")
    return np.interp(x, s.x[order], s.y[order])


def _at_zero(ax: Axes, series: list[Series]) -> list[str]:
    """Which intervals hold zero, where a line marks it."""
    marks = {(along, float(np.ravel(line.get_data()[along == "y"])[0]))
             for line in ax.lines if (along := _constant(ax, line))}  # fmt: skip
    holds, clear = {}, 0
    for s in series:
        level = ("x", 0.0) in marks and s.x_bars is not None
        bars = s.x_bars if level else s.y_bars if ("y", 0.0) in marks else None
        if bars is None:
            continue
        for place, (low, high) in zip(_places(ax, s, level), bars, strict=True):
            if np.isfinite([low, high]).all() and low < high:
                if low <= 0 <= high:
                    holds.setdefault(s.name, []).append(place)
                else:
                    clear += 1
    if not holds or not clear:
        told = "All intervals hold zero." if holds else "No interval holds zero."
        return [told] if holds or clear else []
    unnamed = holds.pop("", [])
    told = [*unnamed, *(f"{name} ({', '.join(places)})" for name, places in holds.items())]
    return [f"Intervals that hold zero: {'; '.join(told)}."]


def _ticks(axis) -> list[tuple[float, str]]:
    """Places of an axis that have names. Its formatter is asked, not its labels: those are hidden
    where an axis is shared."""
    places = axis.get_majorticklocs()
    texts = map(_flat, axis.get_major_formatter().format_ticks(places))
    return [(p, t) for p, t in zip(places, texts, strict=False) if t and not _numeric(t)]


def _named(axis) -> bool:
    return bool(_ticks(axis))


def _tick(axis, value: float) -> str:
    """The name of a place on an axis whose ticks are names."""
    return next((text for place, text in _ticks(axis) if abs(place - value) < 0.5), "")


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
        words = [f"{name} {_number(value)}".strip() for name, value in parts]
        told.append(f"{row}: {_some(words, 3)}")
    return [_sentence(f"Bars, the largest first. {_some(told, 2 * MANY, '; ')}")]


def _cells(ax: Axes) -> tuple[list[str], list]:
    """What is written in a picture's cells, by the names of rows and columns; and these texts."""
    rows, used = {}, []
    for text in ax.texts if ax.images else ():
        row, column = (
            _tick(axis, place)
            for axis, place in zip((ax.yaxis, ax.xaxis), text.get_position()[::-1], strict=True)
        )
        if row and column and text.get_transform() == ax.transData:
            rows.setdefault(row, []).append(f"{column} {_flat(text.get_text())}")
            used.append(text)
    return [f"{row}: {', '.join(texts)}." for row, texts in rows.items()], used


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
            _tick(axis, value) or f"{_number(value)} {way}"
            for axis, value, way in zip(
                (ax.xaxis, ax.yaxis), centres[at], ("across", "up"), strict=True
            )
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
        across, up = (_number(value) for value in np.round(fullest, 6))  # drawn 1e-9 wider
        text = f"{len(counts)} hexagons, the fullest at {across} across and {up} up."
        told.append(f"{text}{_share_near_diagonal(centres, counts)}")
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
        row, name = _tick(ax.yaxis, points[:, 1].mean()), _name(cloud)
        if row:  # its name; how high a point lies in the row means nothing
            values = [_number(value) for value in np.sort(points[:, 0])]
            values = ", ".join(values) if len(values) <= 2 * MANY else _range(points[:, 0])
            count = f" ({len(points)} points)" if len(points) > 2 * MANY else ""
            told.append(f"{', '.join(filter(None, [name, row]))}{count}: {values}.")
            continue
        text = f"{len(points)} points{f' of {name}' * bool(name)}, {_range(points[:, 0])} across "
        text += f"and {_range(points[:, 1])} up"
        drawn = ax.transScale.transform(points)  # logarithms, where an axis has them
        if len(points) > 2 and (np.ptp(drawn, axis=0) > 0).all():
            text += f", correlation {np.corrcoef(drawn.T)[0, 1]:.2f}".replace("-", "−")
        told.append(f"{text}.")
    rest = len(told) - 2 * MANY
    return [*told[: 2 * MANY], f"And {rest} more clouds of points."] if rest > 0 else told


def _constants(ax: Axes) -> tuple[list[str], set[str]]:
    """Lines that mark one value each; and their names, which may be written beside them."""
    found: dict[str, dict[float, str]] = {}
    for line in ax.lines:
        along = _constant(ax, line)
        if along and not _named(ax.xaxis if along == "x" else ax.yaxis):  # not between rows
            value = float(np.ravel(line.get_data()[along == "y"])[0])
            found.setdefault("Upright" if along == "x" else "Level", {})[value] = _name(line)
    told = []
    for way, lines in found.items():
        words = [f"{lines[value]} at {_number(value)}".strip() for value in sorted(lines)]
        if set(lines) != {0.0}:
            told.append(f"{way} line{'s' * (len(words) > 1)}: {_some(words, MANY)}.")
    return told, {name for lines in found.values() for name in lines.values()}


# ---------------------------------------------------------------- words


def _number(value) -> str:
    """Three digits, with a true minus."""
    text = f"{float(value):.3g}"
    if "e" in text and 1e-3 <= abs(float(value)) < 1e7:
        text = f"{float(value):.0f}"
    return "0" if float(text) == 0 else text.replace("-", "−")


def _range(values: np.ndarray) -> str:
    low, high = _number(np.min(values)), _number(np.max(values))
    return low if low == high else f"{low} to {high}"


def _numeric(text: str) -> bool:
    if "mathdefault" in text:  # a power of ten
        return True
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
