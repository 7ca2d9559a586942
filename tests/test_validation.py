"""What of a corpus is used, in which split, and what is set aside, why, and where it is told."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from conftest import SHARED

from alspeech import experiment
from alspeech.acquisition import ACQUISITIONS
from alspeech.metrics import evaluate, summarise
from alspeech.model import DeepSpeech2, output_frames
from alspeech.querying import score, score_options
from alspeech.sisters.joint import JointRecogniser
from alspeech.speech import corpus, features, manifests, readers, text, validation
from alspeech.workshop import steps, store
from alspeech.workshop.config import CorpusConfig, LossPredictionConfig, ModelConfig, Settings
from alspeech.workshop.errors import UserError

SIZES = CorpusConfig(base=4, pool=6, validation=2, test=4)


def noise(seconds=1.0, rate=16000, channels=1):
    drawn = 0.1 * np.random.default_rng(0).standard_normal((int(seconds * rate), channels))
    return drawn[:, 0] if channels == 1 else drawn


class Mine:
    """A folder of recordings with a manifest, and what becomes of it."""

    def __init__(self, folder):
        self.folder, self.out, self.people = folder / "mine", folder / "out", folder / "people"
        self.folder.mkdir()
        self.out.mkdir()
        self.records = []
        for number in range(16):
            self.add(f"u{number:02d}", speaker=f"s{number // 2}")

    def add(self, name, words="yes please", audio=None, rate=16000, subtype=None, **more):
        path = self.folder / f"{name}.wav"
        soundfile.write(path, noise() if audio is None else audio, rate, subtype=subtype)
        self.records.append({"audio_filepath": path.name, "text": words, **more})
        return path

    def give_splits(self):
        """Base, pool, validation, test, and again: u00, u04 … are in base."""
        for number, record in enumerate(self.records):
            record["split"] = manifests.SPLITS[number % 4]

    def build(self, **build):
        """The manifest by utt_id; report and rejected by their reasons are kept as attributes."""
        lines = [json.dumps(record) + "\n" for record in self.records]
        (self.folder / "m.jsonl").write_text("".join(lines))
        readers.read.cache_clear()
        settings = Settings("tiny", "jsonl", str(self.folder), build=replace(SIZES, **build))
        found = readers.read("jsonl", settings.data, settings.build.outside)
        validation.build(self.out, found, settings, 1, self.people)
        manifest = manifests.read_manifest(self.out / "manifest.jsonl")
        self.report = validation.report(self.out, manifest)
        self.rejected = pd.read_csv(self.out / "rejected.csv").set_index("utt_id")
        return manifest.set_index("utt_id", drop=False)


@pytest.fixture
def mine(tmp_path):
    return Mine(tmp_path)


# ---------------------------------------------------------------- audio, one utterance


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


BAD = {
    "file missing": lambda path: path.unlink(),
    "file empty": lambda path: path.write_bytes(b""),
    "not audio": lambda path: path.write_text("<html>404 Not Found</html>"),
    "audio truncated": lambda path: cut(path, 0.6),
    "audio has NaN": lambda path: soundfile.write(path, noise() * np.nan, 16000, subtype="FLOAT"),
    "audio silent": lambda path: soundfile.write(path, np.zeros(16000), 16000),
    "odd sample rate": lambda path: soundfile.write(path, noise(1, 44101), 44101),
    "too short": lambda path: soundfile.write(path, noise(0.01), 16000),
    "too long": lambda path: soundfile.write(path, noise(600, 8000), 8000),
    "transcript longer than the audio": lambda path: soundfile.write(path, noise(0.2), 16000),
}


@pytest.mark.parametrize("reason", BAD)
def test_an_unusable_recording_is_set_aside_with_its_reason_and_the_rest_goes_on(mine, reason):
    mine.give_splits()
    path = mine.add("bad", split="base", words="a longer transcript than that")
    BAD[reason](path)
    manifest = mine.build(base=9, pool=9, validation=9, test=9)
    assert len(manifest) == 16 and "bad" not in manifest.index
    row = mine.rejected.loc["bad"]
    assert row["reason"] == reason and row["path"] == str(path) and len(mine.rejected) == 1
    assert row["where"] == f"{mine.folder / 'm.jsonl'}:17" and row["what_to_do"]
    assert mine.report.loc[("rejected", reason), "utterances"] == "1"


@pytest.mark.parametrize("format", ["flac", "ogg"])
def test_a_compressed_file_that_was_cut_short_is_set_aside(mine, format):
    path = mine.folder / f"bad.{format}"
    soundfile.write(path, noise(3), 16000)
    cut(path, 0.5)
    # an Ogg file may end anywhere; only the manifest knows that it ended too early
    promised = {"duration": 3.0} if format == "ogg" else {}
    mine.records.append({"audio_filepath": path.name, "text": "yes", "speaker": "s0", **promised})
    assert len(mine.build(pool=9)) == 16
    assert mine.rejected.loc["bad", "reason"] in ("audio truncated", "not audio")


def test_a_file_shorter_than_its_manifest_says_is_truncated_but_a_rounded_second_is_not(mine):
    mine.add("rounded", duration=1.05, speaker="s0")
    mine.add("bad", duration=1.5, speaker="s0")
    mine.add("late", offset=1.2, duration=0.5, speaker="s0")
    manifest = mine.build(base=9, pool=9, validation=9, test=9)
    assert manifest.loc["rounded", "duration"] == 1.0
    assert set(mine.rejected.index) == {"bad", "late@1.2"}
    assert set(mine.rejected["reason"]) == {"audio truncated"}


def test_a_file_whose_name_is_no_utf8_is_told_and_can_be_written_down(tmp_path):
    """Names are bytes on Linux; libsndfile wants them in UTF-8."""
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.wav")
    soundfile.write(tmp_path / "a.wav", noise(), 16000)
    (tmp_path / "a.wav").rename(path)
    with pytest.raises(validation.Unusable) as told:
        validation.header(path)
    assert told.value.args == ("file not readable", "its name is not UTF-8")
    store.write_text(tmp_path / "list", Path(path).name)
    assert (tmp_path / "list").read_text() == "\\udcff.wav"


def test_a_file_that_may_not_be_read_is_set_aside(mine, monkeypatch):
    path = str(mine.add("bad", speaker="s0"))

    def refuse(name, *arguments, **options):
        if name == path:
            raise PermissionError(13, "Permission denied")
        return open(name, *arguments, **options)

    monkeypatch.setattr(validation, "open", refuse, raising=False)
    mine.build(pool=9)
    assert mine.rejected.loc["bad", "reason"] == "file not readable"


def test_stereo_44_khz_8_bit_and_clipped_recordings_are_used(mine):
    mine.add("stereo", speaker="s0", audio=noise(channels=2))
    mine.add("cd", speaker="s0", audio=noise(rate=44100), rate=44100)
    mine.add("telephone", speaker="s0", audio=noise(rate=8000), rate=8000, subtype="PCM_U8")
    mine.add("loud", speaker="s0", audio=np.clip(50 * noise(), -1, 1))
    manifest = mine.build(base=20, pool=20, validation=20, test=20)
    assert {"stereo", "cd", "telephone", "loud"} <= set(manifest.index)
    assert mine.rejected.empty
    assert mine.report.loc[("warning", "clipped, kept"), "utterances"] == "1"
    features.extract(mine.out, manifest, ModelConfig())
    store = features.FeatureStore(mine.out)
    assert {store.frames[name] for name in manifest.index} == {112}  # a second, at any rate
    both, _ = manifests.read_audio(manifest.loc["stereo", "path"])
    channels, _ = soundfile.read(manifest.loc["stereo", "path"], dtype="float32")
    assert np.allclose(both, channels.mean(axis=1))


def test_an_utterance_is_the_part_of_its_file_that_the_manifest_says(mine):
    audio = noise(3)
    mine.add("part", audio=audio, offset=1.0, duration=0.5, speaker="s0")
    row = mine.build(base=9, pool=9, validation=9, test=9).loc["part@1"]
    samples, rate = manifests.read_audio(row["path"], row["offset"], row["duration"])
    assert rate == 16000 and np.allclose(samples, audio[16000:24000], atol=1e-4)
    features.extract(mine.out, pd.DataFrame([row]), ModelConfig())
    assert features.FeatureStore(mine.out).frames["part@1"] == 64  # 50 frames, rounded up


def test_less_than_a_sample_or_half_a_window_is_set_aside(mine):
    mine.add("slow", audio=noise(200, 10), rate=10, offset=1.01, duration=0.04, speaker="s0")
    mine.add("short", audio=noise(0.01), speaker="s0")
    mine.build(base=9, pool=9, validation=9, test=9, min_seconds=1e-5)
    assert mine.rejected["reason"].to_dict() == {
        "slow@1.01": "audio truncated", "short": "too short"
    }  # fmt: skip


@pytest.mark.parametrize("seconds, letters, fits", [(0.64, 16, True), (0.64, 17, False)])
def test_a_transcript_fits_where_there_is_a_frame_a_symbol(seconds, letters, fits):
    model = ModelConfig()
    frames = output_frames(model, features.input_frames(model, int(seconds * 16000)))
    assert frames == 16 == DeepSpeech2(model, 5).frames(64)
    facts = {"N": int(seconds * 44100), "rate": 44100}
    text = "ab" * (letters // 2) + "a" * (letters % 2)
    assert (validation._misfit(text, facts, model) == "") == fits
    # two equal symbols need a blank between them
    assert (
        validation._misfit(text[:-1] + text[-2], facts, model)
        == f"{letters + 1} frames needed, 16 there"
    )


# ---------------------------------------------------------------- transcripts


@pytest.mark.parametrize("before, after, steps", [
    ("it's on", "it's on", []),
    ("IT’S on", "it's on", ["apostrophes", "case"]),
    ("Ｏｋ ﬁne", "ok fine", ["Unicode NFKC", "case"]),
    ("cafe\u0301", "café", ["Unicode NFKC"]),
    ("well-known; “yes,please” …", "well known yes please", ["Unicode NFKC", "punctuation"]),
    ("yes  please", "yes please", ["white space"]),
    ("the dogs' 'tis 'a'", "the dogs' 'tis 'a'", []),
    ("a ' b", "a b", ["punctuation"]),
    (" a\u00a0\tb\u200b\n", "a b", ["Unicode NFKC", "white space"]),
    ("你好，世界。", "你好 世界", ["Unicode NFKC", "punctuation"]),
    ("50% [noise] AT&T", "50% [noise] at&t", ["case"]),
])  # fmt: skip
def test_normalisation_is_case_punctuation_unicode_apostrophes_and_space(before, after, steps):
    assert text.normalise(before) == (after, steps)
    assert text.normalise(after) == (after, []), "normal text stays as it is"


def test_every_step_that_changed_a_transcript_is_counted_with_an_example(mine):
    mine.records[0]["text"] = "It’s on"
    mine.records[1]["text"] = "Yes, please!"
    mine.build()
    counts = mine.report.loc["text"]["utterances"].to_dict()
    assert counts == {"case": "2", "apostrophes": "1", "punctuation": "1"}
    assert mine.report.loc[("text", "apostrophes"), "example"] == "It’s on → it's on"


def test_transcripts_that_are_empty_or_outside_the_alphabet_are_set_aside_and_told(mine):
    mine.give_splits()
    mine.records[0]["text"] = " … "
    mine.records[4]["text"] = "café 50%"
    mine.records[6]["text"] = "50 yes"
    manifest = mine.build()
    reasons = mine.rejected["reason"].to_dict()
    outside = "transcript outside the alphabet"
    assert reasons == {"u00": "no transcript", "u04": outside, "u06": outside}
    assert set(manifest["text"]) == {"yes please"}
    told = mine.report.loc["outside the alphabet"]["utterances"].to_dict()
    assert told["5 (digit five)"] == "2" and told["% (percent sign)"] == "1"
    assert told["é (latin small letter e with acute)"] == "1"


def test_another_language_is_one_line_that_says_what_to_set_and_then_works(mine):
    for record in mine.records:
        record["text"] = "打开，灯"
    mine.give_splits()  # of base and validation 8 transcripts are read
    with pytest.raises(UserError, match="8 of 8 .*outside the alphabet.*alphabet: learned"):
        mine.build()
    mine.records[0]["text"] = "打开 [笑]"
    manifest = mine.build(alphabet="learned", validation=4)
    alphabet = text.read_alphabet(mine.out)
    assert alphabet.characters == " 开打灯" and len(alphabet) == 5
    assert alphabet.decode(alphabet.encode("打开 灯")) == "打开 灯"
    assert len(manifest) == 15 and mine.rejected.loc["u00", "detail"] == "[ ]"


# ---------------------------------------------------------------- what is not queried is not read


POISON = {"other letters": "zażółć gęślą", "nothing": " … ", "too much": "of all " * 40}


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("alphabet", ["english", "learned"])
@pytest.mark.parametrize("given", [True, False])
def test_what_the_pool_says_changes_nothing_before_it_is_queried(mine, alphabet, poison, given):
    if given:
        mine.give_splits()
    clean = mine.build(alphabet=alphabet)
    characters, report = text.read_alphabet(mine.out).characters, mine.report
    pool = clean["split"] == "pool"
    for record in mine.records:
        if pool.get(record["audio_filepath"].removesuffix(".wav")):
            record["text"] = POISON[poison]
    poisoned = mine.build(alphabet=alphabet)
    pd.testing.assert_frame_equal(poisoned.drop(columns="text"), clean.drop(columns="text"))
    assert poisoned.loc[~pool, "text"].equals(clean.loc[~pool, "text"])
    assert text.read_alphabet(mine.out).characters == characters
    pd.testing.assert_frame_equal(mine.report, report)
    assert mine.rejected.empty and pool.sum() > 2


@pytest.mark.parametrize("alphabet", ["english", "learned"])
def test_what_the_test_set_says_is_kept_and_counts_as_errors(mine, alphabet):
    mine.give_splits()
    clean, characters = mine.build(alphabet=alphabet), text.read_alphabet(mine.out).characters
    for number, words in ((3, "zażółć gęślą"), (7, "of all " * 40)):
        mine.records[number]["text"] = words
    manifest, learned = mine.build(alphabet=alphabet), text.read_alphabet(mine.out)
    assert list(manifest.index) == list(clean.index) and learned.characters == characters
    told = "test transcripts outside the alphabet, kept: they count as errors"
    assert mine.report.loc[("note", told), "utterances"] == ("1" if alphabet == "english" else "2")
    features.extract(mine.out, manifest, ModelConfig())
    store = features.FeatureStore(mine.out)
    test = manifest[manifest["split"] == "test"]
    silent = lambda inputs: torch.eye(len(learned))[[0] * 28].expand(len(inputs), -1, -1)  # noqa: E731
    silent.eval, silent.parameters = lambda: None, lambda: iter([torch.zeros(1)])
    tested = evaluate(silent, store, test, learned).set_index("utt_id")
    assert np.isinf(tested.loc[["u03", "u07"], "ctc"]).all()
    assert tested.loc["u03", "char_errors"] == len("zażółć gęślą")
    assert summarise(tested)["infinite_ctc"] == 2 and summarise(tested)["wer"] == 100


def test_a_queried_transcript_that_cannot_be_used_is_set_aside_and_told(mine, capfd):
    mine.give_splits()
    mine.records[1]["text"], mine.records[5]["text"] = "zażółć gęślą", " … "
    manifest = mine.build()
    speech = corpus.Corpus(mine.out, manifest, None, text.read_alphabet(mine.out))
    capfd.readouterr()
    train = speech.labelled(["u01", "u05", "u09"])
    assert list(train["utt_id"]) == ["u00", "u04", "u08", "u12", "u09"]
    assert capfd.readouterr().err == (
        "2 of 3 transcripts, now read, are set aside: transcript outside the alphabet (1), "
        "no transcript (1)\n"
    )
    assert len(speech.labelled(["u09", "u13"])) == 6 and not capfd.readouterr().err
    known = manifest.assign(text="", kind="silence")  # the embedded corpus says where nobody speaks
    assert len(replace(speech, manifest=known).labelled(["u01", "u05"])) == 6


# ---------------------------------------------------------------- splits


def test_splits_share_no_speaker_and_have_the_proportions_of_the_settings(tmp_path):
    rows = pd.DataFrame({"speaker": np.repeat([f"s{i}" for i in range(50)], 20), "split": None})
    split, notes = validation.assign_splits(rows, replace(SIZES, base=20, pool=50, test=20))
    assert rows["speaker"].groupby(split).agg(set).map(len).sum() == 50 and not notes
    shares = split.value_counts(normalize=True)
    for name, share in (("base", 20), ("pool", 50), ("validation", 2), ("test", 20)):
        assert shares[name] == pytest.approx(share / 92, abs=0.02)


def test_no_split_goes_without_a_speaker_when_there_are_only_four():
    rows = pd.DataFrame({"speaker": list("aaaaabbbbccd"), "split": None})
    split, _ = validation.assign_splits(rows, SIZES)
    assert rows["speaker"].groupby(split).nunique().to_dict() == dict.fromkeys(manifests.SPLITS, 1)


@pytest.mark.parametrize("speakers, words", [
    (["a"] * 12, "one speaker only"),
    (list("aaaabbbbcccc"), "3 speakers only"),
    ([None] * 12, "does not tell its speakers"),
])  # fmt: skip
def test_with_too_few_speakers_utterances_are_divided_and_a_note_says_so(speakers, words):
    rows = pd.DataFrame({"speaker": speakers, "split": None}, dtype=object)
    split, (note,) = validation.assign_splits(rows, SIZES)
    assert words in note and "by utterance" in note
    assert split.notna().all() and set(split) == set(manifests.SPLITS)


def test_one_speaker_is_told_in_the_report(mine):
    for record in mine.records:
        record["speaker"] = "me"
    assert mine.build()["split"].value_counts().to_dict() == {
        "base": 4, "pool": 6, "validation": 2, "test": 3
    }  # fmt: skip
    assert any("one speaker only" in what for part, what in mine.report.index if part == "note")


def test_splits_that_are_given_stay_and_the_others_are_made_of_the_rest(mine):
    for number, record in enumerate(mine.records):
        record["split"] = "test" if number < 4 else "train"
    manifest = mine.build()
    assert set(manifest.query("split == 'test'").index) == {"u00", "u01", "u02", "u03"}
    assert set(manifest["split"]) == set(manifests.SPLITS)


def test_speakers_whom_the_given_splits_share_are_told(mine):
    for number, record in enumerate(mine.records):
        record["split"] = manifests.SPLITS[number % 4]
        record["speaker"] = f"s{number % 4 % 3}"  # test and base have the same
    mine.build()
    assert ("note", "1 speakers of test are in base or pool, too, as given") in mine.report.index


def test_an_empty_pool_is_one_line(mine):
    for number, record in enumerate(mine.records):
        record["split"] = ("base", "validation", "test")[number % 3]
    with pytest.raises(UserError, match="0 usable utterances for pool: .*correct 'split'"):
        mine.build()
    assert not list(mine.out.iterdir())


def test_a_pool_whose_audio_is_all_bad_is_one_line_with_the_list_of_reasons(mine):
    for number, record in enumerate(mine.records):
        record["split"] = manifests.SPLITS[number % 4]
        if record["split"] == "pool":
            (mine.folder / record["audio_filepath"]).write_bytes(b"")
    with pytest.raises(UserError, match="no usable utterance for pool: .*rejected.csv"):
        mine.build()
    assert set(pd.read_csv(mine.people / "rejected.csv")["reason"]) == {"file empty"}
    assert not list(mine.out.iterdir())


def test_too_small_a_corpus_is_one_line(mine):
    mine.records = mine.records[:3]
    with pytest.raises(UserError, match="3 usable utterances for base, pool, validation, test"):
        mine.build()


def test_a_larger_corpus_is_subsampled_and_unusable_utterances_are_replaced(mine):
    for number in range(16, 40):
        mine.add(f"u{number}", speaker=f"s{number // 2}")
    for number in range(0, 40, 4):
        (mine.folder / f"u{number:02d}.wav").write_bytes(b"")
    manifest = mine.build()
    assert manifest["split"].value_counts().to_dict() == {
        "base": 4, "pool": 6, "validation": 2, "test": 4
    }  # fmt: skip
    left = int(mine.report.loc[("note", "not needed: the splits are full"), "utterances"])
    assert left + len(manifest) + len(mine.rejected) == 40
    assert list(mine.build().index) == list(manifest.index), "the same seed draws the same"


def test_when_most_recordings_are_bad_the_run_ends_with_one_line_and_their_list(mine):
    for record in mine.records[:12]:
        (mine.folder / record["audio_filepath"]).write_bytes(b"RIFF, really")
    with pytest.raises(UserError, match="1[0-2] of 1[0-9] utterances cannot be used.*'not audio'"):
        mine.build()
    assert len(pd.read_csv(mine.people / "rejected.csv")) >= 10
    assert not list(mine.out.iterdir())


def test_recorded_utterances_have_kinds_by_their_length_unless_the_manifest_has_its_own(mine):
    mine.add("long", audio=noise(12), speaker="s0")
    for record in mine.records[:4]:
        record["kind"] = "shout"
    kinds = mine.build(base=9, pool=9, validation=9, test=9)["kind"]
    assert (
        kinds["u00"] == "shout" and kinds["u05"] == "under 2 s" and kinds["long"] == "10 s and more"
    )


# ---------------------------------------------------------------- in the experiment


def forget():
    """What a process knows of corpora: a test changes files faster than a person does."""
    for memory in (readers.read, corpus.corpus):
        memory.cache_clear()


@pytest.fixture
def laboratory(tmp_path, monkeypatch):
    """Every step's folder under ``tmp_path``, and no memory of earlier tests."""
    for module in (steps, corpus):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    forget()
    return tmp_path


