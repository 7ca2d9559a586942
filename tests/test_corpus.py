"""The embedded corpus, real recordings, features and batches."""

import hashlib
import pickle
import shutil
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from conftest import SHARED

from alspeech.speech import features, fsdd, manifests, synthesis
from alspeech.speech.text import ENGLISH
from alspeech.workshop.config import CorpusConfig, ModelConfig, TrainingConfig
from alspeech.workshop.errors import UserError

SMALL = CorpusConfig(base=30, pool=210, validation=8, test=12)


def digest(folder) -> str:
    """One hash over names and bytes of all files."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            total.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return total.hexdigest()


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spoken")
    synthesis.build(folder, SMALL, jobs=2)
    return folder


def test_equal_seeds_give_equal_bytes_whatever_the_number_of_processes(spoken, tmp_path):
    synthesis.build(tmp_path, SMALL, jobs=1)
    assert digest(tmp_path) == digest(spoken)


def test_another_seed_gives_another_corpus():
    drawn = [synthesis.draw_manifest(replace(SMALL, seed=seed))["text"] for seed in (0, 1)]
    assert (drawn[0] != drawn[1]).any()


def test_base_and_pool_share_no_voice_with_test_or_validation():
    manifest = synthesis.draw_manifest(CorpusConfig(base=400, pool=400, validation=100, test=400))
    voices = manifest.groupby("split")["voice"].agg(set)
    learnt = voices["base"] | voices["pool"]
    assert not learnt & voices["test"] and not learnt & voices["validation"]
    assert not voices["test"] & voices["validation"]


def test_the_manifest_tells_everything_that_was_drawn(spoken):
    manifest = manifests.read_manifest(spoken / "manifest.jsonl")
    drawn = {"text", "kind", "accent", "voice", "speaker", "rate", "pitch", "snr_db", "level_db"}
    assert drawn <= set(manifest.columns) and manifest["utt_id"].is_unique
    assert manifest["split"].value_counts().to_dict() == {
        "base": 30, "pool": 210, "validation": 8, "test": 12
    }  # fmt: skip
    silence = manifest["kind"] == "silence"
    assert (manifest.loc[silence, "text"] == "").all()
    assert manifest.loc[silence, "snr_db"].isna().all()
    assert (manifest.loc[~silence, "text"] != "").all()


def test_every_transcript_is_in_the_alphabet(spoken):
    for text in manifests.read_manifest(spoken / "manifest.jsonl")["text"]:
        assert ENGLISH.decode(ENGLISH.encode(text)) == text


def test_the_audio_is_playable_and_as_long_and_loud_as_told(spoken):
    manifest = manifests.read_manifest(spoken / "manifest.jsonl")
    for row in manifest.iloc[::10].itertuples():
        samples, rate = soundfile.read(row.path)
        assert rate == 16000 and len(samples) / rate == pytest.approx(row.duration)
        assert 0 < np.abs(samples).max() < 1
        assert row.duration / synthesis.QUANTUM == pytest.approx(round(row.duration / 0.16))


def test_the_drawn_signal_to_noise_ratio_is_in_the_audio():
    manifest = synthesis.draw_manifest(SMALL)
    row = next(r for r in manifest.itertuples() if r.kind == "command")
    espeak = synthesis.Espeak()
    power = []
    for snr in (0.0, 200.0):
        audio = synthesis.render(row._replace(snr_db=snr), espeak)
        power.append(np.mean(audio[:400] ** 2))  # the lead-in: noise alone
    assert power[0] > 1e6 * power[1]


def test_noise_is_as_coloured_as_told():
    noise = synthesis.coloured_noise(160_000, slope=2.0, rng=np.random.default_rng(0))
    spectrum = np.abs(np.fft.rfft(noise)) ** 2
    octaves = [spectrum[f * 10 : f * 20].mean() for f in (200, 400, 800)]  # bins of 0.1 Hz
    assert octaves[0] / octaves[1] == pytest.approx(4, rel=0.1)
    assert octaves[1] / octaves[2] == pytest.approx(4, rel=0.1)
    assert np.mean(noise**2) == pytest.approx(1)


def test_no_espeak_library_is_one_line_with_the_way_out(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "espeakng_loader", None)  # importing it raises ImportError
    with pytest.raises(UserError, match="no espeak-ng library.*pip install espeakng-loader"):
        synthesis.draw_manifest(SMALL)


# ---------------------------------------------------------------- Free Spoken Digit Dataset


def test_fsdd_strings_join_recordings_of_one_speaker_and_split(digits, tmp_path):
    out = tmp_path / "out"
    fsdd.build(out, CorpusConfig(base=20, pool=20, validation=5, test=10), str(digits))
    manifest = manifests.read_manifest(out / "manifest.jsonl")
    for row in manifest.itertuples():
        parts = [name.split("_") for name in row.recordings.split()]
        assert 3 <= len(parts) <= 6 and {speaker for _, speaker, _ in parts} == {row.speaker}
        assert row.text == " ".join(fsdd.DIGITS[int(digit)] for digit, _, _ in parts)
        low, high = fsdd.INDICES[row.split]
        assert all(low <= int(index) < high for _, _, index in parts)
        samples, rate = soundfile.read(row.path)
        assert rate == 16000 and len(samples) / rate == pytest.approx(row.duration)


@pytest.mark.parametrize("data, message", [("", "needs DATA="), ("nowhere", "no folder.*github")])
def test_missing_fsdd_tells_where_to_get_it(data, message, tmp_path):
    with pytest.raises(UserError, match=message):
        fsdd.build(tmp_path / "out", SMALL, data)


@pytest.mark.skipif(not (SHARED / "fsdd").exists(), reason="no FSDD recordings beside the checkout")
def test_real_fsdd_recordings_keep_the_official_test_split(tmp_path):
    fsdd.build(tmp_path, replace(SMALL, pool=20), str(SHARED / "fsdd"))
    manifest = manifests.read_manifest(tmp_path / "manifest.jsonl")
    indices = manifest["recordings"].str.findall(r"_(\d+)").map(lambda found: set(map(int, found)))
    official = {0, 1, 2, 3, 4}
    assert all(i <= official for i in indices[manifest["split"] == "test"])
    assert not any(i & official for i in indices[manifest["split"] != "test"])
    assert manifest["speaker"].nunique() == 6


@pytest.mark.parametrize("name, content, message", [
    ("3_ada_22.wav", b"", "3_ada_22.wav cannot be read"),
    ("three_ada.wav", b"", "three_ada.wav: not named digit_speaker_index.wav"),
])  # fmt: skip
def test_a_bad_fsdd_recording_is_one_line_that_names_it(digits, tmp_path, name, content, message):
    (digits / "recordings" / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        fsdd.build(tmp_path / "out", replace(SMALL, pool=100), str(digits))


# ---------------------------------------------------------------- features


def test_features_have_a_round_number_of_frames_and_no_mean():
    extractor = features.FeatureExtractor(ModelConfig())
    log = extractor(torch.randn(16000 * 2 + 100), 16000)
    assert log.shape == (208, 40)  # 200 frames of 10 ms, rounded up to a multiple of 16
    assert log[:200].mean(dim=0).abs().max() < 1e-4 and (log[200:] == 0).all()


def test_features_of_a_tone_peak_in_its_bin_whatever_the_sample_rate():
    peaks = set()
    for rate in (8000, 16000, 44100):
        time = torch.arange(rate) / rate
        mix = torch.cat([torch.sin(2 * torch.pi * 1200 * time), 1e-3 * torch.randn(rate)])
        log = features.FeatureExtractor(ModelConfig())(mix, rate)
        peaks.add(int((log[:90].mean(dim=0) - log[110:190].mean(dim=0)).argmax()))
    assert len(peaks) == 1


def test_an_interrupted_extraction_goes_on_from_its_checkpoint(spoken, tmp_path, monkeypatch):
    manifest = manifests.read_manifest(spoken / "manifest.jsonl").iloc[:6]
    whole, halved, read = tmp_path / "whole", tmp_path / "halved", []
    for folder in (whole, halved):
        folder.mkdir()
    features.extract(whole, manifest, ModelConfig())

    def read_four(path):
        read.append(path)
        if len(read) == 5:
            raise KeyboardInterrupt
        return manifests.read_audio(path)

    monkeypatch.setattr("alspeech.workshop.store.CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(features, "read_audio", read_four)
    with pytest.raises(KeyboardInterrupt):
        features.extract(halved, manifest, ModelConfig())
    with open(halved / "features.npy", "ab") as file:
        file.write(b"half an utterance")
    features.extract(halved, manifest, ModelConfig())
    assert read[5:] == list(manifest["path"][4:])
    for name in ("features.npy", "index.csv"):
        assert (whole / name).read_bytes() == (halved / name).read_bytes()


def test_an_interrupted_synthesis_speaks_only_the_blocks_that_are_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(synthesis, "BLOCK", 6)
    config = CorpusConfig(base=8, pool=8, validation=2, test=2)
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    synthesis.build(whole, config, jobs=1)
    shutil.copytree(whole, halved)
    (halved / "manifest.jsonl").unlink()
    (halved / "audio" / "base" / "base-00007.wav").unlink()  # in the second of four blocks
    kept = (halved / "audio" / "base" / "base-00000.wav").stat().st_mtime_ns
    synthesis.build(halved, config, jobs=1)
    assert (halved / "audio" / "base" / "base-00000.wav").stat().st_mtime_ns == kept
    for path in whole.rglob("*.*"):
        assert path.read_bytes() == (halved / path.relative_to(whole)).read_bytes()


SCRIPT = """
import pathlib, sys
print("the script's own line")
sys.path.append(pathlib.Path("wherever"))  # no string, as in many a notebook
from alspeech.speech import synthesis
from alspeech.workshop.config import CorpusConfig
synthesis.BLOCK = 6
synthesis.build(pathlib.Path(sys.argv[1]), CorpusConfig(base=8, pool=8, validation=2, test=2), 2)
"""


@pytest.mark.parametrize("way", ["script", "standard input"])
def test_a_script_of_ones_own_that_builds_a_corpus_is_imported_once(tmp_path, way):
    """Even one without a guard: no block's process imports the script that asked for it."""
    (tmp_path / "mine.py").write_text(SCRIPT)
    program, given = (str(tmp_path / "mine.py"), None) if way == "script" else ("-", SCRIPT)
    done = subprocess.run(
        [sys.executable, program, str(tmp_path / "out")],
        input=given,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["the script's own line"]
    assert len(manifests.read_manifest(tmp_path / "out" / "manifest.jsonl")) == 20


def test_what_goes_wrong_while_speaking_is_raised_where_it_was_asked_for(tmp_path, monkeypatch):
    draw = synthesis.draw_manifest

    def drawn(*what):
        return draw(*what).assign(speaker="nobody+nothing")

    monkeypatch.setattr(synthesis, "draw_manifest", drawn)
    with pytest.raises(RuntimeError, match="espeak-ng has no voice 'nobody.nothing'"):
        synthesis.build(tmp_path, replace(SMALL, pool=2), jobs=1)


KILLED = """
import os, sys
sys.path[:] = {}
from alspeech.speech import synthesis
synthesis._speak_block = lambda *_: os.kill(os.getpid(), 9)
synthesis.serve()
"""


@pytest.mark.parametrize(
    "program", ["import os; os._exit(1) # {}", KILLED], ids=["server", "block"]
)
def test_a_process_that_speaks_and_is_killed_is_told_and_not_waited_for(
    tmp_path, monkeypatch, program
):
    monkeypatch.setattr(synthesis, "SERVE", program)
    with pytest.raises(BrokenProcessPool, match="has died"):
        synthesis.build(tmp_path, SMALL, jobs=2)


def test_the_store_gives_back_what_was_extracted(spoken, tmp_path):
    manifest = manifests.read_manifest(spoken / "manifest.jsonl").iloc[:6]
    features.extract(tmp_path, manifest, ModelConfig())
    store = features.FeatureStore(tmp_path)
    extractor = features.FeatureExtractor(ModelConfig())
    for row in manifest.itertuples():
        samples, rate = manifests.read_audio(row.path)
        expected = extractor(torch.from_numpy(samples), rate)
        assert torch.equal(store[row.utt_id], expected.half().float())


@pytest.mark.parametrize("rng", [None, np.random.default_rng(0)])
def test_batches_hold_one_length_and_every_utterance_once(rng):
    lengths = np.array([16] * 17 + [32] * 3 + [48])
    groups = features.group_by_length(lengths, 16, rng)
    assert sorted(np.concatenate(groups)) == list(range(21))
    assert all(len(set(lengths[group])) == 1 for group in groups)
    assert sorted(map(len, groups)) == [1, 3, 8, 9]  # 17 as 9 + 8, not 16 + 1


def test_without_a_generator_the_shortest_come_first():
    lengths = np.array([48, 16, 32, 16])
    assert [list(group) for group in features.group_by_length(lengths, 8)] == [[1, 3], [2], [0]]


def test_spec_augment_masks_bands_and_stretches_within_its_widths():
    config = TrainingConfig()
    ones = torch.ones(50, 200, 40)
    masked = features.spec_augment(ones, config, torch.Generator().manual_seed(0)) == 0
    whole_bins = masked.all(dim=1).sum(dim=1)  # per utterance
    whole_frames = masked.all(dim=2).sum(dim=1)
    assert 0 < whole_bins.max() <= 2 * (config.frequency_width + 1)
    assert 0 < whole_frames.max() <= 2 * (config.time_width + 1)
    # nothing else is masked
    assert torch.equal(masked, masked.all(dim=1, keepdim=True) | masked.all(dim=2, keepdim=True))


def test_a_manifest_survives_writing_and_reading(tmp_path):
    names = ["utt_id", "path", "text", "snr_db"]
    frame = pd.DataFrame([["a", "a.wav", "it's", 3.5], ["b", "b.wav", "", None]], columns=names)
    manifests.write_manifest(tmp_path / "m.jsonl", frame)
    back = manifests.read_manifest(tmp_path / "m.jsonl")
    assert list(back["path"]) == [str(tmp_path / "a.wav"), str(tmp_path / "b.wav")]
    assert list(back["text"]) == ["it's", ""] and back["snr_db"].isna().tolist() == [False, True]


@pytest.mark.parametrize("told", [b"", pickle.dumps(("folder", [], 1))[:-3]])
def test_a_speaker_whose_run_was_killed_while_it_asked_ends_without_a_word(told):
    program = synthesis.SERVE.format(sys.path)
    done = subprocess.run([sys.executable, "-c", program], input=told, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")
