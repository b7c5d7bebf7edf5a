"""Habits of real code under every kind of plan, against the eager module: equal, or refused by the thing's name."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest
from case import Case
from world import World

MODULES = ("losses", "inplace", "frozen", "batches", "randomness", "functions", "state", "precision", "shapes")
QUICK = {"plain", "sliced", "zero_outputs", "tied_by_product"}  # of every kind that costs little; make test runs them
CASES = {
    f"{name}-{case.name}": (f"cases.{name}", case)
    for name in MODULES
    for case in importlib.import_module(f"cases.{name}").CASES.values()
}


def _rows(ranks: int) -> list[object]:
    """Parameters of a test; what is quick on two ranks is unmarked."""
    rows: list[object] = []
    for name, (module, case) in CASES.items():
        marks = [] if ranks == 2 and case.name in QUICK else [pytest.mark.habits]
        rows.append(pytest.param(module, case, id=name, marks=marks))
    return rows


@pytest.fixture(scope="module")
def two() -> Iterator[World]:
    world = World(2)
    yield world
    world.close()


@pytest.fixture(scope="module")
def four() -> Iterator[World]:
    world = World(4)
    yield world
    world.close()


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("module", "case"), _rows(2))
def test_two_ranks(two: World, module: str, case: Case) -> None:
    assert "\n".join(case.faults(two.run(module, case))) == ""


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("module", "case"), _rows(4))
def test_four_ranks(four: World, module: str, case: Case) -> None:
    assert "\n".join(case.faults(four.run(module, case))) == ""
