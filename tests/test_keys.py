"""Which edit could change a folder without changing its key? None of these.

What a step runs, reads and opens is seen while it is computed (companion.py), by other means than
those that find its key.
"""

import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys

import companion
import pytest
from companion import STEPS, tone
from conftest import REPOSITORY

from alspeech import experiment
from alspeech.sisters import aloe, loss_prediction, pseudo_labels
from alspeech.speech import clips, corpus, readers
from alspeech.workshop import sources, steps
from alspeech.workshop.config import Draw, load_settings
from alspeech.workshop.errors import UserError
from alspeech.workshop.steps import Step

PACKAGE = REPOSITORY / "src" / "alspeech"


@pytest.fixture
def edit(monkeypatch):
    """Edits a module as a new process would find it: ``edit(module, old, new)``."""
    original = dict(sources._SOURCES)
    monkeypatch.setattr(sources, "_SOURCES", dict(original))
    # as it is, but remembering by the source
    outline, known = sources._outline.__wrapped__, {}
    monkeypatch.setattr(sources, "_digest", sources._digest.__wrapped__)

    def remembered(module):
        text = sources._SOURCES[module]
        if (module, text) not in known:
            known[module, text] = outline(module)
        return known[module, text]

    monkeypatch.setattr(sources, "_outline", remembered)

    def change(module, old="", new="# edited\n"):
        assert old in original[module]
        sources._SOURCES.update(original)
        text = original[module]
        sources._SOURCES[module] = text.replace(old, new, 1) if old else text + new

    return change


# ---------------------------------------------------------------- code

# modules that steps run and that are not in their keys
LEFT_OUT = {
    "workshop.config": "its values are in the keys (test_every_setting_that_is_read…)",
    "workshop.sections": "its values are, too",
    "workshop.scenarios": "its values are, too",
    "workshop.errors": "says what is wrong, and ends the step",
    "workshop.processes": "how many processes, and how they end",
    "workshop.sources": "finds keys",
    "workshop.steps": "finds folders and says what is computed",
    "workshop.store": "how files are written whole; of what a table is rounded to (six digits) a "
    "change is told in CONTRIBUTING.md",
}


@pytest.mark.parametrize("name", STEPS)
def test_every_function_that_a_step_runs_is_in_its_key(computed, name):
    seen = computed.seen[name]
    known = sources.reached(frozenset(sources._beginnings(seen.step.compute)))
    whole = {place.module for place in known if not place.name}
    names = {(place.module, place.name) for place in known}

    def has(module, function):
        parts = function.split(".")
        return any((module, ".".join(parts[:n])) in names for n in range(1, len(parts) + 1))

    ran = {(module, function) for module, function, _ in seen.ran}
    missing = {(m, f) for m, f in ran if m not in whole and not has(m, f)}
    assert {module for module, _ in missing} <= LEFT_OUT.keys(), missing
    assert len(ran) > 3


def test_what_is_left_out_is_run(computed):
    ran = {module for seen in computed.seen.values() for module, *_ in seen.ran}
    assert LEFT_OUT.keys() <= ran and not any("__init__" in module for module in ran)


def test_an_edit_of_any_function_that_a_step_runs_changes_its_key(computed, edit):
    """Every edit by itself; of modules that count as a whole one will do."""
    places = {}
    for name, seen in computed.seen.items():
        for module, function, line in seen.ran:
            if module not in LEFT_OUT:
                by_name = "Step" in sources._outline(module)[1]
                places.setdefault((module, line if by_name else 1), {})[name] = function
    before = {name: sources.code(seen.step.compute) for name, seen in computed.seen.items()}
    assert len(places) > 30
    for (module, line), steps_ in places.items():
        lines = sources._SOURCES[module].splitlines(keepends=True)
        edit(module)
        lines[line - 1] = lines[line - 1].rstrip("\n") + "  # edited\n"
        sources._SOURCES[module] = "".join(lines)
        for name, function in steps_.items():
            changed = sources.code(computed.seen[name].step.compute) != before[name]
            assert changed, (name, module, function)


