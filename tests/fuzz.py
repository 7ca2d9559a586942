"""Malformed corpora of every layout through ``check``: ``make fuzz N=10000 SEED=0``.

A corpus is drawn as a tree of files, whole, and then damaged in one to three ways (``KINDS``). What
a person sees of ``python -m alspeech check`` must be a report, or one line that says what is wrong:
no traceback, no line above 300 characters, nothing half-written. Where that fails hypothesis looks
for the smallest corpus that fails in the same way, and this is kept in build/fuzz.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import hypothesis
import numpy as np
import pandas as pd
import soundfile
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

# what hypothesis keeps between runs does not belong into the repository
set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "hypothesis")
REPOSITORY = Path(__file__).resolve().parents[1]
LONGEST = 300  # characters of a line
SECONDS = 60  # after which a check is called endless
MEMORY = 6 * 2**30  # bytes that a check of ten tiny recordings may take
PRESETS = {  # tiny splits; the second allows what the first refuses
    "strict": "build: {base: 3, pool: 3, validation: 2, test: 2}\naloe: {seed_clips: 1}\n",
    "lax": "build: {base: 1, pool: 9, validation: 1, test: 9, alphabet: learned, outside: true,\n"
    "  min_seconds: 1.e-5, max_seconds: 1.e+3}\naloe: {seed_clips: 1, runs: 1}\n",
}

# ---------------------------------------------------------------- whole corpora: {path: content}

LINK, FOLDER = "link", "folder"  # in the place of bytes: (LINK, target), (FOLDER,)


@functools.cache
def audio(format="WAV", rate=8000, seconds=0.5, kind="noise", channels=1, subtype=None) -> bytes:
    """A recording's bytes."""
    samples = 0.1 * np.random.default_rng(0).standard_normal((int(seconds * rate), channels))
    samples *= {"noise": 1, "zeros": 0, "NaN": np.nan, "infinite": np.inf, "huge": 1e30}[kind]
    file = io.BytesIO()
    with np.errstate(invalid="ignore"):
        soundfile.write(file, samples, rate, format=format, subtype=subtype)
    return file.getvalue()


def rows(*lines: str) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


WORDS = ("yes", "no thanks", "It's on.", "up", "down")
SPLITS = ("none", "by file", "by folder", "in the list")
PEOPLE = ("ada", "bob", "cyd", "dee", "eve", "fay")


def jsonl(split: str) -> dict:
    tree, lists = {}, {}
    for i in range(12):
        tree[f"u{i}.wav"] = audio()
        record = {"audio_filepath": f"u{i}.wav", "text": WORDS[i % 3], "speaker": PEOPLE[i % 6]}
        record |= {"label": WORDS[i % 2]}
        if split == "in the list":
            record["split"] = ("base", "pool", "dev", "test")[i % 4]
        name = f"{('base', 'pool', 'dev', 'test')[i % 4]}.jsonl" if split == "by file" else "m.json"
        lists.setdefault(name, []).append(json.dumps(record, ensure_ascii=False))
    return tree | {name: rows(*lines) for name, lines in lists.items()}


def kaldi(split: str) -> dict:
    tree = {}
    for number, folder in enumerate(("train/", "dev/", "test/") if split == "by folder" else ("",)):
        names = [f"r{number}{i}" for i in range(4 if folder else 10)]
        tree |= {f"{folder}{name}.wav": audio() for name in names}
        tree[f"{folder}wav.scp"] = rows(*(f"{name} {name}.wav" for name in names))
        tree[f"{folder}text"] = rows(*(f"{n} {WORDS[i % 2]}" for i, n in enumerate(names)))
        people = [f"{name} {PEOPLE[i % 3]}" for i, name in enumerate(names)]
        tree[f"{folder}utt2spk"] = rows(*people)
        tree[f"{folder}spk2gender"] = rows(*(f"{name} f" for name in PEOPLE))
        if split == "in the list":
            tree[f"{folder}segments"] = rows(*(f"{name} {name} 0.1 0.45" for name in names))
    return tree


def librispeech(split: str) -> dict:
    tree = {}
    subsets = ("train-clean-100", "dev-clean", "test-other")
    for number, subset in enumerate(subsets if split == "by folder" else subsets[:1]):
        for speaker in range(2 if split == "by folder" else 5):
            chapter = f"{number}{speaker}-7"
            folder = f"LibriSpeech/{subset}/{number}{speaker}/7"
            names = [f"{chapter}-000{i}" for i in range(2)]
            tree |= {f"{folder}/{name}.flac": audio("FLAC") for name in names}
            tree[f"{folder}/{chapter}.trans.txt"] = rows(*(f"{name} YES" for name in names))
    return tree


