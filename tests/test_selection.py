"""Selections: greedy choices with known answers, and pools that are odd."""

import dataclasses
import inspect
import io
import math
import shutil

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from companion import tone
from conftest import REPOSITORY, tiny_batch, tiny_joint, tiny_model
from fake_gpu import FakeGPU
from test_decoding import all_labelings
from test_gradients import ctc
from test_spies import Sealed

from alspeech import beyond, embeddings, experiment, selection, studies
from alspeech.acquisition import (
    ACQUISITIONS,
    egl,
    embedding,
    labeling_entropy,
    labeling_margin,
    shares,
)
from alspeech.decoding import n_best
from alspeech.embeddings import ARRAYS, Candidates, embed, first_pass, sketch
from alspeech.likeness import log_density_ratio
from alspeech.querying import affordable, query
from alspeech.selection import (
    SELECTIONS,
    Coverage,
    Information,
    as_scores,
    fisher,
    fisher_ratio,
    ridged,
    selection_options,
)
from alspeech.sisters import loss_prediction, pseudo_labels
from alspeech.speech import corpus, target
from alspeech.speech.features import Batch, group_by_length
from alspeech.workshop import config, plots, scenarios
from alspeech.workshop.config import load_settings
from alspeech.workshop.errors import UserError
from alspeech.workshop.store import Checkpoint
from alspeech.workshop.styles import METHOD_STYLE, in_order, style_of

R, d, D = 3, 8, 4


def lot(size, seed=0, name="u", scale=1.0) -> Candidates:
    """Utterances with gradients of different lengths."""
    rng = np.random.default_rng(seed)
    lengths = scale * rng.lognormal(0, 0.7, (size, 1, 1)) * 0.6 ** np.arange(R)[:, None]
    directions = lengths * rng.normal(size=(size, R, d))
    lengths = np.square(directions).sum(axis=(1, 2))
    scores = {"egl_last_layer": lengths, "nbest_margin": rng.random(size),
              "entropy": np.sin(7 * lengths) ** 2}  # fmt: skip
    scores |= dict.fromkeys(("nbest_entropy", "mass", "pctc"), scores["nbest_margin"] ** 2)
    ids = np.array([f"{name}{i:04d}" for i in range(size)])
    seconds = rng.uniform(1, 5, size)
    embeddings = rng.normal(size=(size, D)) + rng.integers(0, 3, (size, 1))
    return Candidates(ids, seconds, directions, directions[:, 0], embeddings, scores)


BASE, TARGET = lot(6, 1, "b"), lot(5, 2, "t")


def select(name, pool, amount, labelled=BASE, target=TARGET, **options) -> np.ndarray:
    sets = {"labelled": labelled, "target": target}
    taken = inspect.signature(SELECTIONS[name]).parameters
    return SELECTIONS[name](pool, amount, **{x: sets[x] for x in sets if x in taken}, **options)


def rows_of(candidates: Candidates, rows) -> Candidates:
    arrays = {x: getattr(candidates, x)[rows] for x in ("utt_ids", *ARRAYS)}
    return Candidates(**arrays, scores={x: own[rows] for x, own in candidates.scores.items()})


# ---------------------------------------------------------------- greedy = brute force


def brute_force(pool, amount, worth, costs=None) -> list[int]:
    """Each time the candidate whose addition raises ``worth(chosen)`` most."""
    chosen = []
    for _ in range(amount):
        left = [i for i in range(len(pool)) if i not in chosen]
        gains = [worth([*chosen, i]) - worth(chosen) for i in left]
        gains = gains if costs is None else gains / costs[left]
        chosen.append(left[int(np.argmax(gains))])
    return chosen


def information(pool, chosen, ridge=1.0) -> np.ndarray:
    F = sum(U.T @ U for U in BASE.directions)
    A = F + ridge * F.trace() / d * np.eye(d)
    return A + sum((pool.directions[i].T @ pool.directions[i] for i in chosen), np.zeros((d, d)))