@pytest.mark.parametrize("name", STEPS)
def test_every_folder_that_a_step_opens_is_of_a_step_before_it(computed, name):
    step, before = computed.seen[name].step, set()

    def add(later):
        for known in later.after:
            before.add(known.key)
            add(known)

    add(step)
    opened = computed.seen[name].opened
    assert {key: name for key, name in opened.items() if key not in before} == {}


# (module, what is edited, and which steps of the table in CONTRIBUTING.md stay as they are)
SELECTED = {"selection", "in clusters", "round of a selection", "argument"}
KEPT = [
    ("acquisition", "def entropy(", {"base", "cell", "all", "joint", "whole pool", "warm-up",
                                     "hard", "embeddings", "run", "corpus", "features"}),
    ("querying", "def query(", {"base", "cell", "joint", "warm-up", "hard", "features"}),
    ("experiment", "def grid(", set(STEPS)),
    ("experiment", "def run(", set(STEPS)),
    ("selection", "def badge(", set(STEPS) - SELECTED),
    ("embeddings", "def sketch(", set(STEPS) - {"first pass", *SELECTED}),
    ("tables", "def table1(", set(STEPS)),
    ("statistics", "\nimport", set(STEPS)),
    ("workshop.plots", "\nimport", set(STEPS)),
    ("sisters.loss_prediction", "def quality(", set(STEPS)),
    ("sisters.pseudo_labels", "def _tables(", set(STEPS)),
    ("sisters.aloe", "def table1(", set(STEPS)),
    ("sisters.aloe", "def run(", set(STEPS)),
    ("speech.corpus", "def check(", set(STEPS)),
    ("speech.clips", "def read_esc10(", set(STEPS)),
    ("speech.readers", "def read_kaldi(", set(STEPS) - {"recordings"}),
    ("speech.synthesis", "def serve(", set(STEPS) - {"corpus"}),
    ("studies", "def run(", set(STEPS)),
    ("studies", "def row_of(", set(STEPS)),
    ("lessons", "\nimport", set(STEPS)),
    ("claims", "\nimport", set(STEPS)),
    ("sisters.slimipl", "def plan(", {*companion.FIGURES, *companion.STUDIES,
                                     *companion.LOSS_PREDICTION, "run"}),
    ("sisters.joint", "\nimport", {*companion.FIGURES, *companion.STUDIES,
                                   *companion.PSEUDO_LABELS, "run"}),
    ("training", "def fit(", {"corpus", "features", "recordings", "digits", "log-mel", "run"}),
]  # fmt: skip


@pytest.mark.parametrize("module, old, kept", KEPT)
def test_an_edit_elsewhere_changes_no_code(computed, edit, module, old, kept):
    before = {name: sources.code(seen.step.compute) for name, seen in computed.seen.items()}
    edit(module, old, f"# edited\n{old}")
    after = {name: sources.code(seen.step.compute) for name, seen in computed.seen.items()}
    assert {name for name in kept if after[name] != before[name]} == set()


@pytest.mark.parametrize("module, old, new, changed", [
    # a step's own function, and what it calls in its module
    ("experiment", "updates=config.base_updates", "updates=1", {"base"}),
    ("experiment", "rate=rate, measured=1", "rate=1, measured=1", {"cell", "all"}),
    ("sisters.loss_prediction", '"rate": config.rate', '"rate": 1.0', {"joint", "whole pool"}),
    ("sisters.pseudo_labels", 'data.split("base"), data', 'data.split("test"), data', {"hard"}),
    ("speech.corpus", "sorted(chosen)]", "sorted(chosen)[:9]]", {"cell", "all", "round",
                                                                 "second round"}),
    ("studies", "seed + 1000 * number", "seed", {"first round", "second round", "batch"}),
    ("studies", 'read_csv(before.folder()', 'read_csv(folder', {"second round"}),
    ("querying", "reindex(pool", "reindex(known", {"oracle", "clusters", "first round"}),
    ("acquisition", "kmeans2(points", "kmeans2(-points", {"clusters", "in clusters"}),
    ("embeddings", "hidden.mean", "2 * hidden.mean", {"first pass"}),
    ("selection", "1e-300", "1e-200", {"in clusters", "selection"}),
    ("sisters.aloe", "enumerate(ids)", "enumerate(ids[::-1])", {"run"}),
    # constants, and what is added at a module's end
    ("sisters.loss_prediction", '{"weight": 0.0}', '{"weight": 0.1}', {"joint"}),
    ("acquisition", "", 'ACQUISITIONS["mine"] = entropy\n', {"scores", "round", "its scores"}),
])  # fmt: skip
def test_an_edit_of_what_a_step_does_changes_its_code(computed, edit, module, old, new, changed):
    before = {name: sources.code(computed.seen[name].step.compute) for name in changed}
    edit(module, old, new)
    for name in changed:
        assert sources.code(computed.seen[name].step.compute) != before[name], name