def test_a_changed_recording_is_another_corpus_and_an_unchanged_one_is_found(mine, laboratory):
    (mine.folder / "m.jsonl").write_text("".join(json.dumps(r) + "\n" for r in mine.records))
    settings = Settings("tiny", "jsonl", str(mine.folder), build=SIZES)
    names = []
    for change in (None, None, noise(1.5)):
        if change is not None:
            soundfile.write(mine.folder / "u03.wav", change, 16000)
        forget()
        names.append(corpus.prepare(settings).folder.name)
    assert names[0] == names[1] != names[2]
    assert not list((laboratory / "data").glob("**/*.wav")), "the recordings are not copied"


def test_check_shows_the_report_and_lists_what_was_set_aside_for_people(mine, laboratory):
    mine.add("bad", speaker="s0").write_bytes(b"")
    (mine.folder / "m.jsonl").write_text("".join(json.dumps(r) + "\n" for r in mine.records))
    settings = Settings("tiny", "jsonl", str(mine.folder), build=replace(SIZES, pool=20))
    shown = experiment.check(settings)
    for words in ("base", "pool", "validation", "test", "file empty", "build/jsonl-tiny/rejected"):
        assert words in shown
    assert re.search(r"pool +\d+ +0\.00\d +\d", shown)
    listed = pd.read_csv(laboratory / "build" / "jsonl-tiny" / "rejected.csv")
    assert listed["utt_id"].tolist() == ["bad"]
    soundfile.write(mine.folder / "bad.wav", noise(), 16000)  # mended
    forget()
    experiment.check(settings)
    assert not (laboratory / "build" / "jsonl-tiny" / "rejected.csv").exists()


