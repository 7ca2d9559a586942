"""Continuous pseudo-labels: the cache step by step, the losses by hand, and what goes wrong."""

import dataclasses
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, tiny_model

from alspeech.ctc import ctc_losses
from alspeech.metrics import evaluate, summarise
from alspeech.model import DeepSpeech2
from alspeech.sisters import pseudo_labels, slimipl
from alspeech.sisters.slimipl import (
    SUPERVISED,
    UNSUPERVISED,
    Cache,
    Monitor,
    Recipe,
    Target,
    average,
    entropies,
    make_target,
    passes,
    plan,
    recurrent_dropout,
    sharpen,
    soft_loss,
    train,
    unsupervised_loss,
    valid_frames,
)  # fmt: skip
from alspeech.speech.corpus import Corpus
from alspeech.speech.features import Batch, group_by_length
from alspeech.speech.text import Alphabet
from alspeech.workshop.config import PseudoLabelConfig, Settings, TrainingConfig, load_settings
from alspeech.workshop.errors import UserError
from alspeech.workshop.store import Checkpoint

AB = Alphabet(" abc")  # with the blank, as many symbols as conftest's tiny models
HALF, QUARTER = math.log(2), math.log(4)

# ---------------------------------------------------------------- losses


def test_soft_loss_equals_a_case_worked_by_hand():
    student = torch.tensor([[[0.5, 0.5], [0.25, 0.75]]]).log()  # [1, 2, 2]
    teacher = torch.tensor([[[1.0, 0.0], [0.5, 0.5]]])
    everything = torch.ones(1, 2, dtype=torch.bool)
    second = 0.5 * QUARTER + 0.5 * -math.log(0.75)
    assert soft_loss(student, teacher, everything).item() == pytest.approx((HALF + second) / 2)
    first = torch.tensor([[True, False]])
    assert soft_loss(student, teacher, first).item() == pytest.approx(HALF)


