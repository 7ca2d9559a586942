"""Checks of a lab's exercises: whether an answer is right, and if not, a hint.

    check("2.3", answer)    # prints a line: right, or what seems to be wrong; never the answer

An answer is a number, an array, or a function, which is called with inputs of ours. What is right
is computed by the package, or kept as a salted digest. So are the mistakes that many make: an
answer that equals one of them gets its hint. Else the answer is compared in general terms: shape,
sign, a forgotten logarithm, a sum in place of a mean.

A check protects from oversight, not from intent: whoever wants to pass without understanding can.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..workshop.errors import cut

CLOSE = {"rtol": 1e-4, "atol": 1e-6}  # how near is right; computed in single precision is enough


@dataclass(frozen=True)
class Function:
    """An exercise whose answer is a function."""

    task: str  # what it returns, in a line
    cases: tuple  # arguments, a tuple each
    right: Callable  # of the arguments
    mistakes: tuple = ()  # (hint, function of the arguments)
    close: tuple = ()  # other tolerances: (rtol, atol)
    look: Callable | None = None  # of an output and its arguments: a hint, or ""

    def judge(self, answer) -> tuple[bool, str]:
        if not callable(answer):
            return False, f"a function is asked for, and this is {_kind(answer)}: {self.task}"
        found = []
        for case in self.cases:
            try:
                found.append(answer(*copy.deepcopy(case)))
            except (Exception, SystemExit) as error:
                told = cut(f"{type(error).__name__}: {error}", 120)
                return False, f"your function raised {told}, called with {_shown(case)}"
        if all(map(unanswered, found)):
            return False, f"not answered yet: {self.task}"
        wanted = [self.right(*copy.deepcopy(case)) for case in self.cases]
        near = dict(zip(("rtol", "atol"), self.close, strict=False)) or CLOSE
        if all(same(x, y, near) for x, y in zip(found, wanted, strict=True)):
            return True, ""
        for hint, wrong in self.mistakes:
            if self._is(wrong, found, near):
                return False, hint
        for output, case in zip(found, self.cases, strict=True):
            if self.look and not unanswered(output) and (hint := _looked(self.look, output, case)):
                return False, hint
        return False, compared(found, wanted, self.cases, near, self.task)

    def _is(self, wrong: Callable, found: list, near: dict) -> bool:
        outputs = (wrong(*copy.deepcopy(case)) for case in self.cases)
        return all(same(x, y, near) for x, y in zip(found, outputs, strict=True))


def _looked(look: Callable, output, case) -> str:
    try:
        return look(np.asarray(numbers(output)), *case)
    except (TypeError, ValueError, IndexError):  # of another kind or shape: the comparison says so
        return ""


@dataclass(frozen=True)
class Value:
    """An exercise whose answer is a word or a whole number, kept as a salted digest."""

    task: str
    salt: str
    right: str  # digest
    mistakes: tuple = ()  # (hint, digest)
    choices: tuple = ()  # what may be chosen from

    def judge(self, answer) -> tuple[bool, str]:
        word = self._word(answer)
        if word is None or (self.choices and word not in self.choices):
            what = f"one of {', '.join(self.choices)}" if self.choices else "a whole number"
            return False, f"{what} is asked for, and this is {_kind(answer)}: {self.task}"
        found = digest(self.salt, word)
        if found == self.right:
            return True, ""
        for hint, wrong in self.mistakes:
            if found == wrong:
                return False, hint
        return False, f"not right: {self.task}"

    def _word(self, answer) -> str | None:
        if isinstance(answer, str):
            return answer.strip().lower()
        try:
            value = np.asarray(numbers(answer), dtype=float)
        except (TypeError, ValueError):
            return None
        whole = value.size == 1 and float(value.reshape(-1)[0]).is_integer()
        return str(int(value.reshape(-1)[0])) if whole else None


@dataclass(frozen=True)
class Judged:
    """An exercise with many right answers: ``judge_it`` gives "" or a hint."""

    task: str
    judge_it: Callable

    def judge(self, answer) -> tuple[bool, str]:
        try:
            hint = self.judge_it(answer)
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            told = cut(f"{type(error).__name__}: {error}", 80)
            hint = f"this is {_kind(answer)}, of another form than is asked for ({told}): " + (
                self.task
            )
        return not hint, hint


WORDS = 40  # of an argument, at least


@dataclass(frozen=True)
class Argument:
    """A question whose answer is an argument. A person reads it; what is looked at here is only
    whether there is one."""

    task: str

    def judge(self, answer) -> tuple[bool, str]:
        if not isinstance(answer, str):
            return False, f"a text is asked for, and this is {_kind(answer)}: {self.task}"
        words = answer.split()
        if len(words) < WORDS:
            return False, (
                f"{len(words)} words: an argument takes more, {WORDS} at least: a claim, what "
                "supports it, and what would speak against it"
            )
        if not any(x.isdigit() for x in answer):
            return False, "no number in it: name a result of this lab that supports the claim"
        return True, ""


def digest(salt: str, word: str) -> str:
    """Twelve hex digits that stand for an answer."""
    return hashlib.sha256(f"{salt}:{word}".encode()).hexdigest()[:12]


# ---------------------------------------------------------------- answers


def unanswered(answer) -> bool:
    """Is it what the student's version begins with?"""
    if isinstance(answer, tuple | list) and len(answer):
        return all(map(unanswered, answer))
    return answer is ... or answer is None or (isinstance(answer, str) and not answer.strip())