KEYS = """
from alspeech.experiment import base_model, cell
from alspeech.sisters import loss_prediction, pseudo_labels
from alspeech.workshop.config import load_settings
settings = load_settings("smoke")
base = base_model(settings, 1)
others = loss_prediction.whole_pool(settings, 1), pseudo_labels.warm_up(settings, 1)
print(*(step.key for step in (base, *base.after, *others)))
"""


def test_a_key_is_the_same_in_every_process_until_the_function_is_edited(tmp_path):
    folder = shutil.copytree(PACKAGE, tmp_path / "src" / "alspeech")
    for path, old, new in [
        # not of the base model
        ("tables.py", "def table1", "# for reading\ndef table1"),
        ("experiment.py", "def grid", "# in order\ndef grid"),
        # of these two
        ("sisters/loss_prediction.py", '"targets_left_out": left', '"targets_left_out": 1 + left'),
        ("sisters/pseudo_labels.py", "wer_best", "best_wer"),
    ]:
        text = (folder / path).read_text()
        assert old in text
        (folder / path).write_text(text.replace(old, new))
    paths = {"PYTHONPATH": str(tmp_path / "src"), "ALSPEECH_ROOT": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", KEYS], capture_output=True, text=True,
        env={**os.environ, **paths, "PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    settings = load_settings("smoke")
    base = experiment.base_model(settings, 1)
    others = loss_prediction.whole_pool(settings, 1), pseudo_labels.warm_up(settings, 1)
    own, found = [step.key for step in (base, *base.after, *others)], done.stdout.split()
    assert found[:2] == own[:2] and found[2] != own[2] and found[3] != own[3]


@pytest.mark.parametrize("line", ["from .room import two", "def f():\n    from .room.two import g"])
def test_a_module_counts_with_all_that_it_imports_wherever_it_does(edit, line):
    new = {"one": "", "room.__init__": "", "room.two": "from . import three", "room.three": "x = 1"}
    sources._SOURCES.update(new)
    place = frozenset([sources.Place("one")])
    before = sources._digest(place)
    sources._SOURCES["one"] = line
    assert {p.module for p in sources.reached(place)} == {"one", "room.two", "room.three"}
    changed = sources._digest(place)
    sources._SOURCES["room.three"] = "x = 2"
    assert len({before, changed, sources._digest(place)}) == 3


def test_a_step_of_your_own_has_no_source_here():
    assert sources.code(lambda folder: None) == sources.code(print) != ""


def test_a_module_edited_before_it_was_imported_is_told(edit):
    step = experiment.base_model(load_settings("smoke"), 0)
    edit("experiment", '"""The paper', '\n"""The paper')
    with pytest.raises(UserError, match=r"experiment\.py was edited .*: start it again"):
        sources.code(step.compute)


def test_versions_and_data_files_are_in_the_key(computed, edit, monkeypatch):
    code = lambda name: sources.code(computed.seen[name].step.compute)  # noqa: E731
    before = {name: code(name) for name in STEPS}
    monkeypatch.setitem(sources._DATA, "embedded.yaml", b"other sentences")
    changed = {name for name in STEPS if code(name) != before[name]}
    assert changed == {"corpus", "digits"}  # digits have their names from there
    monkeypatch.undo()
    files = [path for path in PACKAGE.rglob("*.*") if path.parent.name != "__pycache__"]
    names = {path.name for path in files if path.suffix != ".py"}
    assert names - sources._DATA.keys() == {  # of figures, those that play too
        "alspeech.mplstyle", "playable.css", "playable.js", "ranking.js", "error_curves.js",
        "egl_by_hand.js",
    }  # fmt: skip
    version = sources._version
    for package, used in [
        ("torch", {"features", "base", "run"}), ("espeakng_loader", {"corpus"}),
        ("jiwer", {"base"}), ("scipy", {"corpus"}), ("soundfile", {"features", "log-mel"}),
        ("numba", {"scores", "run"}), ("torchaudio", {"features", "log-mel"}),
    ]:  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sources, "_digest", sources._digest.__wrapped__)
            newer = lambda name, of=package: "9.9" if name == of else version(name)  # noqa: E731
            assert version(package) is not None
            patch.setattr(sources, "_version", newer)
            assert all(code(name) != before[name] for name in used), package


# ---------------------------------------------------------------- settings

# why fields of the settings that a step reads need not be in its key
NOT_NEEDED = {
    "": {"preset": "names the file in a message"},
    "ctc_only": {"hybrid": "the variant says"},
    "warm-up": {
        **dict.fromkeys(("cache", "replacement"), "nothing is unlabelled there"),
        **dict.fromkeys(("every", "rate", "dropout"), "it has its own"),
    },
}
NOT_NEEDED["from scratch"] = dict.fromkeys(("updates", "refit"), "it is told")
FREE = ("blocks", "rate", "cache", "replacement")  # it has free_blocks, free_rate …
NOT_NEEDED |= dict.fromkeys(("prior", "sampled"), dict.fromkeys(FREE[1:], "regime"))


def other(value):
    """Another value of the same kind."""
    words = {"lstm": "gru", "log-mel": "spectrogram", "en": "cmn", "english": "learned"}
    words |= {"ranking": "smooth_l1", "token": "utterance", "": "house", "on": "scratch"}
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return words.get(value, f"{value}-")
    if value is None or isinstance(value, Draw):
        return Draw(pause=1.0)
    if value == ():  # a scenario's sizes, and groups
        return (("pool", 7),)
    if dataclasses.is_dataclass(value):
        return dataclasses.replace(value, seed=9) if hasattr(value, "seed") else value
    if value and isinstance(value[0], str):
        return (*value, "more")
    return (*value[:-1], other(value[-1]))


@pytest.mark.parametrize("name", STEPS)
def test_every_setting_that_is_read_changes_the_key(house, name):
    """Of sections their fields are meant; the value that is read is changed."""
    # which utterances are queried is another question, and what a changed preset would train first
    for module in (experiment, pseudo_labels):
        house.patch.setattr(module, "queried", lambda *_: ["pool-00001"])
    house.patch.setattr(aloe, "embedded", lambda own: dataclasses.replace(own, corpus="synthetic"))
    settings, missing = house.settings[name], set()
    step = house.step(name)
    for section, field in house.seen[name].read - {("", x) for x in companion.SECTIONS}:
        old = getattr(settings, section) if section else settings
        if (section, field) in {("", "data"), ("", "corpus")}:
            continue  # what lies there: see below; and a corpus's steps have its name
        change = {field: other(getattr(old, field))}
        if field in ("language", "alphabet"):  # of the embedded corpus: one goes with the other
            change = {"language": "cmn", "alphabet": "learned"}
        if field in ("column", "groups"):  # so do these
            change = {"group": "who", "column": "speaker", "groups": (("one", ("ada",)),)}
        new = dataclasses.replace(old, **change)
        changed = dataclasses.replace(settings, **{section: new}) if section else new
        if house.step(name, changed).key == step.key:
            missing.add(field)
    assert missing - NOT_NEEDED[""].keys() == NOT_NEEDED.get(name, {}).keys()


@pytest.mark.parametrize("field", FREE)
def test_the_free_regime_s_own_values_are_in_its_key(house, field):
    settings, name = house.settings["prior"], f"free_{field}"
    value = other(getattr(settings.pseudo_labels, name))
    config = dataclasses.replace(settings.pseudo_labels, **{name: value})
    changed = dataclasses.replace(settings, pseudo_labels=config)
    assert house.step("prior", changed).key != house.step("prior").key


def test_an_encoder_s_weights_and_the_end_of_a_collapsed_warm_up_are_in_the_key(house, tmp_path):
    settings = house.settings["base"]
    collapse = dataclasses.replace(settings.pseudo_labels, collapsed=0.9)
    keys = {pseudo_labels.warm_up(settings, 0).key}
    keys |= {pseudo_labels.warm_up(dataclasses.replace(settings, pseudo_labels=collapse), 0).key}
    recorded = house.settings["run"]
    weights = dataclasses.replace(recorded.aloe, weights=str(tmp_path))
    for encoder in ("logmel", "wav2vec2"):
        keys.add(aloe.embeddings_part(recorded, encoder, 0).key)
    for size in (1, 2):
        (tmp_path / "wav2vec2_fairseq_base_ls960.pth").write_bytes(size * b"x")
        keys.add(
            aloe.embeddings_part(dataclasses.replace(recorded, aloe=weights), "wav2vec2", 0).key
        )
    assert len(keys) == 2 + 2 + 2


def test_clips_of_the_embedded_corpus_have_their_sizes_and_their_voice_in_the_key(monkeypatch):
    made = []

    class Described(Exception):
        pass

    def describe(*what, **more):
        made.append(Step(*what, **more))
        raise Described

    monkeypatch.setattr(clips, "Step", describe)
    settings = load_settings("smoke")
    for changed in ({}, {"pool": 7}, {"validation": 7}, {"test": 7}):
        config = dataclasses.replace(settings.aloe, **changed)
        with pytest.raises(Described):
            clips.read_synthetic(dataclasses.replace(settings, aloe=config))
    assert len({step.key for step in made}) == 4
    found = sources.reached(frozenset(sources._beginnings(made[0].compute)))
    whole = {place.module for place in found if not place.name}
    assert whole == {"speech.synthesis", "speech.phrases", "speech.manifests", "speech.text"}


# ---------------------------------------------------------------- data


def forget():
    for cached in (readers.read, clips.read, clips.task, corpus.corpus, aloe._embeddings_of):
        cached.cache_clear()


@pytest.fixture(autouse=True)
def forgotten():
    yield
    forget()


def untouched(change):
    """A change of a file that leaves its size, if it can, and its time."""

    @functools.wraps(change)
    def changed(path, *what):
        before = path.stat()
        change(path, *what)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    return changed


@untouched
def swap(path, key, first=0, second=1):
    """Two lines of a list change their values of a key."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    one, two = lines[first], lines[second]
    assert one[key] != two[key]
    one[key], two[key] = two[key], one[key]
    path.write_text("\n".join(map(json.dumps, lines)))


@untouched
def edited(path, old, new):
    text = path.read_text()
    assert old in text and len(old) == len(new)
    path.write_text(text.replace(old, new, 1))


def key(step) -> str:
    forget()
    return step().key


LINES = [
    ("audio_filepath", 0, 1), ("text", 0, 1), ("offset", 0, 1), ("duration", 0, 1),
    ("split", 0, 1), ("speaker", 0, 1), ("room", 0, 1), ("label", 0, 4),
]  # fmt: skip


@pytest.mark.parametrize("column, first, second", LINES)
def test_whatever_a_list_says_of_an_utterance_is_in_the_key_of_its_corpus(
    tmp_path, column, first, second
):
    folder = companion.record(tmp_path / "mine")
    make = lambda: corpus.features(load_settings("smoke", "jsonl", str(folder)))  # noqa: E731
    before = key(make)
    assert key(make) == before
    swap(folder / "list.jsonl", column, first, second)
    assert key(make) != before
    swap(folder / "list.jsonl", column, first, second)
    assert key(make) == before


@pytest.mark.parametrize("file, old, new", [
    ("text", "a yes", "a no "), ("utt2spk", "a ada", "a eve"), ("spk2gender", "ada f", "ada m"),
    ("segments", "a r 0.0 1", "a r 0.1 1"), ("wav.scp", "r x.wav", "r y.wav"),
    ("spk2age", "ada 31", "ada 13"),
])  # fmt: skip
def test_whatever_a_kaldi_directory_says_is_in_the_key_of_its_corpus(tmp_path, file, old, new):
    for name in "xy":  # of equal size and time
        tone(tmp_path / f"{name}.wav", 300)
        os.utime(tmp_path / f"{name}.wav", (1, 1))
    says = {"text": "a yes\nb no\n", "utt2spk": "a ada\nb bob\n", "spk2gender": "ada f\nbob m\n",
            "spk2age": "ada 31\nbob 8\n",
            "segments": "a r 0.0 1\nb r 1 2\n", "wav.scp": "r x.wav\n"}  # fmt: skip
    for name, text in says.items():
        (tmp_path / name).write_text(text)
    make = lambda: corpus.corpus(load_settings("smoke", "kaldi", str(tmp_path)))  # noqa: E731
    before = key(make)
    edited(tmp_path / file, old, new)
    assert key(make) != before


def test_a_recording_that_was_exchanged_or_renamed_is_in_the_key(tmp_path):
    folder = companion.digits(tmp_path / "fsdd")
    joined = lambda: corpus.corpus(load_settings("smoke", "fsdd", str(folder)))  # noqa: E731
    first = folder / "recordings" / "0_ada_0.wav"
    keys = [key(joined)]
    tone(first, 900)
    keys.append(key(joined))
    first.rename(first.with_name("0_eve_0.wav"))
    keys.append(key(joined))
    read = lambda: corpus.corpus(load_settings("smoke", "jsonl", str(mine)))  # noqa: E731
    mine = companion.record(tmp_path / "mine")
    keys.append(key(read))
    tone(mine / "00.wav", 900, 1.5)
    assert len({*keys, key(read)}) == 5


def run_of(corpus_name, folder, task):
    """The keys of an ALOE run and of its embeddings, as a new process finds them."""
    smoke = load_settings("smoke", corpus_name, str(folder))
    config = dataclasses.replace(smoke.aloe, seed_clips=1)
    step = aloe.cell(dataclasses.replace(smoke, aloe=config), task, "logmel", 0)
    return step.key, [part.key for part in step.after]


def check_labels(read, change, embeddings_stay=True):
    forget()
    before = read()
    forget()
    assert read() == before
    change()
    forget()
    after = read()
    assert after[0] != before[0] and (after[1] == before[1]) == embeddings_stay


@pytest.mark.parametrize("column, first, second", [
    *LINES[:1], *LINES[2:5], LINES[-1],
])  # fmt: skip
def test_whatever_a_list_says_of_a_clip_is_in_the_key_of_a_run(tmp_path, column, first, second):
    folder = companion.record(tmp_path / "mine")
    list_ = folder / "list.jsonl"
    lines = [json.loads(line) for line in list_.read_text().splitlines()]
    for i, line in enumerate(lines):  # clips of equal size and time, that keep their names
        line["utt_id"] = f"u{i}"
        tone(folder / line["audio_filepath"], 200 + 20 * i, 1.5)
        os.utime(folder / line["audio_filepath"], (1, 1))
    lines[1]["split"] = "validation" if column == "split" else lines[1]["split"]
    list_.write_text("\n".join(map(json.dumps, lines)))
    check_labels(
        lambda: run_of("jsonl", folder, "label"),
        lambda: swap(list_, column, first, second),
        embeddings_stay=column in ("label", "split"),
    )


@pytest.mark.parametrize("task, column", [("speaker", "speaker"), ("emotion", "emotion")])
def test_every_column_of_labels_is_in_the_key_of_a_run(tmp_path, task, column):
    folder = companion.record(tmp_path / "mine")
    list_ = folder / "list.jsonl"
    lines = [json.loads(line) for line in list_.read_text().splitlines()]
    for i, line in enumerate(lines):
        del line["label"]
        line |= {"speaker": "ab"[i // 4 % 2], "emotion": "cd"[i // 8 % 2]}
    list_.write_text("\n".join(map(json.dumps, lines)))
    check_labels(
        lambda: run_of("jsonl", folder, task),
        lambda: swap(list_, column, 0, 12) if task == "emotion" else swap(list_, column, 0, 4),
    )


@pytest.mark.parametrize("new", ["0.wav,dogs,1", "0.wav,rain,4"])
@pytest.mark.parametrize("official", [True, False])
def test_what_esc10_says_is_in_the_key_of_a_run(tmp_path, official, new):
    (tmp_path / "audio").mkdir()
    (tmp_path / "meta").mkdir()
    rows = [f"{i:02d}.wav,{('rain', 'dogs')[i % 2]},{1 + i // 4}" for i in range(20)]
    header = "filename,category,fold" if official else "path,label,fold"
    if not official:
        rows = [f"audio/{row}" for row in rows]
    file = tmp_path / "meta" / "esc50.csv" if official else tmp_path / "labels.csv"
    file.write_text("\n".join([header, *rows]))
    for i in range(20):
        tone(tmp_path / "audio" / f"{i:02d}.wav", 300 + 10 * i)
    check_labels(
        lambda: run_of("esc10", tmp_path, "sound"), lambda: edited(file, "0.wav,rain,1", new)
    )


@pytest.mark.parametrize("what", ["speaker's split", "name", "recording"])
def test_what_vocalsound_says_is_in_the_key_of_a_run(tmp_path, what):
    for name in ("audio_16k", "meta"):
        (tmp_path / name).mkdir()
    for speaker in range(9):
        for sound in ("cough", "sneeze"):
            tone(tmp_path / "audio_16k" / f"f{speaker}_0_{sound}.wav", 300 + 10 * speaker)
    for split, speakers in {"tr": "0123456", "val": "7", "te": "8"}.items():
        (tmp_path / "meta" / f"{split}_meta.csv").write_text("".join(f"f{s}\n" for s in speakers))
    first = tmp_path / "audio_16k" / "f0_0_cough.wav"
    changes = {
        "speaker's split": lambda: [
            edited(tmp_path / "meta" / "val_meta.csv", "f7", "f6"),
            edited(tmp_path / "meta" / "tr_meta.csv", "f6", "f7"),
        ],
        "name": lambda: first.rename(first.with_name("f0_0_sneeze.wav")),
        "recording": lambda: tone(first, 900, 0.5),
    }
    check_labels(
        lambda: run_of("vocalsound", tmp_path, "sound"),
        changes[what], embeddings_stay=what == "speaker's split",
    )  # fmt: skip


def test_the_words_and_lists_of_speech_commands_are_in_the_key_of_a_run(tmp_path):
    for word in ("yes", "no"):
        (tmp_path / word).mkdir()
        for speaker in "abcdef":
            tone(tmp_path / word / f"{speaker}_nohash_0.wav", 300)
    listed = {"validation": "e", "testing": "f"}
    for name, speaker in listed.items():
        names = [f"{word}/{speaker}_nohash_0.wav\n" for word in ("yes", "no")]
        (tmp_path / f"{name}_list.txt").write_text("".join(names))
    check_labels(
        lambda: run_of("speechcommands", tmp_path, "word"),
        lambda: edited(tmp_path / "validation_list.txt", "yes/e", "yes/d"),
    )


def test_which_clips_are_queried_is_in_the_key_of_a_cell(house):
    settings, keys = house.settings["cell"], set()
    for chosen in (["pool-00001"], ["pool-00002"], ["pool-00001", "pool-00002"]):
        for module in (experiment, pseudo_labels):
            house.patch.setattr(module, "queried", lambda *_, ids=chosen: ids)
        keys.add(experiment.cell(settings, "entropy", 20, 0).key)
        keys.add(house.step("hard").key)
    assert len(keys) == 6
    assert house.root == steps.ROOT
