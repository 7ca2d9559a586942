"""The ranking plot that plays: what it shows, counts and calls red is so of the whole pool, and it
can be read whether the page around it is light or dark."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY
from test_book import CHROMIUM, FLAGS, SCRIPTS, data_of, needs_browser

from alspeech import listening
from alspeech.workshop import playable
from alspeech.workshop.styles import METHOD_STYLE

# ---------------------------------------------------------------- pools with known answers


def pool_of(n: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A pool and its scores. Every fortieth is silence, which entropy has last, EGL first, and
    which has no SNR; everybody else's rank is the same by both."""
    ids = [f"u{i:05}" for i in range(n)]
    silent = np.arange(n) % 40 == 7
    pool = pd.DataFrame({
        "utt_id": ids, "text": np.where(silent, "", "words"), "duration": np.where(silent, 1.0, 3),
        "kind": np.where(silent, "silence", "command"),
        "snr_db": np.where(silent, np.nan, np.arange(n) / n),
    })  # fmt: skip
    scores = pd.DataFrame({"random": np.random.default_rng(0).random(n),
                           "entropy": np.arange(n) - n * silent, "egl": np.arange(n) + n * silent},
                          ids).astype(float)  # fmt: skip
    return pool, scores


@pytest.fixture
def plotted(monkeypatch):
    """The HTML of the plot of so many utterances."""

    def plot(n: int) -> str:
        pool, scores = pool_of(n)
        there = SimpleNamespace(split=lambda name: pool)
        monkeypatch.setattr(listening, "prepare", lambda settings: there)
        monkeypatch.setattr(listening, "clip", lambda row: "QUJD")
        believed = pd.DataFrame({"nbest": [[("words", 1.0)]] * n}, scores.index)
        settings = SimpleNamespace(strategies=list(scores))
        return listening.ranking(settings, scores, believed, recordings=40).data

    return plot


def counts(summary: dict) -> dict:
    return dict(summary["counts"]["kind"])


# ---------------------------------------------------------------- the red circle


def test_a_red_circle_is_a_twentieth_but_not_less_than_ten_the_furthest_first():
    ids = [f"u{i:03}" for i in range(400)]
    up = pd.Series(np.arange(400.0), ids)
    assert listening.red_circle(up, -up) == ids[:20]
    assert listening.red_circle(-up, up) == ids[::-1][:20]
    assert listening.red_circle(up[:160], -up[:160]) == ids[:10]
    assert listening.red_circle(up[:6], -up[:6]) == ids[:6]


def test_a_red_circle_is_of_those_that_have_both_scores_whatever_their_order():
    ids = [f"u{i:03}" for i in range(400)]
    up = pd.Series(np.arange(400.0), ids)
    some = (-up).where(up >= 100)
    assert listening.red_circle(up, some) == ids[100:115]
    order = np.random.default_rng(0).permutation(400)
    flat = pd.Series(0.0, ids)  # every gap from the middle is there twice
    circle = listening.red_circle(flat, (up - 199.5).abs())
    assert circle == listening.red_circle(flat.iloc[order], (up - 199.5).abs().iloc[order])


def test_the_notebook_and_the_plot_have_one_red_circle(plotted):
    """What notebook 4 computes from scores is what the plot was handed, for either end."""
    source = (REPOSITORY / "notebooks" / "4_rankings.ipynb").read_text()
    assert source.count("listening.red_circle(") == 2 and "gap_in_rank" not in source
    data, (_, scores) = data_of(plotted(160)), pool_of(160)
    ids = [point["id"] for point in data["points"]]
    for x, y in (("entropy", "egl"), ("egl", "entropy")):
        found = [ids[i] for i in data["circles"][x][y]["points"]]
        assert found == listening.red_circle(scores[x], scores[y]) and len(found) == 10
        kinds = [data["points"][i]["about"]["kind"] for i in data["circles"][x][y]["points"]]
        assert kinds.count("silence") == (4 if y == "egl" else 0)


