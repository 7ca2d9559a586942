"""What the notebooks need around them: audio players in a table, and papermill to run them."""

from __future__ import annotations

import base64
import contextlib
import functools
import html
import io
import logging
import math
import os
import statistics
import time
from pathlib import Path

import pandas as pd
import soundfile
from IPython.display import HTML

from .config import ROOT, Settings, UserError
from .corpus import read_audio
from .errors import AGAIN


def players(rows: pd.DataFrame, columns: list[str]) -> HTML:
    """A table with an audio player in each row; ``rows`` are manifest rows with a ``path`` and,
    where the audio is a part of its file or no WAV, ``offset`` and ``duration``.

    The audio is embedded, so that an executed notebook can be played anywhere.
    """
    head = "".join(f"<th>{html.escape(name)}</th>" for name in (*columns, "listen"))
    body = []
    for row in rows.to_dict("records"):
        cells = "".join(f"<td>{html.escape(_shown(row[name]))}</td>" for name in columns)
        audio = base64.b64encode(_wav(row)).decode()
        player = f'<audio controls preload="none" src="data:audio/wav;base64,{audio}"></audio>'
        body.append(f"<tr>{cells}<td>{player}</td></tr>")
    return HTML(f"<table><tr>{head}</tr>{''.join(body)}</table>")


def _wav(row: dict) -> bytes:
    if "offset" not in row:  # a file of our own
        return Path(row["path"]).read_bytes()
    samples, rate = read_audio(row["path"], row["offset"], row["duration"])
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def _shown(value) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.3g}"
    return str(value)


def directions_study(model, batches, labelings: int, counts) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What EGL from few directions misses and costs, over some batches of utterances.

    Returns the share of Σ_k p_k ‖g_k‖² that is left after 0, 1, … ``labelings`` directions (a row
    an utterance), and a table with a row an utterance and ``directions`` (each R in ``counts``,
    "exact", and "plain": the first utterance of each batch, one backward pass a labeling) with
    ``score``, ``exact`` score and the batch's ``ms`` an utterance.
    """
    # here, since the process that executes the notebooks imports this module and needs none of it
    import torch
    from torch.nn import functional

    from .acquisition import ACQUISITIONS
    from .decoding import n_best
    from .gradients import Tape, plain_egl, principal_directions, weighted_gradients

    # like every other score; make runs two notebooks at once, and their threads would be too many
    torch.set_num_threads(1)
    left, parts = [], []
    for batch in batches:
        with torch.no_grad():
            tape = Tape(model, batch.features)
            hypotheses = n_best(tape.logits.log_softmax(-1), labelings)
            shares = principal_directions(weighted_gradients(tape.logits, hypotheses))[0]
        left.append(functional.pad(shares, (1, 0), value=1.0))
        options = {"exact": {"method": "exact"}, **{R: {"directions": R} for R in counts}}
        exact = ACQUISITIONS["egl"](model, batch, labelings, method="exact")
        for name, chosen in options.items():
            ACQUISITIONS["egl"](model, batch, labelings, **chosen)  # warm-up
            begun = time.perf_counter()
            score = ACQUISITIONS["egl"](model, batch, labelings, **chosen)
            ms = 1e3 * (time.perf_counter() - begun) / len(batch)
            columns = {"directions": name, "score": score, "exact": exact, "ms": ms}
            parts.append(pd.DataFrame(columns))
        begun = time.perf_counter()
        plain = plain_egl(model, batch.features[:1], hypotheses)
        ms = 1e3 * (time.perf_counter() - begun)
        columns = {"directions": "plain", "score": plain, "exact": exact[:1], "ms": ms}
        parts.append(pd.DataFrame(columns))
    return pd.DataFrame(torch.cat(left).numpy()), pd.concat(parts, ignore_index=True)


def scoring_cost(model, batches, strategies, settings: Settings) -> pd.DataFrame:
    """Milliseconds an utterance of the model's forward pass and of each strategy's score, and in
    forward passes; the median of three times through the batches, on one thread."""
    import torch

    from .acquisition import ACQUISITIONS
    from .experiment import _score_options

    torch.set_num_threads(1)
    calls = {"forward pass": lambda batch: model(batch.features)}
    for name in strategies:
        options = _score_options(settings, name, 0)
        calls[name] = functools.partial(ACQUISITIONS[name], model, **options)
    utterances, rows = sum(map(len, batches)), {}
    with torch.no_grad():
        for name, call in calls.items():
            seconds = []
            for _ in range(4):  # the first is a warm-up
                begun = time.perf_counter()
                for batch in batches:
                    call(batch)
                seconds.append(time.perf_counter() - begun)
            rows[name] = {"ms an utterance": 1e3 * statistics.median(seconds[1:]) / utterances}
    table = pd.DataFrame(rows).T
    table["forward passes"] = table["ms an utterance"] / table["ms an utterance"].iloc[0]
    return table


def execute(notebook: str, settings: Settings) -> Path:
    """Run a notebook with this run's parameters; the executed copy goes to ``build/<run>/``.

    While it runs, and after a failure, the copy is ``<name>.partial.ipynb`` and the log beside it
    ``<name>.log``. Raises ``UserError`` naming notebook, cell and log.
    """
    # here, since the notebooks themselves import this module and need none of it
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    source = Path(notebook or "")
    if not source.is_file():
        raise UserError(f"no notebook '{notebook}': choose one of those in notebooks/")
    output = ROOT / "build" / settings.run / source.name
    partial, log = output.with_suffix(".partial.ipynb"), output.with_suffix(".log")
    output.parent.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(filename=log, filemode="w", level=logging.INFO, force=True)
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # else the kernel warns on every start
    parameters = {"preset": settings.preset, "corpus": settings.corpus, "data": settings.data}
    try:
        with _standard_error_to(log):
            papermill.execute_notebook(
                source, partial, parameters, kernel_name="python3", log_output=True, cwd=ROOT,
                progress_bar=False,  # make runs two at a time
            )  # fmt: skip
    except (PapermillExecutionError, DeadKernelError) as error:
        logging.exception("%s failed", source)
        cell, reason = _failure(partial, error)
        raise UserError(
            f"{source}, cell {cell}: {reason} (log: {_short(log)}, notebook so far: "
            f"{_short(partial)}); {AGAIN}"
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


def _short(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