def numbers(answer):
    """An answer as NumPy has it, whether it is a tensor, a table's column or a list. Raises
    ``TypeError`` for what holds no numbers."""
    if hasattr(answer, "detach"):
        answer = answer.detach().cpu().numpy()
    if isinstance(answer, tuple | list) and any(hasattr(x, "detach") for x in answer):
        answer = [numbers(x) for x in answer]
    if isinstance(answer, bytes | dict) or callable(answer):
        raise TypeError("no numbers")
    values = np.asarray(answer)
    if values.dtype.kind == "c":
        raise TypeError("complex numbers")
    try:
        return values if values.dtype.kind == "U" else values.astype(float)
    except OverflowError:
        raise TypeError("a number beyond all others") from None


def same(found, wanted, near: dict | None = None) -> bool:
    """Is an output the one that is wanted? Lists of names must be equal, numbers nearly so."""
    try:
        found, wanted = numbers(found), numbers(wanted)
    except (TypeError, ValueError):
        return False
    if found.size == wanted.size == 0:
        return True
    if found.size == wanted.size == 1:
        found, wanted = found.reshape(()), wanted.reshape(())
    if found.shape != wanted.shape:
        return False
    if "U" in (found.dtype.kind, wanted.dtype.kind):
        return found.dtype.kind == wanted.dtype.kind and bool((found == wanted).all())
    return bool(np.allclose(found, wanted, equal_nan=True, **(near or CLOSE)))


def compared(found: list, wanted: list, cases: tuple, near: dict, task: str) -> str:
    """What outputs that are not right have to do with those that are wanted."""
    arrays = []
    for output, want in zip(found, wanted, strict=True):
        want = numbers(want)
        try:
            value = numbers(output)
        except (TypeError, ValueError):
            return f"it returns {_kind(output)} where {_form(want)} is asked for: {task}"
        if value.dtype.kind != want.dtype.kind:
            return f"it returns {_kind(output)} where {_form(want)} is asked for: {task}"
        if value.size == want.size == 1:
            value, want = value.reshape(()), want.reshape(())
        if value.shape != want.shape and want.dtype.kind == "U":
            return f"it names {value.size}, not as many as the task asks for: {task}"
        if value.shape != want.shape:
            turned = ": is it transposed?" if value.shape == want.shape[::-1] else f": {task}"
            return f"it returns {_form(value)} where {_form(want)} is asked for{turned}"
        arrays.append((value, want))
    if arrays[0][1].dtype.kind == "U":
        return f"not right: {task}"
    if any(not np.isfinite(x[np.isfinite(y)]).all() for x, y in arrays):
        return "there are NaN or infinite numbers in it: is the logarithm of 0, or a share of " + (
            "nothing, taken somewhere?"
        )
    if hint := _related(arrays, cases, near):
        return hint
    right = [np.allclose(x, y, equal_nan=True, **near) for x, y in arrays]
    if any(right):
        case = cases[right.index(False)]
        return f"right in {sum(right)} of {len(right)} cases; look at {_shown(case)}"
    return f"not right: {task}"