def speechcommands(split: str) -> dict:
    names = [f"{word}/{who}_nohash_0.wav" for word in WORDS[3:] for who in PEOPLE]
    tree = {name: audio() for name in names} | {"_background_noise_/hum.wav": audio(seconds=3)}
    if split != "none":
        tree |= {"validation_list.txt": rows(names[0], names[6])}
        tree |= {"testing_list.txt": rows(names[1], names[7])}
    return tree


def fsdd(split: str) -> dict:
    indices, people = (0, 5, 10, 11, 22, 23), PEOPLE[: 1 if split == "none" else 2]
    names = [f"recordings/{d}_{who}_{i}.wav" for d in (0, 7) for who in people for i in indices]
    return {name: audio(seconds=0.2) for name in names}


def esc10(split: str) -> dict:
    names = [f"{fold}-{i}.wav" for fold in range(1, 6) for i in range(2)]
    tree = {f"audio/{name}": audio() for name in names}
    lines = [f"{name},{name[0]},{i % 2},{('dog', 'rain')[i % 2]},True" for i, name in
             enumerate(names)]  # fmt: skip
    return tree | {"meta/esc50.csv": rows("filename,fold,target,category,esc10", *lines)}


def vocalsound(split: str) -> dict:
    tree = {f"audio_16k/f{i}_0_{sound}.wav": audio() for i in range(6) for sound in
            ("cough", "laughter")}  # fmt: skip
    lists = {"tr": range(3), "val": range(3, 5), "te": range(5, 6)}
    for name, who in lists.items():
        if split == "in the list":
            data = [{"wav": f"x/f{i}_0_cough.wav"} for i in who]
            tree[f"datafiles/{name}.json"] = json.dumps({"data": data}).encode()
        else:
            tree[f"meta/{name}_meta.csv"] = rows(*(f"f{i},30,female" for i in who))
    return tree


LAYOUTS = {  # (corpus, system whose check reads it, a whole one)
    "jsonl": ("jsonl", "figures", jsonl),
    "kaldi": ("kaldi", "figures", kaldi),
    "librispeech": ("librispeech", "figures", librispeech),
    "speechcommands": ("speechcommands", "figures", speechcommands),
    "fsdd": ("fsdd", "figures", fsdd),
    "jsonl, labels": ("jsonl", "aloe", jsonl),
    "kaldi, labels": ("kaldi", "aloe", kaldi),
    "words, labels": ("speechcommands", "aloe", speechcommands),
    "esc10": ("esc10", "aloe", esc10),
    "vocalsound": ("vocalsound", "aloe", vocalsound),
}

# ---------------------------------------------------------------- damage
# Each takes hypothesis's draw, the tree, and a file of it, which it changes in place.

LETTERS = st.characters(codec="utf-8", exclude_characters="\0/")
LONG = st.builds(
    lambda text, times: text * times,
    st.text(LETTERS, min_size=1, max_size=3), st.sampled_from([41, 255, 256, 4096, 100_000]),
)  # fmt: skip
ODD = st.one_of(
    st.sampled_from([
        "", " ", ".", "..", "../x", "../../../../x.wav", "/etc/passwd", "/", "a|", "touch x |", "~",
        "nan", "NaN", "inf", "-inf", "-1", "-0.0", "1e400", "1e-400", "0x10", "1_0", "9" * 400,
        "null", "None", "NA", "true", "{}", "[]", "[[[", '"', "'", "\\", "%s", "{0}", ",", ",,,",
        "\r", "\t", "\x1b[31m", "\x07", "\x7f", "\x85", "\x1c", "\u2028", "\u200b", "\ufeff",
        "\u202e", "\ufffe", "e\u0301", "\u0301", "ﬁ", "ʼ", "½", "٣", "一", "🎉", "👩‍👩‍👧", "İ", "ß",
        "\U000e0041", "\ue000", "Ω" * 120, "tset", "base", "u1", "r00", "base.wav", "x/y/z.wav",
    ]),
    st.text(LETTERS, max_size=12),
    LONG,
)  # fmt: skip
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), ODD, st.floats(), st.integers(),
              st.sampled_from([10**30, -(10**400), 2**63, 1e308, 5e-324])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ODD, inner, max_size=3),
    max_leaves=4,
)  # fmt: skip
KEYS = ("audio_filepath text utt_id offset duration speaker split kind label path where "
        "text_where snr_db").split()  # fmt: skip


