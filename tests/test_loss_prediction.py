"""The joint recogniser, its predicted loss, and the rounds."""

import copy
import dataclasses
import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import (
    SYMBOLS,
    TINY,
    alspeech,
    manifest_of,
    tiny_batch,
    tiny_joint,
    tiny_model,
)

from alspeech.acquisition import (
    ACQUISITIONS,
    estimated_loss,
    least_confidence,
    log_losses,
    loss_prediction,
)
from alspeech.ctc import ctc_losses
from alspeech.decoding import n_best
from alspeech.model import DeepSpeech2
from alspeech.sisters.joint import (
    MEMORY,
    AttentionDecoder,
    JointRecogniser,
    LossPredictor,
    fits,
    objective,
    prediction_loss,
    ranking_loss,
    ranking_loss_across,
)
from alspeech.sisters.loss_prediction import quality
from alspeech.speech import synthesis
from alspeech.speech.text import Alphabet, read_alphabet
from alspeech.training import fit
from alspeech.workshop.config import (
    CorpusConfig,
    LossPredictionConfig,
    TrainingConfig,
    load_settings,
)
from alspeech.workshop.errors import UserError
from alspeech.workshop.store import CHECKPOINT, Checkpoint

LABELS = ([1, 2], [3], [])


def labelled(dtype=torch.float32):
    return dataclasses.replace(tiny_batch(dtype=dtype), labels=LABELS)


# ---------------------------------------------------------------- losses


def test_ranking_loss_of_a_hand_worked_case():
    predicted = torch.tensor([[2.0], [0.0], [0.5], [1.0]])
    true = torch.tensor([[5.0], [1.0], [4.0], [3.0]])
    # pairs (0, 2): right, 1.5 apart → 0; (1, 3): right (both smaller), 1 apart → 0
    assert ranking_loss(predicted, true) == 0
    # pairs (0, 2): now wrong by 1.5 → 2.5; (1, 3): equal truth → the margin
    wrong = torch.tensor([[4.0], [3.0], [5.0], [3.0]])
    assert ranking_loss(predicted, wrong) == pytest.approx((2.5 + 1) / 2)
    # of an odd number the last is left out
    more = (torch.cat([x, torch.tensor([[9.0]])]) for x in (predicted, wrong))
    assert ranking_loss(*more) == pytest.approx((2.5 + 1) / 2)


def test_a_single_utterance_makes_no_pair_and_falls_back_to_smooth_l1():
    predicted, true = torch.tensor([[0.5, 3.0]]), torch.tensor([[0.0, 1.0]])
    with pytest.raises(ValueError, match="at least two"):
        ranking_loss(predicted, true)
    expected = (0.5 * 0.5**2 + (2.0 - 0.5)) / 2
    assert prediction_loss(predicted, true, "ranking") == pytest.approx(expected)
    assert prediction_loss(predicted, true, "smooth_l1") == pytest.approx(expected)


def test_pairs_across_batches_are_all_pairs_with_what_is_remembered():
    predicted, true = torch.randn(3, 2), torch.randn(3, 2)
    others, of_others = torch.randn(5, 2), torch.randn(5, 2)
    total = 0.0
    for i, j, target in itertools.product(range(3), range(5), range(2)):
        sign = math.copysign(1, true[i, target] - of_others[j, target])
        apart = (predicted[i, target] - others[j, target]).item()
        total += max(0.0, 1 - sign * apart) / (3 * 5 * 2)
    across = ranking_loss_across(predicted, true, others, of_others)
    assert across.item() == pytest.approx(total, rel=1e-6)
    within = ranking_loss(predicted, true)
    both = prediction_loss(predicted, true, "ranking", (others, of_others))
    assert both.item() == pytest.approx((within + across).item() / 2)
    nothing = (others[:0], of_others[:0])
    assert prediction_loss(predicted, true, "ranking", nothing) == within
    # a single utterance has pairs with what is remembered
    alone = prediction_loss(predicted[:1], true[:1], "ranking", (others, of_others))
    assert alone == ranking_loss_across(predicted[:1], true[:1], others, of_others)


