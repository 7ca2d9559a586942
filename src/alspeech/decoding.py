"""Decoding: the best path, and the n most probable labelings by CTC prefix beam search.

Legend: B batch, T frames, V symbols (0 = blank), K labelings, U labels.

A *path* gives one symbol a frame; the *labeling* that it stands for is the path with repeats
merged and blanks dropped; a labeling's probability is the sum over its paths (Graves et al. 2006).
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import torch

from .ctc import labelings_log_p


def best_path(log_probs: torch.Tensor) -> torch.Tensor:
    """The most likely symbol of each frame: [B, T, V] → [B, T]."""
    return log_probs.argmax(dim=-1)


@dataclass(frozen=True)
class Hypotheses:
    """The K most probable labelings of B utterances, most probable first.

    Where an utterance has fewer than K labelings, the rest have ``log_p`` = −inf and length 0.
    """

    labels: torch.Tensor  # [B, K, U] symbol numbers, zeros beyond each length
    lengths: torch.Tensor  # [B, K]
    log_p: torch.Tensor  # [B, K] natural log of p(y_k | x), exact

    def labeling(self, b: int, k: int) -> list[int]:
        return self.labels[b, k, : self.lengths[b, k]].tolist()

    def impossible(self) -> torch.Tensor:
        """How many of the K have probability zero, [B]: they contribute nothing to EGL."""
        return self.log_p.isneginf().sum(dim=1)

    def mass(self) -> torch.Tensor:
        """Σ_k p(y_k | x), [B]: how much of the posterior the labelings cover. In double precision:
        the labelings of a long utterance are many and each improbable."""
        return self.log_p.double().exp().sum(dim=1)


def n_best(log_probs: torch.Tensor, k: int = 100, beam: int | None = None) -> Hypotheses:
    """The ``k`` most probable labelings of each utterance by prefix beam search.

    ``log_probs`` [B, T, V] are normalised frame posteriors; ``beam`` prefixes (default: k) survive
    each frame. The search finds candidates; each is then scored exactly by CTC and they are sorted
    by that. Raises ``ValueError`` for k < 1, a beam smaller than k, an empty batch, and posteriors
    with NaN (naming the utterance's number in the batch).
    """
    beam = beam or k
    if len(log_probs) == 0:
        raise ValueError("the batch is empty: n-best needs at least one utterance")
    if k < 1 or beam < k:
        raise ValueError(f"n-best needs 1 <= k <= beam, not k = {k}, beam = {beam}")
    if torch.isnan(log_probs).any():
        bad = torch.isnan(log_probs).flatten(1).any(dim=1).nonzero()[0].item()
        raise ValueError(f"posteriors of utterance {bad} of the batch hold NaN")
    found = [_prefix_beam_search(frames, beam) for frames in _probabilities(log_probs)]
    B, width = len(found), max(1, max(int(lengths[:k].max()) for _, lengths in found))
    labels = np.zeros((B, k, width), np.int64)
    lengths = np.zeros((B, k), np.int64)
    exists = np.zeros((B, k), bool)
    for b, (symbols, count) in enumerate(found):
        n = min(k, len(count))
        used = min(width, symbols.shape[1])
        labels[b, :n, :used] = symbols[:n, :used]
        lengths[b, :n] = count[:n]
        exists[b, :n] = True
    device = log_probs.device
    labels, lengths = (torch.from_numpy(a).to(device) for a in (labels, lengths))
    log_p = labelings_log_p(log_probs, labels, lengths)
    log_p = log_p.masked_fill(~torch.from_numpy(exists).to(device), -torch.inf)
    log_p, order = log_p.sort(dim=1, descending=True, stable=True)
    labels = labels.gather(1, order[..., None].expand_as(labels))
    return Hypotheses(labels, lengths.gather(1, order), log_p)


def _probabilities(log_probs: torch.Tensor) -> np.ndarray:
    return log_probs.detach().double().exp().cpu().numpy()


@numba.njit(cache=True)
def _keep_best(count, p, prefix, symbol):  # pragma: no cover (compiled)
    """Move the ``count`` largest p, with what belongs to them, to the front in descending order; of
    equals the first. Returns ``count`` and the smallest p kept."""
    # no np.partition: it takes five seconds to compile, and this sort is needed below anyway
    order = np.argsort(-p, kind="mergesort")
    all_p, all_prefix, all_symbol = p.copy(), prefix.copy(), symbol.copy()
    for rank in range(count):
        o = order[rank]
        p[rank], prefix[rank], symbol[rank] = all_p[o], all_prefix[o], all_symbol[o]
    return count, p[count - 1]


@numba.njit(cache=True)
def _prefix_beam_search(probs, beam):  # pragma: no cover (compiled)
    """Prefix beam search over one utterance's frame probabilities [T, V].

    Returns (labels [n, U], lengths [n]) of the n ≤ beam best prefixes, most probable first.

    A prefix i carries two numbers: the probability of all paths so far that stand for it and end
    in blank, ``blank[i]``, and of those that end in its last symbol, ``last[i]``. A frame makes
    every prefix stay (a blank, or its last symbol again) or grow by one symbol. A prefix that
    grows may become another one of the beam: their probabilities are added up. Prefixes are
    recognised by a 64-bit hash of their symbols.

    Only products that can enter the new beam are formed: symbols and prefixes are visited in
    descending order of probability and each loop ends where the product falls below the worst
    that is sure to be dropped. This drops nothing that a full search would keep.
    """
    T, V = probs.shape
    # the trie of all prefixes that ever were in the beam: node 0 is the empty prefix
    parent_of = np.zeros(T * beam + 1, np.int64)
    symbol_of = np.zeros(T * beam + 1, np.int64)
    nodes = 1

    node = np.zeros(beam, np.int64)
    key = np.zeros(beam, np.uint64)
    parent_key = np.zeros(beam, np.uint64)
    symbol = np.full(beam, -1, np.int64)
    length = np.zeros(beam, np.int64)
    blank = np.zeros(beam)
    last = np.zeros(beam)
    key[0] = np.uint64(1469598103934665603)
    blank[0] = 1.0
    n = 1

    taken = np.zeros((beam, V), np.bool_)  # (prefix, symbol): is in the beam already
    room = 2 * beam
    candidate_p = np.zeros(room)
    candidate_prefix = np.zeros(room, np.int64)
    candidate_symbol = np.zeros(room, np.int64)
    stay_blank = np.zeros(beam)
    stay_last = np.zeros(beam)

    for t in range(T):
        frame = probs[t]
        # 1. every prefix stays: blank, or its last symbol once more
        for i in range(n):
            total = blank[i] + last[i]
            stay_blank[i] = total * frame[0]
            stay_last[i] = last[i] * frame[symbol[i]] if symbol[i] >= 0 else 0.0
            taken[i, :] = False
        # 2. a prefix that grows into another one of the beam
        for j in range(n):
            if symbol[j] < 0:
                continue
            for i in range(n):
                if key[i] == parent_key[j]:
                    c = symbol[j]
                    source = blank[i] if c == symbol[i] else blank[i] + last[i]
                    stay_last[j] += source * frame[c]
                    taken[i, c] = True
                    break
        # 3. candidates: all that stay, and new prefixes above the worst of them
        count = 0
        worst = np.inf
        for i in range(n):
            candidate_p[count] = stay_blank[i] + stay_last[i]
            candidate_prefix[count] = i
            candidate_symbol[count] = 0
            worst = min(worst, candidate_p[count])
            count += 1
        if n < beam:
            worst = 0.0
        by_p = np.argsort(-frame[1:], kind="mergesort") + 1
        for i in range(n):  # the beam is sorted by total probability
            total = blank[i] + last[i]
            if total * frame[by_p[0]] <= worst:
                break
            for c in by_p:
                if total * frame[c] <= worst:
                    break
                if taken[i, c]:
                    continue
                p = (blank[i] if c == symbol[i] else total) * frame[c]
                if p > worst:
                    if count == room:  # keep the best `beam`: the bar rises, fewer come in
                        count, worst = _keep_best(
                            beam, candidate_p, candidate_prefix, candidate_symbol
                        )
                        if p <= worst:
                            continue
                    candidate_p[count] = p
                    candidate_prefix[count] = i
                    candidate_symbol[count] = c
                    count += 1
        # 4. the best `beam` of them, scaled so that the best is 1 (no underflow over long audio)
        order = np.argsort(-candidate_p[:count], kind="mergesort")[:beam]
        scale = 1.0 / candidate_p[order[0]] if candidate_p[order[0]] > 0 else 1.0
        new_n = len(order)
        new_node = np.empty(new_n, np.int64)
        new_key = np.empty(new_n, np.uint64)
        new_parent_key = np.empty(new_n, np.uint64)
        new_symbol = np.empty(new_n, np.int64)
        new_length = np.empty(new_n, np.int64)
        new_blank = np.empty(new_n)
        new_last = np.empty(new_n)
        kept = 0
        for rank in range(new_n):
            o = order[rank]
            i, c = candidate_prefix[o], candidate_symbol[o]
            if candidate_p[o] <= 0.0:
                continue
            if c == 0:
                new_node[kept], new_key[kept] = node[i], key[i]
                new_parent_key[kept], new_symbol[kept] = parent_key[i], symbol[i]
                new_length[kept] = length[i]
                new_blank[kept] = stay_blank[i] * scale
                new_last[kept] = stay_last[i] * scale
            else:
                parent_of[nodes], symbol_of[nodes] = node[i], c
                new_node[kept] = nodes
                nodes += 1
                mixed = (key[i] ^ np.uint64(c)) * np.uint64(1099511628211)
                new_key[kept] = mixed ^ (mixed >> np.uint64(29))
                new_parent_key[kept], new_symbol[kept] = key[i], c
                new_length[kept] = length[i] + 1
                new_blank[kept] = 0.0
                new_last[kept] = candidate_p[o] * scale
            kept += 1
        n = kept
        node[:n], key[:n], parent_key[:n] = new_node[:n], new_key[:n], new_parent_key[:n]
        symbol[:n], length[:n] = new_symbol[:n], new_length[:n]
        blank[:n], last[:n] = new_blank[:n], new_last[:n]

    longest = 1
    for i in range(n):
        longest = max(longest, length[i])
    labels = np.zeros((n, longest), np.int64)
    for i in range(n):
        at = node[i]
        for u in range(length[i] - 1, -1, -1):
            labels[i, u] = symbol_of[at]
            at = parent_of[at]
    return labels, length[:n].copy()
