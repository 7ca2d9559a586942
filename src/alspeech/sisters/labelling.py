"""Label your own clips, the informative ones first: ALOE with a person instead of a label file.

    Labeller(clips, embeddings, classes, answers).widget()

plays the clip that the classifier asks for, takes its label from a button, trains anew, and asks
for the next. Every answer is on disk before the next clip is shown; the same call goes on from it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..speech.answering import BACK, SKIP, Asker
from ..speech.clips import playable
from ..workshop.config import AloeConfig
from ..workshop.errors import UserError, cut, one_of
from .few_labels import SCORES, standardised, train

NONE = "none of these"  # the button beside those of the classes


class Labeller(Asker):
    """Asks for one label at a time and keeps the answers: ``clips`` is a table of clips (clips.py),
    ``embeddings`` [N, D] theirs, ``classes`` what a clip may be, ``answers`` a file of JSON lines,
    made at the first answer. Until every class has been heard, clips are asked for that lie
    farthest from those answered already; after that the one that ``strategy`` scores highest.
    Raises ``UserError`` for a file of answers that is not this one's."""

    FIELDS = ("clip_id", "label")

    def __init__(
        self, clips: pd.DataFrame, embeddings: Tensor, classes, answers: Path,
        strategy: str = "margin", config: AloeConfig | None = None,
    ):  # fmt: skip
        one_of("strategy", strategy, SCORES)
        if len(set(classes)) < 2:
            raise UserError("one class only: name two or more of what a clip may be")
        self.classes, self.strategy = tuple(classes), strategy
        self.config = config or AloeConfig()
        self.X = standardised(embeddings, embeddings)
        super().__init__(playable(clips), answers)

    def reason(self, clip: str, text: str) -> str:
        known = cut(", ".join(self.classes), 200)
        no = f"'{cut(text)}' is no class: choose one of {known}"
        return "" if text in self.classes else no

    def changed(self) -> None:
        """Train anew."""
        self.logits: Tensor | None = None  # [N, C], once every class has been heard
        labelled = {clip_id: label for clip_id, label in self.answers.items() if label != SKIP}
        if set(labelled.values()) != set(self.classes):
            return
        y = np.zeros(len(self.X), dtype=np.int64)
        rows = [self.row[clip_id] for clip_id in labelled]
        y[rows] = [self.classes.index(label) for label in labelled.values()]
        W, b = train(self.X, y, len(self.classes), [rows], [0], len(self.answers), self.config)
        self.logits = torch.from_numpy(self.X @ W[0].T + b[0])

    def next(self) -> str | None:
        """The clip to label next; None where all are answered."""
        free = np.array([clip_id not in self.answers for clip_id in self.clips["clip_id"]])
        if not free.any():
            return None
        if self.logits is not None:
            scores = SCORES[self.strategy](self.logits).double().numpy()
        elif self.answers:
            heard = torch.from_numpy(self.X[~free])
            scores = torch.cdist(torch.from_numpy(self.X), heard).amin(dim=1).double().numpy()
        else:  # the most ordinary clip
            scores = -np.linalg.norm(self.X, axis=1)
        return self.clips["clip_id"].iloc[int(np.where(free, scores, -np.inf).argmax())]

    def labels(self) -> pd.DataFrame:
        """Every clip with what is known of it: ``label`` (the answer, else None), and once there is
        a classifier its ``prediction`` and that one's ``probability``."""
        table = self.clips.assign(label=self.clips["clip_id"].map(self.answers))
        if self.logits is not None:
            best = self.logits.softmax(dim=-1).max(dim=-1)
            table["prediction"] = [self.classes[c] for c in best.indices.tolist()]
            table["probability"] = best.values.numpy()
        return table

    def _controls(self, ipywidgets) -> list:
        return [self._buttons(ipywidgets, (*self.classes, NONE, BACK))]

    def _said(self, name: str) -> str:
        return SKIP if name == NONE else name

    def _told(self) -> str:
        counts = pd.Series(self.answers).value_counts()
        return ", ".join(f"{name} {counts.get(name, 0)}" for name in self.classes)

    def _shown(self) -> tuple[pd.DataFrame, list[str]]:
        shown = self.labels().iloc[[self.row[self.asked]]]
        if self.logits is not None:
            guess, share = shown[["prediction", "probability"]].iloc[0]
            shown = shown.assign(**{"it may be": f"{guess} ({share:.0%})"})
        return shown, [c for c in ("clip_id", "it may be") if c in shown]