def test_a_corpus_that_is_refused_leaves_nothing_but_the_list_of_reasons(mine, laboratory):
    for number, record in enumerate(mine.records):
        record["split"] = manifests.SPLITS[number % 4]
        if record["split"] == "pool":
            record["text"] = ""
    (mine.folder / "m.jsonl").write_text("".join(json.dumps(r) + "\n" for r in mine.records))
    with pytest.raises(
        UserError, match="0 usable utterances for pool: .*; all that .*rejected.csv"
    ):
        experiment.check(Settings("tiny", "jsonl", str(mine.folder), build=SIZES))
    assert not list((laboratory / "data").iterdir())
    listed = pd.read_csv(laboratory / "build" / "jsonl-tiny" / "rejected.csv")
    assert listed["reason"].tolist() == ["no transcript"] * 4


def test_a_cell_says_how_many_queried_utterances_it_could_not_learn_from(
    mine, laboratory, monkeypatch
):
    mine.give_splits()
    mine.records[1]["text"] = "zażółć gęślą"
    (mine.folder / "m.jsonl").write_text("".join(json.dumps(r) + "\n" for r in mine.records))
    settings = Settings(
        "tiny", "jsonl", str(mine.folder), seeds=1, build=SIZES,
        model=ModelConfig(layers=1, hidden=4, channels=2),
    )  # fmt: skip
    trained = lambda folder, data, model, train, *_, **__: {"on": list(train["utt_id"])}  # noqa: E731
    monkeypatch.setattr(experiment, "train_and_test", trained)
    monkeypatch.setattr(experiment, "queried", lambda *_: ["u01", "u09"])
    folder = experiment.cell(settings, "random", 50, 0).folder()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["on"] == ["u00", "u04", "u08", "u12", "u09"] and metrics["set_aside"] == 1