def test_the_memory_holds_the_last_utterances_and_is_read_by_todays_last_layer():
    predictor = LossPredictor([3], 4)
    assert [len(x) for x in predictor.remembered()] == [0, 0]
    summaries, losses = torch.randn(MEMORY + 40, 5), torch.randn(MEMORY + 40, 2)
    for begin, end in ((0, 7), (7, 20)):
        predictor.remember(summaries[begin:end], losses[begin:end])
    predicted, true = predictor.remembered()
    assert torch.equal(predicted, predictor.predict(summaries[:20]))
    assert torch.equal(true, predictor.standardise(losses[:20], learn=False))
    for begin, end in ((20, MEMORY), (MEMORY, MEMORY + 40)):
        predictor.remember(summaries[begin:end], losses[begin:end])
    assert torch.equal(predictor.memory, summaries[-MEMORY:])
    assert torch.equal(predictor.memory_losses, losses[-MEMORY:])
    predictor.remember(summaries, losses)  # more than it holds, at once
    assert torch.equal(predictor.memory, summaries[-MEMORY:]) and predictor.memory_size == MEMORY
    with torch.no_grad():
        predictor.output.weight.mul_(2)
    assert not torch.equal(predictor.remembered()[0][-20:], predicted)


def test_targets_are_logarithms_of_the_loss_a_token_and_in_all():
    found = log_losses(torch.tensor([6.0, 2.0, 1e-9]), LABELS)
    assert torch.allclose(found[0], torch.tensor([2.0, 6.0]).log())  # two labels and the end
    assert torch.allclose(found[1], torch.tensor([1.0, 2.0]).log())
    assert found.isfinite().all()


def test_targets_are_standardised_by_the_losses_seen_so_far():
    predictor, values = LossPredictor([3], 4), torch.randn(40, 2) * 3 + 5
    first = predictor.standardise(values, learn=True)
    assert torch.allclose(first.mean(0), torch.zeros(2), atol=1e-5)
    assert torch.allclose(first.square().mean(0), torch.ones(2), atol=1e-4)
    location = predictor.location.clone()
    predictor.standardise(values + 9, learn=False)
    assert torch.equal(predictor.location, location)
    assert torch.allclose(predictor.nats(first), values.exp(), rtol=1e-4)


def test_attention_loss_is_the_sum_over_the_symbols_and_the_end_of_a_chain_of_probabilities():
    decoder = AttentionDecoder(inputs=4, hidden=6, symbols=SYMBOLS).double()
    encoded = torch.randn(3, 7, 4, dtype=torch.double)
    losses = decoder.losses(encoded, LABELS).detach()
    for b, labels in enumerate(LABELS):
        so_far, expected = [0], 0.0
        for symbol in (*labels, 0):
            logits = decoder(encoded[b : b + 1], torch.tensor([so_far]))[0, -1]
            expected -= logits.log_softmax(-1)[symbol].item()
            so_far.append(symbol)
        assert losses[b].item() == pytest.approx(expected)
        # neither its batch-mates nor their padding change it
        alone = decoder.losses(encoded[b : b + 1], [labels]).item()
        assert alone == pytest.approx(losses[b].item())


def test_the_probabilities_of_all_short_transcripts_and_of_longer_ones_sum_to_one():
    decoder = AttentionDecoder(inputs=4, hidden=6, symbols=3).double()
    encoded = torch.randn(1, 5, 4, dtype=torch.double)
    short = [list(y) for n in range(4) for y in itertools.product([1, 2], repeat=n)]
    ends = sum(math.exp(-decoder.losses(encoded, [y]).item()) for y in short)
    longer = 0.0
    for y in (list(y) for y in itertools.product([1, 2], repeat=4)):
        log_probs = decoder(encoded, torch.tensor([[0, *y[:-1]]])).log_softmax(-1)[0]
        longer += math.exp(sum(log_probs[u, symbol].item() for u, symbol in enumerate(y)))
    assert ends + longer == pytest.approx(1)


def test_the_joint_loss_is_the_weighted_sum_of_its_branches():
    model, batch = tiny_joint(torch.double), labelled(torch.double)
    _, encoded, logits = model.encode(batch.features)
    ctc = ctc_losses(model(batch.features).log_softmax(-1), LABELS)
    expected = 0.3 * ctc + 0.7 * model.decoder.losses(encoded, LABELS)
    assert torch.allclose(model.losses(encoded, logits, LABELS), expected)
    alone = tiny_joint(torch.double, hybrid=False)
    assert torch.allclose(alone.losses(*alone.encode(batch.features)[1:], LABELS), ctc)
    tokens = torch.tensor([3, 2, 1])
    true = model.true_losses(batch.features, LABELS)
    assert torch.allclose(true, torch.stack([expected / tokens, expected], 1), rtol=1e-5)


# ---------------------------------------------------------------- gradients


