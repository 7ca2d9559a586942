"""Your own loop: asked, typed, learned from, and when to stop."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from companion import tone
from test_yours import PRESET, record

from alspeech.field import loop, stopping, yours
from alspeech.field.stopping import Curve, expected_gain
from alspeech.speech import corpus, readers, transcripts
from alspeech.speech.answering import NOTHING_HEARD, SKIP, Transcriber
from alspeech.workshop import config, steps
from alspeech.workshop.config import load_settings
from alspeech.workshop.errors import UserError


@pytest.fixture
def here(root, monkeypatch):
    """A companion of this process."""
    for module in (config, steps, corpus, transcripts, yours, stopping, loop):
        monkeypatch.setattr(module, "ROOT", root)
    monkeypatch.setenv("ALSPEECH_JOBS", "1")
    (root / "configs" / "voices.yaml").write_text(PRESET)
    return root


# ---------------------------------------------------------------- listen and type


@pytest.fixture
def asked(tmp_path):
    rows = []
    for rank, name in enumerate("abcd", start=1):
        tone(tmp_path / f"{name}.wav", 200 + rank, 0.1)
        row = {"utt_id": name, "path": str(tmp_path / f"{name}.wav"), "offset": 0.0}
        rows.append(row | {"duration": 0.1, "rank": rank, "guess": f"guess {name}", "why": "new"})
    return pd.DataFrame(rows)


def test_every_answer_is_on_disk_before_the_next_clip_is_shown(asked, tmp_path):
    path = tmp_path / "typed" / "answers.jsonl"
    transcriber = Transcriber(asked, path)
    widget = transcriber.widget()
    buttons = {button.description: button for button in widget.children[2].children}
    text, kept = widget.children[1], lambda: path.read_text().splitlines()
    assert text.value == "guess a" and "<audio" in transcriber.player.value
    assert "autoplay" not in transcriber.player.value and not path.exists()
    text.value = "Yes, “please”"
    buttons["save"].click()
    assert json.loads(kept()[0]) == {"utt_id": "a", "text": "Yes, “please”"}
    assert text.value == "guess b" and "autoplay" in transcriber.player.value
    buttons["skip"].click()
    buttons["unintelligible"].click()
    assert [json.loads(line)["text"] for line in kept()[1:]] == [None, NOTHING_HEARD]
    assert "3 of 4 answered (1 skipped)" in transcriber.progress.value
    again = Transcriber(asked, path)  # the browser was closed without a word
    assert again.answers == transcriber.answers and again.next() == "d"
    assert again.transcripts() == {"a": "Yes, “please”", "c": NOTHING_HEARD}
    buttons["save"].click()  # the guess was right
    assert transcriber.answers["d"] == "guess d" and "every clip" in transcriber.player.value
    for back in "dcba":  # what was typed comes back to be mended
        buttons["back"].click()
        assert transcriber.asked == back and f'"{back}"' not in path.read_text()
        assert text.value == (transcriber.before[back] or f"guess {back}")
    assert text.value == "Yes, “please”" and kept() == []


def test_nothing_written_is_no_answer(asked, tmp_path):
    path = tmp_path / "answers.jsonl"
    transcriber = Transcriber(asked, path)
    buttons = {b.description: b for b in transcriber.widget().children[2].children}
    transcriber.text.value = "  "
    buttons["save"].click()
    assert transcriber.asked == "a" and not path.exists()
    assert "write what is said, or press unintelligible" in transcriber.progress.value
    with pytest.raises(UserError, match="'a': write what is said"):
        transcriber.answer("a", " ")


def test_answers_to_an_earlier_list_stay_in_the_file(asked, tmp_path):
    path = tmp_path / "answers.jsonl"
    first = Transcriber(asked[:2], path)
    first.answer("b", "two")
    second = Transcriber(asked[2:], path)  # another budget, another list
    assert second.answers == {}
    second.answer("c", "three")
    second.undo()
    second.answer("c", SKIP)
    assert Transcriber(asked, path).answers == {"b": "two", "c": SKIP}


@pytest.mark.parametrize("line, said", [
    ('{"utt_id": "a", "te', "answers.jsonl:1: no answer: mend the line"),
    ('{"utt_id": ["a"], "text": "yes"}', "answers.jsonl:1: no answer: mend the line"),
    ('{"utt_id": "a", "text": 3}', "'a' as '3' answers other clips, or is no answer to them"),
])  # fmt: skip
def test_a_file_of_answers_that_is_none_is_one_line(asked, tmp_path, line, said):
    path = tmp_path / "answers.jsonl"
    path.write_text(line)
    with pytest.raises(UserError, match=re.escape(said)):
        Transcriber(asked, path)
    assert path.read_text() == line


# ---------------------------------------------------------------- when to stop


def test_on_a_power_law_the_gain_is_the_difference():
    minutes, words = np.array([10.0, 20, 40]), np.full(50, 10.0)
    errors = np.outer(0.8 * minutes**-0.5, words)  # every utterance alike
    gain = expected_gain(minutes, errors, words)
    known = 80 * (40**-0.5 - 50**-0.5)
    assert (gain.points, gain.low, gain.high) == pytest.approx((known,) * 3)
    assert gain.verdict(known - 0.1) == "go on" and gain.verdict(known + 0.1) == "stop"
    curve = Curve(pd.DataFrame({"minutes": minutes, "validation_wer": errors.sum(1) / 5}), errors,
                  words)  # fmt: skip
    where, wer = curve.line()
    assert (where[0], where[-1]) == pytest.approx((10, 50))
    assert wer[-1] == pytest.approx(80 * 50**-0.5)
    foreseen = curve.foreseen().iloc[0]
    came = 80 * (20**-0.5 - 40**-0.5)
    assert (foreseen["expected"], foreseen["came"]) == pytest.approx((came, came))


def test_what_is_expected_to_do_harm_is_not_told_as_a_negative_good():
    told = str(stopping.Gain(10, -1.25, -3.0, 0.5))
    assert told == ("the next 10 min of transcripts are expected to add 1.2 points to the WER "
                    "(95 % interval −3.0 to 0.5, of what is taken off)")  # fmt: skip
    assert "take 2.0 points off the WER (95 % interval 1.0 to 3.0)" in str(
        stopping.Gain(10, 2.0, 1.0, 3.0)
    )


def test_of_one_round_nothing_is_known_and_of_two_no_interval():
    words = np.array([4.0, 6.0])
    one = expected_gain([5], np.array([[2, 3]]), words)
    assert math.isnan(one.points) and "not known yet" in str(one)
    two = expected_gain([5, 10], np.array([[2, 3], [1, 3]]), words)
    assert two.points > 0 and math.isnan(two.low) and "third recogniser" in str(two)
    assert one.verdict(1) == two.verdict(1) == "not decided"
    worse = expected_gain([5, 10, 15], np.array([[1, 3], [2, 3], [2, 4]]), words)
    assert worse.points < 0 and "−" in str(worse)
    same = expected_gain([5, 5, 5], np.array([[1, 3], [2, 3], [2, 4]]), words)
    assert math.isnan(same.points)
    assert expected_gain([5, 6, 7], np.zeros((3, 2)), words).points == pytest.approx(0)


@pytest.mark.parametrize("noise, spread", [(0.04, 0.0), (0.0, 1.0), (0.03, 0.6)])
def test_the_interval_holds_what_is_to_be_expected(noise, spread):
    """Curves of which the law is known: what a training comes to is drawn, and so are the
    utterances, each with an error rate and a slope of its own."""
    rng, minutes, held, runs = np.random.default_rng(3), np.array([5.0, 8, 12, 16, 20]), 0, 400
    law = lambda m: 0.6 * (m / 5) ** -0.4  # noqa: E731
    for _ in range(runs):
        words = rng.integers(1, 9, 120).astype(float)
        own = np.exp(spread * rng.normal(size=120) - spread**2 / 2)  # mean 1
        rate = law(minutes)[:, None] * np.exp(noise * rng.normal(size=(5, 1)))
        errors = rng.poisson(rate * own * words) if spread else rate * own * words
        gain = expected_gain(minutes, errors, words)
        held += gain.low <= 100 * (law(20) - law(30)) <= gain.high
    assert held / runs >= 0.93


# ---------------------------------------------------------------- rounds


def test_five_rounds_choose_and_learn_what_a_simulation_does_that_knows_the_answers(here):
    """There the answers of each round are written into the list itself, as part of base."""
    texts = record(here / "mine")
    mine = yours.mine(load_settings("voices", "jsonl", str(here / "mine")), "3")
    known = yours.mine(load_settings("voices", "jsonl", str(here / "known")), "3")
    splits = corpus.prepare(mine).manifest.set_index("utt_id")["split"]
    shutil.copytree(here / "mine", here / "known")
    told = here / "known" / "list.jsonl"
    rows = [json.loads(line) for line in told.read_text().splitlines()]
    for row in rows:
        row["split"] = splits[row["audio_filepath"].removesuffix(".wav")]
    models = []
    for number in range(6):
        told.write_text("".join(json.dumps(row) + "\n" for row in rows))
        readers.read.cache_clear()
        corpus.corpus.cache_clear()
        models.append([yours.recogniser(x)[0].folder() / "model.pt" for x in (mine, known)])
        assert models[-1][0].read_bytes() == models[-1][1].read_bytes()
        if number == 5:
            break
        asked, theirs = (yours.query(x)[0] for x in (mine, known))
        same = ["utt_id", "score", "guess", "why"]
        pd.testing.assert_frame_equal(asked[same], theirs[same])
        loop.typed(asked, mine, texts)
        curve = loop.learned(mine)
        assert not transcripts.pending(mine).exists()
        for row in rows:
            name = row["audio_filepath"].removesuffix(".wav")
            if name in set(asked["utt_id"]):
                row |= {"text": texts[name], "split": "base"}
    assert len({path.read_bytes() for path, _ in models}) == 6
    assert all(ours != theirs for ours, theirs in models[1:])
    table = curve.rounds
    assert list(table["utterances"].diff().dropna()) == [3] * 4 and len(table) == 5
    assert table["tested_on"].nunique() == 1 and math.isfinite(curve.gain().high)
    assert len(curve.foreseen()) == 3


def test_earlier_recognisers_are_held_against_todays_validation_set(here):
    """As far as they are there, and write the letters of today."""
    record(here / "mine")
    settings = yours.mine(load_settings("voices", "jsonl", str(here / "mine")), "3")
    yours.learn(settings)
    (row,) = yours.learned(settings).to_dict("records")
    others = [row | {"minutes": 9, "model": "base-seed0-gone"}, row | {"alphabet": "abc"}]
    found = stopping.curve(settings, pd.DataFrame([row, *others]))
    assert list(found.rounds["model"]) == [row["model"]]
    validation = corpus.prepare(settings).split("validation")
    assert found.errors.shape == (1, len(validation)) and found.words.sum() == len(validation)
    assert stopping.curve(settings, pd.DataFrame(others)).rounds.empty
    wider = replace(settings, model=replace(settings.model, hidden=settings.model.hidden + 8))
    assert stopping.curve(wider, pd.DataFrame([row])).rounds.empty
    other = yours.mine(load_settings("voices", "jsonl", str(here / "configs")), "3")
    assert yours.learned(other).empty  # another corpus of the same run's name


def test_the_embedded_corpus_can_be_heard_without_its_transcripts(here, spoken):
    shutil.copytree(spoken / "data", here / "data")
    tiny = load_settings("tiny")
    settings, texts = loop.hidden(tiny)
    listed = [json.loads(x) for x in (Path(settings.data) / "list.jsonl").open()]
    pool = {row["utt_id"]: row["text"] for row in listed if row["split"] == "pool"}
    assert set(pool) == set(texts) and not any(pool.values()) and all(texts.values())
    known = corpus.prepare(tiny).manifest.set_index("utt_id")["text"]
    assert all(known[utt_id] == text for utt_id, text in texts.items())
    manifest = corpus.prepare(settings).manifest
    silent = manifest["split"] == "pool"
    assert set(manifest["utt_id"][silent]) == set(pool) and not manifest["text"][silent].any()
    simulated, _ = loop.hidden(tiny, anew=True)
    assert simulated.run == "jsonl-tiny-simulated" and settings.run == "jsonl-tiny-hidden"
    first = next(iter(texts))
    for one in (settings, simulated):
        transcripts.kept(one).parent.mkdir(parents=True, exist_ok=True)
        transcripts.kept(one).write_text(json.dumps({"utt_id": first, "text": "typed"}) + "\n")
    loop.hidden(tiny), loop.hidden(tiny, anew=True)
    assert transcripts.typed(settings) == {first: "typed"}  # somebody did
    assert transcripts.typed(simulated) == {}


def test_an_interrupted_import_imports_nothing(here, monkeypatch):
    texts = record(here / "mine")
    settings = yours.mine(load_settings("voices", "jsonl", str(here / "mine")))
    rows = readers.read("jsonl", settings.data).rows
    done = here / "done.csv"
    done.write_text(f"utt_id,text\na030,{texts['a030']}\n")
    transcripts.bring(settings, str(done), rows)
    before = transcripts.kept(settings).read_bytes()
    done.write_text("utt_id,text\n" + "".join(f"a03{i},yes\n" for i in range(1, 9)))
    for name in ("replace", "fsync"):  # while it is written, and before it takes its place
        with monkeypatch.context() as patch:
            patch.setattr(f"os.{name}", lambda *_: exec("raise KeyboardInterrupt"))
            with pytest.raises(KeyboardInterrupt):
                transcripts.bring(settings, str(done), rows)
        assert transcripts.kept(settings).read_bytes() == before
    transcripts.bring(settings, str(done), rows)
    assert len(transcripts.typed(settings)) == 9
