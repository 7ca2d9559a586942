"""Your recordings: what is asked for, what comes back, and what is learned from it."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import soundfile
from conftest import REPOSITORY, alspeech

from alspeech.field import yours
from alspeech.speech import transcripts
from alspeech.speech.lists import write_lists
from alspeech.workshop.config import load_settings
from alspeech.workshop.errors import UserError

PRESET = """
strategies: [random]
labelings: 5
directions: 1
model: {layers: 1, hidden: 8, channels: 4, round_frames: 160}
training: {base_updates: 6, updates: 4}
selection: {labelings: 8, directions: 2, numbers: 32}
query: {enough: 20}
"""
WORDS = "yes no stop go left right up down".split()


def record(folder, number=48, labelled=30, seconds=(0.5, 1.2), **more):
    """So many recordings and a list of them, of which the first have transcripts; all the texts."""
    folder.mkdir(parents=True)
    rng, rows, texts = np.random.default_rng(0), [], {}
    for i in range(number):
        name, time = f"a{i:03d}", np.arange(int(16000 * rng.uniform(*seconds))) / 16000
        tone = 0.2 * np.sin(2 * np.pi * (150 + 10 * i) * time) + 0.02 * rng.normal(size=len(time))
        soundfile.write(folder / f"{name}.wav", tone, 16000)
        texts[name] = WORDS[i % len(WORDS)]
        rows.append({"audio_filepath": f"{name}.wav", "speaker": f"s{i % 4}",
                     "text": texts[name] if i < labelled else "", **more})  # fmt: skip
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return texts


@pytest.fixture
def home(root):
    (root / "configs" / "voices.yaml").write_text(PRESET)
    return root


def call(root, command, *words, data="mine", preset="voices"):
    done = alspeech(root, command, "--preset", preset, "--corpus", "jsonl", "--data",
                    str(root / data), *words, ALSPEECH_JOBS="1")  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done


def query(root, *words, **where):
    done = call(root, "query", *words, **where)
    assert done.returncode == 0, done.stderr
    (path,) = (root / "build").glob("jsonl-*/to_transcribe.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()], done.stdout


def answer(root, rows, texts):
    """A table of what was heard."""
    path = root / "done.csv"
    pairs = [(row["utt_id"], texts[row["utt_id"]]) for row in rows]
    path.write_text("utt_id,text\n" + "".join(f"{x},{y}\n" for x, y in pairs))
    return str(path)


# ---------------------------------------------------------------- a round


def test_what_is_asked_for_has_no_transcript_and_is_paid_for(home):
    record(home / "mine")
    rows, said = query(home, "--budget", "6s")
    assert "30 utterances" in said and "18 utterances" in said and "with a transcript" in said
    ids = [row["utt_id"] for row in rows]
    assert len(set(ids)) == len(ids) >= 5 and min(ids) >= "a030"
    seconds = sum(row["duration"] for row in rows)
    assert 6 - 1.2 < seconds <= 6
    assert [row["rank"] for row in rows] == list(range(1, len(ids) + 1))
    assert all(row["text"] == "" and isinstance(row["guess"], str) for row in rows)
    assert all(row["why"].split(":")[0] in ("long", "uncertain", "new") for row in rows)
    table = pd.read_csv(home / "build/jsonl-voices/to_transcribe.csv", keep_default_na=False)
    assert set(table.pop("text")) == {""}  # to be filled in
    assert list(table["utt_id"]) == ids
    before = (home / "build/jsonl-voices/to_transcribe.jsonl").read_bytes()
    query(home, "--budget", "6s")
    assert (home / "build/jsonl-voices/to_transcribe.jsonl").read_bytes() == before


@pytest.mark.parametrize("method", ["fisher_ratio", "egl", "k_centre", "random_clusters"])
def test_every_kind_of_method_asks(home, method):
    record(home / "mine")
    rows, _ = query(home, "--budget", "20%", "--method", method)
    assert len(rows) == 4  # of 18, the fifth part and what is left of one


def test_what_somebody_typed_outlives_make_clean(home):
    texts = record(home / "mine")
    rows, _ = query(home, "--budget", "3")
    call(home, "learn", "--transcripts", answer(home, rows, texts))
    for folder in (home / "build", *home.glob("data/*-*/")):  # as make clean does
        shutil.rmtree(folder)
    again, said = query(home, "--budget", "3")
    assert "3 of them brought by make learn" in said
    assert not {row["utt_id"] for row in rows} & {row["utt_id"] for row in again}


def test_no_recording_is_asked_for_that_is_known_already(home):
    """Every recording is there twice, and some with a transcript, once."""
    record(home / "mine", number=40, labelled=24)
    listed = home / "mine/list.jsonl"
    for row in map(json.loads, listed.read_text().splitlines()):
        name = row["audio_filepath"]
        shutil.copy(home / "mine" / name, home / "mine" / f"b{name}")
        with open(listed, "a") as file:
            file.write(json.dumps(row | {"audio_filepath": f"b{name}", "text": ""}) + "\n")
    rows, _ = query(home, "--budget", "12")
    names = [row["utt_id"].removeprefix("b") for row in rows]
    assert len(set(names)) == len(names) == 12 and min(names) >= "a024"


def test_a_speaker_has_a_share_at_most():
    pool = pd.DataFrame({
        "utt_id": list("abcdef"), "duration": [1.0, 2, 1, 1, 1, 1],
        "speaker": ["x", "x", "x", "y", "unknown", "unknown"],
    })  # fmt: skip
    content = {utt_id: utt_id for utt_id in "abcdef"}
    take = lambda *what, **more: "".join(yours.taken(list("abcdef"), pool, content, *what, **more))  # noqa: E731
    assert take(4, False) == "abcd"
    assert take(4, False, speaker=0.5) == "abde"
    assert take(4, True) == "abc" and take(4, True, speaker=0.25) == "adef"
    assert take(6, False, known={"b", "d"}) == "acef"
    content["c"] = "a"
    assert take(6, False) == "abdef"


@pytest.mark.parametrize("text, amount", [
    ("30s", (30, True)), ("0.5min", (30, True)), ("50%", (10, False)), ("7", (7, False)),
    ("1%", (1, False)),
])  # fmt: skip
def test_a_budget_is_audio_a_share_or_a_number(text, amount):
    assert yours.budget(text, pd.Series([2.0] * 20)) == amount


@pytest.mark.parametrize("text", ["1s", "41s", "2h", "0", "21", "2.5", "0%", "101%"])
def test_a_budget_that_pays_for_nothing_or_too_much_is_one_line(text):
    with pytest.raises(UserError, match="give") as error:
        yours.budget(text, pd.Series([2.0] * 20))
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- a cold start


def test_with_hardly_a_transcript_another_recogniser_is_asked(spoken_root):
    root = spoken_root
    tiny = (root / "configs" / "tiny.yaml").read_text()
    (root / "configs" / "voices.yaml").write_text(tiny + "start: tiny\nquery: {enough: 20}\n")
    texts = record(root / "mine", number=30, labelled=0, seconds=(0.5, 0.6))
    rows, said = query(root, "--budget", "3")
    assert "0 utterances, 0.0 min, with a transcript" in said and len(rows) == 3
    done = call(root, "learn", "--transcripts", answer(root, rows, texts))
    assert done.returncode == 0 and "too little to learn from yet" in done.stdout
    done = call(root, "query", "--method", "fisher_ratio")
    assert done.returncode == 2
    assert "method fisher_ratio: nothing is in the target, test: name another" in done.stderr
    again, said = query(root, "--budget", "3")
    assert "3 utterances" in said
    assert not {row["utt_id"] for row in again} & {row["utt_id"] for row in rows}


def test_without_transcripts_and_recogniser_the_line_says_what_to_do(home):
    record(home / "mine", labelled=3)
    done = call(home, "query")
    assert done.returncode == 2
    assert "3 utterances with a transcript, and 20 are needed" in done.stderr
    assert "PRESET=recorded" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("labelled", [30, 12])
def test_a_check_says_how_much_is_transcribed(home, labelled):
    """Where most is not, the splits are those of a query: what has no transcript is the pool."""
    record(home / "mine", labelled=labelled)
    done = call(home, "check")
    assert done.returncode == 0, done.stderr
    *report, last = done.stdout.splitlines()
    assert last.startswith(f"{labelled} utterances, ") and "min, with a transcript" in last
    assert f"{48 - labelled} utterances, " in last and "without a transcript" in last
    told = "\n".join(report)
    assert ("no transcript" in told) == (labelled == 30) and f"{48 - labelled}" in told


# ---------------------------------------------------------------- what cannot be


@pytest.mark.parametrize("words, said", [
    (("--budget", "12parsecs"), "budget is 12parsecs: write 30min"),
    (("--budget", "500"), "18 utterances have no transcript: give 1 to 18"),
    (("--method", "egll"), "unknown strategy 'egll'"),
    (("--method", "oracle_loss"), "is shown transcripts, and there are none yet"),
    (("--format", "docx"), "format is docx"),
])  # fmt: skip
def test_a_word_that_is_none_is_one_line(home, words, said):
    record(home / "mine")
    done = call(home, "query", *words)
    assert done.returncode == 2 and said in done.stderr.splitlines()[-1], done.stderr
    assert len(done.stderr.splitlines()[-1]) < 300
    assert not list((home / "build").glob("*/to_transcribe*"))


def test_where_everything_is_transcribed_there_is_nothing_to_ask_for(home):
    record(home / "mine", labelled=48)
    done = call(home, "query")
    assert done.returncode == 2 and "there is nothing to ask for" in done.stderr
    assert call(home, "learn").returncode == 0


STUDIO = [{"data": {"utt_id": "a030"}, "annotations": [
    {"was_cancelled": True, "result": [{"value": {"text": ["wrong"]}}]},
    {"result": [{"value": {"text": ["first", "yes"]}}]},
]}, {"data": {"utt_id": "a031"}, "annotations": []}]  # fmt: skip


@pytest.mark.parametrize("name, content, found", [
    ("x.csv", "file_name,transcription\na030.wav,Yes\na031.wav,\"no, no\"\n",
     {"a030": "Yes", "a031": "no, no"}),
    ("x.tsv", "utt_id\ttext\na030\tyes\n", {"a030": "yes"}),
    ("x.jsonl", '{"utt_id": "a030", "text": "yes"}\n{"audio_filepath": "/x/a031.wav"'
     ', "text": "no"}',
     {"a030": "yes", "a031": "no"}),
    ("x.json", json.dumps(STUDIO), {"a030": "yes"}),
    ("x.json", '[{"audio": "data:…", "utt_id": "a030", "transcription": "yes"}]', {"a030": "yes"}),
    ("x.csv", f"audio,utt_id,transcription\n{'A' * 200_000},a030,yes\n", {"a030": "yes"}),
    ("x.jsonl", '{"utt_id": "a030", "text": null}\n{"utt_id": "a031", "text": "no"}',
     {"a031": "no"}),  # skipped in the notebook
    ("x.csv", "utt_id,text\na030,yes\na030,yes\n", {"a030": "yes"}),
    ("x.csv", "utt_id,text\na030,\na031,no\n", {"a031": "no"}),  # not typed yet
])  # fmt: skip
def test_transcripts_are_read_in_every_format(home, monkeypatch, name, content, found):
    settings, rows = corpus_of(home, monkeypatch)
    (home / name).write_text(content)
    assert transcripts.bring(settings, str(home / name), rows) == (len(found), len(found))
    assert transcripts.typed(settings) == found


@pytest.mark.parametrize("name, content, said", [
    ("x.csv", "utt_id,text\na030,yes\nb99,no\n", "x.csv:3: no utterance 'b99' in this corpus"),
    ("x.csv", "utt_id,text\na030,yes\na030,no\n", "x.csv:3: 'a030' has two texts, 'yes' and 'no'"),
    ("x.csv", "utt_id,text\na030,  \n", "no transcript in it"),
    ("x.csv", 'utt_id,text\na030," "\n', "x.csv:2: 'a030' has an empty text"),
    ("x.csv", "name,text\na030,yes\n", "x.csv:2: no utt_id or audio_filepath"),
    ("x.csv", "utt_id,text\n", "no transcript in it"),
    ("x.csv", 'utt_id,text\na030,"yes\n', "x.csv:2: "),
    ("x.jsonl", '{"utt_id": "a030", "text": 3}', "x.jsonl:1: no utt_id"),
    ("x.jsonl", '{"utt_id": "a030", "te', "x.jsonl:1: broken JSON"),
    ("x.json", '[{"id": 3}]', "x.json: task 1: not as Label Studio exports it"),
    ("x.json", "[1]", "x.json: task 1: not as"),
    *(("x.json", json.dumps([{"data": {"utt_id": key}, "annotations": [
        {"result": [{"value": {"text": text}}]}]}]), "x.json: task 1: not as")
      for key, text in ((30, ["yes"]), ("a030", []), ("a030", [3]))),
    ("x.json", json.dumps(STUDIO[1:]), "no transcript in it"),
    ("x.json", json.dumps([STUDIO[0] | {"annotations": STUDIO[0]["annotations"][:1]}]),
     "no transcript in it: was anything written"),  # cancelled
    ("x.json", '[{"utt_id": "a030", "transcription": " "}]', "'a030' has an empty text"),
    ("x.jsonl", '{"utt_id": "a030", "text": ""}', "x.jsonl:1: 'a030' has an empty text"),
    ("x.txt", "yes", "no transcripts are read from .txt files"),
    ("none.csv", None, "No such file"),
])  # fmt: skip
def test_transcripts_that_cannot_be_taken_are_one_line_and_nothing_is_kept(
    home, monkeypatch, name, content, said
):
    settings, rows = corpus_of(home, monkeypatch)
    if content is not None:
        (home / name).write_text(content)
    with pytest.raises(UserError) as error:
        transcripts.bring(settings, str(home / name), rows)
    told = str(error.value)
    assert said in told and "\n" not in told and len(told) < 300
    assert transcripts.typed(settings) == {}


def corpus_of(home, monkeypatch):
    monkeypatch.setattr(transcripts, "ROOT", home)
    settings = load_settings("laptop", "jsonl", str(home / "mine"))
    ids = [f"a{i:03d}" for i in range(48)]
    paths = [str(home / "mine" / f"{utt_id}.wav") for utt_id in ids]
    return settings, pd.DataFrame({"utt_id": ids, "path": paths})


# ---------------------------------------------------------------- lists


@pytest.fixture
def asked(tmp_path):
    """Two utterances of one long recording, and one of another."""
    for name in ("one two", "three"):
        soundfile.write(tmp_path / f"{name}.wav", 0.1 * np.sin(np.arange(64000) / 9), 16000)
    return pd.DataFrame({
        "utt_id": ["x 1", "x2", "y"], "path": [str(tmp_path / f) for f in
                                               ("one two.wav", "one two.wav", "three.wav")],
        "offset": [1.0, 0.25, 0.0], "duration": [0.5, 0.5, 4.0], "speaker": ["ada", "ada", "bob"],
        "rank": [1, 2, 3], "score": [3.0, 2.0, 1.0], "guess": ["yes", "", 'a "b", c'],
        "why": ["long: …", "new: …", "new: …"],
    })  # fmt: skip


def test_label_studio_gets_the_audio_the_guess_and_an_id_that_comes_back(asked, tmp_path):
    paths = write_lists(tmp_path / "out", asked, "label-studio")
    tasks = json.loads(paths[2].read_text())
    assert [task["data"]["utt_id"] for task in tasks] == list(asked["utt_id"])
    scores = [task["predictions"][0]["score"] for task in tasks]
    assert scores == sorted(scores) and scores[0] > 0 and scores[-1] < 1
    assert tasks[0]["predictions"][0]["result"][0]["value"]["text"] == ["yes"]
    import base64

    data = base64.b64decode(tasks[0]["data"]["audio"].split(",")[1])
    assert tasks[1]["predictions"][0]["result"] == []  # nothing was guessed
    samples, rate = soundfile.read(io.BytesIO(data))
    whole = soundfile.read(asked["path"][0])[0]
    np.testing.assert_allclose(samples, whole[16000:24000], atol=1e-4)
    assert rate == 16000 and 'name="transcription"' in paths[3].read_text()


def test_a_list_that_is_too_large_for_label_studio_is_several_files(asked, tmp_path, monkeypatch):
    monkeypatch.setattr("alspeech.speech.lists.LARGEST", 50_000)
    paths = write_lists(tmp_path, asked, "label-studio")
    assert [path.name for path in paths[2:]] == [
        "to_transcribe.label-studio.json", "label-studio.xml", "to_transcribe.label-studio-2.json"
    ]  # fmt: skip
    ids = [[task["data"]["utt_id"] for task in json.loads(paths[n].read_text())] for n in (2, 4)]
    assert ids == [["x 1", "x2"], ["y"]]
    write_lists(tmp_path, asked[:1], "label-studio")
    assert not paths[4].exists()


def test_clips_are_cut_out_where_a_format_needs_files(asked, tmp_path):
    (folder,) = write_lists(tmp_path / "out", asked, "audiofolder")[2:]
    with open(folder / "metadata.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["utt_id"] for row in rows] == list(asked["utt_id"])
    assert [soundfile.info(folder / row["file_name"]).duration for row in rows] == [0.5, 0.5, 4.0]
    assert rows[2]["guess"] == 'a "b", c' and rows[0]["transcription"] == ""
    write_lists(tmp_path / "out", asked[:1], "audiofolder")  # again, and nothing of the old one
    assert len(list((folder / "clips").iterdir())) == 1
    assert not list((tmp_path / "out").glob(".*"))


def test_a_kaldi_directory_is_what_our_reader_reads(asked, tmp_path):
    from alspeech.speech.readers import read

    (folder,) = write_lists(tmp_path / "out", asked, "kaldi")[2:]
    found = read("kaldi", str(folder), outside=True).rows.set_index("utt_id")
    assert list(found.index) == ["x2", "x_1", "y"]
    assert list(found["path"]) == [asked["path"][1], asked["path"][0], asked["path"][2]]
    assert found.loc["x_1", "offset"] == 1.0 and found.loc["x_1", "duration"] == 0.5
    assert found.loc["x_1", "text"] == "yes" and found.loc["y", "speaker"] == "bob"


def test_audacity_and_lhotse_say_where_in_the_recording(asked, tmp_path):
    (folder,) = write_lists(tmp_path / "out", asked, "audacity")[2:]
    first = (folder / "00000-one two.txt").read_text().splitlines()
    assert first == ["0.250000\t0.750000\tx2: ", "1.000000\t1.500000\tx 1: yes"]
    (path,) = write_lists(tmp_path / "out", asked, "lhotse")[2:]
    cuts = [json.loads(line) for line in path.read_text().splitlines()]
    assert [cut["id"] for cut in cuts] == list(asked["utt_id"])
    assert cuts[0]["start"] == 1.0 and cuts[0]["recording"]["num_samples"] == 64000
    assert all(cut["type"] == "MonoCut" and cut["channel"] == 0 for cut in cuts)


LIBRARIES = REPOSITORY / "build" / "readers"
READ = """
import sys, json, types
import soundfile
from datasets import Audio, load_dataset
from lhotse import CutSet, validate
# datasets imports what it would encode audio with (and that, FFmpeg), even where it has a path
sys.modules["torchcodec"] = sys.modules["torchcodec.encoders"] = types.ModuleType("torchcodec")
sys.modules["torchcodec"].AudioEncoder = None
cuts = CutSet.from_jsonl(sys.argv[1]).to_eager()
validate(cuts, read_data=True)
found = [[c.id, c.load_audio().shape[1], c.supervisions[0].speaker, c.custom["guess"]]
         for c in cuts]
