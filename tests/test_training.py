"""Model, training, metrics, querying."""

import contextlib
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, manifest_of, tiny_batch, tiny_model
from test_decoding import all_labelings, posterior

from alspeech import experiment, metrics, querying, training
from alspeech.acquisition import ACQUISITIONS, ORACLES
from alspeech.ctc import ctc_losses, training_losses
from alspeech.model import DeepSpeech2, count_parameters
from alspeech.querying import query, rank, score
from alspeech.speech.features import FeatureStore
from alspeech.speech.text import Alphabet
from alspeech.workshop.config import TrainingConfig, load_settings
from alspeech.workshop.errors import UserError
from alspeech.workshop.store import Checkpoint

ABC = Alphabet("abcd")


@pytest.fixture
def store(tmp_path):
    """Forty utterances of which each letter is eight frames of its own bins."""
    rng, parts, frames = np.random.default_rng(0), [], []
    texts = ["".join(rng.choice(list("abcd"), size=2 + i % 3)) for i in range(40)]
    for text in texts:
        rows = 0.3 * rng.standard_normal((16 * len(text), TINY.bins))
        for u, letter in enumerate(text):
            band = 3 * "abcd".index(letter)
            rows[16 * u + 2 : 16 * u + 10, band : band + 3] += 3
        parts.append(rows)
        frames.append(len(rows))
    manifest = manifest_of(texts)
    manifest.assign(frames=frames).drop(columns="text").to_csv(tmp_path / "index.csv", index=False)
    np.save(tmp_path / "features.npy", np.concatenate(parts).astype(np.float16))
    return FeatureStore(tmp_path), manifest


def fit(model, store, manifest, updates=80, seed=0, checkpoint=None, **changes):
    config = replace(TrainingConfig(time_masks=0, frequency_masks=0), **changes)
    return training.fit(
        model, store, manifest[:32], manifest[32:], ABC, config,
        updates=updates, rate=1e-2, seed=seed, checkpoint=checkpoint,
    )  # fmt: skip


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_training_learns_to_transcribe(store, cell):
    store, manifest = store
    torch.manual_seed(0)
    model = DeepSpeech2(replace(TINY, cell=cell, hidden=16), len(ABC))
    fit(model, store, manifest, updates=150)
    figures = metrics.summarise(metrics.evaluate(model, store, manifest[32:], ABC))
    assert figures["cer"] < 20


@pytest.mark.parametrize("count", [5, 32])
def test_a_training_is_as_long_as_told_however_many_utterances_there_are(store, count):
    store, manifest = store
    model, seen = DeepSpeech2(TINY, len(ABC)), []

    def counted(model, batch, device, progress):
        seen.append((progress, batch.utt_ids))
        return training.ctc_loss(model, batch, device)

    history = training.fit(
        model, store, manifest[:count], manifest[32:], ABC, TrainingConfig(batch=4),
        updates=25, rate=1e-3, seed=0, objective=counted,
    )  # fmt: skip
    assert [progress for progress, _ in seen] == [i / 25 for i in range(25)]
    assert history["update"].tolist() == [3, 5, 8, 10, 13, 15, 18, 20, 23, 25]
    # whole passes: nothing comes again before all others have come
    told = [utt_id for _, utt_ids in seen for utt_id in utt_ids]
    assert len(set(told[:count])) == count == len(set(told[count : 2 * count]))


def test_the_weights_that_are_kept_are_the_mean_of_the_last_ones(store):
    store, manifest = store

    def trained(share):
        torch.manual_seed(0)
        model, states = DeepSpeech2(TINY, len(ABC)), []

        def copied(model, batch, device, progress):  # the weights before each update
            states.append({name: part.clone() for name, part in model.state_dict().items()})
            return training.ctc_loss(model, batch, device)

        training.fit(
            model, store, manifest[:32], manifest[32:], ABC, TrainingConfig(average=share),
            updates=10, rate=1e-2, seed=0, objective=copied,
        )  # fmt: skip
        return [*states, model.state_dict()]

    *states, mean = trained(0.4)
    last = trained(0)[-1]
    for name, kept in mean.items():
        if kept.is_floating_point():  # batch norms' statistics, too
            four = torch.stack([*(state[name] for state in states[-3:]), last[name]])
            assert torch.allclose(kept, four.mean(dim=0), atol=1e-6), name
    assert not torch.equal(mean["layers.0.weight"], last["layers.0.weight"])


