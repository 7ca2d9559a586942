"""Decoding against brute force over all paths."""

import math
from itertools import groupby, product

import pytest
import torch

from alspeech.ctc import labelings_log_p
from alspeech.decoding import n_best
from alspeech.speech.text import Alphabet


def all_labelings(log_probs: torch.Tensor) -> dict:
    """p(y | x) of every labeling of one utterance [T, V], summed over its V^T paths."""
    T, V = log_probs.shape
    probability = {}
    for path in product(range(V), repeat=T):
        labeling = tuple(symbol for symbol, _ in groupby(path) if symbol)
        log_p = sum(log_probs[t, v].item() for t, v in enumerate(path))
        probability[labeling] = probability.get(labeling, 0.0) + math.exp(log_p)
    return probability


def posterior(T: int, V: int, sharpness: float, seed: int, size: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(size, T, V, generator=generator, dtype=torch.float64)
    return logits.log_softmax(-1)


@pytest.mark.parametrize("path, text", [
    ([], ""), ([0, 0], ""), ([1], "a"), ([1, 1], "a"), ([1, 0, 1], "aa"), ([0, 1, 2, 2, 0], "ab"),
    ([1, 2, 1, 0, 0, 1, 1], "abaa"),
])  # fmt: skip
def test_a_path_collapses_to_its_labeling(path, text):
    assert Alphabet("ab").collapse(path) == text


def test_an_unknown_character_is_named():
    with pytest.raises(ValueError, match="'7'"):
        Alphabet("ab").encode("ab7")


@pytest.mark.parametrize("T, V", [(1, 3), (3, 2), (4, 3), (5, 4), (6, 3)])
@pytest.mark.parametrize("sharpness", [0.1, 1.0, 4.0])
def test_n_best_equals_brute_force(T, V, sharpness):
    for seed in range(3):
        log_probs = posterior(T, V, sharpness, seed)
        truth = sorted(all_labelings(log_probs[0]).items(), key=lambda item: -item[1])
        K = min(50, len(truth))
        found = n_best(log_probs, K, beam=400)
        assert [tuple(found.labeling(0, k)) for k in range(K)] == [y for y, _ in truth[:K]]
        assert found.log_p[0].exp().tolist() == pytest.approx([p for _, p in truth[:K]], rel=1e-9)


def test_a_labeling_and_its_probability_stay_together_whatever_the_beam():
    log_probs = posterior(5, 4, 1.0, seed=5)
    truth = all_labelings(log_probs[0])
    found = n_best(log_probs, 10)  # narrow: may miss labelings, must not misreport them
    labelings = [tuple(found.labeling(0, k)) for k in range(10)]
    assert len(set(labelings)) == 10
    for labeling, log_p in zip(labelings, found.log_p[0].exp().tolist(), strict=True):
        assert log_p == pytest.approx(truth[labeling], rel=1e-9)


def test_missing_labelings_have_probability_zero():
    found = n_best(posterior(1, 3, 1.0, seed=0), k=10)  # one frame, two letters: three labelings
    assert torch.isfinite(found.log_p).sum() == 3
    assert found.mass().item() == pytest.approx(1.0)


def test_a_wider_beam_finds_no_less_mass():
    log_probs = posterior(30, 20, 1.5, seed=1, size=4)
    masses = [n_best(log_probs, 20, beam).mass() for beam in (20, 80, 320)]
    assert (masses[1] >= masses[0] - 1e-12).all() and (masses[2] >= masses[1] - 1e-12).all()


def test_n_best_does_not_underflow_on_long_audio():
    log_probs = posterior(3000, 30, 0.1, seed=2)
    found = n_best(log_probs, 5)
    assert torch.isfinite(found.log_p).all() and (found.lengths > 0).all()


def test_labelings_that_no_path_fits_have_minus_infinity():
    log_probs = posterior(3, 3, 1.0, seed=3)
    labels = torch.tensor([[[1, 1, 0], [1, 1, 2]]])  # "aa" needs a-a; "aab" needs four frames
    log_p = labelings_log_p(log_probs, labels, torch.tensor([[2, 3]]))
    assert torch.isfinite(log_p).tolist() == [[True, False]]


@pytest.mark.parametrize("k, beam", [(0, 5), (10, 5)])
def test_impossible_beams_are_refused(k, beam):
    with pytest.raises(ValueError, match="k <= beam"):
        n_best(posterior(3, 3, 1.0, 0), k, beam)


def test_nan_posteriors_name_the_utterance():
    log_probs = posterior(3, 3, 1.0, 0, size=3)
    log_probs[1, 2, 0] = torch.nan
    with pytest.raises(ValueError, match="utterance 1"):
        n_best(log_probs, 3)


def searched(probs, beam: int) -> set:
    """A prefix beam search as it is written in books: every prefix, every symbol, then the best."""
    kept = {(): (1.0, 0.0)}  # a prefix: of the paths that end in blank, in its last symbol
    for frame in probs.tolist():
        grown = {}
        for prefix, (blank, last) in kept.items():
            ends = grown.setdefault(prefix, [0.0, 0.0])
            ends[0] += (blank + last) * frame[0]
            ends[1] += last * frame[prefix[-1]] if prefix else 0.0
            for symbol in range(1, len(frame)):
                repeated = prefix[-1:] == (symbol,)
                longer = grown.setdefault((*prefix, symbol), [0.0, 0.0])
                longer[1] += (blank if repeated else blank + last) * frame[symbol]
        best = sorted(grown, key=lambda prefix: -sum(grown[prefix]))[:beam]
        total = sum(grown[best[0]])
        kept = {prefix: tuple(x / total for x in grown[prefix]) for prefix in best}
    return set(kept)


@pytest.mark.parametrize("sharpness, beam", [(0.3, 7), (1.5, 7), (4.0, 7), (0.3, 40), (1.5, 40)])
def test_the_search_keeps_what_one_keeps_that_looks_at_everything(sharpness, beam):
    log_probs = posterior(15, 12, sharpness, seed=4, size=3)
    found = n_best(log_probs, beam)
    for b, frames in enumerate(log_probs.exp()):
        assert {tuple(found.labeling(b, k)) for k in range(beam)} == searched(frames, beam)


def test_of_equals_the_search_keeps_as_many_as_there_is_room_for():
    even = torch.full((1, 6, 9), 1 / 9, dtype=torch.double).log()
    found = n_best(even, 20)
    labelings = {tuple(found.labeling(0, k)) for k in range(20)}
    assert len(labelings) == 20 and torch.isfinite(found.log_p).all()
