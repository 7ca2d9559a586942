"""Label your own clips, the informative ones first: ALOE with a person instead of a label file.

    Labeller(clips, embeddings, classes, answers).widget()

plays the clip that the classifier asks for, takes its label from a button, trains anew, and asks
for the next. Every answer is on disk before the next clip is shown; the same call goes on from it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..speech.clips import playable
from ..speech.players import players
from ..speech.readers import lines
from ..workshop.config import AloeConfig
from ..workshop.errors import UserError, cut, one_of
from ..workshop.store import write_text
from .few_labels import SCORES, standardised, train

SKIP = ""  # the answer for a clip that is none of the classes
NONE, BACK = "none of these", "back"  # buttons beside those of the classes


class Labeller:
    """Asks for one label at a time and keeps the answers: ``clips`` is a table of clips (clips.py),
    ``embeddings`` [N, D] theirs, ``classes`` what a clip may be, ``answers`` a file of JSON lines,
    made at the first answer. Until every class has been heard, clips are asked for that lie
    farthest from those answered already; after that the one that ``strategy`` scores highest.
    Raises ``UserError`` for a file of answers that is not this one's."""

    def __init__(
        self, clips: pd.DataFrame, embeddings: Tensor, classes, answers: Path,
        strategy: str = "margin", config: AloeConfig | None = None,
    ):  # fmt: skip
        one_of("strategy", strategy, SCORES)
        if len(set(classes)) < 2:
            raise UserError("one class only: name two or more of what a clip may be")
        self.clips, self.classes = playable(clips.reset_index(drop=True)), tuple(classes)
        self.strategy, self.config, self.path = strategy, config or AloeConfig(), Path(answers)
        self.X = standardised(embeddings, embeddings)
        self.row = {clip_id: i for i, clip_id in enumerate(self.clips["clip_id"])}
        self.answers: dict[str, str] = self._read()
        self._train()

    def _read(self) -> dict[str, str]:
        found = {}
        for where, line in lines(self.path) if self.path.exists() else ():
            try:
                record = json.loads(line)
                clip_id, label = record["clip_id"], record["label"]
            except (ValueError, TypeError, KeyError):
                raise UserError(f"{where}: no answer: mend the line, or take it out") from None
            if clip_id not in self.row or label not in (*self.classes, SKIP):
                raise UserError(
                    f"{where}: '{cut(clip_id)}' as '{cut(label)}' answers other clips or other "
                    "classes: use another file"
                )
            found[clip_id] = label
        return found

    def _train(self) -> None:
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

    def answer(self, clip_id: str, label: str) -> None:
        """Keep an answer (on disk when this returns) and train anew; SKIP puts the clip aside."""
        if label not in (*self.classes, SKIP):
            known = cut(", ".join(self.classes), 200)
            raise UserError(f"'{cut(label)}' is no class: choose one of {known}")
        self.answers[clip_id] = label
        self._save_and_train()

    def undo(self) -> None:
        """Take the last answer back."""
        if self.answers:
            self.answers.popitem()
            self._save_and_train()

    def _save_and_train(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"clip_id": clip_id, "label": label} for clip_id, label in self.answers.items()]
        write_text(self.path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
        self._train()

    def labels(self) -> pd.DataFrame:
        """Every clip with what is known of it: ``label`` (the answer, else None), and once there is
        a classifier its ``prediction`` and that one's ``probability``."""
        table = self.clips.assign(label=self.clips["clip_id"].map(self.answers))
        if self.logits is not None:
            best = self.logits.softmax(dim=-1).max(dim=-1)
            table["prediction"] = [self.classes[c] for c in best.indices.tolist()]
            table["probability"] = best.values.numpy()
        return table

    def widget(self):
        """A player, a button for each class, *none of these* and *back*."""
        import ipywidgets  # only the notebook needs it

        self.player, self.progress = ipywidgets.HTML(), ipywidgets.HTML()
        buttons = [ipywidgets.Button(description=name) for name in (*self.classes, NONE, BACK)]
        for button in buttons:
            button.on_click(self._pressed)
        self._show()
        row = ipywidgets.HBox(buttons, layout={"flex_flow": "row wrap"})
        return ipywidgets.VBox([self.player, row, self.progress])

    def _pressed(self, button) -> None:
        if button.description == BACK:
            self.undo()
        elif self.asked is not None:
            self.answer(self.asked, SKIP if button.description == NONE else button.description)
        self._show()

    def _show(self) -> None:
        self.asked = self.next()
        counts = pd.Series(self.answers).value_counts()
        told = ", ".join(f"{name} {counts.get(name, 0)}" for name in self.classes)
        self.progress.value = f"{len(self.answers)} of {len(self.clips)} answered ({told})"
        if self.asked is None:
            self.player.value = "every clip is answered"
            return
        shown = self.labels().iloc[[self.row[self.asked]]]
        if self.logits is not None:
            guess, share = shown[["prediction", "probability"]].iloc[0]
            shown = shown.assign(**{"it may be": f"{guess} ({share:.0%})"})
        self.player.value = players(shown, [c for c in ("clip_id", "it may be") if c in shown]).data