def test_a_model_has_as_many_symbols_as_its_corpus(mine, laboratory, monkeypatch):
    for record in mine.records:
        record["text"] = "是 不"
    (mine.folder / "m.jsonl").write_text("".join(json.dumps(r) + "\n" for r in mine.records))
    settings = Settings(
        "tiny", "jsonl", str(mine.folder), seeds=1, build=replace(SIZES, alphabet="learned"),
        model=ModelConfig(layers=1, hidden=4, channels=2),
    )  # fmt: skip
    monkeypatch.setattr(experiment, "train_and_test", lambda *_, **__: {})
    assert experiment.load_base(settings, 0).layers[-1].out_features == 4  # blank, space, two signs


# ---------------------------------------------------------------- LibriSpeech itself

LIBRISPEECH = pytest.mark.skipif(
    not (SHARED / "LibriSpeech").exists(), reason="no LibriSpeech beside the code"
)
SMALL = ModelConfig(layers=1, hidden=8, channels=2)


@pytest.fixture(scope="module")
def librispeech(tmp_path_factory):
    """Manifest, features and alphabet of a hundred real utterances, and an untrained model."""
    folder = tmp_path_factory.mktemp("librispeech")
    sizes = CorpusConfig(base=100, pool=100, validation=100, test=100)
    settings = Settings("tiny", "librispeech", str(SHARED), build=sizes, model=SMALL)
    found = readers.read("librispeech", settings.data)
    validation.build(folder, found, settings, 1, folder / "people")
    manifest = manifests.read_manifest(folder / "manifest.jsonl")
    features.extract(folder, manifest, SMALL)
    store, alphabet = features.FeatureStore(folder), text.read_alphabet(folder)
    torch.manual_seed(0)
    model = DeepSpeech2(SMALL, len(alphabet)).eval()
    return corpus.Corpus(folder, manifest, store, alphabet), model