def gradients_of(progress: float, **options) -> dict:
    model = tiny_joint(**options)
    model.train()
    torch.manual_seed(1)
    objective(model, labelled(), torch.device("cpu"), progress).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_the_lengths_weight_learns_from_pairs_of_batches_and_from_no_pair_of_one_batch():
    model, gradients = tiny_joint().train(), []
    for frames in (16, 32, 48):
        batch = dataclasses.replace(tiny_batch(frames=frames, dtype=torch.float32), labels=LABELS)
        model.zero_grad()
        objective(model, batch, torch.device("cpu"), 0.0).backward()
        gradients.append(model.predictor.output.weight.grad[:, -1].abs())
        # what all predictions share changes no order
        assert model.predictor.output.bias.grad.abs().max() < 1e-6
    assert gradients[0].max() < 1e-6  # as much plus as minus
    assert all(gradient.min() > 1e-3 for gradient in gradients[1:])


def test_only_a_training_that_ranks_remembers():
    def remembered(mode: bool, **options):
        model = tiny_joint(hybrid=False, **options).train(mode)
        for _ in range(2):
            loss = objective(model, labelled(), torch.device("cpu"), 0.0)
        return int(model.predictor.memory_size), loss.item()

    assert remembered(True)[0] == 2 * len(LABELS)
    assert remembered(False)[0] == 0
    assert remembered(True, weight=0.0)[0] == 0
    assert remembered(True, criterion="smooth_l1")[0] == 0
    model = tiny_joint(hybrid=False).train()
    objective(model, labelled(), torch.device("cpu"), 0.0)
    before = copy.deepcopy(model.predictor.state_dict())
    model.eval()
    objective(model, labelled(), torch.device("cpu"), 0.0)
    model.true_losses(labelled().features, LABELS), model.predicted_losses(labelled().features)
    for name, value in model.predictor.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("hybrid", [True, False])
def test_detached_the_predictor_learns_and_leaves_the_encoder_alone(hybrid):
    without = gradients_of(0.0, weight=0.0, hybrid=hybrid)
    early, late = (gradients_of(p, detach=0.5, hybrid=hybrid) for p in (0.4, 0.5))
    assert not any(name.startswith("predictor") for name in without)
    for name, gradient in without.items():
        assert torch.equal(late[name], gradient), name
    assert any(not torch.equal(early[name], gradient) for name, gradient in without.items())
    predictor = [gradient for name, gradient in late.items() if name.startswith("predictor")]
    assert any(gradient.abs().max() > 0 for gradient in predictor)


