"""ALOE: acquisition by hand, the stacked classifiers against torch's, the protocol, bad input."""

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
import torchaudio
from conftest import EXECUTE, REPOSITORY, SHARED, alspeech

from alspeech.sisters import aloe, encoders, few_labels
from alspeech.sisters.labelling import SKIP, Labeller
from alspeech.speech import clips, readers, validation
from alspeech.workshop.config import AloeConfig, Settings, load_settings
from alspeech.workshop.errors import UserError

CONFIG = AloeConfig(runs=2, steps=4, seed_clips=2, epochs=3, batch=4)
TINY = (
    "aloe: {pool: 120, validation: 40, test: 60, runs: 3, steps: 3, seed_clips: 1, epochs: 3, "
    "encoders: [recogniser, logmel]}\n"
)


def blobs(classes=3, pool=40, size=6, seed=0) -> tuple[clips.Task, np.ndarray]:
    """Clouds of points that overlap, as a task and embeddings; the first rows are the pool."""
    rng = np.random.default_rng(seed)
    count = pool + 40
    y = np.arange(count) % classes
    X = rng.standard_normal((classes, size))[y] + rng.standard_normal((count, size))
    split = ["pool"] * pool + ["validation"] * 20 + ["test"] * 20
    return clips.Task("blobs", tuple("abc"[:classes]), table(y, split=split)), X.astype(np.float32)


def table(labels, path="x.wav", **columns) -> pd.DataFrame:
    ids = [f"c{i}" for i in range(len(labels))]
    frame = {"clip_id": ids, "path": path, "offset": np.nan, "duration": np.nan, "split": None}
    return pd.DataFrame({**frame, "speaker": None, "label": labels, **columns})


@pytest.fixture(autouse=True)
def laboratory(tmp_path, monkeypatch):
    """What is found out about clips stays here, and is forgotten after a test."""
    for module in ("workshop.steps", "speech.clips"):
        monkeypatch.setattr(f"alspeech.{module}.ROOT", tmp_path)
    for function in FORGET:
        function.cache_clear()


FORGET = (readers.read, clips.read, clips.task, aloe._embeddings_of)


# ---------------------------------------------------------------- acquisition


def test_scores_are_those_worked_by_hand():
    p = torch.tensor([[0.5, 0.3, 0.2], [0.9, 0.1, 0.0]], dtype=torch.double)
    by_hand = {
        "margin": [0.8, 0.2],
        "largest_margin": [0.7, 0.1],
        "least_confidence": [0.5, 0.1],
        "entropy": [-(0.5 * math.log(0.5) + 0.3 * math.log(0.3) + 0.2 * math.log(0.2)),
                    -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))],
        "norm": [math.sqrt(0.25 + 0.09 + 0.04), math.sqrt(0.02)],
    }  # fmt: skip
    for name, expected in by_hand.items():
        assert few_labels.SCORES[name](p.log()).tolist() == pytest.approx(expected, abs=1e-12), name
    logits = torch.tensor([[3.0, 1.0, -2.0]])
    on_logits = {"margin": -1.0, "largest_margin": -4.0, "least_confidence": -2.0}
    for name, expected in on_logits.items():
        assert few_labels.SCORES[f"{name}_logits"](logits).item() == pytest.approx(expected)


def test_every_score_is_highest_where_the_classifier_knows_nothing():
    logits = torch.randn(200, 5) * 3
    logits[7] = 0.0
    for name, score in few_labels.SCORES.items():
        if not name.endswith("_logits"):
            assert score(logits).argmax() == 7, name


def test_logits_and_probabilities_choose_alike_for_two_classes_and_not_for_three():
    """p₁ − p₂ = tanh((z₁ − z₂)/2) for two classes; for more it also depends on the rest."""
    two, three = torch.randn(50, 2), 3 * torch.randn(50, 3)
    order = lambda name, logits: few_labels.SCORES[name](logits).argsort().tolist()  # noqa: E731
    assert order("margin", two) == order("margin_logits", two)
    assert order("margin", three) != order("margin_logits", three)
    # adding 5 to all logits of a clip changes no probability, but its confidence on logits
    shifted = torch.cat([three[:1], three[:1] + 5])
    assert few_labels.SCORES["least_confidence"](shifted).diff().abs() < 1e-6
    assert few_labels.SCORES["least_confidence_logits"](shifted).diff().item() == pytest.approx(-5)


def test_class_aware_takes_one_clip_of_each_predicted_class_present():
    scores = torch.tensor([0.1, 0.9, 0.3, 0.8, 0.2, 0.95])
    predicted = torch.tensor([0, 0, 2, 2, 2, 3])
    free = torch.tensor([True, True, True, True, True, False])
    # class 1 is predicted of nothing, class 3 only of a clip that is labelled already
    assert few_labels.choose(scores, predicted, free, "aware") == [1, 3]
    assert few_labels.choose(scores, predicted, free, "agnostic") == [1]
    assert few_labels.choose(scores, predicted, torch.zeros(6, dtype=torch.bool), "agnostic") == []