@pytest.mark.parametrize("sizes", [(1000,), (1000, 7)])  # one long parameter, as on a CPU; several
def test_the_norm_that_gradients_are_clipped_by_is_taken_in_double_precision(sizes):
    rng = np.random.default_rng(0)
    weights = [torch.nn.Parameter(torch.zeros(size)) for size in sizes]
    for weight in weights:  # of sizes whose squares single precision could not add up
        weight.grad = torch.from_numpy(10.0 ** rng.uniform(-6, 3, len(weight))).float()
    exact = math.sqrt(math.fsum(g**2 for w in weights for g in w.grad.tolist()))
    norm = training._gradient_norm([*weights, torch.nn.Parameter(torch.ones(3))])  # has none
    assert norm.dtype == torch.float64 and abs(norm.item() / exact - 1) < 1e-14


def test_what_a_model_keeps_beside_its_weights_is_not_averaged_nor_lost_to_an_interruption(
    store, tmp_path
):
    """A buffer that its module replaces, as a loss predictor does with what it remembers; the
    interruption comes after the last update."""
    store, manifest = store

    class Remembering(DeepSpeech2):
        def __init__(self):
            super().__init__(TINY, len(ABC))
            self.register_buffer("memory", torch.zeros(2))

        def forward(self, features):
            if self.training:
                self.memory = torch.stack([self.memory[1], features.mean()])
            return super().forward(features)

    class Interrupting(Checkpoint):
        saved = 0

        def due(self):
            return True

        def save(self, state):
            super().save(state)
            self.saved += 1
            if self.saved == 6:
                raise KeyboardInterrupt

    states = []
    for checkpoints in ([None], [Interrupting, Checkpoint]):
        for kind in checkpoints:
            torch.manual_seed(0)
            model = Remembering()
            with contextlib.suppress(KeyboardInterrupt):
                fit(model, store, manifest, updates=6, checkpoint=kind and kind(tmp_path))
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("scale", [1.0, 30.0, 3000.0])
def test_losses_and_gradients_of_training_are_those_of_torch(scale):
    torch.manual_seed(0)
    logits = (scale * torch.randn(6, 9, 5, dtype=torch.float64)).requires_grad_()
    labels = [
        [1, 2],
        [3, 3, 3],
        [],
        [4],
        [1] * 6,
        [2, 1, 2, 1, 2, 1, 2, 1, 2],
    ]  # the fifth: no path
    ours, theirs = training_losses(logits, labels), ctc_losses(logits.log_softmax(-1), labels, True)
    assert ours[4] == theirs[4] == 0
    weights = torch.rand(6, dtype=torch.float64)
    ours_by, theirs_by = (
        torch.autograd.grad((weights * losses).sum(), logits)[0] for losses in (ours, theirs)
    )
    assert (ours_by[4] == 0).all() and torch.isfinite(ours_by).all()
    if scale < 1000:  # beyond, a posterior counts as e^-500 at least
        assert torch.allclose(ours, theirs, rtol=1e-9)
        assert torch.allclose(ours_by, theirs_by, atol=1e-9)
    assert (ours <= theirs * (1 + 1e-9)).all() and (ours[:4] > 0).all()