def _related(arrays: list, cases: tuple, near: dict) -> str:
    """A hint where all outputs are the same function of those that are wanted."""

    def all_are(function) -> bool:
        with np.errstate(all="ignore"):
            return all(np.allclose(x, function(y), **near) for x, y in arrays)

    known = (
        ("the sign is wrong", lambda y: -y),
        ("this is the logarithm of what is asked for", np.log),
        ("this is minus the logarithm of what is asked for", lambda y: -np.log(y)),
        ("a logarithm has been forgotten", np.exp),
        ("a logarithm has been forgotten, and its sign", lambda y: np.exp(-y)),
        ("logarithms are natural ones here, in nats, not in bits", lambda y: y / np.log(2)),
        ("logarithms are natural ones here, not to the base of 10", lambda y: y / np.log(10)),
        ("a square has been forgotten", np.sqrt),
        ("there is a square too many", np.square),
        ("this is one minus what is asked for", lambda y: 1 - y),
    )
    for hint, function in known:
        if all_are(function):
            return hint
    pairs = [(x, y) for x, y in arrays if np.all(y != 0)]
    factors = [np.asarray(x / y) for x, y in pairs]
    if not factors or any(np.ptp(f) > 1e-3 * abs(f.mean()) + 1e-9 for f in factors):
        return ""
    means = np.array([f.mean() for f in factors])
    lengths = [_length(case) for case, (_, y) in zip(cases, arrays, strict=True) if np.all(y != 0)]
    if np.allclose(means, lengths, rtol=1e-3):
        return "this is a sum where a mean is asked for"
    if np.allclose(means * lengths, 1, rtol=1e-3):
        return "this is divided by the length once too often: a mean where a sum is asked for"
    if len(means) > 1 and np.ptp(means) < 1e-3 * abs(means.mean()):
        return f"a constant factor of {means.mean():.3g} is too much in it"
    return ""


def _length(case) -> float:
    try:
        return float(len(case[0]))
    except TypeError:
        return float("nan")


def _kind(answer) -> str:
    """What an answer is, for a hint."""
    if callable(answer) and not isinstance(answer, type):
        return "a function"
    if isinstance(answer, str):
        return f"the text '{cut(answer, 30)}'"
    try:
        value = numbers(answer)
    except (TypeError, ValueError):
        return f"a {type(answer).__name__}"
    return _form(value)


def _form(value: np.ndarray) -> str:
    what = "names" if value.dtype.kind == "U" else "numbers"
    if value.size == 1 and value.ndim == 0:
        return "a number" if what == "numbers" else "a name"
    return f"{what} of the shape {tuple(value.shape)}"


def _shown(case: tuple) -> str:
    """An exercise's input as a hint names it."""
    parts = []
    for value in case:
        if hasattr(value, "detach") or isinstance(value, np.ndarray):
            value = np.round(numbers(value), 3).tolist()
        if hasattr(value, "to_dict"):
            value = value.to_dict()
        parts.append(" ".join(str(value).split()))
    return cut(", ".join(parts), 160)


# ---------------------------------------------------------------- all of them


LABS = {"1": "ctc_lab", "2": "egl_lab", "3": "experiment_lab", "4": "beyond_lab"}


def exercises(lab: str = "") -> dict:
    """The exercises of a lab (``"2"``), or of all, by their names, in order."""
    found = {}
    for module in [LABS[lab]] if lab in LABS else LABS.values():  # imported as they are needed
        found |= importlib.import_module(f".{module}", __package__).EXERCISES
    return found


def judge(name, answer) -> tuple[bool, str]:
    """Whether an answer is right, and "" or a hint. Raises ``KeyError`` with a line to print for a
    name that no exercise has."""
    name = str(name)
    known = exercises(name[:1])
    if name not in known:
        known = exercises()
        near = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
        raise KeyError(f"there is no exercise '{cut(name)}': did you mean '{near}'?")
    if unanswered(answer):
        return False, f"not answered yet: {known[name].task}"
    return known[name].judge(answer)


def check(name: str, answer) -> None:
    """Print whether an answer to an exercise (``"2.3"``) is right, or a hint."""
    try:
        right, hint = judge(name, answer)
    except KeyError as error:
        print(error.args[0])
        return
    argued = isinstance(exercises(str(name)[:1])[str(name)], Argument)
    said = "there is an argument; a person will judge it" if argued else "right"
    print(f"{name}: {said}" if right else f"{name}: {hint}")
