"""The leaderboard as a page that needs nothing but itself, and as lines for a terminal."""

from __future__ import annotations

import html

from ..findings import label, spread
from ..workshop.config import Settings

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid #ddd; }
th:nth-child(2), td:nth-child(2) { text-align: left; }
tr.ours td { color: #666; }
svg { width: 16rem; height: 1.2rem; vertical-align: middle; }
code { overflow-wrap: anywhere; }
"""
COLUMNS = ("rank", "name", "macro WER", "− random", "− EGL", "", "forward passes")


def rank(row) -> str:
    """ "2", or "1–3" where intervals leave that open; "" for an oracle, which is out of it."""
    if row["rank_from"] is None or row["rank_from"] != row["rank_from"]:
        return ""
    first, last = int(row["rank_from"]), int(row["rank_to"])
    return f"{first}" if first == last else f"{first}–{last}"


def name(row) -> str:
    return row["name"] if row["submitted"] else label(row["name"])


def _difference(row, other: str) -> str:
    if not row["submitted"] and row["name"] == other:
        return ""
    return spread(*(row[f"{x}_{other}"] for x in ("difference", "low", "high")), 2)


def _cost(row) -> str:
    cost = row["forward_passes"]
    return "" if cost is None or cost != cost else f"{cost:.1f}"


def lines(board) -> list[str]:
    """The board's rows, and who was refused, a line each."""
    found = [f"{'rank':>6}  {'':<24} {'WER':>6}  {'− random':<24} {'− EGL':<24} passes"]
    for row in board.rows.to_dict("records"):
        who = name(row) + ("" if row["submitted"] else " (ours)")
        found.append(
            f"{rank(row):>6}  {who:<24} {row['macro_wer']:>6.2f}  {_difference(row, 'random'):<24} "
            f"{_difference(row, 'egl'):<24} {_cost(row)}"
        )
    return found + [f"refused: {who}: {why}" for who, why in sorted(board.refused.items())]


def _drawn(row, low: float, high: float) -> str:
    """The interval of the difference from random as a line, beside the line of no difference."""
    if not row["submitted"] and row["name"] == "random":
        return ""
    width = max(high - low, 1e-9)
    x = {n: 100 * (row[f"{n}_random"] - low) / width for n in ("difference", "low", "high")}
    zero = 100 * (0 - low) / width
    return (
        '<svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<line x1="{zero:.2f}" x2="{zero:.2f}" y1="0" y2="8" stroke="#999" stroke-width=".5"/>'
        f'<line x1="{x["low"]:.2f}" x2="{x["high"]:.2f}" y1="4" y2="4" stroke="#0072B2"/>'
        f'<rect x="{x["difference"] - 0.7:.2f}" y="2" width="1.4" height="4" fill="#0072B2"/></svg>'
    )


def page(settings: Settings, board) -> str:
    """The page; names and reasons are others' words, and escaped."""
    ends = [board.rows[f"{x}_random"] for x in ("low", "high")]
    low, high = min(0.0, ends[0].min()), max(0.0, ends[1].max())
    rows = []
    for row in board.rows.to_dict("records"):
        cells = [rank(row), html.escape(name(row)), f"{row['macro_wer']:.2f}",
                 _difference(row, "random"), _difference(row, "egl"), _drawn(row, low, high),
                 _cost(row)]  # fmt: skip
        kind = "" if row["submitted"] else ' class="ours"'
        rows.append(f"<tr{kind}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    refused = "".join(
        f"<li><b>{html.escape(who)}</b>: {html.escape(why)}</li>"
        for who, why in sorted(board.refused.items())
    )
    seeds = board.seeds
    which = (
        f"hidden seeds, to which <code>sha256 {seeds.commitment}</code> commits"
        if seeds.commitment else "public seeds"
    )  # fmt: skip
    head = "".join(f"<th>{html.escape(x)}</th>" for x in COLUMNS)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Which speech is worth transcribing?</title>
<style>{STYLE}</style></head><body>
<h1>Which speech is worth transcribing?</h1>
<p>{html.escape(settings.preset)}, {html.escape(settings.scenario.replace("_", " "))}:
{board.amount:g} % of the pool queried; {len(seeds.seeds)} {which}. Macro WER in percent, lower is
better; differences are paired by seed, with their 95 % intervals. A rank is told as far as the
intervals of all pairs allow one after Holm's correction: 1–4 means that none of these places is
excluded. Grey: ours. Oracles read what nobody has written yet, and have no rank.</p>
<table><thead><tr>{head}</tr></thead><tbody>
{chr(10).join(rows)}
</tbody></table>
<p>Submissions ran confined by {html.escape(", ".join(board.layers) or "nothing")}.</p>
{f"<h2>Refused</h2><ul>{refused}</ul>" if refused else ""}
</body></html>
"""