# ---------------------------------------------------------------- stacked classifiers


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-5), (np.float64, 1e-10)])
def test_stacked_classifiers_equal_separate_linear_layers_with_adam(dtype, tolerance):
    """Other counts, odd batches, odd sizes: same initial weights and order, same numbers."""
    rng = np.random.default_rng(3)
    D, C, epochs, batch, rate = 37, 5, 60, 10, 1e-2
    X, y = rng.standard_normal((90, D)).astype(dtype), rng.integers(0, C, 90)
    counts = np.array([23, 1, 40])
    rows = np.stack([rng.permutation(90)[:40] for _ in counts])
    order = np.zeros((3, epochs, 40), dtype=np.int64)
    for r, n in enumerate(counts):
        order[r, :, :n] = few_labels.orders(run=r, step=2, count=n, epochs=epochs)
    W = rng.uniform(-0.2, 0.2, (3, C, D)).astype(dtype)
    b = rng.uniform(-0.2, 0.2, (3, C)).astype(dtype)
    trained, bias = W.copy(), b.copy()
    few_labels.fit(trained, bias, X, y, rows, counts, order, batch, rate)
    for r, n in enumerate(counts):
        layer = torch.nn.Linear(D, C, dtype=torch.from_numpy(X).dtype)
        layer.weight.data, layer.bias.data = torch.tensor(W[r]), torch.tensor(b[r])
        adam = torch.optim.Adam(layer.parameters(), lr=rate)
        for epoch in range(epochs):
            for at in np.split(order[r, epoch, :n], range(batch, n, batch)):
                x, label = torch.from_numpy(X[rows[r, at]]), torch.from_numpy(y[rows[r, at]])
                adam.zero_grad()
                torch.nn.functional.cross_entropy(layer(x), label).backward()
                adam.step()
        assert np.abs(trained[r] - W[r]).max() > 0.05  # it has learnt something
        assert np.abs(trained[r] - layer.weight.detach().numpy()).max() < tolerance
        assert np.abs(bias[r] - layer.bias.detach().numpy()).max() < tolerance


def test_initial_weights_and_orders_are_of_the_run_and_step_alone():
    W, b = few_labels.initial(run=1, step=2, classes=4, size=9)
    assert np.array_equal(W, few_labels.initial(1, 2, 4, 9)[0]) and np.abs(W).max() <= 1 / 3
    assert not np.array_equal(W, few_labels.initial(1, 3, 4, 9)[0])
    drawn = few_labels.orders(run=0, step=0, count=7, epochs=3)
    assert (np.sort(drawn) == np.arange(7)).all() and len(np.unique(drawn, axis=0)) == 3


# ---------------------------------------------------------------- the protocol


def test_all_learners_side_by_side_give_what_each_gives_alone():
    data, names = blobs(), ("random", "margin", "entropy")
    together, chosen = few_labels.simulate(*data, [0, 1], names, few_labels.MODES, CONFIG)
    alone = [
        few_labels.simulate(*data, [run], [name], [mode], CONFIG)
        for run in (0, 1) for mode in few_labels.MODES for name in names
    ]  # fmt: skip
    key = ["mode", "strategy", "run", "step"]
    for whole, part in ((together, 0), (chosen, 1)):
        parts = pd.concat([a[part] for a in alone]).drop_duplicates()
        columns = [*key, *([] if part == 0 else ["row"])]
        assert (
            whole.sort_values(columns)
            .reset_index(drop=True)
            .equals(parts.sort_values(columns).reset_index(drop=True))
        )


def test_the_seed_set_and_the_first_classifier_are_the_same_for_all_strategies():
    task, X = blobs()
    curves, queried = few_labels.simulate(
        task, X, [0, 1], list(few_labels.SCORES) + ["random"], few_labels.MODES, CONFIG
    )
    for run in (0, 1):
        seeds = queried[(queried["run"] == run) & (queried["step"] == 0)]
        sets = {tuple(part["row"]) for _, part in seeds.groupby(["mode", "strategy"])}
        assert len(sets) == 1
        (rows,) = sets
        assert np.bincount(task.labels[list(rows)]).tolist() == [2, 2, 2]
        assert set(rows) <= set(task.rows("pool"))
        first = curves[(curves["run"] == run) & (curves["step"] == 0) & (curves["mode"] != "all")]
        assert first[["labels", "validation", "test"]].drop_duplicates().shape[0] == 1
    assert set(seeds["row"]) != set(queried[(queried["run"] == 0) & (queried["step"] == 0)]["row"])


def test_nothing_is_labelled_twice_and_agnostic_takes_one_a_step():
    _, queried = few_labels.simulate(*blobs(), [0], ["margin", "random"], few_labels.MODES, CONFIG)
    assert not queried.duplicated(["mode", "strategy", "run", "row"]).any()
    agnostic = queried[(queried["mode"] == "agnostic") & (queried["step"] > 0)]
    assert (agnostic.groupby(["strategy", "step"]).size() == 1).all()
    aware = queried[(queried["mode"] == "aware") & (queried["step"] > 0)]
    assert aware.groupby(["strategy", "step"]).size().between(1, 3).all()