def a_line(draw, tree, name, change) -> None:
    """Put ``change(line)`` in the place of one line."""
    lines = tree[name].split(b"\n")
    at = draw(st.integers(0, max(0, len(lines) - 2)))
    lines[at] = change(lines[at])
    tree[name] = b"\n".join(lines)


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def cut(draw, tree, name):
    tree[name] = tree[name][: draw(st.integers(0, len(tree[name])))]


def empty(draw, tree, name):
    tree[name] = b""


def missing(draw, tree, name):
    del tree[name]


def a_folder(draw, tree, name):
    tree[name] = (FOLDER,)


def a_link(draw, tree, name):
    own = os.path.basename(name)
    target = draw(st.sampled_from([own, "gone", "..", "../../outside.wav", "/dev/null", "/etc"]))
    tree[name] = (LINK, target)


def garbage(draw, tree, name):
    tree[name] = draw(st.binary(max_size=400))


def bytes_inside(draw, tree, name):
    at, more = draw(st.integers(0, len(tree[name]))), draw(st.binary(min_size=1, max_size=8))
    tree[name] = tree[name][:at] + more + tree[name][at:]


def another_encoding(draw, tree, name):
    way = draw(st.sampled_from("utf-8-sig utf-16 utf-16-le utf-32 latin-1 cp1252".split()))
    text = tree[name].decode(errors="replace").replace("e", "é", 1)
    tree[name] = text.encode(way, "replace")


def odd_character(draw, tree, name):
    at, more = draw(st.integers(0, len(tree[name]))), draw(ODD)
    tree[name] = tree[name][:at] + encoded(more) + tree[name][at:]


def line_twice(draw, tree, name):
    a_line(draw, tree, name, lambda line: line + b"\n" + line)


def no_line(draw, tree, name):
    a_line(draw, tree, name, lambda line: b"")


def another_line(draw, tree, name):
    a_line(draw, tree, name, lambda line: encoded(draw(ODD)))


def a_column(draw, tree, name):
    """One field of a line is another, is gone, or there is one more."""
    separator = b"," if b"," in tree[name] else b" "

    def change(line):
        fields = line.split(separator)
        at, odd = draw(st.integers(0, len(fields) - 1)), encoded(draw(ODD))
        way = draw(st.sampled_from(["changed", "gone", "more"]))
        fields[at : at + (way != "more")] = [] if way == "gone" else [odd]
        return separator.join(fields)

    a_line(draw, tree, name, change)


def a_time(draw, tree, name):
    """The ends of a segment, or whatever else is a number there."""
    number = st.one_of(st.floats(), st.sampled_from([-1, 0, 0.1, 0.5, 0.49999999, 1e9, 1e300]))
    start, end = draw(number), draw(number)
    a_line(draw, tree, name, lambda line: b" ".join([*line.split()[:2], b"%r %r" % (start, end)]))


def json_key(draw, tree, name):
    """Keys of an object get other values, of other types perhaps."""
    names = st.sampled_from(KEYS) | st.sampled_from(KEYS) | ODD
    odd = draw(st.dictionaries(names, VALUES | LONG, min_size=1, max_size=3))
    record = {"audio_filepath": "u1.wav", "text": "yes", "speaker": "zoe", **odd}
    ascii_only = draw(st.booleans())
    a_line(draw, tree, name, lambda line: encoded(json.dumps(record, ensure_ascii=ascii_only)))


def json_missing_key(draw, tree, name):
    record = {"audio_filepath": "u1.wav", "text": "yes", "speaker": "zoe", "utt_id": "new"}
    del record[draw(st.sampled_from(list(record)))]
    a_line(draw, tree, name, lambda line: json.dumps(record).encode())


def json_value(draw, tree, name):
    """A line is JSON, but no object of ours; or is nested deeper than anybody writes."""
    text = json.dumps(draw(VALUES), ensure_ascii=draw(st.booleans()))
    long = '{"audio_filepath": "u1.wav", "offset": %s}' % ("9" * 5000)
    text = draw(st.sampled_from([text, "9" * 5000, long, long.replace("9" * 5000, "1e999")]))
    deep = draw(st.sampled_from([0, 0, 3, 100_000]))
    a_line(draw, tree, name, lambda line: encoded("[" * deep + text + "]" * deep))


