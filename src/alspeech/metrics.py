"""What a recogniser gets wrong: CTC loss, CER, WER.

CER and WER are corpus sums (errors ÷ reference length), never means of utterance rates.
"""

from __future__ import annotations

import math

import jiwer
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .ctc import best_path, ctc_losses
from .devices import autocast
from .speech.features import FeatureStore
from .speech.text import Alphabet, words


def errors(reference: str, hypothesis: str, known: frozenset | None = None) -> dict:
    """Edit errors and reference lengths of one utterance, in characters and in :func:`words`; of
    the words that are not ``known``, if told which are, how many there are and how many of them
    have another or none in their place (``unseen_errors``; what is inserted belongs to no word)."""
    chars = jiwer.process_characters(reference, hypothesis)
    said = words(reference)
    in_words = jiwer.process_words(" ".join(said), " ".join(words(hypothesis)))
    row = {}
    for unit, out in (("char", chars), ("word", in_words)):
        row[f"{unit}_errors"] = out.substitutions + out.deletions + out.insertions
        row[f"{unit}s"] = out.hits + out.substitutions + out.deletions
    if known is not None:
        unseen = {i for i, word in enumerate(said) if word not in known}
        wrong = {
            i for chunk in in_words.alignments[0] if chunk.type != "equal"
            for i in range(chunk.ref_start_idx, chunk.ref_end_idx)
        }  # fmt: skip
        row |= {"unseen_errors": len(unseen & wrong), "unseen": len(unseen)}
    return row


TARGETS = ("token", "utterance")  # what a loss is taken of
SMALLEST = 1e-3  # nats: losses below count as this much, their logarithms would tell of nothing


def log_losses(losses: Tensor, labels) -> Tensor:
    """Logarithms of the loss a token and of the loss (``TARGETS``): [B] nats and B transcripts as
    lists of symbol numbers → [B, 2]. A transcript has one token more than labels: its end."""
    tokens = torch.tensor([len(row) + 1 for row in labels], device=losses.device)
    return torch.stack([losses / tokens, losses], dim=1).clamp_min(SMALLEST).log().detach()


@torch.no_grad()
def evaluate(
    model, store: FeatureStore, utterances: pd.DataFrame, alphabet: Alphabet, batch: int = 64,
    known: frozenset | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Decode every utterance by its best path.

    Returns a row an utterance: ``utt_id, ctc`` (nats; inf where the transcript needs more frames
    than there are, or letters that the alphabet lacks), ``hypothesis``, and :func:`errors` of it.
    """
    model.eval()
    device = next(model.parameters()).device
    texts = dict(zip(utterances["utt_id"], utterances["text"], strict=True))
    rows, unwritten = [], {utt_id for utt_id, text in texts.items() if alphabet.lacks(text)}
    encode = lambda text: [] if alphabet.lacks(text) else alphabet.encode(text)  # noqa: E731
    for part in store.batches(utterances, batch, encode):
        with autocast(device):
            logits = model(part.features.to(device))
        log_probs = logits.float().log_softmax(-1)
        found = (ctc_losses(log_probs, part.labels), best_path(log_probs))
        for utt_id, loss, path in zip(part.utt_ids, *(x.tolist() for x in found), strict=True):
            # spaces at the ends are no words; jiwer's word count ignores them, CER should too
            hypothesis = alphabet.collapse(path).strip()
            counts = errors(texts[utt_id], hypothesis, known)
            loss = math.inf if utt_id in unwritten else loss
            rows.append({"utt_id": utt_id, "ctc": loss, "hypothesis": hypothesis, **counts})
    return pd.DataFrame(rows).set_index("utt_id").loc[utterances["utt_id"]].reset_index()


def summarise(evaluated: pd.DataFrame, groups: pd.Series | None = None) -> dict:
    """Corpus figures of :func:`evaluate`'s rows: mean ``ctc`` (nats an utterance; infinite ones
    left out and counted), ``cer`` and ``wer`` in percent.

    ``macro_wer`` is the mean of the WERs of ``groups`` (a value a row), so that a rare kind or
    accent counts as much as a frequent one; without groups it is ``wer``. ``unseen_wer`` is the
    share of the words that are not known (see :func:`errors`) that are got wrong; NaN without any.
    """
    finite = np.isfinite(evaluated["ctc"])
    total = evaluated.drop(columns=["utt_id", "hypothesis"], errors="ignore").sum()
    figures = {
        "ctc": float(evaluated["ctc"][finite].mean()),
        "cer": 100 * float(total["char_errors"] / total["chars"]),
        "wer": 100 * float(total["word_errors"] / total["words"]),
    }
    figures["macro_wer"] = figures["wer"]
    if groups is not None:
        by = evaluated.groupby(groups.to_numpy())[["word_errors", "words"]].sum()
        by = by[by["words"] > 0]  # silence has none
        figures["macro_wer"] = 100 * float((by["word_errors"] / by["words"]).mean())
    unseen = total.get("unseen", 0)
    figures["unseen_wer"] = 100 * float(total["unseen_errors"] / unseen) if unseen else math.nan
    return {**figures, "infinite_ctc": int((~finite).sum())}