table = load_dataset("audiofolder", data_dir=sys.argv[2], split="train")
table = table.cast_column("audio", Audio(decode=False))
rows = [[r["utt_id"], soundfile.info(r["audio"]["path"]).frames, r["guess"]] for r in table]
print(json.dumps([found, rows]))
"""


@pytest.mark.skipif(
    not (LIBRARIES / "installed").exists(), reason="no lhotse and datasets: make others"
)
def test_lhotse_and_datasets_read_what_is_written_for_them(asked, tmp_path):
    asked["guess"] = ["yes", "no", "maybe"]  # an empty field is none there
    (cuts,) = write_lists(tmp_path / "out", asked, "lhotse")[2:]
    (folder,) = write_lists(tmp_path / "out", asked, "audiofolder")[2:]
    own = {"PYTHONPATH": str(LIBRARIES), "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", READ, str(cuts), str(folder)],
        env={**os.environ, **own}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    in_lhotse, in_datasets = json.loads(done.stdout)
    frames = [8000, 8000, 64000]
    ids, guesses, speakers = (list(asked[x]) for x in ("utt_id", "guess", "speaker"))
    assert in_lhotse == [list(x) for x in zip(ids, frames, speakers, guesses, strict=True)]
    assert in_datasets == [list(x) for x in zip(ids, frames, guesses, strict=True)]