def test_a_pool_used_up_is_one_line_or_the_end_of_the_curve():
    small = blobs(pool=12)
    config = dataclasses.replace(CONFIG, steps=30)
    with pytest.raises(UserError, match="has labelled all 12 clips of the pool after .* of 30"):
        few_labels.simulate(*small, [0], ["margin"], ["aware"], config)
    curves, _ = few_labels.simulate(
        *small, [0], ["margin", "random"], few_labels.MODES, config, "stop"
    )
    ends = curves[curves["mode"] != "all"].groupby(["mode", "strategy"])
    assert (ends["labels"].max() == 12).all()
    assert (ends["step"].max()["agnostic"] == 6).all()
    # with all labels of the pool, a learner ends where the bound is, but for weights and order
    runs = aloe.runs_table(curves.assign(task="t", encoder="e"), config)
    assert aloe.ended_early(runs, config)[0].startswith("task t, class-aware: the pool of 12 clips")


def test_a_killed_run_goes_on_and_ends_with_the_same_numbers(tmp_path, monkeypatch):
    from alspeech.workshop.store import Checkpoint

    monkeypatch.setattr("alspeech.workshop.store.CHECKPOINT_SECONDS", -1)
    plain = few_labels.simulate(*blobs(), [0], ["margin", "random"], few_labels.MODES, CONFIG)
    calls, train = [], few_labels.train

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return train(*arguments)

    monkeypatch.setattr(few_labels, "train", killed)
    arguments = (*blobs(), [0], ["margin", "random"], few_labels.MODES, CONFIG, "raise")
    with pytest.raises(KeyboardInterrupt):
        few_labels.simulate(*arguments, Checkpoint(tmp_path))
    again = few_labels.simulate(*arguments, Checkpoint(tmp_path))
    assert all(a.equals(b) for a, b in zip(plain, again, strict=True))


def test_plateau_is_where_the_best_accuracy_stops_rising():
    accuracies = [50, 60, 70, 70.2, 69, 70.1, 70.3, 80]
    assert few_labels.plateau(accuracies, patience=3, tolerance=0.5) == 5
    assert few_labels.plateau([1, 2, 3, 4], patience=2, tolerance=0.5) == 3


def test_an_encoder_s_scale_does_not_matter():
    """Shifted and scaled to the pool's mean 0 and deviation 1: one learning rate serves all."""
    vectors, pool = torch.randn(40, 5, dtype=torch.double).float(), np.arange(40) % 4 < 3
    one = few_labels.standardised(vectors, vectors[pool])
    other = few_labels.standardised(1000 * vectors - 77, 1000 * vectors[pool] - 77)
    assert np.abs(one - other).max() < 1e-3
    assert np.abs(one[pool].mean(axis=0)).max() < 1e-5
    assert np.abs(one[pool].std(axis=0, ddof=1) - 1).max() < 1e-5


# ---------------------------------------------------------------- tasks


def test_splits_of_the_corpus_serve_unless_a_class_is_missing_from_one():
    labels = list("ab" * 50)
    own = ["pool"] * 60 + ["validation"] * 20 + ["test"] * 20
    kept = clips.divided("t", table(labels, split=own), 5)
    assert list(kept.clips["split"]) == own and kept.notes == ()
    by_speaker = clips.divided("t", table(labels, speaker=[f"s{i // 5}" for i in range(100)]), 5)
    assert by_speaker.clips.groupby("speaker")["split"].nunique().max() == 1
    assert by_speaker.notes == ("task t: divided by speaker",)
    by_clip = clips.divided("t", table(labels, speaker=list("xy" * 50)), 5)
    shares = pd.crosstab(by_clip.clips["label"], by_clip.clips["split"])
    assert shares["pool"].tolist() == [30, 30] and "by clip" in by_clip.notes[0]
    whose = clips.divided("speaker", table(labels, speaker=labels), 5)  # speakers cannot be apart
    assert "by clip" in whose.notes[0]


def test_a_class_with_too_few_clips_and_one_class_only_are_one_line():
    with pytest.raises(UserError, match="class 'rare' has 4 clips: 5 are needed to start"):
        clips.divided("t", table(["often"] * 40 + ["rare"] * 4), 5)
    with pytest.raises(UserError, match="one class only \\('a'\\): two are needed"):
        clips.divided("t", table(["a"] * 40), 5)
    with pytest.raises(UserError, match="class 0 has 3 clips in the pool, 5 are needed"):
        few_labels.seed_set(blobs(pool=8)[0], 0, 5)


