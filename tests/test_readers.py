"""Other people's corpora, each through its own layout, and what makes a whole corpus unreadable."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import soundfile
import torchaudio
from conftest import REPOSITORY, SHARED, alspeech

from alspeech import experiment
from alspeech.acquisition import check_strategies
from alspeech.sisters import aloe
from alspeech.speech import clips, corpus, download, fsdd, readers
from alspeech.speech.manifests import check_data
from alspeech.speech.text import ENGLISH
from alspeech.workshop.config import AloeConfig, Settings, load_settings
from alspeech.workshop.errors import UserError, cut, cut_path, explain


def speech(path, seconds=1.0, rate=16000, seed=0):
    """A file of noise under a slow envelope; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = 0.1 * np.random.default_rng(seed).standard_normal(int(seconds * rate))
    soundfile.write(path, noise, rate)
    return path


def read(corpus, data, outside=False):
    readers.read.cache_clear()  # a test changes files faster than a person does
    return readers.read(corpus, str(data), outside).rows.set_index("utt_id")


def write_jsonl(path, *records):
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def listed(tmp_path):
    """A folder with two recordings and nothing that lists them."""
    folder = tmp_path / "mine"
    for name in "ab":
        speech(folder / f"{name}.wav")
    return folder


# ---------------------------------------------------------------- JSON lines


def test_json_lines_give_the_manifest_and_further_keys_travel_along(listed):
    write_jsonl(
        listed / "all.jsonl",
        {"audio_filepath": "a.wav", "text": "Yes", "duration": 1.0, "speaker": 7, "dialect": "rp"},
        {"audio_filepath": "b.wav", "text": "no", "offset": 0.25, "duration": 0.5, "utt_id": "x"},
    )
    rows = read("jsonl", listed)
    assert list(rows.index) == ["a", "x"] and list(rows["text"]) == ["Yes", "no"]
    assert rows.loc["a", "speaker"] == "7" and rows.loc["a", "dialect"] == "rp"
    assert rows.loc["x", ["offset", "duration"]].tolist() == [0.25, 0.5]
    assert rows.loc["x", "path"] == str(listed / "b.wav")
    assert rows.loc["x", "where"] == f"{listed / 'all.jsonl'}:2"


def test_a_json_file_named_after_a_split_gives_it_and_so_does_a_column(listed):
    write_jsonl(listed / "pool.jsonl", {"audio_filepath": "a.wav", "text": "yes"})
    record = {"audio_filepath": "b.wav", "text": "no", "split": "dev"}
    write_jsonl(listed / "rest.jsonl", record)
    assert read("jsonl", listed)["split"].to_dict() == {"a": "pool", "b": "validation"}


def test_a_sub_folder_named_after_a_split_gives_it(listed):
    for split in ("pool", "dev"):
        speech(listed / split / "a.wav")
        write_jsonl(listed / split / "list.jsonl", {"audio_filepath": "a.wav", "text": "yes"})
    rows = read("jsonl", listed)
    assert rows["split"].to_dict() == {"pool/a": "pool", "dev/a": "validation"}
    assert rows.loc["dev/a", "path"] == str(listed / "dev" / "a.wav")


def test_windows_line_ends_a_byte_order_mark_and_blank_lines_just_work(listed):
    lines = ['{"audio_filepath": "a.wav", "text": "yes"}', "", '{"audio_filepath": "b.wav"}']
    (listed / "m.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n")
    assert read("jsonl", listed / "m.jsonl")["text"].tolist() == ["yes", ""]