def test_equal_seeds_train_equal_models(store):
    store, manifest = store
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        model = DeepSpeech2(TINY, len(ABC))
        fit(model, store, manifest, updates=4, seed=3)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_transcript_longer_than_its_frames_harms_nothing(store):
    store, manifest = store
    manifest.loc[3, "text"] = "abcd" * 9  # 36 labels in at most 16 output frames
    model = DeepSpeech2(TINY, len(ABC))
    history = fit(model, store, manifest, updates=20)
    assert np.isfinite(history[["train_loss", "validation_loss"]]).all(axis=None)
    tested = metrics.evaluate(model, store, manifest, ABC)
    assert metrics.summarise(tested)["infinite_ctc"] == 1


def test_a_loss_that_is_no_number_names_utterances(store):
    store, manifest = store
    model = DeepSpeech2(TINY, len(ABC))
    torch.nn.init.constant_(model.layers[-1].weight, math.nan)
    with pytest.raises(UserError, match="u\\d+.*learning rate"):
        fit(model, store, manifest, updates=1)


def test_the_papers_model_has_seven_recurrent_layers_and_takes_a_step():
    settings = load_settings("paper")
    torch.manual_seed(0)
    small = replace(settings.model, hidden=64)  # the layers as in the paper, narrower for the test
    model = DeepSpeech2(small, 29)
    assert sum(isinstance(layer.rnn, torch.nn.GRU) for layer in model.modules()
               if hasattr(layer, "rnn")) == 7  # fmt: skip
    features = torch.randn(2, 96, 161)
    logits = model(features)
    assert logits.shape == (2, model.frames(96), 29) == (2, 48, 29)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        loss = ctc_losses(model(features).log_softmax(-1), [[1, 2, 3], [4, 5]]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert losses[1] < losses[0]
    with torch.device("meta"):  # full width, without its memory
        assert count_parameters(DeepSpeech2(settings.model, 29)) > 100e6


@pytest.mark.parametrize("seed", range(3))
def test_ctc_loss_equals_the_sum_over_all_paths(seed):
    log_probs = posterior(5, 3, 1.0, seed)
    for labeling, p in all_labelings(log_probs[0]).items():
        assert ctc_losses(log_probs, [list(labeling)]).item() == pytest.approx(-math.log(p))


def test_error_rates_are_corpus_sums():
    rows = [("on the light", "on light"), ("", "um"), ("a", "b")]
    frame = pd.DataFrame([{"ctc": 1.0, **metrics.errors(*row)} for row in rows])
    figures = metrics.summarise(frame)
    assert figures["wer"] == pytest.approx(100 * (1 + 1 + 1) / (3 + 0 + 1))
    assert figures["cer"] == pytest.approx(100 * (4 + 2 + 1) / (12 + 0 + 1))


def test_a_chinese_character_is_a_word_of_its_own():
    assert metrics.words("请播放 ok google 的ビデオ") == [*"请播放", "ok", "google", *"的ビデオ"]
    assert metrics.words("it’s naïve") == ["it’s", "naïve"]
    counts = metrics.errors("请播放音乐", "请放音月")
    assert (counts["word_errors"], counts["words"]) == (2, 5)


def test_rare_groups_weigh_as_much_as_frequent_ones_in_the_macro_error():
    """By hand: 10 %, 50 % and a group of silence, which has no words to get wrong."""
    rows = [("a b c d e", "a b c d e"), ("a b c d e", "a b c d x"), ("a b", "a"), ("", "um")]
    frame = pd.DataFrame([{"ctc": 1.0, **metrics.errors(*row)} for row in rows])
    groups = pd.Series(["command", "command", "city", "silence"], index=[7, 8, 9, 10])
    figures = metrics.summarise(frame, groups)
    assert figures["macro_wer"] == pytest.approx((10 + 50) / 2)
    assert figures["wer"] == pytest.approx(100 * (1 + 1 + 1) / 12)  # "um" counts here
    assert metrics.summarise(frame)["macro_wer"] == figures["wer"]
    # an utterance whose group is unknown is in none
    unknown = pd.Series(["command", "command", "city", None])
    assert metrics.summarise(frame, unknown)["macro_wer"] == pytest.approx(30)


@pytest.mark.parametrize("reference, hypothesis, wrong", [
    ("call zoe now", "call zoe now", 0),
    ("call zoe now", "call joe now", 1),  # another word in its place
    ("call zoe now", "call now", 1),  # none
    ("call zoe now", "call zoe zoe now", 0),  # what is inserted belongs to no word
    ("call zoe now", "please call zoe", 0),  # the others are known
    ("call zoe zed", "call ned zed", 1),
    ("call zoe zed", "", 2),
])  # fmt: skip
def test_errors_in_unseen_words_are_read_off_the_alignment(reference, hypothesis, wrong):
    counts = metrics.errors(reference, hypothesis, frozenset(["call", "now", "please"]))
    unseen = sum(word in ("zoe", "zed") for word in reference.split())
    assert (counts["unseen_errors"], counts["unseen"]) == (wrong, unseen)


def test_the_error_in_unseen_words_is_a_corpus_sum_and_none_without_any():
    known = frozenset(["call", "now"])
    rows = [("call zoe now", "call joe"), ("call zed", "call zed"), ("call now", "now now")]
    frame = pd.DataFrame([{"ctc": 1.0, **metrics.errors(*row, known)} for row in rows])
    assert metrics.summarise(frame)["unseen_wer"] == pytest.approx(100 * 1 / 2)
    assert math.isnan(metrics.summarise(frame[2:])["unseen_wer"])  # all are known
    assert "unseen" not in metrics.errors("call zoe", "call joe")  # nobody said what is known
    plain = frame.drop(columns=["unseen", "unseen_errors"])
    assert math.isnan(metrics.summarise(plain)["unseen_wer"])


def test_infinite_losses_are_left_out_and_counted():
    frame = pd.DataFrame([{"ctc": c, **metrics.errors("a", "a")} for c in (1.0, math.inf, 3.0)])
    figures = metrics.summarise(frame)
    assert figures["ctc"] == 2.0 and figures["infinite_ctc"] == 1


def test_evaluation_does_not_depend_on_the_batch_size(store):
    store, manifest = store
    model = DeepSpeech2(TINY, len(ABC)).eval()
    frames = [metrics.evaluate(model, store, manifest, ABC, batch=size) for size in (1, 7)]
    assert list(frames[0]["utt_id"]) == list(manifest["utt_id"])
    assert np.allclose(frames[0]["ctc"], frames[1]["ctc"], rtol=1e-5)


# ---------------------------------------------------------------- score → rank → query


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (lambda batch: torch.zeros(len(batch), 7), r"mine returned a tensor \[\d+, 7\]: return a"),
        (lambda batch: torch.zeros(len(batch) - 1), r"mine returned a tensor \[\d+\]: return a"),
        (lambda batch: torch.zeros(()), r"mine returned a tensor \[\]: return a tensor \[\d+\], a"),
        (lambda batch: [0.0] * len(batch), "mine returned a list: return a tensor"),
        (lambda batch: 0.5, "mine returned a float: return a tensor"),
        (lambda batch: torch.full((len(batch),), math.nan), "mine of .* is NaN: a ranking needs"),
    ],
)
def test_what_is_no_score_is_told_before_anything_is_ranked(store, returned, told, monkeypatch):
    store, manifest = store
    monkeypatch.setitem(ACQUISITIONS, "mine", lambda model, batch: returned(batch))
    with pytest.raises(UserError, match=told):
        score(DeepSpeech2(TINY, len(ABC)), store, manifest, "mine")


