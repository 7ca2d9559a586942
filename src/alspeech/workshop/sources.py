"""Which source computes a step: the function that does, and what that function builds on.

Two rules, and no list to keep. In a module that describes steps (it imports ``Step``), where many
stand side by side, source is followed name by name: the function, what it mentions, what that
mentions … but not functions that return a ``Step``, which belong in ``after``. Any other module
counts as a whole, with all that it imports. The workshop, which decides where and when something
is computed, and not what, never counts.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FunctionType, ModuleType
from typing import NamedTuple

from .errors import UserError

PACKAGE = Path(__file__).parents[1]
# as they were when this process started: editing a file does not touch a run that is under way
_SOURCES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path.read_text(encoding="utf-8")
    for path in PACKAGE.rglob("[!.]*.py")
}
_DATA = {path.name: path.read_bytes() for path in PACKAGE.rglob("*.yaml")}  # what modules read


class Place(NamedTuple):
    """Somewhere in the package."""

    module: str
    name: str = ""  # of something defined there; "": all of the module
    line: int = 0  # of a function inside of another; 0: it is defined at the module's top
    held: frozenset = frozenset()  # names of that other one's that the function knows


def code(compute: Callable) -> str:
    """Ten hex digits that stand for the source that ``compute`` runs and for the versions of the
    packages that this source imports. Functions of other packages, yours say, have none here.

    Raises ``UserError`` where a module was imported after its file had been edited."""
    return _digest(frozenset(_beginnings(compute)))


@functools.cache
def _digest(beginnings: frozenset[Place]) -> str:
    digest, found = hashlib.sha256(), reached(beginnings)
    for place in sorted(found):  # by name, not by line: these move with every edit above
        digest.update(f"{place.module}:{place.name}\n{_text(place)}\n".encode())
    modules = {place.module for place in found}
    packages = {name for module in modules for name in _outline(module)[2]}
    digest.update(repr([(name, _version(name)) for name in sorted(packages)]).encode())
    for name, content in sorted(_DATA.items()):
        if any(not place.name and name in _SOURCES[place.module] for place in found):
            digest.update(content)
    return digest.hexdigest()[:10]


def reached(beginnings: frozenset[Place]) -> set[Place]:
    """Some places and all that they build on."""
    found, todo = set(), set(beginnings)
    while todo:
        found |= todo
        todo = {place for known in todo for place in _mentioned(known)} - found
    return found


def _beginnings(function: Callable) -> Iterator[Place]:
    """A function, and whatever of the package it was handed by the one around it."""
    function = inspect.unwrap(function)
    module = _own(getattr(function, "__module__", None))
    if module is None or not isinstance(function, FunctionType):
        return
    held = function.__code__.co_freevars
    line = function.__code__.co_firstlineno
    yield Place(module, function.__qualname__, line, frozenset(held))
    for value in (cell.cell_contents for cell in function.__closure__ or ()):
        if isinstance(value, FunctionType):
            yield from _beginnings(value)
        elif isinstance(value, ModuleType):
            yield from _place(_own(value.__name__))
        elif own := _own(type(value).__module__):
            yield from _place(own, type(value).__name__)


def _own(module: str | None) -> str | None:
    """A module of this package as it is called here; None for others."""
    name = (module or "").removeprefix(f"{__package__.partition('.')[0]}.")
    return name if name in _SOURCES and name != module else None


def _place(module: str | None, name: str = "") -> Iterator[Place]:
    """A module's definition, or the module where it counts as a whole."""
    if module is None or module.startswith("workshop."):
        return
    definitions, imports, _ = _outline(module)
    if "Step" not in imports:
        yield Place(module)
    elif name in definitions:
        if not any(map(_describes, definitions[name])):
            yield Place(module, name)
    else:  # it is imported there
        yield from _imported(module, name)


def _imported(module: str, name: str, attribute: str = "") -> Iterator[Place]:
    """Where a name that a module imports is from; that of its ``attribute``, if it is a module."""
    for target in _outline(module)[1].get(name, ()):
        inside, _, inner = target.rpartition(".")
        if target in _SOURCES:
            yield from _place(target, attribute)
        elif inside in _SOURCES:
            yield from _place(inside, inner)


def _mentioned(place: Place) -> Iterator[Place]:
    """What a place builds on, one step away."""
    definitions, imports, _ = _outline(place.module)
    if not place.name:
        for target in set().union(*imports.values()):
            module = target if target in _SOURCES else target.rpartition(".")[0]
            if module in _SOURCES and not module.startswith("workshop."):
                yield Place(module)
        return
    for node in (child for top in _nodes(place) for child in ast.walk(top)):
        attribute = node.attr if isinstance(node, ast.Attribute) else ""
        node = node.value if attribute else node
        if not isinstance(node, ast.Name) or node.id in place.held:
            continue
        if node.id in definitions:
            yield from _place(place.module, node.id)
        else:
            yield from _imported(place.module, node.id, attribute)


@functools.cache
def _outline(module: str) -> tuple[dict, dict, set]:
    """Of a module: the statements at its top that make or change a name, by name; what of this
    package it imports, by the name that it has there; and which other packages."""
    tree, definitions, imports, packages = ast.parse(_SOURCES[module]), {}, {}, set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = {node.name}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            continue
        else:
            targets = getattr(node, "targets", None) or [getattr(node, "target", node)]
            inner = [child for target in targets for child in ast.walk(target)]
            names = {child.id for child in inner if isinstance(child, ast.Name)}
        for name in names:
            definitions.setdefault(name, []).append(node)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*module.split(".")[: -node.level], *filter(None, [node.module])]
            for item in node.names:
                target = ".".join([*base, item.name])
                imports.setdefault(item.asname or item.name, set()).add(target)
        elif isinstance(node, ast.ImportFrom):
            packages.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Import):
            packages |= {item.name.partition(".")[0] for item in node.names}
    return definitions, imports, packages - sys.stdlib_module_names


def _describes(node: ast.stmt) -> bool:
    """Does a function return a Step, or several?"""
    return isinstance(node, ast.FunctionDef) and "Step" in ast.unparse(node.returns or ast.Pass())


def _nodes(place: Place) -> list[ast.AST]:
    """The syntax of a place that has a name."""
    definitions = _outline(place.module)[0]
    if not place.line:
        return definitions[place.name]
    kinds, name = (ast.FunctionDef, ast.Lambda), place.name.rpartition(".")[2]
    nodes = (child for top in definitions[place.name.partition(".")[0]] for child in ast.walk(top))
    found = [node for node in nodes if isinstance(node, kinds) and _first(node) == place.line]
    if not found or getattr(found[0], "name", "<lambda>") != name:
        file = PACKAGE.joinpath(*place.module.split(".")).with_suffix(".py")
        raise UserError(f"{file} was edited while this process ran: start it again")
    return found


def _first(node) -> int:
    """The first line of a definition, decorators included."""
    return min(part.lineno for part in [node, *getattr(node, "decorator_list", ())])


def _text(place: Place) -> str:
    """The source of a place, comments and docstrings, too."""
    lines = _SOURCES[place.module].splitlines()
    if not place.name:
        return "\n".join(lines)
    return "\n".join("\n".join(lines[_first(n) - 1 : n.end_lineno]) for n in _nodes(place))


@functools.cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # it goes by another name there: PyYAML, which reads files only
        return None