@pytest.mark.parametrize("line, words", [
    (b'{"audio_filepath": "b.wav", "text": "no"', "m.jsonl:2: broken JSON at character 41"),
    (b'{"audio_filepath": "b.wav", "text": "caf\xe9"}', "m.jsonl:2: not UTF-8.*0xe9.*iconv"),
    ('{"audio_filepath": "b.wav"}'.encode("utf-16-le"), "m.jsonl:2: not UTF-8 but UTF-16"),
    (b'{"audio_filepath": "b.wav", "text": "\\ud83d"}', "m.jsonl:2: .*half a character"),
    (b'{"audio_filepath": "b\\u0000.wav", "text": "no"}', "m.jsonl:2: .*null"),
    (b'{"text": "no"}', 'm.jsonl:2: no "audio_filepath"'),
    (b'["b.wav", "no"]', 'm.jsonl:2: no "audio_filepath"'),
    (b'{"audio_filepath": "b.wav", "duration": "1 s"}', 'm.jsonl:2: "duration" is "1 s"'),
    (b'{"audio_filepath": "b.wav", "offset": -1}', 'm.jsonl:2: "offset" is -1'),
    (b'{"audio_filepath": "b.wav", "duration": NaN}', 'm.jsonl:2: "duration" is NaN'),
    (b'{"audio_filepath": "b.wav", "text": ["no"]}', 'm.jsonl:2: "text" is'),
    (b'{"audio_filepath": "b.wav", "split": "tset"}', "m.jsonl:2: unknown split 'tset'.*test"),
    (b'{"audio_filepath": "b.wav", "utt_id": "a"}', "m.jsonl:2: utt_id 'a' is taken by .*jsonl:1"),
    (b'{"audio_filepath": "../b.wav", "text": "no"}', "m.jsonl:2: .*outside.*{outside: true}"),
    (b'{"audio_filepath": "/etc/b.wav", "text": "no"}', "m.jsonl:2: /etc/b.wav lies outside"),
])  # fmt: skip
def test_a_bad_manifest_is_one_line_that_names_file_and_line(listed, line, words):
    first = b'{"audio_filepath": "a.wav", "text": "yes"}\n'
    (listed / "m.jsonl").write_bytes(first + line + b"\n")
    with pytest.raises(UserError, match=words) as error:
        read("jsonl", listed)
    assert "\n" not in str(error.value)


def test_a_link_out_of_the_data_is_refused_too_unless_it_is_allowed(listed):
    (listed / "sub").mkdir()
    (listed / "sub" / "b.wav").symlink_to(listed / "b.wav")
    manifest = write_jsonl(listed / "sub" / "m.jsonl", {"audio_filepath": "b.wav", "text": "no"})
    with pytest.raises(UserError, match="m.jsonl:1: .*outside"):
        read("jsonl", manifest)
    assert read("jsonl", manifest, outside=True).loc["b", "text"] == "no"


# ---------------------------------------------------------------- Kaldi


@pytest.fixture
def kaldi(tmp_path):
    """speechocean762's layout: paths relative to the folder above the data directory."""
    folder = tmp_path / "corpus" / "data"
    folder.mkdir(parents=True)
    for name in ("r1", "r2"):
        speech(folder.parent / "wave" / f"{name}.flac", seconds=2)
    (folder / "wav.scp").write_text("r1\twave/r1.flac\nr2 wave/r2.flac\n")
    (folder / "text").write_text("r1\tONE TWO\nr2 THREE\n")
    (folder / "utt2spk").write_text("r1 s1\nr2 s2\n")
    return folder


def test_kaldi_gives_speakers_and_finds_audio_from_the_folder_above(kaldi):
    (kaldi / "spk2gender").write_text("s1 f\ns2 m\n")
    rows = read("kaldi", kaldi)
    assert rows["text"].to_dict() == {"r1": "ONE TWO", "r2": "THREE"}
    assert rows["speaker"].to_dict() == {"r1": "s1", "r2": "s2"}
    assert rows["gender"].to_dict() == {"r1": "f", "r2": "m"}
    assert rows.loc["r1", "path"] == str(kaldi.parent / "wave" / "r1.flac")
    assert rows.loc["r2", "text_where"] == f"{kaldi / 'text'}:2"


def test_kaldi_segments_are_parts_of_recordings(kaldi):
    (kaldi / "segments").write_text("u1 r1 0.5 1.25\nu2 r1 1.25 2\n")
    (kaldi / "text").write_text("u1 ONE\nu2 TWO\n")
    (kaldi / "utt2spk").write_text("u1 s1\nu2 s2\n")
    rows = read("kaldi", kaldi)
    assert rows[["offset", "duration"]].to_numpy().tolist() == [[0.5, 0.75], [1.25, 0.75]]
    assert set(rows["path"]) == {str(kaldi.parent / "wave" / "r1.flac")}