# ---------------------------------------------------------------- places; pools that are sampled


def test_places_are_those_among_who_has_a_score(plotted):
    data = data_of(plotted(160))
    axes = {axis["name"]: axis for axis in data["axes"]}
    assert (axes["by_snr_db"]["of"], axes["egl"]["of"]) == (156, 160)
    assert [name for name in axes if not axes[name]["method"]] == ["by_snr_db", "by_duration"]
    places = [point["places"]["by_snr_db"] for point in data["points"]]
    assert places[0] == 156 and places[7] is None and places[159] == 1
    assert data["points"][3]["places"]["by_duration"] == 78.5  # of equal lengths, their mean


def test_ranks_circles_and_shares_of_a_sampled_pool_are_those_of_all_of_it(plotted):
    data = data_of(plotted(2000))  # MOST are 1600
    assert len(data["points"]) == 1600
    pool, scores = pool_of(2000)
    assert data["pool"]["size"] == 2000
    assert counts(data["pool"]) == {"command": 1950, "silence": 50}
    ranks = scores["egl"].rank(ascending=False)
    assert all(point["places"]["egl"] == ranks[point["id"]] for point in data["points"])
    circle = data["circles"]["entropy"]["egl"]
    assert circle["whole"]["size"] == 100
    assert counts(circle["whole"]) == {"command": 50, "silence": 50}
    red = set(listening.red_circle(scores["entropy"], scores["egl"]))
    assert {data["points"][i]["id"] for i in circle["points"]} == red & {
        point["id"] for point in data["points"]
    }
    # the ends of the gap, which are always shown, stand for themselves, all together for the pool
    weights = [point["weight"] for point in data["points"]]
    assert weights.count(1.0) == 20 and sum(weights) == pytest.approx(2000)
    assert "1600 of 2000 utterances" in plotted(2000)
    assert {point["weight"] for point in data_of(plotted(160))["points"]} == {1.0}


def test_a_ranking_of_an_earlier_version_stays_as_it_was_and_says_so():
    old = playable.figure("ranking", "t", {"clips": {}, "points": []}).data
    shown = playable.refreshed(old)
    assert old in shown and "an earlier version" in shown.partition(old)[0]


# ---------------------------------------------------------------- in a browser


