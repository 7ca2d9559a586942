"""What is said when something goes wrong: one line."""

from __future__ import annotations

import errno
import sys
import traceback
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from .config import ROOT, UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
AGAIN = "finished work is kept, the same command goes on from it"


def explain(error: Exception, log: Path) -> int:
    """Say in one line on standard error what happened and what to do; returns the exit code.

    2 where the user can mend it; 1, with the traceback in ``log`` (a path under ``ROOT``), where
    it is none of what is expected.
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
        (ROOT / log).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / log).write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError as reason:
        return f"none, {reason}"
    return str(log)