def header(draw, tree, name):
    """A number in the header of a WAV or FLAC file is another one."""
    size = draw(st.sampled_from([1, 2, 4]))
    at = draw(st.sampled_from([4, 16, 20, 22, 24, 28, 32, 34, 40]) | st.integers(0, 60))
    value = draw(st.sampled_from([0, 1, 2, 3, 7, 0xFF, 0x7F, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF])
                 | st.integers(0, 2**32 - 1))  # fmt: skip
    content = bytearray(tree[name])
    content[at : at + size] = (value % 256**size).to_bytes(size, "little")
    tree[name] = bytes(content)


def samples(draw, tree, name):
    kind = draw(st.sampled_from(["zeros", "NaN", "infinite", "huge", "noise"]))
    tree[name] = audio(kind=kind, subtype="FLOAT")
    if kind == "noise":  # but for the last one, which is NaN
        tree[name] = tree[name][:-4] + b"\0\0\xc0\x7f"


def duration(draw, tree, name):
    tree[name] = audio(seconds=draw(st.sampled_from([0, 1 / 8000, 0.01, 0.05, 0.09, 0.11, 70])))


def sample_rate(draw, tree, name):
    rate = draw(st.sampled_from([1, 2, 7, 100, 4000, 7999, 11025, 15999, 16001, 22050, 44100, 44101,
                                 48000, 192_000, 655_350]))  # fmt: skip
    frames = draw(st.sampled_from([1, 40, 4000, 20_000]))
    tree[name] = audio(rate=rate, seconds=(frames + 0.5) / rate)


def another_format(draw, tree, name):
    ways = [("WAV", 1, "FLOAT"), ("WAV", 2, "PCM_U8"), ("WAV", 7, None), ("FLAC", 1, None),
            ("OGG", 1, None), ("MP3", 1, None), ("AIFF", 1, None), ("AU", 1, None)]  # fmt: skip
    format, channels, subtype = draw(st.sampled_from(ways))
    tree[name] = audio(format, channels=channels, subtype=subtype)


NAMES = st.one_of(
    st.sampled_from([
        " ", "-rf", "a b", "a\nb", "a\tb", "a|", "a\x1b[31m", "\u202e", "e\u0301", "é", "\udcff",
        "#", ".hidden", "x" * 240, "一", "'", '"', "\\", "%s", "7_ada_5", "77_ada_5", "7_a_da_5",
        "7_ada_9999999999999", "yes_nohash_0", "f1_0_", "f1_0_cough", "a,b", "1-7-0000", "u1", "~",
        "*", "[a]",
    ]),
    st.text(LETTERS, min_size=1, max_size=8),
)  # fmt: skip


def another_name(draw, tree, name):
    """A file, or the folder that it is in, is called otherwise; or there is one more file."""
    folder, _, own = name.rpartition("/")
    stem, dot, suffix = own.rpartition(".")
    new, way = draw(NAMES), draw(st.sampled_from(["stem", "suffix", "folder", "one more"]))
    if new in (".", ".."):
        return
    if way == "folder" and folder:
        above = folder.rpartition("/")[0]
        moved = [(path, f"{above}/{new}{path[len(folder):]}".strip("/")) for path in list(tree)
                 if path.startswith(folder + "/")]  # fmt: skip
    elif way == "suffix":
        moved = [(name, f"{folder}/{stem}.{new}".strip("/"))]
    else:
        moved = [(name, f"{folder}/{new}{dot}{suffix}".strip("/"))]
    for old, path in moved:
        tree[path] = tree[old] if way == "one more" else tree.pop(old)


ANY = {
    "file cut": cut, "file empty": empty, "file missing": missing, "a folder for a file": a_folder,
    "a link for a file": a_link, "bytes inside": bytes_inside, "another name": another_name,
}  # fmt: skip
LISTS = {
    "another encoding": another_encoding, "odd characters": odd_character, "line twice": line_twice,
    "no line": no_line, "another line": another_line, "columns": a_column,
}  # fmt: skip
JSON = {"JSON: odd value": json_key, "JSON: key missing": json_missing_key,
        "JSON: no object": json_value}  # fmt: skip
TIMES = {"segment times": a_time}
AUDIO = {
    "audio: garbage": garbage, "audio: header": header, "audio: samples": samples,
    "audio: length": duration, "audio: sample rate": sample_rate, "audio: format": another_format,
}  # fmt: skip
DATA = {"DATA is another": None}
KINDS = {**ANY, **LISTS, **JSON, **TIMES, **AUDIO, **DATA}