def test_a_voice_s_kind_is_in_its_parameters():
    kind = clips.voice_kind
    assert kind("name whisper\nbreath   75  75  50\nvoicing 17\n") == "whisper"
    assert kind("name Robosoft\necho 30 1000\nklatt 5\n") == "robot"
    assert kind("name klatt\nklatt 1\n") == "formant"
    assert kind("gender male 70\nflutter 20\n") == "croak"
    assert kind("gender female 70\necho 140 10\n") == "female"
    assert kind("pitch 82 118\n") == kind("gender male 70\nbreath 2 4\n") == "male"


def settings_of(corpus, data, **options) -> Settings:
    config = dataclasses.replace(AloeConfig(seed_clips=1), **options)
    return Settings("laptop", corpus, str(data), aloe=config)


def tone(path, hertz=440, seconds=0.2, rate=16000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.sin(np.arange(int(seconds * rate)) * hertz / rate), rate)


def test_esc10_is_read_in_its_official_layout_and_as_a_list(tmp_path):
    rows = []
    for fold in range(1, 6):
        for label in ("dog", "rain"):
            rows.append((f"{fold}-{label}.wav", fold, label, True))
            tone(tmp_path / "audio" / rows[-1][0])
    rows.append(("1-siren.wav", 1, "siren", False))
    (tmp_path / "meta").mkdir()
    names = ["filename", "fold", "category", "esc10"]
    pd.DataFrame(rows, columns=names).to_csv(tmp_path / "meta" / "esc50.csv", index=False)
    task = clips.task(settings_of("esc10", tmp_path), "sound")
    assert task.classes == ("dog", "rain") and task.notes == ()
    assert [len(task.rows(split)) for split in clips.SPLITS] == [6, 2, 2]
    assert set(task.clips.loc[task.rows("test"), "clip_id"]) == {"5-dog", "5-rain"}


def test_vocalsound_is_read_in_its_official_layout(tmp_path):
    speakers = {"tr": ["f0003", "m0010"], "val": ["f0004"], "te": ["m0005"]}
    for split, names in speakers.items():
        (tmp_path / "meta").mkdir(exist_ok=True)
        lines = "".join(f"{name},female,30,US,English,no\n" for name in names)
        (tmp_path / "meta" / f"{split}_meta.csv").write_text(lines)
        for name in names:
            for sound in ("cough", "throatclearing"):
                tone(tmp_path / "audio_16k" / f"{name}_0_{sound}.wav")
    task = clips.task(settings_of("vocalsound", tmp_path), "sound")
    assert task.classes == ("cough", "throatclearing")
    assert set(task.clips.loc[task.rows("pool"), "speaker"]) == {"f0003", "m0010"}
    (tmp_path / "meta" / "te_meta.csv").unlink()
    with pytest.raises(UserError, match="no meta/te_meta.csv and no datafiles/te.json"):
        clips.read(settings_of("vocalsound", tmp_path, test=9))


@pytest.mark.parametrize("corpus, file, content, words", [
    ("esc10", "labels.csv", b"", "labels.csv: not to be read as CSV"),
    ("esc10", "labels.csv", b"path,label,fold\n\xff.wav,dog,1\n", "labels.csv: not .* as CSV"),
    ("esc10", "labels.csv", b'path,label,fold\n"a,dog,1\n', "labels.csv: not .* as CSV"),
    ("vocalsound", "datafiles/tr.json", b'{"data": [', "tr.json: not JSON as"),
    ("vocalsound", "datafiles/tr.json", b"[]", "tr.json: not JSON as"),
    ("vocalsound", "datafiles/tr.json", b'{"data": [{"wav": null}]}', "tr.json: not JSON as"),
])  # fmt: skip
def test_a_list_of_sounds_that_cannot_be_read_is_one_line(tmp_path, corpus, file, content, words):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=words):
        clips.read(settings_of(corpus, tmp_path))


def test_speech_commands_gives_the_official_twelve_classes(tmp_path):
    words = [*clips.COMMANDS, "bed", "cat"]
    lists = {"validation_list.txt": 1, "testing_list.txt": 2}
    for word in words:
        for speaker in range(5):
            tone(tmp_path / word / f"s{speaker}_nohash_0.wav")
    for name, speaker in lists.items():
        lines = [f"{word}/s{speaker}_nohash_0.wav\n" for word in words]
        (tmp_path / name).write_text("".join(lines))
    tone(tmp_path / "_background_noise_" / "pink.wav", seconds=10.5)
    task = clips.task(settings_of("speechcommands", tmp_path), "command")
    assert len(task.classes) == 12 and {"(unknown)", "(silence)", "yes"} <= set(task.classes)
    silence = task.clips[task.clips["label"] == task.classes.index("(silence)")]
    assert list(silence["offset"]) == list(range(10)) and (silence["duration"] == 1).all()
    assert task.notes == () and (task.clips["split"] == "test").sum() >= 12
    assert len(clips.task(settings_of("speechcommands", tmp_path), "word").classes) == 12


