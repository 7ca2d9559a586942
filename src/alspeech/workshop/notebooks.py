"""Notebooks, run by papermill with a run's parameters."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
from pathlib import Path

from .config import ROOT, Settings
from .errors import AGAIN, UserError, cut


def execute(notebook: str, settings: Settings) -> Path:
    """Run a notebook with this run's parameters; the executed copy goes to ``build/<run>/``.

    While it runs, and after a failure, the copy is ``<name>.partial.ipynb`` and the log beside it
    ``<name>.log``. Raises ``UserError`` naming notebook, cell and log.
    """
    # jsonschema, which looks at a notebook's form, does without the grammar of web addresses where
    # that is missing; no form has any, and setting it up takes longer than all other imports here
    sys.modules.setdefault("rfc3987_syntax", None)
    import papermill  # takes a second
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    source = Path(notebook or "")
    if not source.is_file():
        raise UserError(f"no notebook '{cut(notebook)}': choose one of those in notebooks/")
    output = ROOT / "build" / settings.run / source.name
    partial, log = output.with_suffix(".partial.ipynb"), output.with_suffix(".log")
    output.parent.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(filename=log, filemode="w", level=logging.INFO, force=True)
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # else the kernel warns on every start
    # make runs two at a time: threads of one would wait for those of the other. What takes long is
    # done by workers (steps.py)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parameters = {"preset": settings.preset, "corpus": settings.corpus, "data": settings.data}
    parameters["scenario"] = settings.scenario if settings.named else ""
    if settings.aimed:  # only those that look at selections have this parameter
        parameters["target"] = settings.selection.target
    try:
        with _standard_error_to(log):
            run = functools.partial(
                papermill.execute_notebook, source, partial, parameters, kernel_name="python3",
                log_output=True, cwd=ROOT, progress_bar=False,  # make runs two at a time
            )  # fmt: skip
            try:
                run()
            except RuntimeError as error:
                # two that start together may take one port; nothing was executed yet
                if not str(error).startswith("Kernel didn't respond"):
                    raise
                run()
    except (PapermillExecutionError, DeadKernelError) as error:
        logging.exception("%s failed", source)
        cell, reason = _failure(partial, error)
        raise UserError(
            f"{source}, cell {cell}: {reason} (log: {os.path.relpath(log, ROOT)}, notebook so far: "
            f"{os.path.relpath(partial, ROOT)}); {AGAIN}"
        ) from None
    partial.replace(output)
    return output


@contextlib.contextmanager
def _standard_error_to(log: Path):
    """What the kernel process says of itself goes to the log, not to the terminal."""
    terminal = os.dup(2)
    with open(log, "a") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


def _failure(partial: Path, error: Exception) -> tuple[int, str]:
    """(number of the cell in the source notebook, counted from 1; reason) of a failed execution."""
    import nbformat
    from nbclient.exceptions import DeadKernelError

    added = {"injected-parameters", "papermill-error-cell-tag"}  # cells that papermill put in
    cells = [
        cell
        for cell in nbformat.read(partial, as_version=4).cells
        if not added & set(cell.metadata.get("tags", []))
    ]
    ended = [cell.metadata.get("papermill", {}).get("status") == "completed" for cell in cells]
    is_code = [cell.cell_type == "code" for cell in cells]
    failed = next((n for n in range(len(cells)) if is_code[n] and not ended[n]), len(cells) - 1)
    if isinstance(error, DeadKernelError):
        return failed + 1, "the kernel died (out of memory, or killed)"
    return failed + 1, f"{error.ename}: {error.evalue}".split("\n")[0]