def test_kaldi_folders_named_after_splits_give_them(kaldi):
    for name, prefix in (("train", "a"), ("dev", "b"), ("test", "c")):
        folder = kaldi.parent / name
        folder.mkdir()
        for file in ("wav.scp", "text", "utt2spk"):
            lines = (kaldi / file).read_text().splitlines()
            (folder / file).write_text("".join(f"{prefix}{line}\n" for line in lines))
    for file in kaldi.iterdir():
        file.unlink()
    splits = read("kaldi", kaldi.parent)["split"]
    assert splits.to_dict() == {
        "ar1": None, "ar2": None, "br1": "validation", "br2": "validation",
        "cr1": "test", "cr2": "test",
    }  # fmt: skip


@pytest.mark.parametrize("file, content, words", [
    ("wav.scp", "r1 touch {marker} |\n", "wav.scp:1: 'touch .*never run"),
    ("wav.scp", "r1 wave/r1.flac\nr1 wave/r2.flac\n", "wav.scp:2: 'r1' is taken by .*wav.scp:1"),
    ("wav.scp", "r1\n", "wav.scp:1: 'r1' alone"),
    ("wav.scp", "r1 ../../x.wav\n", "wav.scp:1: .*outside"),
    ("text", "r1 ONE\nr1 TWO\n", "text:2: 'r1' is taken by .*text:1"),
    ("text", "r1 CAF\xe9\n", "text:1: not UTF-8"),
    ("segments", "u1 r9 0 1\n", "segments:1: recording 'r9' is not in"),
    ("segments", "u1 r1 1 0.5\n", "segments:1: .*start < end"),
    ("segments", "u1 r1 zero one\n", "segments:1: .*start end"),
])  # fmt: skip
def test_a_bad_kaldi_file_is_one_line_that_names_file_and_line(kaldi, file, content, words):
    marker = kaldi / "ran"
    (kaldi / file).write_bytes(content.replace("{marker}", str(marker)).encode("latin1"))
    with pytest.raises(UserError, match=words):
        read("kaldi", kaldi)
    assert not marker.exists()


def test_a_kaldi_folder_without_transcripts_says_what_is_missing(kaldi):
    (kaldi / "text").unlink()
    with pytest.raises(UserError, match="text: No such file.*needs it"):
        read("kaldi", kaldi)


# ---------------------------------------------------------------- LibriSpeech, Speech Commands


def librispeech(root, subset, speakers):
    for speaker in speakers:
        folder = root / "LibriSpeech" / subset / speaker / "10"
        for number in range(2):
            speech(folder / f"{speaker}-10-000{number}.flac")
        lines = [f"{speaker}-10-000{number} SAYS {subset.upper()}\n" for number in range(2)]
        (folder / f"{speaker}-10.trans.txt").write_text("".join(lines))


def test_librispeech_subsets_keep_their_roles_beside_a_training_subset(tmp_path):
    for subset, speaker in (("train-clean-100", "1"), ("dev-clean", "2"), ("test-other", "3")):
        librispeech(tmp_path, subset, [speaker])
    rows = read("librispeech", tmp_path)
    assert rows.groupby("subset")["split"].agg(set).to_dict() == {
        "train-clean-100": {None}, "dev-clean": {"validation"}, "test-other": {"test"}
    }  # fmt: skip
    assert rows.loc["1-10-0001", "text"] == "SAYS TRAIN-CLEAN-100"
    assert rows.loc["1-10-0001", ["speaker", "chapter"]].tolist() == ["1", "10"]


@pytest.mark.parametrize("part", ["", "LibriSpeech", "LibriSpeech/test-other"])
def test_librispeech_is_found_from_its_root_and_from_one_subset(tmp_path, part):
    librispeech(tmp_path, "test-other", ["1", "2"])
    rows = read("librispeech", tmp_path / part)
    assert len(rows) == 4 and rows["split"].isna().all() and set(rows["speaker"]) == {"1", "2"}


def test_librispeech_audio_without_a_transcript_and_the_reverse_are_both_told(tmp_path):
    librispeech(tmp_path, "test-other", ["1"])
    folder = tmp_path / "LibriSpeech" / "test-other" / "1" / "10"
    (folder / "1-10-0000.flac").rename(folder / "1-10-0007.flac")
    rows = read("librispeech", tmp_path)
    assert rows.loc["1-10-0007", "text"] == "" and rows.loc["1-10-0000", "text"] != ""
    assert not os.path.exists(rows.loc["1-10-0000", "path"])
    with open(folder / "1-10.trans.txt", "a") as file:
        file.write("../../../../../secret YES\n")
    with pytest.raises(UserError, match="1-10.trans.txt:3: .*secret.flac lies outside"):
        read("librispeech", tmp_path)