def test_any_list_with_a_column_of_labels_is_a_task(tmp_path):
    lines = []
    for i in range(40):
        tone(tmp_path / f"{i}.wav")
        lines.append({"audio_filepath": f"{i}.wav", "label": "ab"[i % 2], "speaker": f"s{i // 2}"})
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    _, tasks = clips.read(settings_of("jsonl", tmp_path))
    assert tasks == ("label",)
    task = clips.task(settings_of("jsonl", tmp_path), "label")
    assert task.notes == ("task label: divided by speaker",)
    with pytest.raises(
        UserError, match="unknown jsonl task .*laptop.yaml.* 'accent': choose one of label"
    ):
        clips.read(settings_of("jsonl", tmp_path, tasks=("accent",)))
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "list.jsonl").write_text('{"audio_filepath": "1.wav"}')
    with pytest.raises(UserError, match="no label: give the clips one of label, keyword"):
        clips.read(settings_of("jsonl", tmp_path / "bare"))


def key_of(settings, forget=FORGET):
    """What a new process would call a cell, and the embeddings that it goes on from."""
    for function in forget:
        function.cache_clear()
    step = aloe.cell(settings, "label", "logmel", 0)
    return step.key, [part.key for part in step.after]


def test_a_changed_label_or_split_is_another_cell_on_the_same_embeddings(tmp_path, monkeypatch):
    monkeypatch.setattr("alspeech.workshop.steps.ROOT", tmp_path)
    lines = []
    for i in range(40):
        tone(tmp_path / f"{i}.wav", 300 + 10 * i)
        split = ("pool", "pool", "validation", "test")[i // 2 % 4]
        lines.append({"audio_filepath": f"{i}.wav", "label": "ab"[i % 2], "split": split})
    settings, manifest = settings_of("jsonl", tmp_path), tmp_path / "list.jsonl"
    write = lambda: manifest.write_text("\n".join(map(json.dumps, lines)))  # noqa: E731
    write()
    key, embedded = key_of(settings)
    assert key_of(settings) == (key, embedded) and len(embedded) == 1
    task, X = aloe.load(settings, "label", "logmel")  # standardised over the pool alone
    assert np.abs(X[task.rows("pool")].mean(axis=0)).max() < 1e-4 < np.abs(X.mean(axis=0)).max()
    lines[7]["label"] = "a"
    write()
    assert key_of(settings)[0] != key and key_of(settings)[1] == embedded
    lines[7]["label"], lines[4]["split"] = "b", "pool"
    write()
    assert key_of(settings)[0] != key and key_of(settings)[1] == embedded
    lines[4]["split"] = "validation"
    write()
    assert key_of(settings) == (key, embedded)
    tone(tmp_path / "5.wav", 300, 0.3)  # another recording under an old name
    again, other = key_of(settings)
    assert again != key and other != embedded


@pytest.mark.skipif(not (SHARED / "esc10").exists(), reason="no ESC-10 beside the code")
def test_esc10_and_fsdd_as_they_are():
    sound = clips.task(settings_of("esc10", SHARED / "esc10"), "sound")
    assert len(sound.classes) == 10
    assert [len(sound.rows(split)) for split in clips.SPLITS] == [240, 80, 80]
    for name, classes in (("speaker", 6), ("digit", 10)):
        task = clips.task(settings_of("fsdd", SHARED / "fsdd"), name)
        assert len(task.classes) == classes and task.notes == ()
        assert [len(task.rows(split)) for split in clips.SPLITS] == [2400, 300, 300]


# ---------------------------------------------------------------- encoders


def waves(*seconds):
    return [0.1 * torch.sin(torch.arange(int(16000 * s)) / (9 + s)) for s in seconds]


def short_wav2vec2():
    """The architecture of the pretrained models, shortened, with random weights."""
    convolutions = [(16, 10, 5), (16, 8, 4), (16, 4, 4)]
    return torchaudio.models.wav2vec2_model(
        "group_norm", convolutions, False, 24, 0.0, 8, 2, 2, 2, 0.0, 32, 0.0, 0.0, False, 0.0, None
    )


def short_wavlm():
    convolutions = [(16, 10, 5), (16, 8, 4), (16, 4, 4)]
    return torchaudio.models.wavlm_model(
        "group_norm", convolutions, False, 24, 0.0, 8, 2, 2, 2, 8, 16, 0.0, 32, 0.0, 0.0, False,
        0.0, None,
    )  # fmt: skip


DAMAGE = {  # what became of a FLAC file, and the reason that is told
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:2000]), "audio truncated"),
    "empty": (lambda path: path.write_bytes(b""), "file empty"),
    "a page": (lambda path: path.write_text("<html>404 Not Found</html>"), "not audio"),
    "gone": (lambda path: path.unlink(), "file missing"),
    "no header": (lambda path: path.write_bytes(path.read_bytes()[200:]), "not audio"),
}


