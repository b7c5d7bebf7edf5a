"""One place for every fact: a schedule and a collective are named in their tables, and by nobody else.

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
from partitioner.schedule.tables import SCHEDULES
from runtime.mesh.collectives import BINDINGS
from runtime.train.worker import KINDS as EXECUTED

ROOT = Path(__file__).parents[1]
WORDS = {"copy", "shard"}  # ops of ours that are named like other things
TABLES = {  # names, and where they may stand
    "schedule": (set(SCHEDULES), {"partitioner/schedule/tables.py"}),
    "collective": (
        (set(KINDS) | set(OPS)) - WORDS, {"partitioner/ops/collective_kinds.py", "partitioner/ops/collectives.py"},
    ),
    "op of a collective": ({op.target for op in OPS.values()}, {"partitioner/ops/collectives.py"}),
    "step input": ({SAMPLE_KEYS, STEP_KEY, SAMPLE_COUNT, BATCH_SHARE}, {"partitioner/graph/step_inputs.py"}),
}  # fmt: skip


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Line and value of every text in the code that no person reads."""
    tree = ast.parse(source)
    documented = {
        id(node.body[0].value) for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body
        and isinstance(node.body[0], ast.Expr)
    }  # fmt: skip
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) else None
        if isinstance(node, ast.Constant) and isinstance(text, str) and id(node) not in documented:
            yield from ([(node.lineno, text)] if len(text.split()) < 3 else [])


def named(source: str, names: set[str]) -> list[tuple[int, str]]:
    """Line and name of what a source names as a text, as a whole word of it."""
    return [
        (line, name) for line, text in texts(source) for name in sorted(names)
        if re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", text)
    ]  # fmt: skip


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


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('kind = "1f1b"', ["1f1b"]),
        ('found = {f"pp gpipe": 1}', ["gpipe"]),
        ('axis.log.add("tp", "all_reduce", x)', ["all_reduce"]),
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


def test_every_collective_is_bound() -> None:
    assert BINDINGS.keys() == OPS.keys()


def test_the_runtime_has_what_an_executed_schedule_needs() -> None:
    for row in SCHEDULES.values():
        kinds = {action.kind for action in row.make(0, 2, row.fewest, 4)}
        assert row.executed == (kinds <= EXECUTED)
