"""What is said when something goes wrong: one line."""

from __future__ import annotations

import difflib
import errno
import os
import sys
import traceback
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
AGAIN = "finished work is kept, the same command goes on from it"


class UserError(Exception):
    """Something that the person at the keyboard can mend: one line, says what to do.

    What it quotes of the user's goes through :func:`cut` or :func:`cut_path`.
    """


def cut(value, most: int = 40) -> str:
    """A value as a message quotes it: one line of at most ``most`` characters.

    >>> cut("one\\ntwo"), cut("a" * 100000, most=5)
    ('one\\\\ntwo', 'aaaa…')
    """
    text = _one_line(str(value)[: most + 1])
    return text if len(text) <= most else text[: most - 1] + "…"


def cut_path(path, most: int = 160) -> str:
    """A path as a message quotes it: whole, unless it is longer than paths are; then its ends."""
    text = str(path)
    if len(text) > most:
        text = f"{text[: most // 2]}…{text[-(most // 2) + 1 :]}"
    return _one_line(text)


def _one_line(text: str) -> str:
    """Line ends, terminals' commands and halves of characters are written as escapes."""
    return "".join(x if x.isprintable() else x.encode("unicode_escape").decode() for x in text)


class Detached(Exception):
    """The work was handed to a cluster, and nobody waits for it: says what to do later."""


MANY = 10  # names; twice as many may stand in a line


def one_of(kind: str, name, known) -> None:
    """Raise ``UserError`` for a name that is none of the known ones, and say which they are; of
    many the first, and of the others those that are most like it."""
    if name in known:
        return
    shown, others = list(known), []
    if len(shown) > 2 * MANY:
        shown, others = shown[:MANY], shown[MANY:]
        near = difflib.get_close_matches(str(name)[:40], others, MANY // 2, cutoff=0)
        shown, left = shown + near, len(others) - len(near)
    told = ", ".join(shown) + (f" or {left} others" if others else "")
    raise UserError(f"unknown {kind} '{cut(name)}': choose one of {told}")


HALVE = "end what else holds it; where it was a training, halve training: batch in the preset"


def explain(error: Exception, log: Path) -> int:
    """Say in one line on standard error what happened and what to do; returns the exit code.

    2 where the user can mend it; 1, with the traceback in ``log``, where it is none of what is
    expected.
    """
    where = "".join(f"{note}: " for note in getattr(error, "__notes__", []))
    if isinstance(error, (UserError, PermissionError)):
        line, status = f"{where}{error}", 2
    elif isinstance(error, BrokenProcessPool):
        line, status = f"a worker process died (out of memory, or killed); {AGAIN}", 2
    elif type(error).__name__ == "OutOfMemoryError":  # torch's, which need not be imported for it
        line, status = f"{where}out of GPU memory: {HALVE}; {AGAIN}", 2
    elif isinstance(error, OSError) and error.errno in FULL:
        line, status = f"{where}{error}: make room; {AGAIN}", 2
    else:
        told = cut(" ".join(str(error).split()), 200)
        line = f"{where}{type(error).__name__}: {told} (traceback: {_traceback(error, log)})"
        status = 1
    print("error: " + _one_line(" ".join(line.split())), file=sys.stderr)
    return status


def _traceback(error: Exception, log: Path) -> str:
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError as reason:
        return f"none, {reason}"
    return os.path.relpath(log)