def is_audio(name: str) -> bool:
    return name.endswith((".wav", ".flac"))


def kinds_for(name: str) -> dict:
    """What may be done to a file, by its name."""
    if is_audio(name):
        return {**ANY, **AUDIO, **DATA}
    more = TIMES if name.endswith("segments") else JSON if ".json" in name else {}
    return {**ANY, **LISTS, **more, **DATA}


def kinds_of(layout: str) -> list[str]:
    """What may be done to a corpus of a layout."""
    names = {name for split in SPLITS for name in LAYOUTS[layout][2](split)}
    found = set().union(*map(kinds_for, names))
    return [kind for kind in KINDS if kind in found]


@dataclass(repr=False)
class Damaged:
    """A corpus to check: its files, what was done to them, the path in it that DATA names."""

    layout: str
    tree: dict
    kinds: tuple
    data: str
    preset: str

    def __repr__(self) -> str:
        return f"{self.layout}: {', '.join(self.kinds)} (preset {self.preset})"

    def _repr_pretty_(self, printer, cycle) -> None:  # hypothesis would print the files
        printer.text(repr(self))


@st.composite
def corpora(draw, layout: str, kind: str | None = None):
    """A corpus of a layout, damaged in one to three ways, the first of them ``kind``, if given."""
    tree, kinds, data = {}, [], ""
    splits = [split for split in SPLITS if not kind or applicable(LAYOUTS[layout][2](split), kind)]
    tree |= LAYOUTS[layout][2](draw(st.sampled_from(splits)))
    for wanted in [kind, None, None][: draw(st.integers(1, 3))]:
        names = applicable(tree, wanted)
        lists = [name for name in names if not is_audio(name)]
        # lists are few, and recordings many
        name = draw(st.sampled_from(names) | st.sampled_from(lists or names))
        kind = wanted or draw(st.sampled_from(sorted(kinds_for(name))))
        kinds.append(kind)
        if kind in DATA:
            folders = [str(Path(name).parent) for name in tree]
            data = draw(st.sampled_from(["gone", "..", *tree, *folders]))
        else:
            KINDS[kind](draw, tree, name)
    return Damaged(layout, tree, tuple(kinds), data, draw(st.sampled_from(sorted(PRESETS))))


def applicable(tree: dict, kind: str | None) -> list[str]:
    """The files of a tree that a kind of damage, or any, can be done to."""
    whole = sorted(name for name in tree if isinstance(tree[name], bytes))
    return [name for name in whole if kind is None or kind in kinds_for(name)]


def write(folder: Path, tree: dict) -> None:
    """Make the tree's files; what a file system cannot hold is left out."""
    for name, content in tree.items():
        path = folder / name
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            if content == (FOLDER,):
                path.mkdir()
            elif isinstance(content, tuple):
                path.symlink_to(content[1])
            else:
                path.write_bytes(content)


# ---------------------------------------------------------------- what a person sees


@functools.cache
def laboratory() -> Path:
    """A folder with the presets, which this process's alspeech takes for its repository."""
    root = Path(tempfile.mkdtemp())
    (root / "configs").mkdir()
    for name, text in PRESETS.items():
        (root / "configs" / f"{name}.yaml").write_text(text)
    (root / "outside.wav").write_bytes(audio())
    os.environ.update(ALSPEECH_ROOT=str(root), ALSPEECH_JOBS="1", OMP_NUM_THREADS="1")
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, hard))  # a finding, not the machine's end
    return root


def told(layout: str, data: Path, preset: str) -> tuple[int, str]:
    """Exit code and output of ``python -m alspeech check``."""
    from alspeech.__main__ import main
    from alspeech.speech import clips, corpus, readers

    for cached in (readers.read, corpus.corpus, clips.read, clips.task):
        cached.cache_clear()  # files change faster here than a person changes them
    name, system, _ = LAYOUTS[layout]
    words = ["check", "--corpus", name, "--system", system, "--data", str(data)]
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)

    def endless(*_):
        raise AssertionError(f"no end in {SECONDS} seconds")

    before, sys.argv = sys.argv, ["alspeech", *words, "--preset", preset]
    signal.signal(signal.SIGALRM, endless)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            status = main()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # main leaves it ignored
        sys.argv = before
    return status, out.buffer.getvalue().decode().replace("\r", "\n")