class Store:
    """Features of one length, in memory."""

    def __init__(self, size: int):
        generator = torch.Generator().manual_seed(3)
        self.features = torch.randn(size, 16, TINY.bins, generator=generator)

    def groups(self, utterances, size, rng=None):
        index = np.arange(len(utterances))
        return np.array_split(rng.permutation(index) if rng else index, -(-len(index) // size))

    def batch(self, utterances, encode=None):
        index = [int(name[1:]) for name in utterances["utt_id"]]
        labels = tuple(map(encode, utterances["text"])) if encode else ()
        batch = tiny_batch(len(index), dtype=torch.float32)
        ids = tuple(utterances["utt_id"])
        return dataclasses.replace(batch, utt_ids=ids, features=self.features[index], labels=labels)

    def batches(self, utterances, size, encode=None, rng=None):
        for index in self.groups(utterances, size, rng):
            yield self.batch(utterances.iloc[index], encode)


def test_without_weight_the_recogniser_is_bit_for_bit_that_of_plain_training():
    train, alphabet = manifest_of(["ab", "c", "dab", "", "aba", "cd"]), Alphabet("abcd")
    store, config, states = Store(6), TrainingConfig(batch=2), []
    for chosen in (None, objective):
        torch.manual_seed(7)
        model = DeepSpeech2(TINY, SYMBOLS)
        if chosen:
            torch.manual_seed(7)
            light = LossPredictionConfig(decoder=6, predictor=7, weight=0.0, hybrid=False)
            model = JointRecogniser(TINY, light, SYMBOLS)
        fit(model, store, train, train, alphabet, config,
            updates=9, rate=1e-2, seed=1, objective=chosen)  # fmt: skip
        states.append((model.recogniser if chosen else model).state_dict())
    for name, value in states[0].items():
        assert torch.equal(states[1][name], value), name


class Interrupted(Exception):
    pass


def test_a_training_that_was_interrupted_remembers_the_same_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoint, "due", lambda checkpoint: True)
    train, alphabet = manifest_of(["ab", "c", "dab", "", "aba", "cd"]), Alphabet("abcd")

    def trained(calls: int = -1):
        """The model, or what is left of it after so many batches."""
        left = itertools.count(calls, -1)

        def interruptible(*what):
            if next(left) == 0:
                raise Interrupted
            return objective(*what)

        model = tiny_joint()
        fit(model, Store(6), train, train, alphabet, TrainingConfig(batch=2), updates=9, rate=1e-2,
            seed=1, objective=interruptible, checkpoint=Checkpoint(tmp_path))  # fmt: skip
        return model.state_dict()

    expected = trained()
    (tmp_path / CHECKPOINT).unlink()
    for batches in (4, 1):
        with pytest.raises(Interrupted):
            trained(batches)
    found = trained()
    assert found["predictor.memory_size"] > 0
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_joint_training_lowers_both_losses():
    model, batch = tiny_joint(), labelled()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    recognition, prediction = [], []
    for _ in range(30):
        model.train()
        loss = objective(model, batch, torch.device("cpu"), 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            taps, encoded, logits = model.encode(batch.features)
            losses = model.losses(encoded, logits, LABELS)
            predicted = model.predictor(taps)
        recognition.append(losses.mean())
        prediction.append(ranking_loss(predicted[:2], log_losses(losses, LABELS)[:2]))
    assert recognition[-1] < 0.5 * recognition[0]
    assert min(prediction) < 0.5 * prediction[0]


def test_a_transcript_that_fits_no_path_teaches_the_predictor_nothing():
    assert fits([1, 1], 3) and not fits([1, 1], 2) and fits([], 1)
    model, long = tiny_joint(), [1, 1, 1, 1, 1]
    frames = model(tiny_batch(dtype=torch.float32).features).shape[1]
    assert not fits(long, frames)
    batch = dataclasses.replace(labelled(), labels=([1], [2], long))
    model.train()
    loss = objective(model, batch, torch.device("cpu"), 0.0)
    loss.backward()
    assert loss.isfinite() and model.predictor.location.isfinite().all()
    # nothing at all to learn from: the recogniser's loss, which is finite too
    batch = dataclasses.replace(batch, labels=(long, long, long))
    assert objective(model, batch, torch.device("cpu"), 0.0).isfinite()


# ---------------------------------------------------------------- scores


def test_least_confidence_is_one_minus_the_best_labelings_probability_a_label():
    model, batch = tiny_model(), tiny_batch()
    best = n_best(model(batch.features).log_softmax(-1), k=1, beam=50)
    expected = [
        1 - math.exp(best.log_p[b, 0].item()) ** (1 / max(1, len(best.labeling(b, 0))))
        for b in range(len(batch))
    ]
    assert least_confidence(model, batch, beam=50).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("target, column", [("token", 0), ("utterance", 1)])
def test_estimated_loss_is_the_loss_against_the_recognisers_own_hypothesis(target, column):
    plain, batch = tiny_model(), tiny_batch()
    best = n_best(plain(batch.features).log_softmax(-1), k=1, beam=50)
    labels = [best.labeling(b, 0) for b in range(len(batch))]
    expected = ctc_losses(plain(batch.features).log_softmax(-1), labels)
    tokens = torch.tensor([len(row) + 1 for row in labels])
    expected = torch.stack([expected / tokens, expected], dim=1)[:, column]
    assert torch.allclose(estimated_loss(plain, batch, 50, target), expected)
    model, batch = tiny_joint(torch.double), tiny_batch()
    best = n_best(model(batch.features).log_softmax(-1), k=1, beam=50)
    labels = [best.labeling(b, 0) for b in range(len(batch))]
    expected = model.true_losses(batch.features, labels)[:, column]
    assert torch.allclose(estimated_loss(model, batch, 50, target), expected)


def test_a_predicted_loss_does_not_depend_on_batch_mates_and_needs_a_predictor():
    model, batch = tiny_joint(torch.double), tiny_batch()
    together = loss_prediction(model, batch)
    for b in range(len(batch)):
        alone = dataclasses.replace(batch, features=batch.features[b : b + 1])
        assert torch.allclose(loss_prediction(model, alone), together[b : b + 1])
    with pytest.raises(UserError, match="make loss-prediction"):
        loss_prediction(tiny_model(), batch)


@pytest.mark.parametrize("name", sorted(ACQUISITIONS))
def test_every_acquisition_function_scores_with_a_joint_recogniser(name):
    batch = dataclasses.replace(tiny_batch(dtype=torch.float32), labels=LABELS)
    assert ACQUISITIONS[name](tiny_joint(), batch).isfinite().all()


def test_quality_of_a_perfect_predictor_and_of_the_mean():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"true_token": np.exp(rng.normal(size=50))})
    table.loc[3, "true_token"] = np.inf  # left out
    table = table.assign(perfect=table["true_token"] ** 2, wrong=1 / table["true_token"], mean=1.0)
    assert quality(table, "perfect") == pytest.approx({"spearman": 1, "explained": 1})
    assert quality(table, "wrong")["spearman"] == pytest.approx(-1)
    assert quality(table, "mean") == {"spearman": 0, "explained": 0}