def wake_words(folder, count=30):
    """A small set of wake words as FLAC, a few of them damaged; returns the list's records."""
    rng, records = np.random.default_rng(0), []
    for i in range(count):
        path = folder / f"{i:02d}.flac"
        soundfile.write(path, 0.1 * rng.standard_normal(8000) * (1 + i % 3), 16000)
        records.append({"audio_filepath": path.name, "label": "abc"[i % 3]})
    return records


def write_list(folder, records):
    (folder / "list.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_damaged_clips_are_set_aside_before_any_embedding_and_the_rest_goes_on(root):
    data = root / "words"
    data.mkdir()
    records = wake_words(data)
    for number, (damage, _) in enumerate(DAMAGE.values()):
        damage(data / f"{4 * number:02d}.flac")
    nan = np.full(8000, np.nan)
    soundfile.write(data / "hole.wav", nan, 16000, subtype="FLOAT")
    records.append({"audio_filepath": "hole.wav", "label": "a"})
    records.append({"audio_filepath": "01.flac", "label": "a", "offset": 9.0, "duration": 0.3})
    write_list(data, records)
    preset = "aloe: {runs: 2, steps: 2, seed_clips: 1, epochs: 2, encoders: [logmel]}\n"
    (root / "configs" / "words.yaml").write_text(preset)
    command = ("run", "--system", "aloe", "--preset", "words", "--corpus", "jsonl")
    done = alspeech(root, *command, "--data", str(data), ALSPEECH_JOBS="1")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "7 clips are set aside: audio truncated (2), not audio (2)" in done.stdout
    assert "see build/jsonl-words/rejected_clips.csv" in done.stdout
    listed = pd.read_csv(root / "build" / "jsonl-words" / "rejected_clips.csv")
    reasons = dict(zip(listed["utt_id"], listed["reason"], strict=True))
    told = {f"{4 * number:02d}": reason for number, (_, reason) in enumerate(DAMAGE.values())}
    assert reasons == told | {"hole": "audio has NaN", "01@9": "audio truncated"}
    assert (root / "results" / "jsonl-words" / "aloe_table1.csv").exists()


def test_clips_are_looked_at_once_and_damage_changes_no_other_clip(tmp_path, monkeypatch):
    records = wake_words(tmp_path)
    write_list(tmp_path, records)
    settings, looked = settings_of("jsonl", tmp_path), []
    inspect = validation.inspect_audio
    note = lambda *what: looked.append(what[0]) or inspect(*what)  # noqa: E731
    monkeypatch.setattr(validation, "inspect_audio", note)
    key = key_of(settings)
    assert len(looked) == 30 and key_of(settings) == key and len(looked) == 30
    assert clips.set_aside(settings) == ()
    (tmp_path / "99.flac").write_bytes(b"fLaC")
    write_list(tmp_path, [*records, {"audio_filepath": "99.flac", "label": "a"}])
    assert key_of(settings) == key, "the same clips as before, under the same keys"
    (told,) = clips.set_aside(settings)
    assert told.startswith("1 clips are set aside: not audio (1): see build/jsonl-laptop/rejected")


def test_a_class_that_damage_makes_too_small_and_a_damaged_corpus_are_one_line(tmp_path):
    records = wake_words(tmp_path, 12)
    write_list(tmp_path, records)
    for i in (0, 3):
        (tmp_path / f"{i:02d}.flac").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"class 'a' has 2 clips: .*; 2 clips are set aside: file e"
    ):
        aloe.check(settings_of("jsonl", tmp_path))
    for i in range(12):
        (tmp_path / f"{i:02d}.flac").write_bytes(b"")
    for function in FORGET:
        function.cache_clear()
    with pytest.raises(
        UserError, match=r"12 of 12 clips cannot be used, .*'file empty'; see build"
    ):
        aloe.check(settings_of("jsonl", tmp_path))
    assert len(pd.read_csv(tmp_path / "build" / "jsonl-laptop" / "rejected_clips.csv")) == 12


def test_the_view_of_embeddings_does_not_depend_on_the_last_bits_of_sums():
    rng = np.random.default_rng(0)
    y = np.arange(600) % 4
    X = (rng.standard_normal((4, 64))[y] + rng.standard_normal((600, 64))).astype(np.float32)
    view = few_labels.two_dimensions(X, y)
    for _ in range(20):  # columns in another order: the same sums, added otherwise
        other = np.ascontiguousarray(X[:, rng.permutation(64)])
        assert np.array_equal(few_labels.two_dimensions(other, y), view)


def log_mel(settings=None):
    return encoders.ENCODERS["logmel"](settings, None)


