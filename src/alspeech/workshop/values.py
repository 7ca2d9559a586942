"""What YAML says, as frozen dataclasses: kinds of values, and one line for a value that is none.

A range is declared at its field (``Count``) and checked by pydantic where a file is read.
"""

from __future__ import annotations

import difflib
import functools
import typing
from dataclasses import fields, is_dataclass
from typing import Annotated

import pydantic
import yaml
from pydantic import Field, StrictFloat, StrictInt

from .errors import UserError, cut

Whole = Annotated[int, Field(ge=0, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]
AtLeast0 = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Part = Annotated[float, Field(ge=0, lt=1)]  # a share, but not all


def _once(names: tuple) -> tuple:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{cut(str(name))} is named twice")
    return names


Names = Annotated[tuple[str, ...], pydantic.AfterValidator(_once)]
Percents = Annotated[
    tuple[Annotated[StrictInt | StrictFloat, Field(gt=0, le=100)], ...],
    pydantic.AfterValidator(_once),
]


class Section:
    """A section of a file: keys that are not declared are refused."""

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)


def read_yaml(content: bytes, file: str) -> dict:
    """What a YAML file holds."""
    try:
        values = yaml.safe_load(content.decode("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: {cut(error.problem, 120)}" if mark else cut(error, 120)
        raise UserError(f"{file}: not to be read as YAML: {where}") from None
    if not isinstance(values, dict):
        found = "nothing in it" if values is None else f"'{cut(values)}' is no mapping"
        raise UserError(f"{file}: {found}: give keys and values, for one 'seeds: 3'")
    return values


def checked(values, kind: type, file: str, name: str = ""):
    """Settings or a scenario from what YAML says, checked."""
    try:
        return _adapter(kind).validate_python(values)
    except pydantic.ValidationError as error:
        told = _told(error.errors()[0], kind)
        raise UserError(": ".join(filter(None, [file, name, told]))) from None


@functools.cache
def _adapter(kind: type) -> pydantic.TypeAdapter:
    """What reads settings; it takes a tenth of a second to make."""
    return pydantic.TypeAdapter(kind)


def dataclass_of(kind: type, name: str) -> type | None:
    """The dataclass that a field of another is declared to be, if it is one."""
    hint = typing.get_type_hints(kind)[name]
    return next((x for x in (hint, *typing.get_args(hint)) if is_dataclass(x)), None)


MEANT = {  # where pydantic speaks of Python
    "Input should be a valid tuple": "Input should be a list",
    "Input should be a valid integer": "Input should be a whole number",
    "Input should be a dictionary or an instance of": "Input should be keys and values, as of",
    "Field required": "Input should be longer",
    " after validation": "",
}


def _told(error: dict, kind: type) -> str:
    """pydantic's account of a value in one line: section, key, value, and what is allowed."""
    where = []
    for name in error["loc"]:
        known = [item.name for item in fields(kind)] if kind else []
        if known and name not in known:
            near = difflib.get_close_matches(str(name), known, n=8, cutoff=0)
            unknown = f"unknown key '{cut(name)}', the nearest are {', '.join(near)}"
            return ": ".join([*where, unknown])
        if known:
            where.append(name)
            kind = dataclass_of(kind, name)
    what = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":  # about several keys of a section, which it names
        return ": ".join([*where, what])
    for python, plain in MEANT.items():
        what = what.replace(python, plain)
    named = f"{': '.join(where)} is " if where else ""
    return f"{named}{cut(error['input'])}: {what[0].lower()}{what[1:]}"
