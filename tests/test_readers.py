"""Other people's corpora, each through its own layout, and what makes a whole corpus unreadable."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torchaudio
from conftest import REPOSITORY, SHARED, alspeech

from alspeech.speech import readers
from alspeech.speech.manifests import check_data
from alspeech.workshop.errors import UserError


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
