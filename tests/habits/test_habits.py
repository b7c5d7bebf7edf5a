"""Habits of real code under every kind of plan, against the eager module: equal, or refused by the thing's name."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest
from case import Case
from world import World

MODULES = (
    "losses", "mixing", "inplace", "frozen", "batches", "randomness", "functions", "state", "precision", "shapes",
    "hierarchical",
)  # fmt: skip
QUICK = {"plain", "sliced", "zero_outputs", "tied_by_product"}  # of every kind that costs little; make test runs them
CASES = {
    f"{name}-{case.name}": (f"cases.{name}", case)
    for name in MODULES
    for case in importlib.import_module(f"cases.{name}").CASES.values()
}


ROWS = [
    pytest.param(module, case, id=name, marks=[] if case.name in QUICK else [pytest.mark.habits])
    for name, (module, case) in CASES.items()
]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("module", "case"), ROWS)
def test_under_every_plan(world: World, module: str, case: Case) -> None:
    """On two ranks and on four."""
    assert "\n".join(case.faults(world.run(module, case))) == ""