def test_a_librispeech_line_may_name_a_file_at_the_very_top(tmp_path):
    librispeech(tmp_path, "test-other", ["1"])
    with open(tmp_path / "LibriSpeech" / "test-other" / "1" / "10" / "1-10.trans.txt", "a") as file:
        file.write("/secret YES\n")
    rows = readers.read("librispeech", str(tmp_path), outside=True).rows.set_index("utt_id")
    assert rows.loc["/secret", "path"] == "/secret.flac" and rows.loc["/secret", "chapter"] == "/"


@pytest.mark.skipif(not (SHARED / "LibriSpeech").exists(), reason="no LibriSpeech beside the code")
def test_librispeech_is_read_as_torchaudio_reads_it():
    theirs = torchaudio.datasets.LIBRISPEECH(SHARED, "test-other", download=False)
    rows = read("librispeech", SHARED)
    assert len(rows) == len(theirs) == 100
    for number in range(len(theirs)):
        path, _, text, speaker, chapter, utterance = theirs.get_metadata(number)
        row = rows.loc[f"{speaker}-{chapter}-{utterance:04d}"]
        assert row["path"] == str(SHARED / "LibriSpeech" / path) and row["text"] == text


def test_speech_commands_keep_their_official_lists(tmp_path):
    for word in ("yes", "no", "_background_noise_"):
        for speaker in ("ada", "bob", "cyd"):
            name = "hum.wav" if word.startswith("_") else f"{speaker}_nohash_0.wav"
            speech(tmp_path / word / name)
    (tmp_path / "testing_list.txt").write_text("yes/bob_nohash_0.wav\nno/bob_nohash_0.wav\n")
    (tmp_path / "validation_list.txt").write_text("yes/cyd_nohash_0.wav\n")
    rows = read("speechcommands", tmp_path)
    assert len(rows) == 6 and set(rows["text"]) == {"yes", "no"}
    assert rows["split"].to_dict() == {
        "yes/ada_nohash_0": None, "no/ada_nohash_0": None, "no/cyd_nohash_0": None,
        "yes/bob_nohash_0": "test", "no/bob_nohash_0": "test", "yes/cyd_nohash_0": "validation",
    }  # fmt: skip


# ---------------------------------------------------------------- DATA


@pytest.mark.parametrize("corpus", readers.READERS)
def test_no_data_missing_data_and_empty_data_are_one_line_each(corpus, root, tmp_path):
    (tmp_path / "empty").mkdir()
    for data, words in (("", "needs DATA"), ("gone", "no folder"), ("empty", "no utterance")):
        if corpus == "kaldi" and data == "empty":
            words = "wav.scp"
        with pytest.raises(UserError, match=words) as error:
            read(corpus, tmp_path / data if data else "")
        assert "\n" not in str(error.value)