def test_a_score_may_be_infinite(store, monkeypatch):
    store, manifest = store
    monkeypatch.setitem(ACQUISITIONS, "mine", lambda _, batch: torch.full((len(batch),), math.inf))
    assert np.isinf(score(DeepSpeech2(TINY, len(ABC)), store, manifest, "mine")).all()


def test_a_score_that_asks_for_what_no_run_has_is_told(monkeypatch):
    settings = load_settings("smoke")
    monkeypatch.setitem(ACQUISITIONS, "mine", lambda model, batch, seed, heat: None)
    with pytest.raises(UserError, match="mine asks for 'heat', which has no default: a run has s"):
        querying.score_options(settings, "mine", 0)
    monkeypatch.setitem(ACQUISITIONS, "mine", lambda model, batch, seed, heat=1.0: None)
    assert querying.score_options(settings, "mine", 3) == {"seed": 3}
    monkeypatch.setitem(ACQUISITIONS, "mine", lambda model, batch, *_, **more: None)
    assert querying.score_options(settings, "mine", 3) == {}


def test_ranks_start_at_the_highest_score_and_ties_go_by_id():
    scores = pd.Series({"c": 1.0, "a": 1.0, "b": 5.0})
    assert rank(scores).to_dict() == {"b": 0, "a": 1, "c": 2}


