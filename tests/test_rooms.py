"""The house: rooms whose imports run one way, modules that keep to what others offer."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "src" / "alspeech"
# a room may import from itself and from those after it
ROOMS = ("course", "sisters", "paper", "speech", "workshop")
ALLOWED = {("workshop.plots", "statistics")}  # intervals and ρ, which figures show


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = {
    name_of(p): p.read_text() for p in sorted(PACKAGE.rglob("*.py")) if p.name != "__main__.py"
}


def room(module: str) -> str:
    return module.split(".")[0] if "." in module else "paper"


def imports(module: str, source: str) -> list[tuple[str, str | None, int]]:
    """(module, name, line) of everything that a module imports of the package: at its top or in a
    function, relative or not."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [
                (item.name.removeprefix("alspeech."), None, node.lineno)
                for item in node.names
                if item.name.startswith("alspeech.")
            ]
        if isinstance(node, ast.ImportFrom):
            base = (node.module or "").split(".") if node.module else []
            if node.level:
                here = module.split(".")[:-1]
                base = here[: len(here) - node.level + 1] + base
            elif base[:1] == ["alspeech"]:
                base = base[1:]
            else:
                continue
            for item in node.names:
                whole = ".".join([*base, item.name])
                inner = (whole, None) if whole in MODULES else (".".join(base), item.name)
                found.append((*inner, node.lineno))
    return found


def running_back(module: str, source: str) -> list[str]:
    return [
        f"{module}:{line} imports {target} ({room(module)} ← {room(target)})"
        for target, _, line in imports(module, source)
        if ROOMS.index(room(target)) < ROOMS.index(room(module)) and (module, target) not in ALLOWED
    ]


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_from_the_sisters_to_the_workshop(module):
    assert running_back(module, MODULES[module]) == []


@pytest.mark.parametrize("module, line, told", [
    ("speech.text", "from ..metrics import errors", "speech.text:1 imports metrics"),
    ("workshop.store", "def f():\n    from ..speech import text", "store:2 imports speech.text"),
    ("ctc", "import alspeech.sisters.joint", "ctc:1 imports sisters.joint (paper ← sisters)"),
    ("workshop.plots", "from ..tables import table1", "workshop.plots:1 imports tables"),
    ("experiment", "from .course import board", "experiment:1 imports course.board (paper ←"),
])  # fmt: skip
def test_an_import_that_runs_back_is_named(module, line, told):
    (found,) = running_back(module, line)
    assert told in found


def test_the_rooms_hold_no_circle():
    """There is an order of reading in which every module comes after those that it imports."""
    graph = {m: {t for t, _, _ in imports(m, s) if t in MODULES} for m, s in MODULES.items()}
    assert circles(graph) == {}


def test_neither_do_the_benchmarks():
    folder, graph = REPOSITORY / "benchmarks", {}
    for path in folder.glob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        graph[path.stem] = {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
        graph[path.stem] |= {i.name for n in nodes if isinstance(n, ast.Import) for i in n.names}
    assert circles({name: names & graph.keys() for name, names in graph.items()}) == {}


def circles(graph: dict[str, set]) -> dict[str, set]:
    """What is left of a graph when all that imports nothing of the rest is taken away."""
    while leaves := [name for name, targets in graph.items() if not targets & graph.keys()]:
        graph = {name: targets for name, targets in graph.items() if name not in leaves}
    return graph


def test_a_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}).keys() == {"a", "b", "c"}


# ---------------------------------------------------------------- names with an underscore


def reached_into(source: str, own: str = "") -> list[str]:
    """Underscore names that a source takes from a module of the package."""
    tree, taken, found = ast.parse(source), {}, []
    for target, name, line in imports(own, source):
        if name and name.startswith("_"):
            found.append(f"line {line}: {target}.{name}")
        taken[(name or target).split(".")[-1]] = target
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom | ast.Import):
            for item in node.names:  # what it is called here
                if item.asname and item.name.split(".")[-1] in taken:
                    taken[item.asname] = taken[item.name.split(".")[-1]]
        if (
            isinstance(node, ast.Attribute)
            and node.attr.startswith("_")
            and not node.attr.startswith("__")
            and isinstance(node.value, ast.Name)
            and node.value.id in taken
        ):
            found.append(f"line {node.lineno}: {node.value.id}.{node.attr}")
    return found


def test_no_module_reaches_into_anothers_underscore_names():
    notebooks = {
        path.name: "\n".join(
            cell.source
            for cell in nbformat.read(path, as_version=4).cells
            if cell.cell_type == "code"
        )
        for path in (REPOSITORY / "notebooks").glob("*.ipynb")
    }
    benchmarks = {path.name: path.read_text() for path in (REPOSITORY / "benchmarks").glob("*.py")}
    found = {m: reached_into(s, m) for m, s in MODULES.items()}
    found |= {m: reached_into(s) for m, s in (notebooks | benchmarks).items()}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize("source", [
    "from alspeech.workshop.store import _damage",
    "from alspeech.speech import text\ntext._APOSTROPHES",
    "import alspeech.speech.text as t\nt._APOSTROPHES",
    "from alspeech import experiment as e\ne._worker()",
])  # fmt: skip
def test_a_reach_into_underscore_names_is_found(source):
    assert len(reached_into(source)) == 1


# ---------------------------------------------------------------- sizes, and starts


def test_no_module_is_longer_than_an_hour_of_reading():
    assert max(len(source.splitlines()) for source in MODULES.values()) <= 500


LIGHT = """
import sys
import alspeech.{module}
print(*sorted({heavy} & sys.modules.keys()))
"""


@pytest.mark.parametrize("module, heavy", [
    ("__main__", {"torch", "pandas", "numpy", "yaml", "pydantic"}),  # --help answers at once
    ("speech.synthesis", {"torch", "numba", "scipy.signal"}),  # so do the processes that speak
    ("workshop.notebooks", {"torch", "pandas"}),
])  # fmt: skip
def test_what_must_start_quickly_imports_little(module, heavy):
    program = LIGHT.format(module=module, heavy=heavy)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == 0 and done.stdout.strip() == "", done.stdout + done.stderr
