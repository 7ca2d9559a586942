"""The embedded corpus: household commands, digits, names and cities (phrases.py), spoken by
espeak-ng in English or Mandarin.

Every utterance is drawn (who speaks, what, how fast, in how much noise of which colour) and
everything drawn is a column of the manifest, so that a notebook can show *what* a method picks.
Equal seeds give equal bytes.

espeak-ng (GPL-3.0-or-later) is called through the shared library of the ``espeakng-loader``
package. It seeds its breath noise by the clock unless told a seed, and it keeps oscillator state
from one utterance to the next, even across a re-initialisation. So each block of utterances is
spoken by a fresh, seeded process, in order: the bytes do not depend on how many processes work
side by side.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import math
import os
import pickle
import re
import subprocess
import sys
import tempfile
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
from tqdm import tqdm

from ..workshop.config import SCENARIOS, SPLITS, CorpusConfig, Draw, Scenario
from ..workshop.errors import UserError, cut
from ..workshop.processes import end_with_parent, interrupts_held
from ..workshop.store import write_bytes
from . import phrases
from .manifests import SAMPLE_RATE, resample, write_manifest
from .phrases import one, sentence, zipf
from .text import learn_alphabet, words, write_alphabet

ESPEAK_RATE = 22050  # Hz, what espeak-ng speaks at
QUANTUM = 0.16  # seconds: durations are multiples of it, so that many utterances share a length
BLOCK = 200  # utterances a process speaks
PAUSE = " | "  # between the requests of an utterance, in the column ``spoken``
MOST_WORDS = 15  # of an utterance of several requests
DROWNED_DB = (-17.0, -13.0)  # signal to noise of what nobody can transcribe, dB: from, to
TRIES = 1000  # to say something new, before it is given up


def draw_manifest(config: CorpusConfig, scenario: Scenario | None = None) -> pd.DataFrame:
    """Draw every utterance of the corpus; nothing is spoken yet.

    Returns one row an utterance: ``utt_id, path, text, split, kind, speaker, accent, voice,
    rate`` (words a minute), ``pitch`` (espeak's 0–99), ``level_db`` (dBFS), ``snr_db`` (NaN for
    silence), ``noise_slope`` (the noise's power falls as 1/f^slope: 0 white, 1 pink, 2 brown),
    ``noise_seed``. Where the scenario asks for it: ``spoken`` (what is said, if the transcript does
    not tell), ``pause`` (the longest, seconds), ``repeat`` (is it one of the scenario's phrases?),
    ``frequency`` (head, or tail where it names a place beyond the head).

    Base and pool share their speakers; validation and test have their own voices. Raises
    ``UserError`` where a scenario wants distinct utterances and no other can be found.
    """
    scenario = scenario or Scenario()
    voices = sorted(path.name for path in voice_files().iterdir() if path.is_file())
    order = np.random.default_rng([config.seed, 0]).permutation(len(voices))
    edges = (np.array([0.0, 0.65, 0.75, 1.0]) * len(voices)).astype(int)
    parts = [[voices[i] for i in order[a:b]] for a, b in zip(edges[:-1], edges[1:], strict=True)]
    said, rows = _Said(config, scenario), []
    for number, split in enumerate(SPLITS):
        rng, draw = np.random.default_rng([config.seed, 1 + number]), scenario.draw(split)
        what = (config.language, draw, parts[max(number - 1, 0)], said, rng)
        for i in range(getattr(config, split)):
            utt_id = f"{split}-{i:05d}"
            path = f"audio/{split}/{utt_id}.wav"
            named = {"utt_id": utt_id, "path": path, "text": "", "split": split}
            rows.append(named | _draw_row(*what))
    return pd.DataFrame(rows)


def check(name: str, scenario: Scenario, language: str) -> None:
    """Raise ``UserError`` where a scenario names a kind or an accent that there is not."""
    for split in SPLITS:
        draw, where = scenario.draw(split), f"{SCENARIOS}: {name}: {split}"
        for kind, _ in draw.kinds:
            if kind not in (known := phrases.kinds(language)):
                told = f"choose one of {', '.join(known)}"
                raise UserError(f"{where}: kinds: unknown kind '{cut(kind)}': {told}")
        if language != "en" and draw.accents != Draw().accents:
            raise UserError(f"{where}: accents: language: {language} has one only")
        for accent, _ in draw.accents if language == "en" else ():
            if accent not in (known := accents()):
                english = ", ".join(sorted(x for x in known if x.startswith("en")))
                told = f"choose one of {english}, or another language of espeak-ng"
                raise UserError(f"{where}: accents: unknown accent '{cut(accent)}': {told}")


class _Said:
    """What has been said in the corpus so far, and the phrases that are said again and again."""

    def __init__(self, config: CorpusConfig, scenario: Scenario):
        self.language, self.scenario, self.before = config.language, scenario, set()
        rng, self.phrases = np.random.default_rng([config.seed, 5]), []
        while len(self.phrases) < scenario.phrases:
            kind = one(scenario.base.kinds, rng)
            self.phrases.append((kind, self.new(kind, scenario.base, rng, distinct=True)))

    def new(self, kind: str, draw: Draw, rng: np.random.Generator, distinct=False) -> list[str]:
        """The requests of an utterance of one kind, none that was made before where they are to be
        ``distinct``, as the scenario may want all to be."""
        distinct = (distinct or self.scenario.distinct) and kind != phrases.WITHOUT_WORDS
        for _ in range(TRIES):
            requests = self._drawn(kind, draw, rng)
            if not distinct:
                return requests
            if tuple(requests) not in self.before:
                self.before.add(tuple(requests))
                return requests
        raise UserError(
            f"scenario: {TRIES} draws of kind {kind} gave nothing that had not been said: leave "
            "the kind out, make the splits smaller, or let distinct be false"
        )

    def _drawn(self, kind: str, draw: Draw, rng: np.random.Generator) -> list[str]:
        low, high = draw.parts
        count = low if low == high else int(rng.integers(low, high + 1))
        ranks = slice(0, None)
        if draw.tail is not None:
            beyond = rng.random() < draw.tail
            ranks = slice(self.scenario.head, None) if beyond else slice(0, self.scenario.head)
        kind = "command" if kind == phrases.UNINTELLIGIBLE else kind
        requests = [sentence(kind, rng, self.language, ranks)]
        while len(requests) < count:
            more = [*requests, sentence(kind, rng, self.language, ranks)]
            if len(words(" ".join(more))) > MOST_WORDS:
                break
            requests = more
        return requests


def _draw_row(language: str, draw: Draw, voices: list[str], said: _Said, rng) -> dict:
    repeated = draw.repeats > 0 and rng.random() < draw.repeats
    kind, requests = zipf(rng, said.phrases) if repeated else (one(draw.kinds, rng), None)
    accents = draw.accents if language == "en" else ((language, 1.0),)
    accent, voice = one(accents, rng), voices[int(rng.integers(len(voices)))]
    # a speaker is an accent with a voice; it has its own speed and pitch and varies a little
    speaker = np.random.default_rng(list(f"{accent}+{voice}".encode()))
    rate = int(speaker.integers(140, 200) + rng.integers(-10, 11))
    pitch = int(speaker.integers(25, 75) + rng.integers(-5, 6))
    snr_db = float(np.round(rng.uniform(*draw.snr_db), 1))
    requests = requests or said.new(kind, draw, rng)
    level_db = float(np.round(rng.uniform(-32, -20), 1))
    row = {
        "text": phrases.SPACE[language].join(requests),
        "kind": kind,
        "speaker": f"{accent}+{voice}",
        "accent": accent,
        "voice": voice,
        "rate": rate,
        "pitch": pitch,
        "level_db": level_db,
        "snr_db": float("nan") if kind == phrases.WITHOUT_WORDS else snr_db,
        "noise_slope": float(np.round(rng.uniform(0, 2), 2)),
        "noise_seed": int(rng.integers(2**31)),
    }
    return row | _beyond(row, requests, draw, said.scenario, repeated, rng)


def _beyond(row: dict, requests: list[str], draw: Draw, scenario: Scenario, repeated, rng) -> dict:
    """What of a row only some scenarios have."""
    more = {}
    if row["kind"] == phrases.UNINTELLIGIBLE:
        snr_db = float(np.round(rng.uniform(*DROWNED_DB), 1))
        # the noise is as loud as others' speech: it is to be listened to
        level_db = round(row["level_db"] + snr_db, 1)
        more = {"text": phrases.UNTRANSCRIBED, "snr_db": snr_db, "level_db": level_db}
    if len(requests) > 1 or more:
        more["spoken"] = PAUSE.join(requests)
    if draw.pause != Draw.pause:
        more["pause"] = draw.pause
    if scenario.phrases:
        more["repeat"] = bool(repeated)
    if row["kind"] == "place":
        more["frequency"] = "tail" if phrases.rarest(row["text"]) >= scenario.head else "head"
    return more


def accents() -> set[str]:
    """The names of espeak-ng's languages and accents."""
    return _languages(Path(_espeak_paths()[1]) / "lang")


@functools.cache
def _languages(folder: Path) -> set[str]:
    files = [path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file()]
    return {found for text in files for found in re.findall(r"^language\s+(\S+)", text, re.M)}


def voice_files() -> Path:
    """The folder that holds a file for each of espeak-ng's voice variants."""
    return Path(_espeak_paths()[1]) / "voices" / "!v"


def _espeak_paths() -> tuple[str, str]:
    """(library, data folder) of the espeak-ng that the espeakng-loader package carries."""
    advice = (
        "install one with 'pip install espeakng-loader' (wheels: Linux, macOS, Windows), or use "
        "real recordings, e.g. CORPUS=fsdd DATA=<folder>"
    )
    try:
        import espeakng_loader
    except ImportError:
        raise UserError(f"no espeak-ng library on this platform: {advice}") from None
    library, data = espeakng_loader.get_library_path(), espeakng_loader.get_data_path()
    if not (os.path.exists(library) and os.path.isdir(data)):
        raise UserError(f"espeak-ng is missing from {os.path.dirname(library)}: {advice}")
    return library, data


class Espeak:
    """espeak-ng's C interface, as much of it as speaking to memory takes (see speak_lib.h)."""

    _RETRIEVAL = 1  # AUDIO_OUTPUT_RETRIEVAL: samples go to the callback ...
    _SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: ... before espeak_Synth returns
    _RATE, _PITCH = 1, 3  # espeakRATE, espeakPITCH
    _CHARS_UTF8 = 1

    def __init__(self):
        library, data = _espeak_paths()
        home = os.path.dirname(data)
        if len(os.fsencode(home)) > 120:
            # espeak-ng holds this path in a buffer of 160 bytes, file names included
            self._short = tempfile.TemporaryDirectory()
            os.symlink(data, os.path.join(self._short.name, "espeak-ng-data"))
            home = self._short.name
        try:
            self._lib = ctypes.CDLL(library)
        except OSError as error:
            raise UserError(f"espeak-ng does not load here ({error}): {library}") from None
        rate = self._lib.espeak_Initialize(self._SYNCHRONOUS, 0, os.fsencode(home), 0)
        if rate != ESPEAK_RATE:
            raise UserError(f"espeak-ng did not start (answered {rate}) with the voices in {data}")
        self._lib.espeak_ng_SetRandSeed(1)  # else the clock seeds breath and whisper
        self._samples: list[np.ndarray] = []
        prototype = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
        )
        self._callback = prototype(self._receive)  # kept: C holds no reference
        self._lib.espeak_SetSynthCallback(self._callback)

    def _receive(self, wave, count, _events) -> int:
        if wave and count > 0:
            self._samples.append(np.ctypeslib.as_array(wave, (count,)).copy())
        return 0  # go on

    def speak(self, text: str, voice: str, rate: int, pitch: int) -> np.ndarray:
        """Samples [N] at 22,050 Hz, float in (-1, 1). Raises ``RuntimeError`` on a refusal."""
        self._samples.clear()
        if self._lib.espeak_SetVoiceByName(voice.encode()) != 0:
            raise RuntimeError(f"espeak-ng has no voice {voice!r}")
        self._lib.espeak_SetParameter(self._RATE, rate, 0)
        self._lib.espeak_SetParameter(self._PITCH, pitch, 0)
        data = text.encode()
        if self._lib.espeak_Synth(data, len(data) + 1, 0, 0, 0, self._CHARS_UTF8, None, None) != 0:
            raise RuntimeError(f"espeak-ng could not speak {text!r}")
        return np.concatenate(self._samples).astype(np.float64) / 32768


def coloured_noise(n: int, slope: float, rng: np.random.Generator) -> np.ndarray:
    """Noise [n] of unit power whose power spectrum falls as 1/f^slope above 50 Hz."""
    spectrum = np.fft.rfft(rng.standard_normal(n))
    frequency = np.maximum(np.fft.rfftfreq(n, 1 / SAMPLE_RATE), 50.0)
    noise = np.fft.irfft(spectrum * frequency ** (-slope / 2), n)
    return noise / np.sqrt(np.mean(noise**2))


def render(row, espeak: Espeak) -> np.ndarray:
    """The samples [N] at 16 kHz of one manifest row: speech with pauses around it, and noise."""
    rng = np.random.default_rng(row.noise_seed)
    pause, spoken = _or(row, "pause", Draw.pause), _or(row, "spoken", row.text)
    lead, tail = rng.uniform(0.05, pause, size=2)
    if row.kind == phrases.WITHOUT_WORDS:
        speech = np.zeros(int(rng.uniform(0.5, 2.0) * SAMPLE_RATE))
        noise_level = row.level_db - rng.uniform(0, 20)
    else:
        parts = []
        for request in spoken.split(PAUSE):
            if parts:
                parts.append(np.zeros(int(rng.uniform(0.05, pause) * SAMPLE_RATE)))
            speech = espeak.speak(request, row.speaker, row.rate, row.pitch)
            speech = np.trim_zeros(resample(speech, 320, 441))
            speech *= 10 ** (row.level_db / 20) / np.sqrt(np.mean(speech**2))
            parts.append(speech)
        speech = np.concatenate(parts)
        noise_level = row.level_db - row.snr_db
    seconds = lead + len(speech) / SAMPLE_RATE + tail
    total = round(math.ceil(seconds / QUANTUM) * QUANTUM * SAMPLE_RATE)
    audio = 10 ** (noise_level / 20) * coloured_noise(total, row.noise_slope, rng)
    start = int(lead * SAMPLE_RATE)
    audio[start : start + len(speech)] += speech
    peak = np.abs(audio).max()
    return audio * min(1.0, 0.99 / peak)  # turned down rather than clipped


def _or(row, name: str, otherwise):
    """A column that only some rows have."""
    value = getattr(row, name, None)
    return otherwise if value is None or value != value else value


def _speak_block(folder: Path, manifest: pd.DataFrame) -> None:
    """Speak and write a block of rows in this (fresh) process; one that an interrupted run had
    spoken to its end is left alone."""
    files = [folder / path for path in manifest["path"]]
    if all(file.exists() for file in files):
        return
    espeak = Espeak()
    for file, row in zip(files, manifest.itertuples(index=False), strict=True):
        audio, wav = render(row, espeak), io.BytesIO()
        soundfile.write(wav, audio, SAMPLE_RATE, subtype="PCM_16", format="WAV")
        # a file that is there is whole; no fsync, which would cost more than the speech
        write_bytes(file, wav.getvalue(), sync=False)


def serve() -> None:
    """Speak the blocks that come in by standard input, each in a process forked for it: what went
    wrong with a block, or None, goes out by standard output. Ends when one of them dies."""
    import scipy.signal  # noqa: F401  once, and not in every block's process

    answers, server = os.dup(1), os.getpid()
    os.dup2(2, 1)  # what a library prints is no answer
    end_with_parent(os.getppid())
    try:
        folder, blocks, jobs = pickle.load(sys.stdin.buffer)
    except (EOFError, pickle.UnpicklingError):  # who asks was killed while it asked
        os._exit(1)
    for number in range(len(blocks) + jobs):
        if number >= jobs and os.wait()[1]:
            os._exit(1)  # those that still speak end with this process
        if number < len(blocks) and os.fork() == 0:  # of a process that has not loaded espeak-ng
            end_with_parent(server)
            try:
                error = _speak_block(folder, blocks[number])
            except Exception as reason:
                error = reason
            with contextlib.suppress(BrokenPipeError):  # who asked was killed: nobody is to be told
                os.write(answers, pickle.dumps(error))
            os._exit(0)


# as a program and not by multiprocessing, whose processes import the script that started them
SERVE = "import sys; sys.path[:] = {}; from alspeech.speech.synthesis import serve; serve()"


def build(folder: Path, config: CorpusConfig, jobs: int, scenario: Scenario | None = None) -> None:
    """Draw, speak and write the corpus: ``folder/manifest.jsonl`` and ``folder/audio/*/*.wav``.

    Goes on from what an interrupted call left in the folder. Raises ``UserError`` where there is
    no espeak-ng for this platform, ``BrokenProcessPool`` where a process that speaks was killed.
    """
    manifest = draw_manifest(config, scenario)
    for split in manifest["split"].unique():
        (folder / "audio" / split).mkdir(parents=True, exist_ok=True)
    blocks = [manifest[i : i + BLOCK] for i in range(0, len(manifest), BLOCK)]
    program = SERVE.format([os.path.abspath(path) for path in sys.path])
    with interrupts_held():
        server = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
    try:
        with server.stdin as questions:
            pickle.dump((folder, blocks, jobs), questions)
        for _ in tqdm(blocks, "speak", unit="block"):
            if error := pickle.load(server.stdout):
                raise error
    except (EOFError, BrokenPipeError, pickle.UnpicklingError):
        raise BrokenProcessPool("a process that speaks has died") from None
    except BaseException:
        server.kill()
        raise
    finally:
        server.wait()
        server.stdout.close()
    manifest["duration"] = [soundfile.info(folder / path).duration for path in manifest["path"]]
    if config.alphabet == "learned":
        known = manifest["split"].isin(["base", "validation"])  # what is not queried is not read
        write_alphabet(folder, learn_alphabet(manifest["text"][known]))
    write_manifest(folder / "manifest.jsonl", manifest)
