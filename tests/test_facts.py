"""One place for every fact: an op, a schedule, a kind of action, a collective are named in their tables alone.

Allowed are docstrings, and sentences for people: three words or more. Torch's own functions are attributes, no texts.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from partitioner.graph.step_inputs import BATCH_SHARE, SAMPLE_COUNT, SAMPLE_KEYS, STEP_KEY
from partitioner.ops.collective_kinds import KINDS
from partitioner.ops.collectives import OPS
from partitioner.ops.payloads import ON_RANKS, RANK_OPS
from partitioner.plan.executed import EXECUTED as EXECUTED_VALUES
from partitioner.schedule.tables import KINDS as ACTIONS
from partitioner.schedule.tables import SCHEDULES
from partitioner.sharding import mesh_axes
from partitioner.sharding.mesh_axes import AXES
from partitioner.sharding.op_rules import RULES
from runtime.execute.worker import EXECUTED
from runtime.mesh import collectives, vocab_parallel
from tools.planted_faults.program_faults import COLLECTIVES

ROOT = Path(__file__).parents[1]
WORDS = {"copy", "shard"}  # ops of ours that are named like other things
TABLES = {  # names, and where they may stand
    "axis": (set(AXES), {"partitioner/sharding/mesh_axes.py"}),
    "schedule": (set(SCHEDULES), {"partitioner/schedule/tables.py"}),
    "collective": (
        (set(KINDS) | set(OPS)) - WORDS, {"partitioner/ops/collective_kinds.py", "partitioner/ops/collectives.py"},
    ),
    "op of a collective": ({op.target for op in OPS.values()}, {"partitioner/ops/collectives.py"}),
    "op": (set(RULES) | set(RANK_OPS), {"partitioner/sharding/op_rules.py", "partitioner/ops/payloads.py"}),
    "step input": ({SAMPLE_KEYS, STEP_KEY, SAMPLE_COUNT, BATCH_SHARE}, {"partitioner/graph/step_inputs.py"}),
}  # fmt: skip
# rooms that turn one spelling of an op into another, file by file, and see none as what it costs or how it divides
REWRITING = {
    "comparing", "draws", "functionalize", "generating", "graph", "normalize", "samples", "tracing", "user_code", "ops",
}  # fmt: skip
GEMM_FORMS = {"epilogue_words.py", "gemm_ops.py", "write_fusions.py"}  # and into a GEMM kernel's words


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Line and value of every text in the code that no person reads."""
    tree = ast.parse(source)
    documented = {
        id(node.body[0].value) for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body
        and isinstance(node.body[0], ast.Expr)
    }  # fmt: skip
    pieces = {id(piece) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for piece in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            found = " ".join(piece.value if isinstance(piece, ast.Constant) else "" for piece in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented | pieces:
            found = node.value
        else:
            continue
        yield from ([(node.lineno, found)] if len(found.split()) < 3 else [])


def named(source: str, names: set[str]) -> list[tuple[int, str]]:
    """Line and name of what a source names as a text, as a whole word of it."""
    words = re.compile(rf"(?<![\w.])(?:{'|'.join(map(re.escape, sorted(names)))})(?![\w.=])")
    return [(line, name) for line, text in texts(source) for name in words.findall(text)]


@pytest.mark.parametrize("what", TABLES)
def test_no_name_stands_outside_its_table(what: str) -> None:
    names, tables = TABLES[what]
    found = [
        f"{path.relative_to(ROOT)}:{line} names the {what} {name}"
        for package in ("partitioner", "runtime", "tools")
        for path in sorted((ROOT / package).rglob("*.py"))
        if str(path.relative_to(ROOT)) not in tables
        for line, name in named(path.read_text(), names)
    ]
    assert not found, "\n".join(found)


def attributes(source: str) -> list[tuple[int, str]]:
    """Line and name of every op that is named as an attribute: ``aten.add.Tensor``, ``torch.ops.partitioner.part``."""
    tree = ast.parse(source)
    rows = ((node, ast.unparse(node)) for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    op = re.compile(r"(aten|torch\.ops\.\w+)\.\w+|own\.\w+\.default")
    return sorted((node.lineno, name) for node, name in rows if op.fullmatch(name))


def test_what_costs_and_divides_names_no_op() -> None:
    files = [
        path for room in sorted((ROOT / "partitioner").iterdir()) if room.is_dir() and room.name not in REWRITING
        for path in sorted(room.glob("*.py")) if path.name not in GEMM_FORMS
    ]  # fmt: skip
    found = [f"{path.relative_to(ROOT)}:{line} {name}" for path in files for line, name in attributes(path.read_text())]
    assert len(files) > 60
    assert not found, "\n".join(found)


def test_the_runtime_asks_its_bindings() -> None:
    files = sorted((ROOT / "runtime").rglob("*.py"))
    found = [f"{path}:{line} {name}" for path in files for line, name in attributes(path.read_text())]
    assert not [row for row in found if re.search(r" (own|torch\.ops\.partitioner)\.", row)]


def test_an_attribute_of_an_op_is_seen() -> None:
    source = "x = aten.add.Tensor\ny = torch.ops.aten.mul\nz = own.copy.default"
    assert attributes(source) == [(1, "aten.add"), (2, "torch.ops.aten.mul"), (3, "own.copy.default")]


def test_every_collective_has_planted_faults() -> None:
    assert {str(op) for op in COLLECTIVES} == {op.target for op in OPS.values()}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('kind = "1f1b"', ["1f1b"]),
        ('ranks = groups.size("dp")', ["dp"]),
        ('row = {"tp communication": 1}', ["tp"]),
        ('help = "--pin tp=2"', []),
        ('if str(node.target) == "aten.linear.default": pass', ["aten.linear.default"]),
        ('found = {f"pp gpipe": 1}', ["pp", "gpipe"]),
        ('axis.log.add("tp", "all_reduce", x)', ["tp", "all_reduce"]),
        ('if str(node.target) == "partitioner.shard.default": pass', ["partitioner.shard.default"]),
        ('given["sample_keys"] = keys', ["sample_keys"]),
        ('def f():\n    """all_reduce."""', []),
        ('run = getattr(dist, "all_gather_single", None) or dist.all_reduce', []),
        ('help = "a schedule, as in --pin schedule=1f1b"', []),
    ],
)
def test_a_planted_name_is_seen(source: str, found: list[str]) -> None:
    names = set[str]().union(*(names for names, _ in TABLES.values()))
    assert [name for _, name in named(source, names)] == found


def lettered(source: str) -> list[int]:
    """Lines that know a kind of action by its letter: beside what is called a kind, as a dict's key, in an Action."""
    found = list[int]()
    for node in ast.walk(ast.parse(source)):
        sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        beside = sides if any(ast.unparse(side).endswith("kind") for side in sides) else []
        keys = [key for key in node.keys if key] if isinstance(node, ast.Dict) else []
        made = node.args if isinstance(node, ast.Call) and ast.unparse(node.func) == "Action" else []
        constants = [c for side in (*beside, *made) for c in ast.walk(side) if isinstance(c, ast.Constant)]
        found += [c.lineno for c in (*constants, *keys) if isinstance(c, ast.Constant) and c.value in set(ACTIONS)]
    return found


def test_no_letter_of_an_action_stands_outside_its_table() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} asks no table"
        for package in ("partitioner", "runtime", "tools")
        for path in sorted((ROOT / package).rglob("*.py"))
        if str(path.relative_to(ROOT)) not in TABLES["schedule"][1]
        for line in lettered(path.read_text())
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source", ['x = kind == "F"', 'x = a.kind != "W"', 'x = a.kind in ("F", "B")', 'x = {"B": 1}', 'Action(0, "F", 1)']
)
def test_a_planted_letter_is_seen(source: str) -> None:
    assert set(lettered(source)) == {1}


def test_every_axis_is_named_in_its_order() -> None:
    assert sorted(mesh_axes.named()) == sorted(AXES)


def test_every_collective_is_bound() -> None:
    assert collectives.BINDINGS.keys() == OPS.keys()
    assert ON_RANKS.keys() <= vocab_parallel.BINDINGS.keys()


def test_the_runtime_has_what_an_executed_schedule_needs() -> None:
    for row in SCHEDULES.values():
        kinds = {action.kind for action in row.rank_actions(0, 2, row.fewest_stages, 4)}
        assert row.executed == (kinds <= EXECUTED)
        assert (row.name in EXECUTED_VALUES["schedule"].executed) == row.executed
