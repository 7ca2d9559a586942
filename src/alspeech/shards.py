"""The pool in shards: which utterance is in which, and the scores of all of them as one list.

Legend: N utterances.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd

from .workshop.errors import UserError

BATCH = 32  # utterances that are scored together


def shards_of(store, pool: pd.DataFrame, count: int) -> np.ndarray:
    """The shard, 0 … ``count`` − 1, of every utterance [N]: the one that a hash of an id names.

    It is the first id of its batch: who shares a batch in the whole pool shares a shard, and is in
    its shard's batches as in the pool's (array_split again). So a score has the same bits in any
    number of shards, also where a batch's size decides how a matrix product is rounded.
    """
    found, ids = np.empty(len(pool), int), pool["utt_id"].to_numpy()
    for index in store.groups(pool, BATCH):
        found[index] = int(hashlib.sha256(ids[index[0]].encode()).hexdigest()[:12], 16) % count
    return found


def pool_ids(folder: Path) -> list[str]:
    """The pool's ids in a corpus's folder, in order: a line at a time, however many there are."""
    with open(folder / "manifest.jsonl", encoding="utf-8") as lines:
        rows = map(json.loads, lines)
        return [row["utt_id"] for row in rows if row["split"] == "pool"]


def joined(files: list[Path], ids: list[str]) -> pd.Series:
    """The scores in some files, digit for digit (strings), in the order of ``ids``. Raises
    ``UserError`` naming a file that is cut short, or where they are not of these ids, each once."""
    parts = []
    for path in files:
        part = pd.read_csv(path, dtype=str, keep_default_na=False, index_col="utt_id").iloc[:, 0]
        count = json.loads((path.parent / "metrics.json").read_text())["utterances"]
        if len(part) != count:
            raise UserError(f"{path} has {len(part)} scores of {count}: the shard was cut short: "
                            f"remove {path.parent.name} and run again")  # fmt: skip
        parts.append(part)
    found = pd.concat(parts)
    if not found.index.is_unique or len(found) != len(ids) or not found.index.isin(ids).all():
        raise UserError(f"{files[0].parent.name} and the other shards have {len(found)} scores, "
                        f"and not one for each of the pool's {len(ids)} utterances: remove these "
                        "folders and run again")  # fmt: skip
    return found.reindex(ids).rename_axis("utt_id")
