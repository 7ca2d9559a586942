"""What is said when something goes wrong: one line."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
AGAIN = "finished work is kept, the same command goes on from it"


class UserError(Exception):
    """Something that the person at the keyboard can mend: one line, says what to do."""


def one_of(kind: str, name, known) -> None:
    """Raise ``UserError`` for a name that is none of the known ones."""
    if name not in known:
        raise UserError(f"unknown {kind} '{name}': choose one of {', '.join(known)}")


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
    elif isinstance(error, OSError) and error.errno in FULL:
        line, status = f"{where}{error}: make room; {AGAIN}", 2
    else:
        line = f"{where}{type(error).__name__}: {error} (traceback: {_traceback(error, log)})"
        status = 1
    print("error: " + " ".join(line.split()), file=sys.stderr)
    return status


def _traceback(error: Exception, log: Path) -> str:
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError as reason:
        return f"none, {reason}"
    return os.path.relpath(log)
