"""The currency of a comparison: the variance of a cell's WER over seeds, times the seconds that a
cell takes. Half of it buys the same interval in half of the time."""

from __future__ import annotations

import copy
import statistics
import time

from measure import laptop, row

from alspeech import metrics, training
from alspeech.workshop.config import load_settings

SEEDS = 10
LENGTHS = (0.5, 1, 2)  # in updates of the preset's cells


def variance() -> dict:
    """Cells of three lengths that go on from one base model, with a random fifth of the pool: by
    the last weights, and by the mean of the last of them, which one training ends with both of."""
    (data, base), config = laptop(), load_settings("laptop").training
    pool, groups = data.split("pool"), data.split("test")[data.group]
    found: dict[tuple, list[tuple[float, float]]] = {}
    for seed in range(SEEDS):
        train = data.labelled(list(pool.sample(frac=0.2, random_state=seed)["utt_id"]))
        for length in LENGTHS:
            updates, model = round(length * config.updates), copy.deepcopy(base)
            last: dict = {}  # before the mean is put in their place
            begun = time.perf_counter()
            training.fit(
                model, data.store, train, data.split("validation"), data.alphabet, config,
                updates=updates, rate=config.rate, seed=seed, measured=1,
                report=lambda _, model=model, last=last: last.update(
                    copy.deepcopy(model.state_dict())
                ),
            )  # fmt: skip
            seconds, wer = time.perf_counter() - begun, {}
            for weights, state in (("mean", model.state_dict()), ("last", last)):
                model.load_state_dict(state)
                begun = time.perf_counter()
                tested = metrics.evaluate(model, data.store, data.split("test"), data.alphabet)
                seconds += (time.perf_counter() - begun) / 2  # a cell tests one of the two
                wer[weights] = metrics.summarise(tested, groups)["macro_wer"]
            for weights in ("last", "mean"):
                found.setdefault((updates, weights), []).append((wer[weights], seconds))
    rows = []
    for (updates, weights), some in found.items():
        errors, seconds = zip(*some, strict=True)
        spread, mean = statistics.variance(errors), statistics.mean(seconds)
        name = f"variance: {updates} updates, {weights} weights"
        rows += [
            row(f"{name}: macro WER", statistics.mean(errors), unit="%"),
            row(f"{name}: standard deviation over {SEEDS} seeds", spread**0.5, unit="points"),
            row(f"{name}: a cell", mean, unit="s"),
            row(f"{name}: variance × seconds", spread * mean, unit="points² s"),
        ]
    return {"rows": rows}
