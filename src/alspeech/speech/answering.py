"""Clips that a person is asked about in a notebook, one at a time.

    Transcriber(rows, answers).widget()

plays an utterance, with the recogniser's guess to be corrected, and asks for the next. Every answer
is on disk before the next clip is shown; the same call goes on from it.
"""

from __future__ import annotations

import html
import json
from pathlib import Path

import pandas as pd

from ..workshop.errors import UserError, cut
from ..workshop.store import write_text
from .players import players
from .readers import lines

SKIP = ""  # the answer for a clip that was put aside; null in the file
BACK = "back"


class Asker:
    """Asks about one clip of ``rows`` at a time and keeps the answers in a file of JSON lines, made
    at the first one. Subclasses say how a clip and an answer are called there (``FIELDS``), which
    answers there are (:meth:`reason`), which clip is ``next``, and what stands below the player
    (:meth:`_controls`). Raises ``UserError`` for a file of answers that is not this one's."""

    FIELDS = ("clip_id", "answer")
    OTHERS = False  # may the file hold answers to clips that are not in ``rows``? They stay there

    def __init__(self, rows: pd.DataFrame, answers: Path):
        self.clips, self.path = rows.reset_index(drop=True), Path(answers)
        self.row = {clip: i for i, clip in enumerate(self.clips[self.FIELDS[0]])}
        self.elsewhere: dict[str, str] = {}  # answers to other clips
        self.answers: dict[str, str] = self._read()
        self.changed()

    def reason(self, clip: str, text: str) -> str:
        """Why a text (that is not ``SKIP``) is no answer to that; "" if it is one."""
        raise NotImplementedError

    def next(self) -> str | None:
        """The clip to ask for next; None where all are answered."""
        free = [clip for clip in self.row if clip not in self.answers]
        return free[0] if free else None

    def changed(self) -> None:
        """Called after every change of the answers."""

    def answer(self, clip: str, text: str) -> None:
        """Keep an answer (on disk when this returns); ``SKIP`` puts the clip aside. Raises
        ``UserError`` for what is none."""
        if text != SKIP and (why := self.reason(clip, text)):
            raise UserError(why)
        self.answers[clip] = text
        self._save()

    def undo(self) -> None:
        """Take the last answer back."""
        if self.answers:
            self.answers.popitem()
            self._save()

    def _read(self) -> dict[str, str]:
        found = {}
        for where, line in lines(self.path) if self.path.exists() else ():
            try:
                record = json.loads(line)
                clip, text = record[self.FIELDS[0]], record[self.FIELDS[1]] or SKIP
                known = clip in self.row
            except (ValueError, TypeError, KeyError):
                raise UserError(f"{where}: no answer: mend the line, or take it out") from None
            if not (known or self.OTHERS) or (text != SKIP and self.reason(clip, text)):
                raise UserError(
                    f"{where}: '{cut(clip)}' as '{cut(text)}' answers other clips, or is no answer "
                    "to them: use another file"
                )
            (found if known else self.elsewhere)[clip] = text
        return found

    def _save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        (clip, answer), both = self.FIELDS, self.elsewhere | self.answers
        rows = [{clip: key, answer: text or None} for key, text in both.items()]
        write_text(self.path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
        self.changed()

    # ---------------------------------------------------------------- what is seen of it

    def widget(self):
        """A player, what it is answered with, and how many are."""
        import ipywidgets  # only the notebook needs it

        self.player, self.progress = ipywidgets.HTML(), ipywidgets.HTML()
        controls = self._controls(ipywidgets)
        self._show()
        return ipywidgets.VBox([self.player, *controls, self.progress])

    def _controls(self, ipywidgets) -> list:
        raise NotImplementedError

    def _buttons(self, ipywidgets, names):
        """A row of buttons, each of which calls :meth:`_pressed` with its name."""
        buttons = [ipywidgets.Button(description=name) for name in names]
        for button in buttons:
            button.on_click(lambda button: self._press(button.description))
        return ipywidgets.HBox(buttons, layout={"flex_flow": "row wrap"})

    def _press(self, name: str) -> None:
        try:
            if name == BACK:
                self.undo()
            elif self.asked is not None:
                self.answer(self.asked, self._said(name))
        except UserError as error:
            self.progress.value = html.escape(str(error))
        else:
            self._show(autoplay=True)

    def _said(self, name: str) -> str:
        """The answer that a button stands for."""
        raise NotImplementedError

    def _told(self) -> str:
        """Of the answers, beside their number."""
        raise NotImplementedError

    def _shown(self) -> tuple[pd.DataFrame, list[str]]:
        """The row that is asked for, and the columns that are shown of it."""
        raise NotImplementedError

    def _show(self, autoplay: bool = False) -> None:
        self.asked = self.next()
        told = f"{len(self.answers)} of {len(self.clips)} answered ({self._told()})"
        self.progress.value = html.escape(told)
        if self.asked is None:
            self.player.value = "every clip is answered"
        else:
            self.player.value = players(*self._shown(), autoplay=autoplay).data


SAVE, PASS, UNINTELLIGIBLE = "save", "skip", "unintelligible"  # buttons
NOTHING_HEARD = f"[{UNINTELLIGIBLE}]"  # the transcript of what nobody could understand


class Transcriber(Asker):
    """Asks what is said in each of ``rows`` (a manifest's, with ``rank, guess, why``, as ``make
    query`` lists them), in their order. The guess, or what was written and taken back, is filled
    in. What is skipped has no transcript and may be asked for again another time; what is
    unintelligible will not be. ``make learn`` reads the file."""

    FIELDS, OTHERS = ("utt_id", "text"), True
    now: dict[str, str] = {}  # the answers, and as they were before the last change

    def reason(self, clip: str, text: str) -> str:
        written = isinstance(text, str) and text.strip()
        return "" if written else f"'{cut(clip)}': write what is said, or press {UNINTELLIGIBLE}"

    def changed(self) -> None:
        self.before, self.now = self.now, dict(self.answers)

    def transcripts(self) -> dict[str, str]:
        """What was written so far, by ``utt_id``: what was skipped is not there."""
        return {utt_id: text for utt_id, text in self.answers.items() if text != SKIP}

    def _controls(self, ipywidgets) -> list:
        self.text = ipywidgets.Text(layout={"width": "95%"})
        return [self.text, self._buttons(ipywidgets, (SAVE, PASS, UNINTELLIGIBLE, BACK))]

    def _said(self, name: str) -> str:
        # nothing written is no answer, and not one that was skipped
        return {SAVE: self.text.value.strip() or " ", PASS: SKIP}.get(name, NOTHING_HEARD)

    def _told(self) -> str:
        return f"{len(self.answers) - len(self.transcripts())} skipped"

    def _shown(self) -> tuple[pd.DataFrame, list[str]]:
        row = self.clips.iloc[[self.row[self.asked]]]
        self.text.value = self.before.get(self.asked) or row["guess"].iloc[0]
        return row, ["rank", "utt_id", "why"]