@pytest.mark.parametrize("percent, count", [(10, 1), (25, 2), (40, 4), (100, 10)])
def test_a_query_takes_the_share_that_ranks_first(percent, count):
    scores = pd.Series({f"u{i}": float(i) for i in range(10)})
    assert query(scores, percent) == [f"u{9 - i}" for i in range(count)]


@pytest.mark.parametrize("percent", [0, -5, 101])
def test_query_percentages_outside_the_pool_are_refused(percent):
    with pytest.raises(UserError, match=r"outside \(0, 100\]"):
        query(pd.Series({"a": 1.0}), percent)


SECONDS = pd.Series({"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0})
BY_ID = pd.Series({"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0})  # scores: a ranks first


@pytest.mark.parametrize("seconds, bought", [
    (10, "abcd"), (9.99, "abc"), (7, "ab"), (6.99, "a"), (4, "a"),
    (3.5, "b"), (1, "d"),  # not even the first can be paid for: the first that can
])  # fmt: skip
def test_a_budget_in_seconds_pays_for_what_ranks_first(seconds, bought):
    assert query(BY_ID, seconds, SECONDS) == list(bought)
    assert query(BY_ID, seconds, SECONDS[::-1]) == list(bought)  # durations go by id


def test_seconds_that_add_up_to_the_budget_are_spent_to_the_last():
    """Ten times 0.1 is 0.9999… in floating-point numbers, and ten times 0.3 3.0000…4."""
    for each in (0.1, 0.3):
        tenths = pd.Series(each, index=[f"u{i}" for i in range(20)])
        assert len(query(tenths, 10 * each, tenths)) == 10


@pytest.mark.parametrize("seconds", [0.99, 0, -3, 10.01])
def test_a_budget_that_pays_for_nothing_or_for_more_than_there_is_is_one_line(seconds):
    with pytest.raises(UserError, match="query_seconds .* takes 1.00 s, all of them 10 s") as error:
        query(BY_ID, seconds, SECONDS)
    assert "\n" not in str(error.value) and f"query_seconds {seconds:g}:" in str(error.value)


def test_an_unknown_strategy_is_told_before_anything_is_trained(monkeypatch):
    monkeypatch.setattr(experiment, "in_parallel", lambda *_: pytest.fail("trained"))
    settings = replace(load_settings("smoke"), strategies=("random", "entrpy"))
    with pytest.raises(UserError, match="unknown strategy 'entrpy': choose one of random, entropy"):
        experiment.all_scores(settings)


@pytest.mark.parametrize("strategy", ["random", "entropy", "pctc", "egl"])
def test_pool_scores_do_not_depend_on_how_the_pool_is_batched(store, strategy):
    store, manifest = store
    model = tiny_model(dtype=torch.float32, symbols=len(ABC))
    one, many = (score(model, store, manifest, strategy, batch=size) for size in (1, 16))
    assert list(one.index) == list(manifest["utt_id"])
    assert np.allclose(one, many, rtol=1e-3)


@pytest.mark.parametrize("strategy", ["random", "entropy", "pctc", "egl"])
def test_longer_utterances_in_the_pool_add_no_padding(store, strategy):
    """An utterance of 32 frames scores the same alone and in a pool with others of up to 64."""
    store, manifest = store
    model = tiny_model(dtype=torch.float32, symbols=len(ABC))
    frames = manifest["utt_id"].map(store.frames)
    assert sorted(set(frames)) == [32, 48, 64]
    shortest = manifest[frames == 32]
    alone, among = (score(model, store, pool, strategy) for pool in (shortest[:1], manifest))
    assert alone.iloc[0] == pytest.approx(among[alone.index[0]], rel=1e-4)


def test_clusters_are_the_same_for_any_order_of_the_pool(store):
    store, manifest = store
    model = tiny_model(dtype=torch.float32, symbols=len(ABC))
    found = score(model, store, manifest, "random_clusters", seed=3)
    for seed in range(3):
        mixed = manifest.sample(frac=1, random_state=seed)
        again = score(model, store, mixed, "random_clusters", seed=3)
        assert list(again.index) == list(mixed["utt_id"])
        assert again.loc[found.index].equals(found)
    assert not score(model, store, manifest, "random_clusters", seed=4).equals(found)


def test_random_in_clusters_takes_one_of_each_before_a_second_of_any(store, monkeypatch):
    store, manifest = store
    model = tiny_model(dtype=torch.float32, symbols=len(ABC))
    names = np.repeat([0, 1, 2, 3], [30, 6, 3, 1])
    monkeypatch.setattr(querying, "cluster", lambda points, seed: names)  # in the order of ids
    first = query(score(model, store, manifest, "random_clusters"), 100 * 10 / 40)
    own = dict(zip(sorted(manifest["utt_id"]), names, strict=True))
    turns = [sorted(own[utt_id] for utt_id in part) for part in (first[:4], first[4:7], first[7:])]
    assert turns == [[0, 1, 2, 3], [0, 1, 2], [0, 1, 2]]


def test_the_oracle_of_groups_takes_the_rare_ones_too(store):
    store, manifest = store
    model = tiny_model(dtype=torch.float32, symbols=len(ABC))
    kinds = manifest.assign(kind=["city"] * 2 + ["command"] * 38)
    first = query(score(model, store, kinds, "oracle_groups", group="kind"), 10)
    assert len(first) == 4 and {"u0", "u1"} < set(first)
    # where there are no groups, it is random
    alone = score(model, store, manifest, "oracle_groups", seed=5)
    drawn = score(model, store, manifest, "random", seed=5)
    assert rank(alone).equals(rank(drawn))


@pytest.mark.parametrize("name", ["oracle_gradient", "oracle_loss"])
def test_oracles_read_transcripts_and_put_last_what_nobody_can_read(store, name):
    store, manifest = store
    model = tiny_model(dtype=torch.float32, symbols=len(ABC))
    whole = score(model, store, manifest, name, alphabet=ABC)
    assert whole.notna().all()
    harmed = manifest.copy()
    harmed.loc[[4, 9], "text"] = "[unintelligible]"
    harmed.loc[20, "text"] = ""
    found = score(model, store, harmed, name, alphabet=ABC)
    others = harmed.index.difference([4, 9, 20])
    assert found.iloc[[4, 9, 20]].isna().all()
    assert found.iloc[others].tolist() == pytest.approx(whole.iloc[others].tolist(), rel=1e-4)
    assert list(rank(found).sort_values().index[-3:]) == ["u20", "u4", "u9"]
    other = manifest.copy()
    other.loc[4, "text"] = "a" if manifest["text"][4] != "a" else "b"
    changed = score(model, store, other, name, alphabet=ABC)
    assert changed["u4"] != pytest.approx(whole["u4"], rel=1e-2)


def test_of_silence_the_oracle_knows_that_nothing_is_said(store):
    store, manifest = store
    model = tiny_model(dtype=torch.float32, symbols=len(ABC))
    silent = manifest.assign(kind="command")
    silent.loc[0, ["text", "kind"]] = ["", "silence"]
    for name in ("oracle_gradient", "oracle_loss"):
        assert np.isfinite(score(model, store, silent, name, alphabet=ABC)).all()


NO_ORACLE = [name for name in ACQUISITIONS if name not in ORACLES and name != "loss_prediction"]


@pytest.mark.parametrize("name", NO_ORACLE)
def test_no_other_score_looks_at_a_transcript(store, name):
    store, manifest = store
    model = tiny_model(dtype=torch.float32, symbols=len(ABC))
    pool = manifest[:12].assign(kind="command")
    found = score(model, store, pool, name, alphabet=ABC, group="kind")
    others = pool.assign(text=["[unintelligible]", "", "abcd" * 20] * 4, kind=list("abcdefghijkl"))
    assert score(model, store, others, name, alphabet=ABC, group="kind").equals(found)
    assert score(model, store, pool.drop(columns="text"), name).equals(found)


def test_a_model_takes_batches_of_one_length():
    batch = tiny_batch(frames=32)
    model = tiny_model()
    assert model(batch.features).shape == (3, model.frames(32), 5)


# ---------------------------------------------------------------- interrupted training


class Killed(Checkpoint):
    """Saves after every batch; the process dies with the ``n``-th."""

    def __init__(self, folder, n):
        super().__init__(folder)
        self.left = n

    def due(self):
        return True

    def save(self, state):
        super().save(state)
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_training_killed_after_any_batch_ends_with_the_same_bits(store, tmp_path, cell):
    store, manifest = store
    masked = {"time_masks": 2, "frequency_masks": 2, "time_width": 4, "batch": 8}

    def train(checkpoint=None):
        torch.manual_seed(0)
        model = DeepSpeech2(replace(TINY, cell=cell), len(ABC))
        history = fit(model, store, manifest, batches, checkpoint=checkpoint, **masked)
        return model.state_dict(), history

    batches = 2 * len(store.groups(manifest[:32], 8)) + 3
    weights, history = train()
    for n in range(1, batches + 1):  # dies anew after each batch that it gets done
        assert Checkpoint(tmp_path).path.exists() == (n > 1)
        with pytest.raises(KeyboardInterrupt):
            train(Killed(tmp_path, 1))
    resumed, its_history = train(Killed(tmp_path, 1))  # nothing is left
    assert its_history.equals(history)
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)


def test_a_damaged_checkpoint_is_noticed_and_training_begins_anew(tmp_path, capsys):
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save({"weights": torch.arange(1000.0), "epoch": 3})
    data = bytearray(checkpoint.path.read_bytes())
    assert checkpoint.load()["epoch"] == 3
    for damaged in (data[:-7], data[:2000] + bytes([data[2000] ^ 1]) + data[2001:], b""):
        checkpoint.path.write_bytes(damaged)
        assert checkpoint.load() is None
        assert "checkpoint is damaged: beginning anew" in capsys.readouterr().err


def test_scoring_goes_on_from_the_batches_that_were_done(store, tmp_path, monkeypatch):
    store, manifest = store
    model, scored = tiny_model(dtype=torch.float32, symbols=len(ABC)), []

    def counted(model, batch, **options):
        scored.append(batch.utt_ids)
        return egl(model, batch, **options)

    egl = ACQUISITIONS["egl"]
    monkeypatch.setitem(ACQUISITIONS, "egl", counted)
    whole, all_batches = score(model, store, manifest, "egl"), list(scored)
    scored.clear()
    with pytest.raises(KeyboardInterrupt):
        score(model, store, manifest, "egl", checkpoint=Killed(tmp_path, 2))
    again = score(model, store, manifest, "egl", checkpoint=Checkpoint(tmp_path))
    assert again.equals(whole) and scored == all_batches  # two, and then the others