@LIBRISPEECH
def test_a_hundred_librispeech_utterances_are_all_used_speakers_apart(librispeech):
    speech, _ = librispeech
    told = corpus.report(speech)
    assert len(speech.manifest) == 100 and "rejected" not in told.index.levels[0]
    speakers = speech.manifest.groupby("split")["speaker"].agg(set)
    assert set(speakers.index) == set(manifests.SPLITS) and speakers.map(len).sum() == 10
    seconds = [soundfile.info(path).duration for path in speech.manifest["path"]]
    assert speech.manifest["duration"].tolist() == pytest.approx(seconds)


@LIBRISPEECH
@pytest.mark.parametrize("strategy", ACQUISITIONS)
def test_a_hundred_librispeech_utterances_are_scored(librispeech, strategy):
    speech, model = librispeech
    settings = Settings("tiny", labelings=3, directions=1)
    if strategy == "loss_prediction":
        config = LossPredictionConfig(decoder=8, predictor=8)
        model = JointRecogniser(model.config, config, len(speech.alphabet)).eval()
    options = score_options(settings, strategy, seed=0)
    scores = score(
        model, speech.store, speech.manifest, strategy, alphabet=speech.alphabet, **options
    )
    assert list(scores.index) == list(speech.manifest["utt_id"])
    assert np.isfinite(scores).all()


@LIBRISPEECH
def test_a_hundred_librispeech_utterances_are_decoded_and_evaluated(librispeech):
    speech, model = librispeech
    tested = evaluate(model, speech.store, speech.manifest, speech.alphabet)
    assert len(tested) == 100 and summarise(tested)["infinite_ctc"] == 0
    assert tested["words"].sum() == speech.manifest["text"].str.split().map(len).sum()