def test_in_mandarin_the_first_character_is_a_task_and_the_only_accent_is_not(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("alspeech.workshop.steps.ROOT", tmp_path)
    settings = load_settings("mandarin")
    small = dataclasses.replace(settings.aloe, pool=40, validation=8, test=8)
    table, tasks = clips.read(dataclasses.replace(settings, aloe=small))
    assert tasks == ("voice_kind", "keyword")
    named = table[~table["keyword"].isin(["(other)", "(silence)"])]
    assert len(named) > 10 and (named["keyword"] == named["text"].str[0]).all()


@pytest.mark.parametrize("make", [log_mel, lambda: encoders.layers_of(short_wav2vec2().eval()),
                                  lambda: encoders.layers_of(short_wavlm().eval())],
                         ids=["logmel", "wav2vec2", "wavlm"])  # fmt: skip
def test_clips_of_unequal_length_get_embeddings_of_one_size_that_ignore_each_other(make):
    encode, clips_ = make(), waves(0.3, 0.05, 0.3, 1.0)
    together = encode(clips_)
    alone = torch.cat([encode([clip]) for clip in clips_])
    assert together.shape[0] == 4 and together.isfinite().all()
    assert (together - alone).abs().max() < 1e-4
    assert (together[0] - together[3]).abs().max() > 1e-3


def test_pretrained_weights_come_from_a_file_or_the_reason_why_not_in_one_line(tmp_path):
    settings = settings_of("esc10", "", weights=str(tmp_path))
    file = tmp_path / "wav2vec2_fairseq_base_ls960.pth"
    assert encoders.weights_file(settings, "wav2vec2") == file
    with pytest.raises(UserError, match=f"no file .*{file.name}: get .*download.pytorch.org"):
        encoders.load_pretrained(settings, "wav2vec2")
    torch.manual_seed(5)
    model = short_wav2vec2().eval()
    torch.save(model.state_dict(), file)
    loaded = encoders.load_pretrained(settings, "wav2vec2", make=short_wav2vec2)
    wave = waves(0.4)
    assert encoders.layers_of(loaded)(wave).equal(encoders.layers_of(model)(wave))
    with pytest.raises(UserError, match="is not hubert's weights"):
        other = dataclasses.replace(settings, aloe=dataclasses.replace(settings.aloe))
        (tmp_path / "hubert_fairseq_base_ls960.pth").write_bytes(file.read_bytes())
        encoders.load_pretrained(other, "hubert", make=short_wavlm)
    file.write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match="is not wav2vec2's weights"):
        encoders.load_pretrained(settings, "wav2vec2", make=short_wav2vec2)


def test_no_network_and_no_file_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="hubert's weights cannot be fetched .* weights in"):
        encoders.load_pretrained(settings_of("esc10", ""), "hubert")


def test_any_function_of_a_clip_is_an_encoder_and_nan_names_clip_and_encoder(tmp_path):
    tone(tmp_path / "a.wav")
    tone(tmp_path / "b.wav", rate=8000)
    rows = table(["x", "y"]).assign(path=[str(tmp_path / "a.wav"), str(tmp_path / "b.wav")])
    encode = encoders.each(lambda wave: [wave.square().mean(), len(wave)])
    vectors = encoders.embed(rows, encode, "mine")
    assert vectors[:, 1].tolist() == [3200, 3200]  # 8 kHz is brought to 16 kHz
    broken = encoders.each(lambda wave: torch.tensor([1.0, float("nan")]))
    with pytest.raises(UserError, match="clip c0: encoder mine returns NaN"):
        encoders.embed(rows, broken, "mine")
    part = rows.assign(offset=0.1, duration=[0.05, 0.01])
    with pytest.raises(UserError, match="clip c1: 10 ms is too short for an encoder, 25 ms"):
        encoders.embed(part, encode, "mine")
    with pytest.raises(UserError, match="unknown encoder 'ears': choose one of recogni.*logmel"):
        aloe.check_names(AloeConfig(encoders=("logmel", "ears")))


# ---------------------------------------------------------------- tables


def test_tables_hold_means_intervals_and_leads_paired_by_run():
    rows = []
    for run, (random, margin) in enumerate([(60, 66), (70, 74), (62, 70)]):
        for step in range(3):
            rows.append(("aware", "random", run, step, 10 + step, random, random + step))
            rows.append(("aware", "margin", run, step, 10 + step, margin, margin + step))
        rows.append(("all", "all", run, 0, 100, 90, 90))
    columns = ["mode", "strategy", "run", "step", "labels", "validation", "test"]
    curves = pd.DataFrame(rows, columns=columns).assign(task="t", encoder="e")
    runs = aloe.runs_table(curves, dataclasses.replace(CONFIG, patience=1, plateau=0.5))
    found = aloe.table1(runs, "e").set_index("strategy")
    assert found.loc["margin", "lead"] == pytest.approx(6)
    half = 4.302653 * 2 / math.sqrt(3)  # t(2 degrees of freedom) × deviation / √3
    assert found.loc["margin", "lead_low"] == pytest.approx(6 - half, abs=1e-4)
    assert found.loc["margin", "verdict"] == "better"
    assert found.loc["random", "test"] == pytest.approx(66) and found.loc["all", "test"] == 90
    assert runs.loc[runs["strategy"] == "margin", "stop_step"].tolist() == [1, 1, 1]
    compared = aloe.table2(runs).iloc[0]
    assert (compared["random"], compared["uncertainty"], compared["all"]) == (66, 72, 90)
    summary = aloe.curves_table(curves)
    assert len(summary) == 7 and summary["runs"].eq(3).all()