# ---------------------------------------------------------------- settings, corpus, notebook


@pytest.mark.parametrize("line, message", [
    ("criterion: rank", "criterion is rank: input should be 'ranking' or 'smooth_l1'"),
    ("target: word", "target is word: input should be 'token' or 'utterance'"),
    ("ctc_weight: 2", "ctc_weight is 2: input should be less than or equal to 1"),
    ("ctc_weight: -1", "ctc_weight is -1: input should be greater than or equal to 0"),
    ("weight: -1", "loss_prediction: weight is -1: input should be greater than or equal to 0"),
    ("rounds: [20, 10]", "rounds must be rising percentages"),
    ("rounds: []", "rounds must be rising percentages"),
    ("variants: [joint]", "variants must name joint, no_prediction"),
    ("rounds: [50, 150]", "150: input should be less than or equal to 100"),
    ("strategies: [egl, magic]", "unknown strategy 'magic': choose one of random, entropy"),
    ("layers: 3", "unknown key 'layers'"),
])  # fmt: skip
def test_a_wrong_setting_is_one_line(root, line, message):
    with open(root / "configs" / "tiny.yaml", "a") as file:
        file.write(f"loss_prediction: {{{line}}}\n")
    done = alspeech(root, "run", "--system", "loss-prediction", "--preset", "tiny")
    assert done.returncode == 2 and message in done.stderr.strip()
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_embedded_corpus_speaks_mandarin(tmp_path):
    sizes = {"base": 12, "pool": 6, "validation": 3, "test": 3}
    config = CorpusConfig(**sizes, language="cmn", alphabet="learned")
    synthesis.build(tmp_path, config, jobs=1)
    manifest = pd.read_json(tmp_path / "manifest.jsonl", lines=True, dtype={"text": str})
    said = manifest[manifest["text"] != ""]
    assert manifest["speaker"].str.startswith("cmn+").all()
    assert all("一" <= c <= "鿿" for text in said["text"] for c in text)
    known = said["text"][said["split"].isin(["base", "validation"])]
    # what is not queried is not read: the others know characters that these do not
    assert (
        set(read_alphabet(tmp_path).characters) == set("".join(known)) < set("".join(said["text"]))
    )
    assert (said["duration"] > 0.4).all()  # it is spoken, not skipped
    settings = load_settings("mandarin")
    wrong = dataclasses.replace(settings.build, alphabet="english")
    with pytest.raises(ValueError, match="alphabet: learned"):
        dataclasses.replace(settings, build=wrong)


def test_a_prediction_without_a_unit_is_judged_by_its_order():
    """Pairs teach an order, and nothing keeps the numbers from being very small."""
    true = np.array([1.0, 2.0, 3.0, 5.0])
    table = pd.DataFrame({"true_token": true, "loss_prediction": 1e-14 * true**3})
    found = quality(table, "loss_prediction")
    assert found["spearman"] == pytest.approx(1) and found["explained"] == pytest.approx(1)


def test_the_notebook_regenerates_its_figures_and_tables(executed):
    results, figures = (executed / name / "synthetic-small" for name in ("results", "figures"))
    for name in ("fig_lp_scatter", "fig_lp_curves", "fig_lp_rankings"):
        assert (figures / f"{name}.png").stat().st_size > 10_000
    curves = pd.read_csv(results / "lp_curves.csv")
    strategies = LossPredictionConfig().strategies
    assert len(curves) == 2 + 2 * len(strategies)
    sizes = curves.groupby("query_percent")["n_utterances"].unique().to_dict()
    assert {k: list(v) for k, v in sizes.items()} == {0: [0], 20: [6], 50: [15], 100: [30]}
    assert (results / "provenance_loss_prediction.json").exists()