@pytest.mark.parametrize("recipe", [Recipe(soft=1), Recipe(soft=1, prior=2.0)])
def test_padding_does_not_change_the_soft_losses(recipe):
    student, teacher = torch.randn(2, 3, 7, 5).softmax(-1)  # [3, 7, 5] each
    prior, lengths = torch.full((5,), 0.2), torch.tensor([7, 4, 6])
    losses = []
    for extra in (0, 6):
        noise = torch.randn(2, 3, extra, 5).softmax(-1)
        longer = [torch.cat(pair, dim=1) for pair in zip((student, teacher), noise, strict=True)]
        valid = torch.arange(7 + extra) < lengths[:, None]
        for part in longer:  # what lies in the padding may be anything
            part[~valid] = torch.rand(5).softmax(-1)
        target = Target([0, 1, 2], None, longer[1])
        losses.append(unsupervised_loss(longer[0].log(), target, valid, recipe, prior).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_the_frames_that_count_are_those_of_the_utterance_itself():
    # two strides of 2: 16 frames give 4, and 0.12 s are 12 frames, which give 3
    utterances = pd.DataFrame({"duration": [0.16, 0.12, 0.005]})
    assert valid_frames(utterances, TINY).tolist() == [4, 3, 1]


def test_the_unsupervised_loss_is_the_sum_of_its_terms_in_nats_an_utterance():
    log_probs, teacher = torch.randn(2, 4, 5).log_softmax(-1), torch.randn(2, 4, 5).softmax(-1)
    target, valid = Target([0, 1], [[1, 2], [3]], teacher), torch.ones(2, 4, dtype=torch.bool)
    prior = torch.tensor([0.6, 0.1, 0.1, 0.1, 0.1])
    ctc = ctc_losses(log_probs, target.labels).mean()
    soft = 4 * soft_loss(log_probs, teacher, valid)
    mean = log_probs.exp().flatten(0, 1).mean(dim=0)
    kl = 4 * (mean * (mean / prior).log()).sum()
    recipe = Recipe(hard=0.5, soft=0.25, prior=2.0)
    expected = 0.5 * ctc + 0.25 * soft + 2 * kl
    found = unsupervised_loss(log_probs, target, valid, recipe, prior)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_soft_gradient_vanishes_where_the_student_is_its_teacher_and_the_hard_one_does_not():
    logits = torch.randn(1, 6, 5, requires_grad=True)
    teacher = logits.detach().softmax(-1)
    valid = torch.ones(1, 6, dtype=torch.bool)
    sizes = {}
    for name, recipe in {"soft": Recipe(soft=1), "hard": Recipe(hard=1)}.items():
        target = Target([0], [[1, 2]], teacher)
        loss = unsupervised_loss(logits.log_softmax(-1), target, valid, recipe)
        sizes[name] = torch.autograd.grad(loss, logits)[0].abs().max().item()
    assert sizes["soft"] < 1e-6 and sizes["hard"] > 0.1


def test_sharpening_at_one_half_squares_the_probabilities():
    sharp = sharpen(torch.tensor([0.8, 0.2]).log(), 0.5).exp()
    assert sharp.tolist() == pytest.approx([0.64 / 0.68, 0.04 / 0.68])


# ---------------------------------------------------------------- targets


def frames(*paths):
    """Log posteriors [B, T, 5] that are nearly sure of each path's symbols."""
    sure = torch.nn.functional.one_hot(torch.tensor(paths), 5).float()
    return (0.9 * sure + 0.02).log()


def test_hard_targets_are_collapsed_best_paths_and_empty_ones_are_left_out():
    log_probs = frames([2, 2, 0, 2], [0, 0, 0, 0], [1, 0, 1, 1], [3, 0, 0, 4])
    target = make_target(log_probs, [7, 8, 9, 5], AB, Recipe(hard=1))
    # the second is all blank, the third is spaces only: neither says anything
    assert target == Target([7, 5], [[2, 2], [3, 4]], None)


def test_soft_targets_are_the_posteriors_of_every_utterance_at_the_temperature():
    log_probs = frames([2, 0], [0, 0])
    target = make_target(log_probs, [0, 1], AB, Recipe(soft=1, temperature=0.5))
    assert target.rows == [0, 1] and target.labels is None
    torch.testing.assert_close(target.probs, sharpen(log_probs, 0.5).exp())


def test_a_sampled_alignment_is_the_same_as_a_text_and_frame_by_frame():
    log_probs = torch.randn(6, 9, 5).log_softmax(-1)
    draw = lambda recipe: make_target(  # noqa: E731
        log_probs, range(6), AB, recipe, torch.Generator().manual_seed(4)
    )
    text, framewise = draw(Recipe(hard=1, sampled=True)), draw(Recipe(soft=1, sampled=True))
    assert text.rows == framewise.rows
    assert set(framewise.probs.unique().tolist()) == {0.0, 1.0}
    paths = framewise.probs.argmax(-1).tolist()
    assert [AB.encode(AB.collapse(path)) for path in paths] == text.labels
    assert text.labels != make_target(log_probs, range(6), AB, Recipe(hard=1)).labels


# ---------------------------------------------------------------- the cache, traced


class Script:
    """Stands for a torch.Generator: the tests say what is drawn."""

    def __init__(self, monkeypatch, slots, chances):
        slots, chances = iter(slots), iter(chances)
        monkeypatch.setattr(torch, "randint", lambda *a, **k: torch.tensor(next(slots)))
        monkeypatch.setattr(torch, "rand", lambda *a, **k: torch.tensor(next(chances)))


def test_the_cache_gives_old_labels_as_in_a_trace_worked_by_hand(monkeypatch):
    Script(monkeypatch, slots=[1, 1, 0, 1], chances=[0.2, 0.9, 0.1, 0.0])
    made = []  # the n-th label is "n", made of the model as it is then

    def fresh():
        made.append(len(made))
        return made[-1]

    cache = Cache(2, 0.5, None)
    assert [cache.step(fresh), cache.step(fresh)] == [None, None]  # filling: nothing to train on
    assert cache.targets == [0, 1]
    assert cache.step(fresh) == 1 and cache.targets == [0, 2]  # 0.2 < p: replaced, the old is used
    assert cache.step(fresh) == 2 and cache.targets == [0, 2]  # 0.9: it stays
    assert cache.step(fresh) == 0 and cache.targets == [3, 2]
    assert cache.step(fresh) == 2 and cache.targets == [3, 4]
    assert made == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("p, labelled", [(0.0, 3), (1.0, 3 + 20)])
def test_the_cache_never_renews_at_p_0_and_always_at_p_1(p, labelled):
    made = []
    fresh = lambda: made.append(len(made)) or made[-1]  # noqa: E731
    cache = Cache(3, p, torch.Generator().manual_seed(0))
    used = [cache.step(fresh) for _ in range(3 + 20)]
    assert used[:3] == [None] * 3 and len(made) == labelled
    if p == 0:
        assert set(used[3:]) == {0, 1, 2}
    else:  # each label is used once at most
        assert len(set(used[3:])) == 20


def test_the_plan_is_a_warm_up_without_unsupervised_steps_and_then_blocks():
    config = PseudoLabelConfig(warm_up=3, blocks=2, supervised=1, unsupervised=2)
    block = [SUPERVISED, UNSUPERVISED, UNSUPERVISED]
    assert plan(config) == [SUPERVISED] * 3 + block * 2


# ---------------------------------------------------------------- training


class Features:
    """A feature store in memory: utterances of one length."""

    def __init__(self, size: int, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.features = torch.randn(size, 16, TINY.bins, generator=generator)

    def batch(self, utterances, encode=None):
        rows = [int(name[1:]) for name in utterances["utt_id"]]
        labels = tuple(map(encode, utterances["text"])) if encode else ()
        return Batch(tuple(utterances["utt_id"]), self.features[rows], labels)

    def groups(self, utterances, size, rng=None):
        return group_by_length([16] * len(utterances), size, rng)

    def batches(self, utterances, size, encode=None, rng=None):
        for index in self.groups(utterances, size, rng):
            yield self.batch(utterances.iloc[index], encode)


@pytest.fixture
def speech(tmp_path):
    texts = ["ab", "ca", "b", "abc"] * 7
    manifest = pd.DataFrame({
        "utt_id": [f"u{n}" for n in range(28)], "text": texts, "duration": 0.16,
        "split": ["base"] * 8 + ["pool"] * 12 + ["validation"] * 4 + ["test"] * 4,
    })  # fmt: skip
    return Corpus(tmp_path, manifest, Features(28, 0), AB)


CONFIG = PseudoLabelConfig(
    warm_up=4, blocks=3, supervised=1, unsupervised=2, cache=2, replacement=0.5, every=100,
    rate=1e-2,
)  # fmt: skip
SETTINGS = Settings("tiny", model=TINY, training=TrainingConfig(batch=4), pseudo_labels=CONFIG)


class Watch:
    """A measure that keeps the weights that it saw."""

    def __init__(self):
        self.state = []

    def __call__(self, model, step):
        self.state.append([step, [value.clone() for value in model.state_dict().values()]])
        return False


class Stop(Watch):
    """One that ends the training at a step."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def __call__(self, model, step):
        return step == self.step


def go(speech, folder, recipe, config=CONFIG, steps=None, measure=None):
    folder.mkdir(exist_ok=True)
    model = tiny_model(dtype=torch.float32)
    measure = measure or Watch()
    settings = dataclasses.replace(SETTINGS, pseudo_labels=config)
    counts = train(
        model, speech, speech.split("base"), speech.split("pool"), settings,
        plan(config)[config.warm_up :] if steps is None else steps, recipe,
        seed=0, checkpoint=Checkpoint(folder), measure=measure,
    )  # fmt: skip
    return model, counts, measure


def same(a, b):
    return all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_warm_up_labels_nothing_and_filling_the_cache_updates_nothing(speech, tmp_path):
    counts = go(speech, tmp_path / "a", Recipe(), steps=plan(CONFIG)[: CONFIG.warm_up])[1]
    assert counts["labelled_updates"] == 4 and counts["unlabelled_updates"] == 0
    assert counts["pseudo_labelled"] == 0
    filling = [UNSUPERVISED] * CONFIG.cache
    model, counts, _ = go(speech, tmp_path / "b", Recipe(soft=1), steps=filling)
    assert same(model, tiny_model(dtype=torch.float32))
    assert counts["stored"] == 2 and counts["pseudo_labelled"] == 8
    assert counts["unlabelled_updates"] == 0
    model, counts, _ = go(speech, tmp_path / "c", Recipe(soft=1), steps=[*filling, UNSUPERVISED])
    assert counts["unlabelled_updates"] == 1 and not same(model, tiny_model(dtype=torch.float32))


def test_labels_are_those_of_the_model_before_the_update(speech, tmp_path, monkeypatch):
    """p = 1: the batch that enters at a step is labelled by the model as that step found it."""
    labelled, states = [], []
    original = slimipl.make_target

    def spy(log_probs, rows, *rest):
        labelled.append((log_probs.clone(), rows))
        return original(log_probs, rows, *rest)

    monkeypatch.setattr(slimipl, "make_target", spy)
    config = dataclasses.replace(CONFIG, replacement=1.0, every=1)
    watch = Watch()
    go(speech, tmp_path / "a", Recipe(soft=1), config, [UNSUPERVISED] * 4, measure=watch)
    states = [state for _, state in watch.state]
    for step, (log_probs, rows) in enumerate(labelled):
        model = tiny_model(dtype=torch.float32)
        model.load_state_dict(dict(zip(model.state_dict(), states[step], strict=True)))
        batch = speech.store.batch(speech.split("pool").iloc[rows])
        with slimipl.autocast("cpu"), torch.no_grad():
            expected = model(batch.features).float().log_softmax(-1)
        torch.testing.assert_close(log_probs, expected)
    assert len(labelled) == 4
    assert not torch.equal(states[2][0], states[3][0])


@pytest.mark.parametrize("recipe", [
    Recipe(hard=0.5, soft=0.5, decay=0.9), Recipe(soft=1, prior=1.0, sampled=True),
])  # fmt: skip
def test_an_interrupted_run_ends_with_the_bits_of_an_undisturbed_one(
    speech, tmp_path, monkeypatch, recipe
):
    monkeypatch.setattr(Checkpoint, "due", lambda self: True)
    config = dataclasses.replace(CONFIG, blocks=5)  # pass after pass, before the kill and after it
    whole, counts, _ = go(speech, tmp_path / "whole", recipe, config)

    class Killed(Watch):
        def __call__(self, model, step):
            if step == 7 and not self.state[-1][0] == 7:
                raise KeyboardInterrupt
            return super().__call__(model, step)

    killed = dataclasses.replace(config, every=7)
    with pytest.raises(KeyboardInterrupt):
        go(speech, tmp_path / "part", recipe, killed, measure=Killed())
    again, more, _ = go(speech, tmp_path / "part", recipe, config)
    assert same(again, whole) and more == counts


def test_dropout_acts_in_training_only_and_leaves_the_model_as_it_was():
    model, features = tiny_model(), torch.randn(2, 16, TINY.bins, dtype=torch.float64)
    names, plain = list(model.state_dict()), model(features)
    with recurrent_dropout(model, 0.5):
        assert torch.equal(model(features), plain)
    for layer in model.modules():  # batch norm as it is, so that only dropout can differ
        layer.training = isinstance(layer, slimipl.Bidirectional)
    with recurrent_dropout(model, 0.5):
        assert not torch.equal(model(features), plain)
    with recurrent_dropout(model, 0.0):
        assert torch.equal(model(features), plain)
    assert torch.equal(model(features), plain) and list(model.state_dict()) == names


def test_the_average_moves_by_one_minus_decay_and_counts_batches():
    teacher, student = tiny_model(seed=0), tiny_model(seed=1)
    student.layers[1].num_batches_tracked += 3
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    average(teacher, student, 0.9)
    for name, value in teacher.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.9 * before[name] + 0.1 * student.state_dict()[name])
    assert teacher.layers[1].num_batches_tracked == 3


def test_passes_hold_every_utterance_once_each_in_another_order(speech):
    pool = speech.split("pool")
    order = passes(speech.store, pool, 5, 0)
    first, second = ([row for _ in range(3) for row in next(order)] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(12)) and first != second


# ---------------------------------------------------------------- monitor


def test_frames_that_all_say_the_same_have_the_entropy_of_their_average():
    same_frames = torch.tensor([[0.7, 0.2, 0.1]]).expand(4, 3).log()
    of_average, mean = entropies(same_frames)
    assert of_average == pytest.approx(mean)
    sure = torch.eye(3).clamp_min(1e-30).log()  # three frames, three symbols, no doubt
    assert entropies(sure) == pytest.approx((math.log(3), 0), abs=1e-6)


def test_the_monitor_measures_what_a_model_says_and_tells_a_collapse(speech):
    class Says:
        """In the place of a model: as sure of a path as a table tells it to be."""

        def __init__(self, paths):
            self.paths = paths

        def eval(self): ...

        def parameters(self):
            return iter([torch.zeros(1)])

        def state_dict(self):
            return {"paths": torch.tensor(self.paths)}

        def __call__(self, features):
            return frames(*[self.paths] * len(features))

    pool = speech.split("pool")  # "ab", "ca", "b", "abc", three of each: 24 letters, 12 words
    monitor = Monitor(speech, SETTINGS)
    assert not monitor(Says([2, 3, 0, 0]), 0)  # "ab": 3 words of 12 are right
    row = monitor.state["rows"][0]
    assert row["blank_share"] == 0.5 and row["length_ratio"] == 1.0
    assert row["pseudo_wer"] == pytest.approx(100 * 9 / 12)
    assert row["pseudo_cer"] == pytest.approx(100 * 3 * (0 + 2 + 1 + 1) / 24)
    assert monitor.shown in set(pool["utt_id"])
    assert monitor(Says([0, 0, 0, 0]), 1)  # nothing is right: below half of what was
    assert monitor.state["rows"][1]["empty_share"] == 1
    assert not monitor(Says([3, 3, 0, 0]), 2)  # "b": as many words as at first
    assert len(monitor.state["posteriors"]) == 3
    assert monitor.state["best"]["paths"].tolist() == [3, 3, 0, 0]  # of 1 and 2, on validation


def test_transcripts_of_the_pool_decide_nothing(speech):
    """Which weights are best, and whether a run has collapsed, is the validation set's to say."""
    rubbish = speech.manifest.assign(
        text=speech.manifest["text"].where(speech.manifest["split"] != "pool", "zz zz")
    )
    told = []
    for corpus in (speech, dataclasses.replace(speech, manifest=rubbish)):
        monitor = Monitor(corpus, SETTINGS)
        for step in range(3):
            ended = monitor(tiny_model(seed=step, dtype=torch.float32), step)
            told.append((ended, monitor.state["best"]["layers.0.weight"].sum().item()))
    assert told[:3] == told[3:]


def test_labels_alone_make_as_many_updates_as_pseudo_labels_do():
    config = dataclasses.replace(CONFIG, blocks=5, joined_blocks=7, joined_unsupervised=2)
    for regime, labelled, others in (("anchored", 5, 5 * 2 - 2), ("joined", 7, 7 * 2 - 2)):
        kinds = {m: pseudo_labels.training_steps(config, regime, m) for m in pseudo_labels.USES}
        assert kinds["supervised"] == [SUPERVISED] * labelled
        assert kinds["supervised_longer"] == [SUPERVISED] * (labelled + others)
        assert kinds["hard"].count(SUPERVISED) == labelled
        assert kinds["hard"].count(UNSUPERVISED) == others + config.cache


def test_all_runs_are_tested_with_their_last_weights(speech, tmp_path, monkeypatch):
    """Also one that collapsed, and one whose best step was an earlier one."""
    monkeypatch.setattr(pseudo_labels, "prepare", lambda settings: speech)
    monkeypatch.setattr(slimipl.Monitor, "collapsed", lambda self: len(self.state["rows"]) == 3)
    config = dataclasses.replace(CONFIG, every=1, watched=4)
    model = tiny_model(dtype=torch.float32)
    metrics = pseudo_labels._train_and_test(
        tmp_path, SETTINGS, config, model, [SUPERVISED] * 5, Recipe(), [], 0
    )
    assert metrics["collapsed_at"] == 2 and metrics["labelled_updates"] == 2
    told = pd.read_csv(tmp_path / "test.csv")
    again = tmp_path / "again"
    last = go(speech, again, Recipe(), config, [SUPERVISED] * 5, measure=Stop(2))[0]
    expected = evaluate(last, speech.store, speech.split("test"), speech.alphabet)
    np.testing.assert_allclose(told["ctc"], expected["ctc"], rtol=1e-6)
    assert metrics["wer"] == summarise(expected)["wer"]


# ---------------------------------------------------------------- what goes wrong


def test_no_unlabelled_audio_and_a_cache_that_is_too_large_say_what_to_change(speech, tmp_path):
    nothing = dataclasses.replace(speech, manifest=speech.manifest.query("split != 'pool'"))
    with pytest.raises(UserError, match=r"tiny\.yaml: no unlabelled audio .* pool"):
        go(nothing, tmp_path / "a", Recipe(soft=1))
    large = dataclasses.replace(CONFIG, cache=4)
    with pytest.raises(UserError, match="cache is 4 batches.*only 3.*lower cache to 3"):
        go(speech, tmp_path / "b", Recipe(soft=1), large)


def test_a_loss_that_is_not_finite_says_so(speech, tmp_path):
    speech.store.features[:] = float("nan")
    with pytest.raises(UserError, match="the loss is nan at step 0 .* lower the learning rate"):
        go(speech, tmp_path / "a", Recipe(soft=1))


@pytest.mark.parametrize("line, message", [
    ("cache: 0", "cache is 0: .* greater than or equal to 1"),
    ("replacement: 1.5", "replacement is 1.5: .* less than or equal to 1"),
    ("dropout: 1.0", "dropout is 1.0: .* less than 1"),
    ("temperature: 0", "temperature is 0: .* greater than 0"),
    ("query_percents: [100]", "query_percents is 100: .* less than 100"),
    ("anchored: [hardest]", "unknown method 'hardest': choose one of supervised"),
    ("free: [supervised_longer]", "unknown method without labelled steps 'supervised_longer'"),
    ("strategies: [egel]", "unknown strategy 'egel'"),
])  # fmt: skip
def test_settings_that_make_no_sense_are_refused_in_one_line(root, monkeypatch, line, message):
    path = root / "configs" / "tiny.yaml"
    path.write_text(path.read_text() + f"pseudo_labels: {{{line}}}\n")
    monkeypatch.setattr("alspeech.workshop.config.ROOT", root)
    with pytest.raises(UserError, match=message):
        settings = load_settings("tiny")
        pseudo_labels.check_names(settings)


def test_a_selection_ranks_as_many_as_are_queried_here_not_in_the_experiment():
    settings = load_settings("laptop").of("pseudo_labels")
    here = dataclasses.replace(settings.pseudo_labels, query_percents=(5, 60))
    settings = dataclasses.replace(settings, pseudo_labels=here)
    step = pseudo_labels.scores(settings, "fisher_ratio_pool", 0)
    assert step.given["amount"] == 60 != max(settings.query_percents)


def test_a_teacher_that_says_nothing_after_the_warm_up_is_told_in_one_line(
    speech, tmp_path, monkeypatch
):
    manifest = speech.manifest
    silent = manifest.assign(text=manifest["text"].where(manifest["split"] != "base", ""))
    corpus = dataclasses.replace(speech, manifest=silent)
    monkeypatch.setattr(pseudo_labels, "prepare", lambda settings: corpus)
    untrained = lambda settings, seed: DeepSpeech2(settings.model, len(AB))  # noqa: E731
    monkeypatch.setattr(pseudo_labels, "new_model", untrained)
    config = dataclasses.replace(CONFIG, warm_up=40, warm_up_rate=3e-2)
    settings = dataclasses.replace(SETTINGS, pseudo_labels=config)
    with pytest.raises(UserError, match=r"warm_up = 40 .* nothing but blanks.*: raise warm_up"):
        pseudo_labels.warm_up(settings, 0).compute(tmp_path)


def test_the_notebook_regenerates_figures_and_tables(executed):
    for name in ("fig_pl_collapse", "fig_pl_regularisers", "fig_pl_active"):
        figure = executed / "figures" / "synthetic-small" / name
        assert figure.with_suffix(".png").stat().st_size > 10_000
        assert figure.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    results = executed / "results" / "synthetic-small"
    runs, steps = (pd.read_csv(results / f"pl_{name}.csv") for name in ("runs", "monitor"))
    # a warm-up, 5 + 4 runs, three uses of nothing and of two queries, all of the pool labelled
    assert len(runs) == 1 + 5 + 4 + 3 * 3 + 2
    keys = ["regime", "method", "strategy", "query_percent", "seed"]
    assert not runs.duplicated(keys).any() and not steps.duplicated([*keys, "step"]).any()
    assert set(map(tuple, steps[keys].values)) == set(map(tuple, runs[keys].values))
    hard = runs[(runs["regime"] == "anchored") & (runs["method"] == "hard")]
    assert (hard["labelled_updates"] == 3).all() and (hard["stored"] == 1).all()
    longer = runs[(runs["regime"] == "anchored") & (runs["method"] == "supervised_longer")]
    updates = runs["labelled_updates"] + runs["unlabelled_updates"]
    assert (updates[longer.index].to_numpy() == updates[hard.index].to_numpy()).all()
    joined = runs[runs["regime"] == "joined"].groupby("method")["labelled_updates"].unique()
    assert list(joined["supervised"]) == list(joined["hard"]) == [3]
    assert list(joined["supervised_longer"]) == [5]  # 3 + 3, less one that fills the cache
    active = pd.read_csv(results / "pl_active.csv")
    assert set(active["use"]) == set(pseudo_labels.USES.values())
    assert set(active["strategy"]) == {"random", "egl"}
    assert set(active["query_percent"]) == {0, 50, 100}
    provenance = json.loads((results / "provenance_pseudo_labels.json").read_text())
    assert {"config", "seeds", "versions", "hardware", "commit"} <= set(provenance)