def test_data_without_permission_is_one_line(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may read whatever chmod says
    with pytest.raises(UserError, match="no permission"):
        check_data("kaldi", str(tmp_path))


@pytest.mark.skipif(not shutil.which("make"), reason="no make here")
@pytest.mark.parametrize("typo", ["CORPUS=libri", "PRESET=lapdog"])
def test_a_wrong_word_on_the_command_line_leaves_no_folder_behind(root, typo):
    shutil.copy(REPOSITORY / "Makefile", root)
    (root / "notebooks").symlink_to(REPOSITORY / "notebooks")
    command = ["make", "-o", ".venv/installed", f"PY={sys.executable}", "figures", typo]
    environment = {**os.environ, "ALSPEECH_ROOT": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode and "error: unknown" in done.stderr
    assert sorted(path.name for path in root.iterdir()) == ["Makefile", "configs", "notebooks"]


def test_a_run_on_bad_data_ends_with_one_line_and_leaves_no_folder(root, listed):
    (listed / "m.jsonl").write_text(
        '{"audio_filepath": "a.wav", "text": "yes"}\n{"audio_filepath": yes}\n'
    )
    before = sorted(root.rglob("*"))
    done = alspeech(root, "run", "--preset", "tiny", "--corpus", "jsonl", "--data", "mine")
    assert done.returncode == 2 and sorted(root.rglob("*")) == before
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ") and "mine/m.jsonl:2: broken JSON at character 20" in line


# ---------------------------------------------------------------- what a message quotes

LONG = "ab" * 50_000
LINES = "one\nerror: two\r\x1b[2J\u2028three"


def one_short_line(call, told: str = "") -> None:
    """The error is one line of at most 300 characters, and a terminal shows all of it."""
    with pytest.raises((UserError, ValueError)) as error:
        call()
    assert str(error.value).isprintable() and len(f"error: {error.value}") <= 300
    assert told in str(error.value)


def test_a_quoted_value_is_one_line_of_forty_characters():
    assert cut("short") == "short" and cut("x" * 40) == "x" * 40 and len(cut("x" * 41)) == 40
    assert cut(LONG) == LONG[:39] + "…" and cut("a\nb\x1b\ud83d") == "a\\nb\\x1b\\ud83d"
    assert cut("zażółć 打开") == "zażółć 打开" and cut(None) == "None"
    path = "/data/" + "a" * 50 + "/b.wav"
    assert cut_path(path) == path and len(cut_path(f"/data/{LONG}/b.wav")) == 160
    assert cut_path(f"/data/{LONG}/b.wav").endswith("ab/b.wav")


@pytest.mark.parametrize("value", [LONG, LINES], ids=["long", "lines"])
@pytest.mark.parametrize("record, told", [
    ({"offset": ...}, '"offset" is'),
    ({"duration": ...}, '"duration" is'),
    ({"text": [...]}, '"text" is'),
    ({"speaker": {"name": ...}}, '"speaker" is'),
    ({"split": ...}, "unknown split"),
    ({"utt_id": ...}, "is taken by"),
    ({"audio_filepath": "../../", "with": ...}, "lies outside DATA"),
    ({"offset": 10**400}, '"offset" is'),
], ids=range(8))  # fmt: skip
def test_a_manifests_values_are_quoted_short(listed, record, told, value):
    fill = lambda x: value if x is ... else x  # noqa: E731
    record = {
        key: [value] if type(x) is list else {"name": value} if type(x) is dict else fill(x)
        for key, x in record.items()
    }
    record = {"audio_filepath": "b.wav", **record}
    if record["audio_filepath"] == "../../":
        record["audio_filepath"] += value
    write_jsonl(listed / "m.jsonl", record, record)
    one_short_line(lambda: read("jsonl", listed), told)


def test_odd_json_is_one_line(listed):
    for line in ('{"offset": ' + "1" * 5000 + "}", "[" * 100_000, LONG):
        (listed / "m.jsonl").write_text(line)
        one_short_line(lambda: read("jsonl", listed), "m.jsonl:1: ")
    (listed / "pool").mkdir()
    write_jsonl(listed / "pool" / "m.jsonl", {"audio_filepath": ".", "text": "yes"})
    (listed / "m.jsonl").unlink()
    assert list(read("jsonl", listed)["split"]) == ["pool"]  # what it is, validation.py says


@pytest.mark.parametrize("file, content", [
    ("wav.scp", f"{LONG} a.wav\n{LONG} b.wav\n"),
    ("wav.scp", f"{LONG}\n"),
    ("wav.scp", f"r1 {LONG} |\n"),
    ("wav.scp", f"r1 ../../{LONG}\n"),
    ("wav.scp", "r1 ../../\x1b[2J\x85\u2028\n"),
    ("wav.scp", "r1\x1b[2J\n"),
    ("text", f"{LONG} ONE\n{LONG} TWO\n"),
    ("segments", f"u1 {LONG} 0 1\n"),
    ("segments", f"u1 r1 {LONG} 1\n"),
    ("segments", f"u1 {LONG}\n"),
])  # fmt: skip
def test_kaldis_values_are_quoted_short(kaldi, file, content):
    (kaldi / file).write_text(content)
    one_short_line(lambda: read("kaldi", kaldi), f"{file}:")


def test_librispeechs_values_are_quoted_short(tmp_path):
    librispeech(tmp_path, "test-other", ["1"])
    with open(tmp_path / "LibriSpeech" / "test-other" / "1" / "10" / "1-10.trans.txt", "a") as file:
        file.write(f"../../../../../{LONG} YES\n")
    one_short_line(lambda: read("librispeech", tmp_path), "1-10.trans.txt:3: ")


def test_a_path_that_is_too_long_is_no_traceback(kaldi):
    (kaldi / "wav.scp").write_text(f"r1 {LONG}\nr2 wave/r2.flac\n")
    assert read("kaldi", kaldi).loc["r1", "path"].endswith(LONG)  # validation.py: file missing


def test_words_of_the_command_line_are_quoted_short(tmp_path):
    for data in (LONG, f"/{LONG}/{LONG}", "a\nb"):
        one_short_line(lambda data=data: check_data("kaldi", data), "no folder or file DATA=")
    for word in (LONG, LINES):
        one_short_line(lambda word=word: load_settings(word), "unknown preset")
        one_short_line(lambda word=word: load_settings("smoke", word), "unknown corpus")
        one_short_line(lambda word=word: download.get(word), "unknown corpus to download")


@pytest.mark.parametrize("text, told", [
    (f"{LONG[:1000]}: 1", "unknown key"),
    (f"seeds: {LONG}", "seeds is abab"),
    (f"build: {{{LONG[:1000]}: 1}}", "build: unknown key"),
    (f"start: {LONG}", "start: unknown preset"),
    (LONG, "is no mapping"),
    (f"seeds: !{LONG} 3", "not to be read as YAML"),
    (f"seeds: *{LONG}", "not to be read as YAML"),
    ('build: {language: "a\\nb\\e"}', "language is a"),
], ids=range(8))  # fmt: skip
def test_a_presets_values_are_quoted_short(root, monkeypatch, text, told):
    monkeypatch.setattr("alspeech.workshop.config.ROOT", root)
    (root / "configs" / "odd.yaml").write_text(text)
    one_short_line(lambda: load_settings("odd"), told)


@pytest.mark.parametrize("value", [LONG, LINES], ids=["long", "lines"])
def test_names_that_there_are_none_of_are_quoted_short(value):
    for check in (
        lambda: check_strategies([value]),
        lambda: aloe.check_names(AloeConfig(strategies=("random", value))),
        lambda: aloe.check_names(AloeConfig(encoders=(value,))),
        lambda: ENGLISH.encode(f"a{value}0"),
        lambda: clips.divided("label", clip_table([value] * 9), 1),
        lambda: clips.divided("label", clip_table([value] * 9 + ["a"] * 9 + ["b"]), 1),
    ):
        one_short_line(check)


def clip_table(labels):
    frame = {"clip_id": range(len(labels)), "label": labels, "split": None, "speaker": None}
    return pd.DataFrame(frame, dtype=object)


def test_a_file_s_name_is_quoted_whole_but_on_one_line(digits):
    (digits / "recordings" / "a\nb.wav").write_bytes(b"")
    one_short_line(lambda: fsdd.recordings(str(digits)), "recordings/a\\nb.wav: not named")


def test_what_nobody_expected_is_one_line_too(tmp_path, capsys):
    assert explain(RuntimeError(f"{LINES} {LONG}"), tmp_path / "error.log") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable() and len(line) < 400


@pytest.mark.parametrize("text", ["a" * 5000 + "0" * 5000, "%" * 9, "\x1b[2J", "打" * 9, "\x07"])
def test_check_says_no_line_above_three_hundred_characters(tmp_path, monkeypatch, text):
    for module in ("workshop.steps", "speech.corpus", "speech.validation"):
        monkeypatch.setattr(f"alspeech.{module}.ROOT", tmp_path)
    (tmp_path / "mine").mkdir()
    splits, records = ("base", "pool", "validation", "test"), []
    for i in range(16):
        speech(tmp_path / "mine" / f"{i}.wav")
        said = text if i in (3, 4, 5) else "Yes,\tplease!"
        records.append({"audio_filepath": f"{i}.wav", "text": said, "split": splits[i % 4]})
    records.append({"audio_filepath": f"{LONG}.wav", "text": "yes", "split": "pool"})
    settings = Settings("tiny", "jsonl", str(tmp_path / "mine"))

    def check():
        write_jsonl(tmp_path / "mine" / "m.jsonl", *records)
        readers.read.cache_clear()
        corpus.corpus.cache_clear()
        return experiment.check(settings)

    shown = check()
    assert "2 utterances are set aside: see build/jsonl-tiny" in shown
    assert all(line.isprintable() and len(line) <= 300 for line in shown.splitlines())
    for record in records:
        record["text"] = text
    one_short_line(check, "cannot be used, most often for")