@pytest.fixture
def opened(tmp_path):
    """A function that opens HTML on a page that is as dark as the book's theme."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=FLAGS)

        def look(text: str):
            path, wrong = tmp_path / "page.html", []
            path.write_text(
                '<!DOCTYPE html><html lang="en"><title>t</title><meta charset="utf-8">'
                "<style>body { background: #14181e; color: #ced6dd; } h4, p, summary, caption, "
                f"label {{ color: #ced6dd; }}</style>{text}"
            )
            page = browser.new_page(color_scheme="dark")
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.goto(path.as_uri())
            assert wrong == []
            return page

        yield look
        browser.close()


def over(page) -> tuple[str, list[str]]:
    """What is said of a region: its heading, and the rows of shares."""
    told = page.locator(".over h4").first.text_content()
    return told, page.locator(".over tbody tr").all_inner_texts()


@needs_browser
def test_the_plot_tells_the_circle_that_the_text_tells(plotted, opened):
    page = opened(plotted(160))
    page.locator('[data-preset="circle"]').click()
    told, rows = over(page)
    assert told == "In the region: 10 of 160 utterances"
    assert rows[0].split("\t") == ["silence", "40 %", "3 %", "16.0"]


@needs_browser
def test_a_sampled_pool_says_so_and_shares_are_of_the_pool(plotted, opened):
    page = opened(plotted(2000))
    seen = page.locator(".seen").text_content()
    assert seen.startswith("1600 of 2000 utterances shown") and "a random sample" in seen
    page.locator('[data-preset="circle"]').click()
    told, rows = over(page)
    count = page.locator(".alspeech").get_attribute("data-selected")
    assert told == f"In the region: 100 of 2000 utterances, {count} of them shown"
    assert rows[0].split("\t") == ["silence", "50 %", "3 %", "20.0"] and int(count) < 100
    assert "times as long as all of the pool" in page.locator(".over").text_content()
    page.locator('[data-preset="none"]').click()
    page.locator(".board").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowLeft")
    told, _ = over(page)
    assert re.fullmatch(r"In the region: \d+ of 1600 utterances shown, about \d+ of all 2000", told)
    assert page.locator(".scores tbody tr").last.inner_text().endswith("of 2000")


@needs_browser
def test_what_is_no_method_queries_nothing_and_has_places_among_the_known(plotted, opened):
    page = opened(plotted(160))
    assert "rank by entropy (0: queried first)" in page.locator(".board").text_content()
    page.locator('select[data-axis="x"]').select_option("by_snr_db")
    board = page.locator(".board").text_content()
    assert "rank by SNR (0: the largest)" in board and "EGL (0: queried first)" in board
    assert "SNR would" not in page.locator('[aria-label="regions"]').text_content()
    assert page.locator(".seen").text_content().startswith("156 of 160 utterances shown: ")
    page.locator('[data-preset="circle"]').click()
    assert over(page)[0] == "In the region: 10 of 156 utterances"
    page.locator(".over .controls button").first.click()  # EGL first, SNR last: among the lowest
    snr = page.locator(".scores tr", has_text="SNR").inner_text().split("\t")[2]
    assert re.fullmatch(r"\d+ of 156", snr)
    page.locator('select[data-axis="y"]').select_option("by_snr_db")
    assert page.locator('[data-preset="circle"]').is_disabled()


@needs_browser
def test_a_long_table_is_put_into_the_page_at_once(plotted, opened):
    """What watches a page for new icons, as the book's theme does, looks through every addition."""
    page = opened(plotted(160))
    page.evaluate("""() => {
      window.additions = 0;
      new MutationObserver((all) => { window.additions += all.length; })
        .observe(document.querySelector("details"), { childList: true, subtree: true });
    }""")
    page.locator("summary").click()
    page.locator("details tbody tr").nth(159).wait_for()
    assert page.evaluate("window.additions") < 5


# ---------------------------------------------------------------- light and dark


def luminance(colour: str) -> float:
    """WCAG's, of #rrggbb."""
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(colour: str, other: str) -> float:
    high, low = sorted((luminance(colour), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def of_rgb(text: str) -> str:
    """#rrggbb of a browser's rgb(…), which is opaque."""
    assert text.startswith("rgb("), text
    return "#" + "".join(f"{int(n):02x}" for n in re.findall(r"\d+", text))


COLOURS_OF = """root => {
  const colour = (element) => {
    const style = getComputedStyle(element);
    return element.namespaceURI.endsWith("svg") ? style.fill : style.color;
  };
  const names = ["h4", "p", "td", "caption", "summary", "label", "text"];
  const words = names.flatMap((name) => [...root.querySelectorAll(name)].slice(0, 3));
  return [getComputedStyle(root).backgroundColor, words.map(colour)];
}"""


@needs_browser
def test_figures_have_a_sheet_and_words_of_their_own_on_a_dark_page(plotted, opened):
    page = opened(plotted(160))
    page.locator('[data-preset="circle"]').click()
    page.locator("summary").click()
    background, words = page.locator(".alspeech").evaluate(COLOURS_OF)
    sheet = of_rgb(background)
    assert len(words) > 12 and min(contrast(of_rgb(word), sheet) for word in words) >= 4.5
    # what is drawn: methods as in print, and both ends of the colours from little to much
    ramp = re.search(r"const RAMP = (\[.*\])", (SCRIPTS / "playable.js").read_text())[1]
    assert min(contrast(colour, sheet) for colour in json.loads(ramp)) >= 3
    assert min(contrast(style[1], sheet) for style in METHOD_STYLE.values()) >= 2