# ---------------------------------------------------------------- label mode


def test_answers_are_kept_when_the_widget_is_closed_half_way(tmp_path):
    task, X = blobs(classes=2)
    for i in range(len(X)):
        tone(tmp_path / f"{i}.wav", 200 + i, 0.05)
    paths = [str(tmp_path / f"{i}.wav") for i in range(len(X))]
    rows = table(task.labels).assign(path=paths)
    config, path = AloeConfig(epochs=100, rate=1e-2), tmp_path / "kept" / "answers.jsonl"
    make = lambda: Labeller(rows, torch.from_numpy(X), ["cat", "dog"], path, config=config)  # noqa: E731
    labeller = make()
    widget = labeller.widget()
    assert "<audio" in labeller.player.value and "0 of 80 answered" in labeller.progress.value
    buttons = {button.description: button for button in widget.children[1].children}
    asked = []
    for _ in range(12):
        asked.append(labeller.asked)
        buttons[["cat", "dog"][task.labels[labeller.row[labeller.asked]]]].click()
    buttons["none of these"].click()
    assert len(set(asked)) == 12 and "13 of 80 answered" in labeller.progress.value
    assert labeller.logits is not None and "it may be" in labeller.player.value
    again = make()  # the notebook was closed without a word
    assert again.answers == labeller.answers and again.next() == labeller.asked
    assert list(again.answers.values()).count(SKIP) == 1
    buttons["back"].click()
    assert len(make().answers) == 12
    told = again.labels()
    assert told["label"].notna().sum() == 13 and set(told["prediction"]) <= {"cat", "dog"}
    right = told["prediction"] == np.array(["cat", "dog"])[task.labels]
    assert right.mean() > 0.6
    with open(path, "a") as file:
        file.write('{"clip_id": "c0"')
    with pytest.raises(UserError, match="answers.jsonl:13: no answer: mend the line"):
        make()
    path.write_text('{"clip_id": "c0", "label": "horse"}\n')
    with pytest.raises(UserError, match="'c0' as 'horse' answers other clips, or is no"):
        make()
    with pytest.raises(UserError, match="'horse' is no class"):
        labeller.answer("c0", "horse")


# ---------------------------------------------------------------- the whole


def test_wrong_words_in_a_preset_are_one_line(root, monkeypatch):
    monkeypatch.setattr("alspeech.workshop.config.ROOT", root)
    wrong = {
        "aloe: {seed_clips: 0}": "aloe: seed_clips is 0: input should be .* or equal to 1",
        "aloe: {strategies: [margin]}": "aloe: strategies must name random",
        "aloe: {step: 9}": "odd.yaml: aloe: unknown key 'step'",
    }
    for text, reason in wrong.items():
        (root / "configs" / "odd.yaml").write_text(text)
        with pytest.raises(UserError, match=reason):
            load_settings("odd")
    with pytest.raises(UserError, match="unknown strategy 'wild': choose one of random, margin"):
        aloe.check_names(AloeConfig(strategies=("random", "wild")))
    with pytest.raises(UserError, match="unknown strategy 'wild': choose one of random, margin"):
        few_labels.simulate(*blobs(), [0], ["wild"], few_labels.MODES, CONFIG)


def test_sounds_without_transcripts_are_for_aloe_only(root):
    done = alspeech(root, "check", "--corpus", "esc10", "--data", str(root))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "esc10 has labels but no transcripts: use it with make aloe" in done.stderr


def notebook_has_written(root: Path, run: str) -> None:
    figures, results = root / "figures" / run, root / "results" / run
    for name in ("uncertainty", "functions", "embedding"):
        assert (figures / f"fig_aloe_{name}.png").stat().st_size > 10_000
    assert {path.name for path in results.glob("*aloe*")} == {
        "aloe_curves.csv", "aloe_runs.csv", "aloe_table1.csv", "aloe_table2.csv",
        "provenance_aloe.json",
    }  # fmt: skip


def test_the_notebook_runs_on_the_embedded_corpus(executed):
    notebook_has_written(executed, "synthetic-small")


@pytest.mark.skipif(not (SHARED / "esc10").exists(), reason="no ESC-10 beside the code")
def test_the_notebook_runs_on_sounds(spoken_root):
    root = spoken_root
    (root / "results").mkdir()
    for path in (REPOSITORY / "results").glob("paper_aloe_table*.csv"):
        shutil.copy(path, root / "results")
    with open(root / "configs" / "tiny.yaml", "a") as file:
        file.write(TINY)
    path = str(REPOSITORY / "notebooks" / "7_aloe.ipynb")
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, "tiny", "esc10", str(SHARED / "esc10"), path],
        # no workers, whose imports would take longer than the work
        env={**os.environ, "ALSPEECH_ROOT": str(root), "ALSPEECH_JOBS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    notebook_has_written(root, "esc10-tiny")
