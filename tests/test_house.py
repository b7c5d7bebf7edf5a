"""tools -> runtime -> partitioner -> cutlass_ops -> torch, never back; in each the arrows of rooms.py; short files."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from rooms import ROOMS

ROOT = Path(__file__).parents[1]
FLOORS = ("cutlass_ops", "partitioner", "runtime", "tools")  # a floor imports itself and those before it
ALLOWED = {
    "cutlass_ops": {"torch", "quack", "tvm_ffi", "nvMatmulHeuristics"},
    "partitioner": {"torch", "networkx", "numpy", "scipy"},
    "runtime": {"torch", "numpy", "safetensors"},
    "tools": {
        "torch", "bokeh", "jinja2", "networkx", "numpy", "pydot", "pygraphviz", "rich", "safetensors", "scipy", "shtab",
        "playwright", "yaml", "fastapi", "pydantic", "uvicorn",
    },
}  # fmt: skip
GPU_PACKAGES = {"quack", "tvm_ffi", "nvMatmulHeuristics", "triton", "cuda"}  # optional, so imported where they are used
COLLECTIVE_FILES = {"tools/calibrate/command.py"}  # beside runtime/, the only ones to touch process groups
PROCESS_GROUPS = "torch.distributed"
PURE_OF_DISTRIBUTED = {"torch.distributed.tensor", "torch.distributed._tools"}
LONGEST = 330  # lines of a file
MOST = 12  # files of a room


@dataclass(frozen=True)
class Import:
    """One imported name: ``module`` as dotted text, whether in a function, whether only for types, and its line."""

    file: Path
    line: int
    module: str
    inside: bool
    typing: bool

    @property
    def package(self) -> str:
        """The first part of the name."""
        return self.module.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def files(floor: str) -> list[Path]:
    return sorted((ROOT / floor).rglob("*.py"))


def imports_of(source: str, file: Path) -> Iterator[Import]:
    yield from _walk(ast.parse(source), file, False, False)


def _walk(node: ast.AST, file: Path, inside: bool, typing: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(file, child.lineno, alias.name, inside, typing) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = "." * child.level + (child.module or "")
            yield from (Import(file, child.lineno, f"{base}.{alias.name}", inside, typing) for alias in child.names)
        else:
            function = isinstance(child, ast.FunctionDef | ast.Lambda)
            checked = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
            yield from _walk(child, file, inside or function, typing or checked)


def all_imports(floor: str) -> list[Import]:
    return [i for path in files(floor) for i in imports_of(path.read_text(), path.relative_to(ROOT))]


def broken(imports: list[Import], floor: str) -> list[str]:
    """What the imports of one floor do that its place in the house forbids."""
    known = {*ALLOWED[floor], *FLOORS[: FLOORS.index(floor) + 1], *sys.stdlib_module_names}
    found: list[str] = []
    for item in imports:
        if item.package not in known:
            found.append(f"{item}, which {floor} may not")
        if item.inside and item.package not in GPU_PACKAGES:
            found.append(f"{item} inside a function")
        groups = item.module.startswith(PROCESS_GROUPS) and not item.module.startswith(tuple(PURE_OF_DISTRIBUTED))
        if groups and floor != "runtime" and item.file.as_posix() not in COLLECTIVE_FILES:
            found.append(f"{item}: process groups are runtime's")
    return found


@pytest.mark.parametrize("floor", FLOORS)
def test_imports_go_one_way(floor: str) -> None:
    assert files(floor)
    assert broken(all_imports(floor), floor) == []


@pytest.mark.parametrize(
    ("floor", "line"),
    [
        ("partitioner", "from runtime.ranks.launch import local"),
        ("partitioner", "import tools.main"),
        ("cutlass_ops", "import partitioner"),
        ("runtime", "from tools import show"),
        ("runtime", "import rich"),
        ("partitioner", "import pydot"),
        ("partitioner", "import torch.distributed as dist"),
        ("partitioner", "from torch import distributed"),
        ("tools", "from torch.distributed import all_reduce"),
        ("tools", "import transformers"),
        ("runtime", "def f():\n    import numpy"),
        ("tools", "class A:\n    def f(self):\n        if True:\n            from rich import print"),
        ("partitioner", "from . import trace"),
    ],
)
def test_the_rule_bites(floor: str, line: str) -> None:
    assert broken(list(imports_of(line, Path(floor) / "planted.py")), floor)


def test_modules_import_each_other_without_cycles() -> None:
    graph: dict[str, set[str]] = {}
    names = {_name(path) for floor in FLOORS for path in files(floor)}
    for item in (i for floor in FLOORS for i in all_imports(floor) if not i.typing):
        target = item.module if item.module in names else item.module.rpartition(".")[0]
        graph.setdefault(_name(ROOT / item.file), set()).update({target} & names)
    assert _cycle(graph) == []


def test_a_cycle_would_be_found() -> None:
    assert _cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c", "d"]
    assert not _cycle({"a": {"b", "c"}, "b": {"c"}, "d": {"a"}})


@pytest.mark.parametrize("floor", FLOORS)
def test_rooms_import_what_the_table_says(floor: str) -> None:
    assert arrows(all_imports(floor), floor) == {room: {*below.split()} for room, below in ROOMS[floor].items()}


def test_another_arrow_would_be_found() -> None:
    planted = imports_of("from partitioner.searching.search import search", Path("partitioner/graph/planted.py"))
    assert arrows(list(planted), "partitioner") == {"graph": {"searching"}}


@pytest.mark.parametrize("floor", FLOORS)
def test_no_room_lies_above_one_that_it_serves(floor: str) -> None:
    assert _cycle({room: {*below.split()} for room, below in ROOMS[floor].items()}) == []


@pytest.mark.parametrize("floor", FLOORS)
def test_rooms_stay_small(floor: str) -> None:
    held = {folder: len(list(folder.glob("*.py"))) - 1 for folder in (ROOT / floor).iterdir() if folder.is_dir()}
    assert {folder.name: files for folder, files in held.items() if files > MOST} == {}


@pytest.mark.parametrize("floor", FLOORS)
def test_a_room_opens_with_what_it_is_and_hands_nothing_on(floor: str) -> None:
    for file in (ROOT / floor).glob("*/__init__.py"):
        (sentence,) = ast.parse(file.read_text()).body
        assert isinstance(sentence, ast.Expr), file


def arrows(imports: list[Import], floor: str) -> dict[str, set[str]]:
    """Which rooms, or files beside them, each one imports."""
    found: dict[str, set[str]] = {}
    for item in imports:
        room = item.file.parts[1].removesuffix(".py")
        if room != "__init__":
            below = found.setdefault(room, set())
            if item.package == floor and (other := item.module.split(".")[1]) != room:
                below.add(other)
    return found


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _cycle(graph: dict[str, set[str]]) -> list[str]:
    """What is left after leaves are taken away again and again; what remains lies on or before a cycle."""
    left = dict(graph)
    while leaves := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in leaves:
            del left[name]
    return sorted(left)


@pytest.mark.parametrize("folder", [*FLOORS, "examples", "tests"])
def test_files_stay_short(folder: str) -> None:
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in files(folder)}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST} == {}
