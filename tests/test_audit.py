"""Transcripts that are not believed: by models that have not learned them."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from test_decoding import all_labelings
from test_theory import Store

from alspeech import training
from alspeech.field import audit
from alspeech.field.audit import FOLDS, average_precision, fold_of, suspicions, swapped
from alspeech.speech.features import Batch
from alspeech.speech.text import Alphabet


class Fixed(torch.nn.Module):
    """A recogniser whose features are its logits."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, features):
        return features * self.scale


def test_a_suspicion_is_what_the_best_guess_has_over_the_transcript():
    """Worked from the sums over all paths: 4 frames, "a" and "b"."""
    logits = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(3))
    store, alphabet = Store(logits), Alphabet("ab")
    rows = store.table.assign(text=["ab", "a", ""])
    labels = tuple(map(alphabet.encode, rows["text"]))
    store.batches = lambda *_: [Batch(tuple(rows["utt_id"]), logits, labels)]
    found = suspicions(Fixed(), SimpleNamespace(store=store, alphabet=alphabet), rows)
    for row, text, own in zip(found.itertuples(), rows["text"], logits, strict=True):
        p = all_labelings(own.log_softmax(-1).double())
        best = max(p, key=p.get)
        ratio = math.log(p[best]) - math.log(p[tuple(alphabet.encode(text))])
        assert row.suspicion == pytest.approx(ratio / (len(text) + 1), abs=1e-5)
        loss = -math.log(p[tuple(alphabet.encode(text))])
        assert row.loss == pytest.approx(loss / (len(text) + 1), abs=1e-5)
        assert row.guess == alphabet.decode(list(best)) and row.suspicion >= -1e-6


def test_precision_by_hand():
    assert average_precision(list("abcd"), {"a", "c"}) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(list("abcd"), {"d"}) == 0.25
    assert math.isnan(average_precision(list("abcd"), set()))


def test_how_well_they_are_found_by_hand():
    table = pd.DataFrame({"utt_id": [f"u{i:02}" for i in range(20)], "loss": range(20)})
    table["suspicion"] = 20.0 - table["loss"]
    found = audit.how_well(table, {"u00", "u03"}).set_index("by")
    assert found.loc["suspicion", "average_precision"] == pytest.approx((1 + 2 / 4) / 2)
    assert found.loc["loss", "average_precision"] == pytest.approx((1 / 17 + 2 / 20) / 2)
    assert list(found.loc["suspicion"][["found_in_5", "found_in_10", "found_in_20"]]) == [
        50,
        50,
        100,
    ]
    assert list(found.loc["loss"][["found_in_5", "found_in_20"]]) == [0, 0]
    assert (found["swapped"] == 2).all() and (found["transcripts"] == 20).all()


def test_a_fold_is_an_ids_alone():
    folds = pd.Series([fold_of(f"u{i}") for i in range(3000)])
    assert set(folds) == set(range(FOLDS)) and folds.value_counts().min() > 900


def test_swapped_transcripts_are_others(house):
    settings = house.settings["cell"]
    pairs, wrong = swapped(settings, share=0.5)
    known = audit.labelled(audit.corpus.prepare(settings)).set_index("utt_id")["text"]
    assert len(pairs) == round(0.5 * len(known)) and len(dict(pairs)) == len(pairs)
    assert sorted(text for _, text in pairs) == sorted(known[utt_id] for utt_id, _ in pairs)
    assert wrong == {utt_id for utt_id, text in pairs if text != known[utt_id]}
    assert swapped(settings, share=0.5) == (pairs, wrong)
    assert swapped(settings, share=0.5, seed=1)[0] != pairs


def test_no_transcript_is_judged_by_a_model_that_has_learned_it(house, monkeypatch):
    settings = replace(house.settings["cell"], preset="audited")
    learned, fit = [], training.fit

    def watched(model, store, train, validation, *rest, **options):
        learned.append(
            (
                set(train["utt_id"]),
                set(validation["utt_id"]),
                dict(train[["utt_id", "text"]].values),
            )
        )
        return fit(model, store, train, validation, *rest, **options)

    monkeypatch.setattr(audit, "fit", watched)
    pairs, _ = swapped(settings, share=0.3)
    table = audit.suspicious(settings, pairs)
    rows = audit.labelled(audit.corpus.prepare(settings))
    assert sorted(table["utt_id"]) == sorted(rows["utt_id"]) and len(learned) == FOLDS
    for train, judged, texts in learned:
        assert not train & judged and train | judged == set(rows["utt_id"])
        assert all(texts[x] == text for x, text in pairs if x in train)
    assert set().union(*(judged for _, judged, _ in learned)) == set(rows["utt_id"])
    assert table["suspicion"].is_monotonic_decreasing
    texts = table.set_index("utt_id")["text"]
    assert all(texts[utt_id] == text for utt_id, text in pairs)
    audit.suspicious(settings, pairs)
    assert len(learned) == FOLDS  # found, not computed again
    audit.suspicious(settings)
    assert len(learned) == 2 * FOLDS  # other transcripts, other models
    assert np.isfinite(table["suspicion"]).any()