def judged(corpus: Damaged) -> tuple[int, int]:
    """Check a corpus; (exit code, characters of the longest line). ``AssertionError`` says what is
    wrong with what was said."""
    root = laboratory()
    for name in ("data", "build", "corpus"):
        shutil.rmtree(root / name, ignore_errors=True)
    write(root / "corpus", corpus.tree)
    status, output = told(corpus.layout, root / "corpus" / corpus.data, corpus.preset)
    lines = [line for line in output.split("\n") if line.strip()]
    logs = [path.read_text() for path in (root / "build").glob("*/error.log")]
    assert status in (0, 2), f"exit code {status}: {lines[-1]}\n{''.join(logs)[-3000:]}"
    assert "Traceback" not in output, output[-3000:]
    longest = max(lines, key=len)
    assert len(longest) <= LONGEST, f"a line of {len(longest)} characters: {longest[:LONGEST]} …"
    errors = [line for line in lines if line.startswith("error: ")]
    assert errors == lines[-1:] if status else not errors, output[-3000:]
    left = [str(path) for name in ("data", "build") for path in (root / name).rglob(".*")]
    assert not left, f"left behind: {left}"
    return status, len(longest)


def campaign(layout: str, kind: str, examples: int, seed: int) -> tuple[Counter, str]:
    """Check ``examples`` corpora with a kind of damage. Returns counts (of kinds, of exit codes;
    the longest line), and what is wrong with the smallest corpus that fails, if one does."""
    counts, failing = Counter(), []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples, database=None, deadline=None, report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck), print_blob=False,
    )  # fmt: skip
    @hypothesis.given(corpora(layout, kind))
    def check(corpus):
        try:
            status, longest = judged(corpus)
        except Exception:
            failing.append(corpus)
            raise
        counts.update((layout, kind) for kind in corpus.kinds)
        counts.update([("status", status), "corpora"])
        counts["longest"] = max(counts["longest"], longest)

    try:
        check()
    except Exception as error:
        if not failing:
            raise
        smallest = failing[-1]  # hypothesis ends with it
        kept = REPOSITORY / "build" / "fuzz" / f"{layout}-{kind}-{seed}".replace(" ", "_")
        shutil.rmtree(kept, ignore_errors=True)
        write(kept, smallest.tree)
        return counts, f"FAILED {smallest}: DATA={kept / smallest.data}\n{error}"
    return counts, ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--number", type=int, default=1000, help="corpora")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layout", choices=LAYOUTS, action="append", help="only this one")
    options = parser.parse_args()
    rng, begun, layouts = random.Random(options.seed), time.time(), options.layout or list(LAYOUTS)
    pairs = [(layout, kind) for layout in layouts for kind in kinds_of(layout)]
    rng.shuffle(pairs)
    each = max(5, options.number // len(pairs))  # hypothesis begins with the simplest
    sizes = [min(each, options.number - done) for done in range(0, options.number, each)]
    tasks = [(*pairs[i % len(pairs)], n, rng.getrandbits(32)) for i, n in enumerate(sizes)]
    jobs = int(os.environ.get("ALSPEECH_JOBS") or os.cpu_count())
    counts, longest, failed, said = Counter(), 0, 0, begun
    with (
        tempfile.TemporaryDirectory(prefix="fuzz") as tempfile.tempdir,
        ProcessPoolExecutor(jobs, get_context("fork")) as pool,
    ):
        running = [pool.submit(campaign, *task) for task in tasks]
        for done, ended in enumerate(as_completed(running), start=1):
            found, wrong = ended.result()
            longest, failed = max(longest, found.pop("longest", 0)), failed + bool(wrong)
            counts += found
            if wrong:
                print(wrong, flush=True)
            if time.time() - said > 15 or done == len(tasks):
                said = time.time()
                left = (said - begun) / done * (len(tasks) - done) / 60
                print(f"{counts['corpora']} corpora, {left:.1f} minutes left", flush=True)
    tried = {name: [counts[name, kind] or "-" for kind in KINDS] for name in layouts}
    print(pd.DataFrame(tried, index=pd.Index(KINDS)).to_string())
    print(
        f"{counts['corpora']} malformed corpora in {(time.time() - begun) / 60:.1f} minutes: "
        f"{counts['status', 0]} read, {counts['status', 2]} refused in one line; the longest line "
        f"has {longest} characters; {failed} of {len(tasks)} campaigns failed"
    )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
