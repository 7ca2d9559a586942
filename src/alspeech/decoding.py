"""Decoding: the n most probable labelings by CTC prefix beam search.

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
    probs = log_probs.detach().double().exp().cpu().numpy()
    found = [_prefix_beam_search(frames, beam) for frames in probs]
    B, width = len(found), max(1, max(int(lengths[:k].max()) for _, lengths in found))
    labels = np.zeros((B, k, width), np.int64)
    lengths = np.full((B, k), -1)  # that there is none
    for b, (symbols, count) in enumerate(found):
        n = min(k, len(count))
        used = min(width, symbols.shape[1])
        labels[b, :n, :used] = symbols[:n, :used]
        lengths[b, :n] = count[:n]
    labels, lengths = (torch.from_numpy(a).to(log_probs.device) for a in (labels, lengths))
    none, lengths = lengths < 0, lengths.clamp_min(0)
    log_p = labelings_log_p(log_probs, labels, lengths).masked_fill(none, -torch.inf)
    log_p, order = log_p.sort(dim=1, descending=True, stable=True)
    labels = labels.gather(1, order[..., None].expand_as(labels))
    return Hypotheses(labels, lengths.gather(1, order), log_p)


@numba.njit(cache=True)
def _largest(values, n):  # pragma: no cover (compiled)
    """The n-th largest of ``values``, which are left in disorder (Hoare's selection; np.partition
    takes five seconds to compile)."""
    low, high, place = 0, len(values) - 1, n - 1
    while low < high:
        pivot, i, j = values[(low + high) // 2], low, high
        while i <= j:
            while values[i] > pivot:
                i += 1
            while values[j] < pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if place <= j:
            high = j
        elif place >= i:
            low = i
        else:
            break
    return values[place]


@numba.njit(cache=True)
def _keep_best(n, count, p, prefix, symbol):  # pragma: no cover (compiled)
    """Move the n largest of the ``count`` first p, with what belongs to them, to the front in the
    order that they have; of equals the first. Returns n and the smallest p kept."""
    least = _largest(p[:count].copy(), n)
    equals, kept = n, 0  # so many that are as good as the least are kept
    for i in range(count):
        equals -= p[i] > least
    for i in range(count):
        if p[i] > least or (p[i] == least and equals > 0):
            equals -= p[i] == least
            p[kept], prefix[kept], symbol[kept] = p[i], prefix[i], symbol[i]
            kept += 1
    return kept, least


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
    # the trie of all prefixes that ever were in the beam: node 0 is the empty prefix, whose last
    # symbol counts as 0
    parent_of = np.zeros(T * beam + 1, np.int64)
    symbol_of = np.zeros(T * beam + 1, np.int64)
    length_of = np.zeros(T * beam + 1, np.int64)
    key_of = np.zeros(T * beam + 1, np.uint64)
    key_of[0] = np.uint64(1469598103934665603)
    nodes = 1

    node = np.zeros(1, np.int64)  # of each prefix in the beam
    blank = np.zeros(beam)
    last = np.zeros(beam)
    blank[0] = 1.0

    taken = np.zeros((beam, V), np.bool_)  # (prefix, symbol): is in the beam already
    room = 2 * beam
    candidate_p = np.zeros(room)
    candidate_prefix = np.zeros(room, np.int64)
    candidate_symbol = np.zeros(room, np.int64)
    stay_blank = np.zeros(beam)
    stay_last = np.zeros(beam)
    size = 4  # of a hash table of the beam's prefixes, never full
    while size < 4 * beam:
        size *= 2
    slots, mask, one = np.empty(size, np.int64), np.uint64(size - 1), np.uint64(1)

    for t in range(T):
        frame, n = probs[t], len(node)
        key, parent_key, symbol = key_of[node], key_of[parent_of[node]], symbol_of[node]
        # 1. every prefix stays: blank, or its last symbol once more
        for i in range(n):
            total = blank[i] + last[i]
            stay_blank[i] = total * frame[0]
            stay_last[i] = last[i] * frame[symbol[i]]
            taken[i, :] = False
        # 2. a prefix that grows into another one of the beam
        slots[:] = -1
        for i in range(n):
            at = key[i] & mask
            while slots[at] >= 0:
                at = (at + one) & mask
            slots[at] = i
        for j in range(n):
            c, at = symbol[j], parent_key[j] & mask
            if c == 0:
                continue
            while slots[at] >= 0 and key[slots[at]] != parent_key[j]:
                at = (at + one) & mask
            i = slots[at]
            if i >= 0:
                source = blank[i] if c == symbol[i] else blank[i] + last[i]
                stay_last[j] += source * frame[c]
                taken[i, c] = True
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
                            beam, count, candidate_p, candidate_prefix, candidate_symbol
                        )
                        if p <= worst:
                            continue
                    candidate_p[count] = p
                    candidate_prefix[count] = i
                    candidate_symbol[count] = c
                    count += 1
        # 4. the best `beam` of them, scaled so that the best is 1 (no underflow over long audio)
        if count > beam:
            count, _ = _keep_best(beam, count, candidate_p, candidate_prefix, candidate_symbol)
        order = np.argsort(-candidate_p[:count], kind="mergesort")
        order = order[candidate_p[order] > 0.0]
        scale = 1.0 / candidate_p[order[0]] if len(order) > 0 else 1.0
        before, node = node, np.empty(len(order), np.int64)
        for rank, o in enumerate(order):
            i, c = candidate_prefix[o], candidate_symbol[o]
            if c == 0:
                node[rank] = before[i]
                blank[rank] = stay_blank[i] * scale
                last[rank] = stay_last[i] * scale
            else:
                node[rank] = nodes
                blank[rank] = 0.0
                last[rank] = candidate_p[o] * scale
                parent_of[nodes], symbol_of[nodes] = before[i], c
                length_of[nodes] = length_of[before[i]] + 1
                mixed = (key[i] ^ np.uint64(c)) * np.uint64(1099511628211)
                key_of[nodes] = mixed ^ (mixed >> np.uint64(29))
                nodes += 1

    lengths = length_of[node]
    labels = np.zeros((len(node), np.append(lengths, 1).max()), np.int64)
    for i, at in enumerate(node):
        for u in range(lengths[i] - 1, -1, -1):
            labels[i, u] = symbol_of[at]
            at = parent_of[at]
    return labels, lengths
