"""The loop of a person who transcribes: asked, typed, learned from, and asked again.

    settings, texts = hidden(load_settings("laptop"))    # the embedded corpus, as if it were yours
    rows = yours.query(settings)[0]                      # what is worth a transcript
    Transcriber(rows, pending(settings)).widget()        # listen and type
    curve = learned(settings)                            # train; what it is worth

Notebook 10 does this. Its state is files: what is being typed, what was typed, every recogniser.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pandas as pd

from ..speech import corpus
from ..speech.answering import NOTHING_HEARD, Transcriber
from ..speech.transcripts import kept, pending
from ..workshop.config import ROOT, Settings
from ..workshop.store import write_text
from . import yours
from .stopping import Curve


def hidden(settings: Settings, anew: bool = False) -> tuple[Settings, dict[str, str]]:
    """The embedded corpus as recordings of one's own, a list in ``build/<run>/``: the pool's
    transcripts are not in it. Returns its settings, and the texts that were hidden, by ``utt_id``.

    ``anew``: nobody has typed anything for it yet, whatever was learned before. (What a person has
    typed belongs to another list, and stays.)
    """
    data = corpus.prepare(settings)
    name = "simulated" if anew else "hidden"
    folder = ROOT / "build" / settings.run / f"{name}-{corpus.corpus(settings).key}"
    heard = data.manifest[data.manifest["text"] != ""]  # nobody is asked about silence
    pool = heard["split"] == "pool"
    listed = [
        {"audio_filepath": row.path, "utt_id": row.utt_id, "split": row.split,
         "speaker": str(row.speaker), "text": "" if row.split == "pool" else row.text}
        for row in heard.itertuples()
    ]  # fmt: skip
    text, path = "".join(json.dumps(x) + "\n" for x in listed), folder / "list.jsonl"
    if not path.exists() or path.read_text() != text:  # a list that was touched is another corpus
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    own = yours.mine(replace(
        settings, corpus="jsonl", data=str(folder), build=replace(settings.build, outside=True),
        scenarios=(name,), named=True,  # the run's folders are not those of your own recordings
    ))  # fmt: skip
    if anew:
        for file in (kept(own), pending(own)):
            file.unlink(missing_ok=True)
        yours.keep_learned(own, yours.learned(own)[:0])
        corpus.corpus.cache_clear()
    return own, dict(zip(heard["utt_id"][pool], heard["text"][pool], strict=True))


def typed(rows: pd.DataFrame, settings: Settings, texts: dict[str, str]) -> Transcriber:
    """A transcriber of ``rows`` that has been told everything by ``texts``."""
    transcriber = Transcriber(rows, pending(settings))
    for utt_id in rows["utt_id"]:
        transcriber.answer(utt_id, texts[utt_id] or NOTHING_HEARD)
    return transcriber


def learned(settings: Settings) -> Curve | None:
    """:func:`yours.learn` from what has been typed, which is kept with the rest."""
    file = pending(settings)
    found = yours.learn(settings, file if file.exists() else "")
    file.unlink(missing_ok=True)
    return found