def cosines(x, y):
    return np.array([[max(0, a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for b in y] for a in x])


@pytest.mark.parametrize("per_second", [False, True])
@pytest.mark.parametrize("name", ["fisher_ratio", "fisher_ratio_pool", "no target", "d_optimal"])
@pytest.mark.parametrize("ridge", [0.0, 0.1, 10.0])
def test_greedy_choices_of_the_fisher_information_are_those_of_a_brute_force(
    name, per_second, ridge
):
    pool = lot(12)
    F_T = {"fisher_ratio": fisher(TARGET), "fisher_ratio_pool": fisher(pool)}.get(name, np.eye(d))

    def worth(chosen):
        A = information(pool, chosen, ridge)
        if name == "d_optimal":
            return np.linalg.slogdet(A)[1]
        return -(np.linalg.inv(A) @ F_T).trace()

    options = {"ridge": ridge, "per_second": per_second}
    if name == "no target":
        found = fisher_ratio(pool, 8, BASE, None, **options)
    else:
        found = select(name, pool, 8, **options)
    assert found.tolist() == brute_force(pool, 8, worth, pool.seconds if per_second else None)


def test_what_is_unlike_the_target_comes_last():
    """Farther than 95 % of the target is from its own; the rest goes by the Fisher ratio."""
    pool = lot(12)
    shift = np.where(np.arange(12) % 3 == 0, 100.0 + np.arange(12), 0.0)[:, None]
    pool = dataclasses.replace(pool, embeddings=TARGET.embeddings[np.arange(12) % 5] + shift)
    order = list(select("fisher_ratio_near", pool, 12))
    near = [i for i in range(12) if i % 3]
    among = select("fisher_ratio", rows_of(pool, near), 8)
    assert order == [*(near[i] for i in among), 0, 3, 6, 9]
    assert order[:5] == list(select("fisher_ratio_near", pool, 5))
    whole = select("fisher_ratio", pool, 12)
    assert list(select("fisher_ratio_near", pool, 12, target=rows_of(TARGET, [0]))) == list(
        select("fisher_ratio", pool, 12, target=rows_of(TARGET, [0]))
    )  # of one utterance nobody knows how far it is from its own
    assert list(whole) != order


@pytest.mark.parametrize("reach, far", [(0.0, 2), (0.5, 1), (0.99, 0)])
def test_the_reach_is_a_share_of_the_targets_own_distances(reach, far):
    places = np.array([0.0, 1.0, 3.0, 7.0])[:, None] * np.eye(D)[0]  # from theirs: 1, 1, 2, 4
    target = dataclasses.replace(lot(4, 2, "t"), embeddings=places)
    pool = dataclasses.replace(
        lot(3), embeddings=places[[0, 0, 0]] - np.array([[0.5], [1.2], [3.9]]) * np.eye(D)[0]
    )
    order = list(select("fisher_ratio_near", pool, 3, target=target, reach=reach))
    assert order[3 - far :] == [1, 2][2 - far :]


def test_what_is_aimed_is_unsure_and_likely_in_the_target():
    pool, aim = lot(30), lot(30, 9, "t")
    half = np.arange(30) % 2 == 0
    away = pool.embeddings + np.where(half, 9.0, 0.0)[:, None]
    order = select("entropy_aimed", dataclasses.replace(pool, embeddings=away), 30, target=aim,
                   smooth=0.01)  # fmt: skip
    assert not half[order[:12]].any()  # however unsure they are
    same = select("entropy_aimed", pool, 30, target=pool)
    assert same.tolist() == np.argsort(-pool.scores["entropy"], kind="stable").tolist()


@pytest.mark.parametrize("per_second", [False, True])
def test_a_gain_counts_as_often_as_the_target_is_likelier_than_the_pool(per_second):
    pool, options = lot(12), {"ridge": 0.5, "per_second": per_second}
    F_T = sum(U.T @ U for U in TARGET.directions)
    worth = lambda chosen: -(np.linalg.inv(information(pool, chosen, 0.5)) @ F_T).trace()  # noqa: E731
    ratio = np.exp(log_density_ratio(pool.embeddings, TARGET.embeddings, 0.3))
    costs = pool.seconds / ratio if per_second else 1 / ratio
    found = select("fisher_ratio_aimed", pool, 8, smooth=0.3, **options)
    assert found.tolist() == brute_force(pool, 8, worth, costs)
    flat = select("fisher_ratio_aimed", pool, 8, smooth=1e9, **options)
    assert flat.tolist() == select("fisher_ratio", pool, 8, **options).tolist()


@pytest.mark.parametrize("eta", [0.0, 0.1, 3.0])
def test_flqmi_is_a_brute_force_over_the_target(eta):
    pool = lot(12)
    sim = cosines(pool.embeddings, TARGET.embeddings)

    def worth(chosen):
        if not chosen:
            return 0.0
        return sim[chosen].max(axis=0).sum() + eta * sim[chosen].max(axis=1).sum()

    assert select("flqmi", pool, 4, eta=eta).tolist() == brute_force(pool, 4, worth)


def test_herding_is_a_brute_force_over_the_pool():
    pool = lot(40)
    x, known = pool.embeddings, BASE.embeddings
    near = np.array([min(np.sum((a - b) ** 2) for b in known) for a in x])
    k = lambda y: np.array([[math.exp(-np.sum((a - b) ** 2) / 2 / np.median(near)) for b in y]  # noqa: E731
                            for a in x])  # fmt: skip
    to_pool, to_known = k(x), k(known).max(axis=1)

    def worth(chosen):
        covered = np.maximum(to_known, to_pool[:, chosen].max(axis=1) if chosen else 0)
        return pool.scores["nbest_margin"] @ covered

    assert select("uncertainty_herding", pool, 20).tolist() == brute_force(pool, 20, worth)


def test_farthest_first_is_a_brute_force_and_starts_from_the_labelled():
    pool = lot(15)
    known, order = list(BASE.embeddings), []
    for _ in range(6):
        gaps = [min(np.linalg.norm(x - y) for y in known) for x in pool.embeddings]
        order.append(int(np.argmax(gaps)))
        known.append(pool.embeddings[order[-1]])
    assert select("k_centre", pool, 6).tolist() == order


def test_updates_are_those_of_an_inversion():
    pool, F_T = lot(30), fisher(TARGET)
    state = Information(pool.directions, information(pool, []), F_T)
    state.look(np.arange(30))
    for i in range(0, 30, 2):
        state.take(i)
    A = information(pool, range(0, 30, 2))
    M = np.linalg.inv(A)
    by_hand = [(U @ M @ U.T, U @ M @ F_T @ M @ U.T) for U in pool.directions]
    for found, known in ((state.M, M), (state.A, A), (state.K, [k for k, _ in by_hand]),
                         (state.Q, [q for _, q in by_hand])):  # fmt: skip
        known = np.array(known)
        assert np.abs(found - known).max() <= 1e-8 * np.abs(known).max()


def test_every_ranking_begins_with_that_of_a_smaller_budget():
    pool = lot(60)
    for name in SELECTIONS:
        assert select(name, pool, 30)[:7].tolist() == select(name, pool, 7).tolist(), name


# ---------------------------------------------------------------- large pools


@pytest.mark.parametrize("name", ["fisher_ratio", "fisher_ratio_pool", "d_optimal", "flqmi",
                                  "uncertainty_herding"])  # fmt: skip
@pytest.mark.parametrize("copies", [1, 20])
def test_lazy_choices_are_the_plain_ones(monkeypatch, name, copies):
    """Exactly where gains only fall; the ratio, whose gains may rise, loses less than a thousandth
    of what it gains. The pool may be full of near-repeats."""
    pool = lot(800)
    kind = np.arange(800) // copies * copies
    noise = 1 + 1e-3 * np.random.default_rng(0).normal(size=(800, 1, 1))
    pool = dataclasses.replace(
        pool, directions=pool.directions[kind] * noise, embeddings=pool.embeddings[kind]
    )
    plain, looked = select(name, pool, 80), []
    for key, value in {"PLAIN": 0, "WIDTH": 30, "CHUNK": 50}.items():
        monkeypatch.setattr(selection, key, value)
    kind = Coverage if name in ("flqmi", "uncertainty_herding") else Information
    look = kind.look
    monkeypatch.setattr(kind, "look", lambda own, x: (looked.append(len(x)), look(own, x))[1])
    lazy = select(name, pool, 80)
    assert max(looked) == 50 and 800 < sum(looked) < 80 * 800 / 2
    if not name.startswith("fisher"):
        assert lazy.tolist() == plain.tolist()
        return
    F_T = fisher(TARGET if name == "fisher_ratio" else pool)
    left = [(np.linalg.inv(information(pool, x)) @ F_T).trace() for x in ([], plain, lazy)]
    assert left[2] - left[1] < 1e-3 * (left[0] - left[1])


# ---------------------------------------------------------------- what EGL is of it


def candidates_of(model, batch, **options) -> Candidates:
    found = {name: own.double().numpy() for name, own in embed(model, batch, **options).items()}
    arrays = {name: found.pop(name) for name in ("directions", "best", "embeddings")}
    return Candidates(np.array(batch.utt_ids), np.ones(len(batch)), **arrays, scores=found)


def numbered(size, seed=1) -> Batch:
    batch = tiny_batch(size, seed=seed)
    return dataclasses.replace(batch, utt_ids=tuple(f"u{i:03d}" for i in range(size)))


def test_without_inverse_and_target_the_ratio_is_renormalised_egl():
    """A and F_T ∝ I, and A large: the gain is tr(F_u)/a², the last layer's renormalised EGL."""
    model, batch = tiny_model(), numbered(40)
    whole = candidates_of(model, batch, labelings=10, directions=10)
    lengths = ACQUISITIONS["egl_last_layer"](model, batch, labelings=10)
    assert np.allclose(np.square(whole.directions).sum(axis=(1, 2)), lengths, rtol=1e-9)
    assert np.allclose(whole.scores["egl_last_layer"], lengths, rtol=1e-9)
    assert torch.allclose(egl(model, batch, 10, "last_layer", renormalise=True), lengths)
    nothing = dataclasses.replace(whole, directions=0 * whole.directions)
    found = fisher_ratio(whole, 40, nothing, None, ridge=1e12)
    assert found.tolist() == (-lengths).argsort(stable=True).tolist()
    # with either of the two, it is not
    assert found.tolist() != fisher_ratio(whole, 40, whole, None).tolist()
    aimed = rows_of(whole, np.arange(3))
    assert found.tolist() != fisher_ratio(whole, 40, nothing, aimed, ridge=1e12).tolist()


# ---------------------------------------------------------------- embeddings


def last_layer_gradient(model, features, labels) -> torch.Tensor:
    layer = model.layers[-1]
    W, b = torch.autograd.grad(ctc(model, features, labels), (layer.weight, layer.bias))
    return torch.cat([W.T.flatten(), b])


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_directions_are_the_fisher_information_of_the_last_layer(cell):
    model, batch = tiny_model(cell), tiny_batch()
    hypotheses = n_best(model(batch.features).log_softmax(-1).detach(), 6)
    q = shares(hypotheses.log_p)
    few, whole = (embed(model, batch, labelings=6, directions=x) for x in (2, 6))
    for b in range(3):
        G = [last_layer_gradient(model, batch.features[b], hypotheses.labeling(b, k))
             for k in range(6)]  # fmt: skip
        F = sum(q[b, k] * torch.outer(G[k], G[k]) for k in range(6))
        U = whole["directions"][b]
        assert torch.allclose(U.T @ U, F, atol=1e-12 * F.trace().item())
        assert torch.allclose(whole["best"][b], G[0], rtol=1e-9)
        # of two directions none is better than the leading ones
        values, vectors = torch.linalg.eigh(F)
        leading = vectors[:, -2:] * values[-2:] @ vectors[:, -2:].T
        U = few["directions"][b]
        assert torch.allclose(U.T @ U, leading, atol=1e-9 * F.trace().item())


def test_the_mean_gradient_is_nothing():
    """E_{y∼p} ∇ log p(y | x) = 0: nobody is to build a method on it."""
    model, batch = tiny_model(symbols=3), tiny_batch(size=1)
    log_probs = model(batch.features).log_softmax(-1).detach()
    G = {y: last_layer_gradient(model, batch.features[0], list(y))
         for y in all_labelings(log_probs[0])}  # fmt: skip
    mean = sum(p * G[y] for y, p in all_labelings(log_probs[0]).items())
    assert mean.norm() < 1e-9 * max(g.norm() for g in G.values())


def test_a_first_pass_gives_the_scores_that_stand_for_themselves():
    model, batch = tiny_model(), numbered(5)
    found = embed(model, batch, labelings=7)
    for name in ("entropy", "egl_last_layer", "nbest_entropy", "nbest_margin"):
        options = {} if name == "entropy" else {"labelings": 7}
        assert torch.allclose(found[name], ACQUISITIONS[name](model, batch, **options)), name
    assert torch.allclose(found["pctc"], ACQUISITIONS["pctc"](model, batch, beam=7))
    assert torch.allclose(found["embeddings"], embedding(model, batch))


def test_a_sketch_keeps_products_on_average_and_is_the_same_for_all():
    generator = torch.Generator().manual_seed(0)
    x, y = 0.5 + torch.randn(2, 500, generator=generator, dtype=torch.double)  # a mean, too
    products = [(sketch(x, 64, seed) @ sketch(y, 64, seed)).item() for seed in range(300)]
    lengths = [sketch(x, 64, seed).square().sum().item() for seed in range(300)]
    spread = (x.square().sum() * y.square().sum() / 64 / 300).sqrt().item()
    assert np.mean(products) == pytest.approx((x @ y).item(), abs=4 * spread)
    assert np.mean(lengths) == pytest.approx(x.square().sum().item(), rel=0.06)
    assert torch.equal(sketch(torch.stack([x, y]), 64)[1], sketch(y, 64))
    assert sketch(x, 500) is x


def test_embeddings_are_taken_where_the_model_is():
    model = tiny_model()
    here = embed(model, tiny_batch(), numbers=16)
    with FakeGPU():
        there = embed(model.to("cuda"), tiny_batch().to("cuda"), numbers=16)
        there = {name: own.cpu() for name, own in there.items()}
    for name in here:
        assert torch.allclose(here[name].abs(), there[name].abs(), atol=1e-9), name


def test_other_models_are_told():
    with pytest.raises(TypeError, match="nn.Linear; GRU has none"):
        embed(torch.nn.GRU(2, 2).eval(), tiny_batch())
    model = tiny_model()
    model.layers.append(torch.nn.Tanh())
    with pytest.raises(TypeError, match="ends in an nn.Linear"):
        embed(model, tiny_batch())
    batch = tiny_batch(dtype=torch.float32)
    assert embed(tiny_joint(), batch)["best"].isfinite().all()
    batch.features[1, 3, 2] = math.nan
    with pytest.raises(UserError, match="u1.*NaN"):
        embed(tiny_joint(), batch)


# ---------------------------------------------------------------- any order, any division


class Store:
    """Features of 40 utterances of three lengths."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.features = {f"u{i:02d}": rng.normal(size=(32 + 16 * (i % 3), 12)) for i in range(40)}

    def batch(self, utterances, encode=None):
        assert encode is None
        parts = [self.features[utt_id] for utt_id in utterances["utt_id"]]
        return Batch(tuple(utterances["utt_id"]), torch.tensor(np.array(parts)))

    def groups(self, utterances, size):
        return group_by_length([len(self.features[x]) for x in utterances["utt_id"]], size)


POOL = pd.DataFrame({"utt_id": [f"u{i:02d}" for i in range(40)], "duration": 0.32})
OPTIONS = {"labelings": 8, "directions": 3, "numbers": 16}


def test_selections_are_the_same_for_any_order_division_and_batch():
    model, store = tiny_model(), Store()
    whole = first_pass(model, store, POOL, **OPTIONS)
    base, aim = (first_pass(model, store, POOL[rows], **OPTIONS)
                 for rows in (slice(0, 6), slice(30, 40)))  # fmt: skip
    mixed = first_pass(model, store, POOL.sample(frac=1, random_state=3), batch=1, **OPTIONS)
    shards = [POOL[i::3] for i in (2, 0, 1)]
    parts = Candidates.joined(
        [first_pass(model, store, part, batch=4, **OPTIONS) for part in shards]
    )
    # equals go by their ids, whatever batches they were in
    store.features["u21"] = store.features["u24"] = store.features["u00"].copy()
    twins = [first_pass(model, store, POOL, batch=size, **OPTIONS) for size in (1, 32)]
    for name in SELECTIONS:
        chosen = select(name, whole, 20, base, aim).tolist()
        assert len(set(chosen)) == 20
        for other in (mixed, parts):
            assert other.utt_ids.tolist() == whole.utt_ids.tolist() == sorted(store.features)
            assert select(name, other, 20, base, aim).tolist() == chosen, name
        one, many = (select(name, pool, 20, base, aim).tolist() for pool in twins)
        assert one == many, name


@pytest.mark.parametrize(
    "name", [x for x in SELECTIONS if x not in ("badge", "power_egl", "egl_per_second")]
)
def test_equals_go_by_their_ids_whatever_was_rounded(name):
    pool = rows_of(lot(10), np.repeat(np.arange(10), 4))
    pool = dataclasses.replace(pool, utt_ids=np.array([f"u{i:04d}" for i in range(40)]))
    plain, rng = select(name, pool, 20).tolist(), np.random.default_rng(0)
    for _ in range(5):
        noise = 1 + 1e-8 * rng.normal(size=(40, 1, 1))
        shaken = dataclasses.replace(
            pool, directions=pool.directions * noise, embeddings=pool.embeddings * noise[:, 0],
            scores={x: own * noise[:, 0, 0] for x, own in pool.scores.items()},
        )  # fmt: skip
        assert select(name, shaken, 20).tolist() == plain
    assert selection.first_best(np.array([0.5, 1, 1 + 1e-9])) == 1


def test_an_interrupted_pass_goes_on_where_it_was(tmp_path, monkeypatch):
    model, store, asked = tiny_model(), Store(), []
    whole = first_pass(model, store, POOL, **OPTIONS)
    monkeypatch.setattr(Checkpoint, "due", lambda own: True)
    plain = embeddings.embed

    def killed(model, batch, **options):
        asked.append(batch.utt_ids)
        if len(asked) == 6:
            raise KeyboardInterrupt
        return plain(model, batch, **options)

    monkeypatch.setattr(embeddings, "embed", killed)
    with pytest.raises(KeyboardInterrupt):
        first_pass(model, store, POOL, tmp_path, batch=4, **OPTIONS)
    again = first_pass(model, store, POOL, tmp_path, batch=4, **OPTIONS)
    assert sum(map(len, asked)) == 40 + len(
        asked[5]
    )  # only the batch that was lost is asked for again
    assert again.utt_ids.tolist() == whole.utt_ids.tolist()
    assert np.allclose(again.best, whole.best, rtol=1e-6)
    embeddings.remove_parts(tmp_path)
    assert not list(tmp_path.iterdir())


def test_candidates_are_kept_to_the_last_bit():
    file = io.BytesIO()
    lot(7).save(file)
    file.seek(0)
    for found, known in zip(vars(Candidates.load(file)).values(), vars(lot(7)).values(),
                            strict=True):  # fmt: skip
        if isinstance(known, dict):
            assert found.keys() == known.keys()
            assert all((found[name] == known[name]).all() for name in known)
        else:
            assert (found == known).all() and found.dtype == known.dtype


# ---------------------------------------------------------------- odd pools


@pytest.mark.parametrize("name", SELECTIONS)
def test_fewer_candidates_than_the_budget_are_all_ranked(name):
    for size in (1, 2, 9):
        assert sorted(select(name, lot(size), 50)) == list(range(size))


@pytest.mark.parametrize("name", SELECTIONS)
def test_a_pool_without_any_gradient_is_ranked_all_the_same(name):
    silent = {"directions": np.zeros((9, R, d)), "best": np.zeros((9, d))}
    pool = dataclasses.replace(lot(9), **silent, scores=dict.fromkeys(lot(9).scores, np.zeros(9)))
    for labelled in (BASE, rows_of(pool, np.arange(3))):
        for aim in (TARGET, rows_of(pool, np.arange(3))):
            found = select(name, pool, 6, labelled, aim)
            assert len(set(found.tolist())) == 6
            assert found.tolist() == select(name, pool, 6, labelled, aim).tolist()
            if name in ("fisher_ratio", "fisher_ratio_pool", "d_optimal", "egl_per_second"):
                assert found.tolist() == list(range(6))  # by id


@pytest.mark.parametrize("name", ["fisher_ratio", "fisher_ratio_pool", "d_optimal"])
def test_a_singular_information_has_a_defined_answer(name):
    """λ = 0 and a base set of rank two: what it knows nothing of comes first."""
    few = lot(2, 5)
    few.directions[:, :, 2:] = 0
    pool = lot(20)
    pool.directions[:10, :, 2:] = 0
    found = select(name, pool, 20, few, ridge=0.0)
    assert np.isfinite(found).all() and sorted(found) == list(range(20))
    assert (found[:3] >= 10).all()
    assert np.linalg.eigvalsh(ridged(0.0, np.zeros((d, d)), np.zeros((d, d)))).min() > 0.99
    F, mean = fisher(BASE), fisher(BASE).trace() / d * np.eye(d)
    assert np.allclose(ridged(0.5, F, 9 * F), F + 0.5 * mean)
    assert np.abs(ridged(0.0, F) - F).max() < 2e-9 * F.trace()
    assert np.allclose(ridged(0.5, 0 * F, F), 0.5 * mean)
    assert np.linalg.eigvalsh(ridged(0.0, fisher(few))).min() > 0


@pytest.mark.parametrize("name", SELECTIONS)
def test_an_empty_labelled_set_is_no_matter(name):
    nothing = rows_of(BASE, np.arange(0))
    assert len(set(select(name, lot(12), 6, nothing).tolist())) == 6


def test_a_scale_of_all_gradients_changes_nothing():
    sets = {"labelled": BASE, "target": TARGET}
    for scale in (1e-6, 1e6):
        other = {x: dataclasses.replace(own, directions=scale * own.directions)
                 for x, own in sets.items()}  # fmt: skip
        pool = lot(30)
        scaled = dataclasses.replace(pool, directions=scale * pool.directions)
        for name in ("fisher_ratio", "fisher_ratio_pool", "d_optimal"):
            assert select(name, scaled, 9, **other).tolist() == select(name, pool, 9).tolist()


def test_equals_do_not_come_twice_before_others_where_the_batch_is_seen():
    """Ten copies of one utterance with the longest gradient: EGL buys all of them first."""
    pool = lot(30)
    pool.directions[:10] = 3 * pool.directions[0]
    pool.best[:10], pool.embeddings[:10] = pool.directions[0, 0], pool.embeddings[0]
    pool.scores["egl_last_layer"][:] = np.square(pool.directions).sum(axis=(1, 2))
    pool.seconds[:] = 1
    assert set(select("egl_per_second", pool, 10)) == set(range(10))
    for name in ("fisher_ratio_pool", "d_optimal", "badge", "k_centre", "uncertainty_herding"):
        assert sum(select(name, pool, 10) < 10) <= 7, name


# ---------------------------------------------------------------- drawn at random


def test_badge_begins_with_the_longest_and_draws_by_squared_distance():
    pool = rows_of(lot(3), np.arange(3))
    pool.best[:] = 0
    pool.best[:, 0] = [10, 9, 7]  # squared distances of the others from the first: 1 and 9
    second = [select("badge", pool, 3, seed=seed)[1] for seed in range(4000)]
    assert all(select("badge", pool, 1, seed=seed) == [0] for seed in range(5))
    assert np.mean(np.array(second) == 2) == pytest.approx(0.9, abs=4 * math.sqrt(0.09 / 4000))


def test_power_egl_draws_by_powers_and_does_not_look_at_the_company(monkeypatch):
    monkeypatch.setattr(selection, "cluster", lambda points, seed: np.zeros(len(points), int))
    pool = rows_of(lot(2), np.arange(2))
    pool.scores["egl_last_layer"][:] = [3, 1]
    for beta, share in ((1.0, 3 / 4), (2.0, 9 / 10)):
        first = [select("power_egl", pool, 1, seed=seed, beta=beta)[0] == 0 for seed in range(1500)]
        assert np.mean(first) == pytest.approx(share, abs=4 * math.sqrt(share / 4 / 1500))
    many = lot(50)
    ids = many.utt_ids[select("power_egl", many, 50)]
    some = rows_of(many, np.arange(0, 50, 2))
    left = [x for x in ids if x in set(some.utt_ids)]
    assert some.utt_ids[select("power_egl", some, 25)].tolist() == left


def test_power_egl_takes_one_of_each_cluster_before_a_second_of_any(monkeypatch):
    groups = np.repeat([0, 1, 2], [20, 3, 1])
    monkeypatch.setattr(selection, "cluster", lambda points, seed: groups)
    found = groups[select("power_egl", lot(24), 7)].tolist()
    assert [sorted(found[:3]), sorted(found[3:5]), sorted(found[5:])] == [[0, 1, 2], [0, 1], [0, 1]]


# ---------------------------------------------------------------- plain scores


def test_margin_and_entropy_of_the_beam_by_hand():
    log_p = torch.tensor([[0.2, 0.1, 0.1], [0.4, 0.0, 0.0], [0.0, 0.0, 0.0]]).double().log()
    assert labeling_margin(log_p).tolist() == pytest.approx([1 - 0.25, 0, 1])
    assert labeling_entropy(log_p).tolist() == pytest.approx([1.5 * math.log(2), 0, 0])
    assert labeling_margin(log_p[:, :1]).tolist() == pytest.approx([0, 0, 1])


def test_lengths_of_the_last_layer_are_those_of_autograd():
    model, batch = tiny_model(), tiny_batch()
    hypotheses = n_best(model(batch.features).log_softmax(-1).detach(), 6)
    q = shares(hypotheses.log_p)
    found = {name: ACQUISITIONS[f"egl_{name}"](model, batch, labelings=6)
             for name in ("last_layer", "unsquared", "per_frame", "per_label")}  # fmt: skip
    for b in range(3):
        labelings = [hypotheses.labeling(b, k) for k in range(6)]
        norms = [last_layer_gradient(model, batch.features[b], y).norm().item() for y in labelings]
        squared = sum(q[b, k].item() * norms[k] ** 2 for k in range(6))
        labels = sum(q[b, k].item() * len(labelings[k]) for k in range(6))
        assert found["last_layer"][b].item() == pytest.approx(squared)
        assert found["unsquared"][b].item() == pytest.approx(q[b].numpy() @ norms)
        assert found["per_frame"][b].item() == pytest.approx(squared / 4)
        assert found["per_label"][b].item() == pytest.approx(squared / max(1, labels))
    pool = lot(9)
    by_hand = np.argsort(-pool.scores["egl_last_layer"] / pool.seconds)
    assert select("egl_per_second", pool, 9).tolist() == by_hand.tolist()


# ---------------------------------------------------------------- an order is a query


def test_an_order_becomes_scores_whose_query_is_its_beginning():
    pool = lot(10)
    scores = as_scores("mine", pool, [7, 2, 5])
    assert query(scores, 30) == ["u0007", "u0002", "u0005"] and query(scores, 20)[1] == "u0002"
    assert query(scores, 40) == ["u0007", "u0002", "u0005", "u0000"]  # what was not ranked: by id


@pytest.mark.parametrize(
    "order, said",
    [
        (np.linspace(1, 0, 4), r"returned float64 \[4\], not row numbers, best first: np.argsort"),
        ([[1, 2], [3]], "returned list, not row numbers"),
        (np.arange(4) + 0.5, r"returned float64 \[4\], not row numbers"),
        (np.ones(10, bool), r"returned bool \[10\], not row numbers"),
        (np.zeros((4, 1), int), r"returned int64 \[4, 1\], not row numbers"),
        (["u0001", "u0002", "u0003", "u0004"], r"returned <U5 \[4\], not row numbers"),
        (None, "returned NoneType, not row numbers"),
        ([1, 2, 3], "returned 3 row numbers of the 4 that it is to"),
        ([1, 2, 3, 4, 5], "returned 5 row numbers of the 4"),
        ([1, 2, 3, 10], "returned row 10: there are 0 to 9"),
        ([1, -1, 3, 2], "returned row -1: there are 0 to 9"),
        ([1, 7, 3, 7], "returned row 7 twice"),
    ],
)
def test_what_is_no_choice_is_one_line(order, said, monkeypatch):
    monkeypatch.setitem(SELECTIONS, "mine", lambda candidates, amount: order)
    with pytest.raises(UserError, match=f"^selection mine {said}") as error:
        selection.choose("mine", lot(10), 4)
    assert "\n" not in str(error.value)


def test_a_choice_is_as_many_rows_as_there_are_or_are_wanted(monkeypatch):
    monkeypatch.setitem(
        SELECTIONS, "mine", lambda candidates, amount: list(range(9, -1, -1))[:amount]
    )
    assert selection.choose("mine", lot(10), 3).tolist() == [9, 8, 7]
    assert len(selection.choose("mine", lot(10), 50)) == 10
    monkeypatch.setitem(SELECTIONS, "mine", lambda candidates, amount: [])
    assert selection.choose("mine", lot(10).rows([]), 50).tolist() == []


def test_a_selection_that_asks_for_what_there_is_not_hears_what_there_is(monkeypatch):
    settings = dataclasses.replace(load_settings("smoke"), strategies=("random", "mine"))
    monkeypatch.setitem(SELECTIONS, "mine", lambda candidates, amount, targets: [])
    with pytest.raises(UserError, match="mine asks for targets: .*labelled, target, seed, ridge"):
        experiment.check(settings)
    monkeypatch.setitem(SELECTIONS, "mine", lambda candidates, amount, target: [])
    assert selection.needs_target("mine")
    with pytest.raises(UserError, match="mine needs a target"):
        experiment.check(changed(settings, target="none"))
    monkeypatch.setitem(SELECTIONS, "mine", lambda candidates, amount, target=None: [])
    assert not selection.needs_target("mine")
    monkeypatch.setitem(SELECTIONS, "mine", lambda candidates, amount, *_, **more: [])
    assert experiment.selection_options(settings.selection, "mine", 0) == ({}, {})


@pytest.mark.parametrize("system", [experiment, loss_prediction, pseudo_labels])
def test_a_score_s_name_is_no_selection_s(system, monkeypatch):
    monkeypatch.setitem(SELECTIONS, "entropy", SELECTIONS["flqmi"])
    with pytest.raises(UserError, match="entropy is a score and a selection"):
        system.check(load_settings("smoke"))


def test_a_method_of_a_study_that_there_is_not_is_named_before_anything_is_trained():
    settings = load_settings("smoke")
    for system, section in ((beyond, "beyond"), (studies, "studies")):
        other = dataclasses.replace(getattr(settings, section), strategies=("random", "flqim"))
        with pytest.raises(UserError, match="unknown strategy 'flqim'"):
            system.check(dataclasses.replace(settings, **{section: other}))


def test_a_strategy_is_named_once(root, monkeypatch):
    monkeypatch.setattr(config, "ROOT", root)
    (root / "configs" / "bad.yaml").write_text("query_percents: [10, 20, 10]\n")
    with pytest.raises(UserError, match="bad.yaml: query_percents: .*10 is named twice"):
        load_settings("bad")
    (root / "configs" / "bad.yaml").write_text("strategies: [random, entropy, entropy]\n")
    with pytest.raises(UserError, match="bad.yaml: strategies: .*entropy is named twice"):
        load_settings("bad")


def test_a_method_without_a_style_has_one_of_its_own_and_a_place_in_figures():
    own = {x: style_of(x) for x in ("near_target", "mmr", "mine")}
    assert own["near_target"][0] == "near target" and len({x[1:3] for x in own.values()}) == 3
    assert style_of("egl") == METHOD_STYLE["egl"]
    assert in_order(["mine", "egl", "mine", "random"]) == ["random", "egl", "mine"]
    rows = [
        {"strategy": x, "query_percent": p, "seed": seed, "wer": 30 - p / 10 + seed}
        for x, p in (("base", 0), ("random", 10), ("mine", 10), ("all", 100)) for seed in range(2)
    ]  # fmt: skip
    ax = plots.plot_error_curve(plt.figure().subplots(), pd.DataFrame(rows), "wer")
    ends = ["all of the pool", "base data alone"]
    assert ax.get_legend_handles_labels()[1] == [*ends, "random", "mine"]


def test_as_many_are_ranked_as_any_query_of_the_preset_can_buy():
    rng = np.random.default_rng(0)
    seconds = pd.Series(rng.uniform(1, 5, 40), [f"u{i:04d}" for i in range(40)])
    assert affordable(seconds, 10, False) == 4 and affordable(seconds, 0.1, False) == 1
    for amount in (6, 30, 125.8):
        count = affordable(seconds, amount, True)
        for _ in range(50):
            drawn = pd.Series(rng.random(40), seconds.index)
            assert len(query(drawn, amount, seconds)) <= count
        cheap = pd.Series(-seconds, seconds.index)
        assert len(query(cheap, amount, seconds)) == count


OF_OURS = (
    "random entropy pctc egl egl_renormalised least_confidence estimated_loss loss_prediction "
    "egl_last_layer egl_unsquared egl_per_frame egl_per_label nbest_entropy nbest_margin "
    "random_seconds longest shortest random_clusters oracle_gradient oracle_loss oracle_groups "
    "fisher_ratio fisher_ratio_pool fisher_ratio_near fisher_ratio_aimed entropy_aimed d_optimal "
    "badge k_centre flqmi uncertainty_herding power_egl egl_per_second"
).split()


@pytest.mark.parametrize("name", OF_OURS)
def test_every_method_of_ours_has_a_style_of_its_own(name):
    assert name in METHOD_STYLE and name in {**ACQUISITIONS, **SELECTIONS}


@pytest.mark.parametrize("name", SELECTIONS)
def test_no_selection_has_the_name_of_a_score(name):
    assert name not in ACQUISITIONS


# ---------------------------------------------------------------- in a run


def changed(settings, **options):
    return dataclasses.replace(
        settings, selection=dataclasses.replace(settings.selection, **options)
    )


TAKEN = {
    "fisher_ratio": {
        "ridge",
        "per_second",
        "target",
        "heard",
        "directions",
        "numbers",
        "labelings",
    },
    "fisher_ratio_near": {
        "ridge",
        "per_second",
        "reach",
        "target",
        "heard",
        "directions",
        "numbers",
        "labelings",
    },
    "fisher_ratio_pool": {"ridge", "per_second", "directions", "numbers", "labelings"},
    "badge": {"directions", "numbers", "labelings"},
    "fisher_ratio_aimed": {
        "ridge",
        "per_second",
        "smooth",
        "target",
        "heard",
        "directions",
        "numbers",
        "labelings",
    },
    "entropy_aimed": {"smooth", "target", "heard", "directions", "numbers", "labelings"},
    "flqmi": {"eta", "target", "heard", "directions", "numbers", "labelings"},
    "power_egl": {"beta", "directions", "numbers", "labelings"},
}
OTHERS = {"ridge": 2.0, "per_second": True, "reach": 0.5, "target": "validation", "heard": 3,
          "directions": 2, "numbers": 99, "labelings": 7, "eta": 0.5, "beta": 3.0,
          "smooth": 0.5}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_the_options_that_a_selection_takes_are_in_its_key_and_no_others(name):
    settings = load_settings("smoke")
    key = lambda own: experiment.pool_scores(own, name, 0).key  # noqa: E731
    before = key(settings)
    moved = {x for x, value in OTHERS.items() if key(changed(settings, **{x: value})) != before}
    assert moved == TAKEN[name]
    assert key(dataclasses.replace(settings, query_percents=(10, 50))) != before
    entropy = [
        experiment.pool_scores(own, "entropy", 0).key
        for own in (settings, *(changed(settings, **{x: y}) for x, y in OTHERS.items()))
    ]
    assert len(set(entropy)) == 1


def test_every_target_has_its_own_key():
    settings = load_settings("smoke")
    targets = ("validation", "test", "pool", "none")
    keys = {experiment.pool_scores(changed(settings, target=x), "fisher_ratio", 0).key
            for x in targets}  # fmt: skip
    assert len(keys) == 4


def test_a_run_ranks_as_many_as_it_queries(house):
    settings = house.settings["selection"]
    scores = experiment.read_scores(house.step("selection").folder())
    assert len(scores) == 30 and (scores > 0).sum() == 6  # 20 % of 30
    assert sorted(scores[scores > 0]) == [25, 26, 27, 28, 29, 30]
    chosen = experiment.queried(settings, "fisher_ratio", 20, 0)
    assert len(chosen) == 6 and scores[chosen].is_monotonic_decreasing


@pytest.mark.parametrize("aim", ["validation", "test", "pool", "none"])
def test_no_selection_reads_a_transcript(house, tmp_path, monkeypatch, aim):
    """Neither the pool's, nor the target's, nor the base set's; and a store is asked for none."""
    settings = changed(house.settings["selection"], target=aim)
    data = corpus.prepare(settings)
    steps = {split: experiment.first_pass(settings, split, 0)
             for split in ("pool", "base", *({aim} & {"validation", "test"}))}  # fmt: skip
    before = {split: Candidates.load(x.folder() / "candidates.npz") for split, x in steps.items()}
    texts = np.array([Sealed("zz zz") for _ in range(len(data.manifest))], dtype=object)
    sealed = data.manifest.astype({"text": object}).assign(text=texts)
    house.patch.setattr(corpus, "prepare", lambda _: dataclasses.replace(data, manifest=sealed))
    asked, batch = [], type(data.store).batch
    house.patch.setattr(type(data.store), "batch",
                        lambda own, rows, encode=None: (asked.append((encode, "text" in rows)),
                                                        batch(own, rows, encode))[1])  # fmt: skip
    for split, step in steps.items():
        (tmp_path / split).mkdir()
        step.compute(tmp_path / split)
        again = Candidates.load(tmp_path / split / "candidates.npz")
        assert np.array_equal(again.directions, before[split].directions)
    assert asked and set(asked) == {(None, False)}
    names = [x for x in SELECTIONS if not (selection.needs_target(x) and aim == "none")]
    for name in names:
        (tmp_path / name).mkdir()
        step = experiment.pool_scores(settings, name, 0)
        step.compute(tmp_path / name)
        assert (tmp_path / name / "scores.csv").exists()


def test_a_selection_of_your_own_is_a_few_lines(house, tmp_path):
    """The README's own, word for word."""
    blocks = (REPOSITORY / "README.md").read_text().split("```python\n")[1:]
    (written,) = (block.split("```")[0] for block in blocks if "SELECTIONS" in block)
    assert len(written.strip().split("\n")) <= 7
    names, before = dict(vars(selection)), dict(SELECTIONS)
    try:
        exec(written, names)
        quick = "near_target"
        settings = dataclasses.replace(house.settings["selection"], strategies=("random", quick))
        experiment.all_scores(settings)
        chosen = experiment.queried(settings, quick, 20, 0)
        assert len(chosen) == 6
        folder = experiment.cell(settings, quick, 20, 0).folder()
        assert (folder / "metrics.json").exists()
        kept = experiment.pool_scores(changed(settings, ridge=9.0), quick, 0)
        assert kept.key == experiment.pool_scores(settings, quick, 0).key
    finally:
        SELECTIONS.clear()
        SELECTIONS.update(before)


# ---------------------------------------------------------------- targets


def test_a_target_that_is_none_is_one_line(root, monkeypatch):
    monkeypatch.setattr(config, "ROOT", root)
    for word in ("validation", "test", "pool", "none"):
        assert load_settings("tiny", target=word).selection.target == word
    (root / "mine").mkdir()
    assert load_settings("tiny", target="mine").selection.target == str(root / "mine")
    assert load_settings("tiny", target="mine").run == "synthetic-tiny-for-mine"
    assert load_settings("tiny").run == "synthetic-tiny"
    for word in ("tset", "no/such/folder", "configs/tiny.yaml", "x" * 5000, "a\0b"):
        with pytest.raises(UserError, match="target is .*choose one of validation, test") as error:
            load_settings("tiny", target=word)
        assert "\n" not in str(error.value) and len(str(error.value)) < 300
    (root / "configs" / "bad.yaml").write_text("selection: {target: tset}\n")
    with pytest.raises(UserError, match="bad.yaml: selection: target is tset: choose"):
        load_settings("bad")
    (root / "configs" / "bad.yaml").write_text("selection: {eta: -1}\n")
    with pytest.raises(UserError, match="bad.yaml: selection: eta is -1"):
        load_settings("bad")


def test_a_method_that_needs_a_target_says_so_before_anything_is_trained():
    settings = changed(load_settings("smoke"), target="none")
    settings = dataclasses.replace(settings, strategies=("random", "flqmi"))
    with pytest.raises(UserError, match="flqmi needs a target"):
        experiment.check(settings)
    assert selection_options(settings.selection, "fisher_ratio", 0)[0] == {
        "labelled": "base",
        "target": None,
    }


@pytest.fixture
def recorded(house, tmp_path):
    """The settings of a corpus of recordings, and a folder for a target's."""
    folder = tmp_path / "aim"
    folder.mkdir()
    return changed(house.settings["recordings"], target=str(folder)), folder


def test_a_folder_of_audio_is_a_target(house, recorded, capsys):
    settings, folder = recorded
    (folder / "sub").mkdir()
    for i in range(3):
        tone(folder / "sub" / f"{i}.wav", 300 + i, 1.0)
    (folder / "broken.flac").write_bytes(b"no audio")
    (folder / "sub" / "0.txt").write_text("a transcript that nobody reads")
    step = experiment.first_pass(settings, scenarios.TARGET, 0)
    found = Candidates.load(step.folder() / "candidates.npz")
    assert found.utt_ids.tolist() == ["sub/0.wav", "sub/1.wav", "sub/2.wav"]
    assert "1 of 4 files of the target are left out: not audio (1)\n" in capsys.readouterr().err
    scores = experiment.read_scores(experiment.pool_scores(settings, "flqmi", 0).folder())
    assert (scores > 0).sum() == affordable(scores, 20, False)
    key = step.key
    tone(folder / "sub" / "1.wav", 800, 1.5)
    assert experiment.first_pass(settings, scenarios.TARGET, 0).key != key


@pytest.mark.parametrize("content, told", [
    ({}, "no file"), ({"a.txt": b"x"}, "no file"), ({"a.wav": b""}, r"file empty \(1\)"),
    ({"a.wav": b"x", "b.mp3": b""}, r"not audio \(1\), file empty \(1\)"),
])  # fmt: skip
def test_a_target_without_usable_audio_is_one_line(house, recorded, content, told):
    settings, folder = recorded
    for name, data in content.items():
        (folder / name).write_bytes(data)
    with pytest.raises(UserError, match=f"no usable audio: {told}: name a folder of WAV") as error:
        target.target(settings).folder()
    assert "\n" not in str(error.value)


def test_a_target_that_is_in_the_pool_is_told_in_a_line(house, recorded, tmp_path, capsys):
    settings, folder = recorded
    data = corpus.prepare(settings)
    pool = sorted(data.split("pool")["path"].unique())
    tone(folder / "a.wav", 900, 1.0)
    shutil.copy(pool[0], folder / "b.wav")
    (folder / "c.wav").symlink_to(pool[1])
    capsys.readouterr()
    experiment.first_pass(settings, scenarios.TARGET, 0).folder()
    told = [line for line in capsys.readouterr().err.splitlines() if "target" in line]
    assert told == ["2 of 3 utterances of the target are in the pool, too"]


def test_recordings_have_targets_of_all_kinds(house):
    settings = house.settings["recordings"]
    for aim in ("validation", "none"):
        step = experiment.pool_scores(changed(settings, target=aim), "fisher_ratio", 0)
        assert (experiment.read_scores(step.folder()) > 0).sum() >= 1
