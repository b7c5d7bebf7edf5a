"""Elimination finds what trying everything finds, and what HiGHS proves for the real models."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from check import traced
from models import SWEEP

from partitioner import Cluster
from partitioner.cost.op_work import Setting
from partitioner.graph.tied_blocks import fold
from partitioner.hardware.link import Link
from partitioner.layouts.strategies import space
from partitioner.solve import solve, variable_elimination
from partitioner.solve.choices import Choices, Prices
from partitioner.solve.integer_program import minimize01
from partitioner.solve.variable_elimination import Table, TooWide, minimize


@pytest.mark.parametrize("seed", range(20))
def test_random_tables(seed: int) -> None:
    random = np.random.default_rng(seed)
    domains = [int(n) for n in random.integers(1, 4, 7)]
    scopes = [tuple(int(v) for v in random.choice(7, size=random.integers(1, 4), replace=False)) for _ in range(9)]
    tables = [Table(scope, random.random([domains[v] for v in scope])) for scope in scopes]
    for table in tables:
        table.costs[random.random(table.costs.shape) < 0.1] = math.inf

    def total(chosen: tuple[int, ...]) -> float:
        return sum(float(t.costs[tuple(chosen[v] for v in t.scope)]) for t in tables)

    every = {chosen: total(chosen) for chosen in itertools.product(*map(range, domains))}
    least = min(every.values())
    seconds, chosen = minimize(domains, tables)
    assert seconds == pytest.approx(least)
    assert total(tuple(chosen)) == pytest.approx(least)
    for variable, found in enumerate(variable_elimination.increases(domains, tables)) if math.isfinite(least) else ():
        forced = [min(t for c, t in every.items() if c[variable] == n) for n in range(domains[variable])]
        assert found == pytest.approx(np.array(forced) - least)


def test_a_width_beyond_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variable_elimination, "MOST_ENTRIES", 8)
    clique = [Table(pair, np.zeros((2, 2))) for pair in itertools.combinations(range(4), 2)]
    with pytest.raises(TooWide):
        minimize([2] * 4, clique)


@pytest.mark.parametrize("joined", [100_000, 0], ids=["joined", "apart"])
@pytest.mark.parametrize("name", SWEEP)
def test_it_equals_the_integer_program(name: str, joined: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solve, "MOST_JOINED", joined)
    folded = fold(traced(name)[1])
    cluster = Cluster.load("dgx-a100")
    free = Cluster(**{**cluster.__dict__, "node": Link(1e14, 1.0, 1e-9)})
    options = space(folded, "tp", 2)
    prices = Prices(free, Setting.of(folded, free, {"tp": 2}), 4)
    choices = Choices(folded, options, prices, lambda value, placement: True)
    found = solve.solve(folded, options, prices)
    wanted, chosen = minimize01(choices)
    assert found.seconds == pytest.approx(wanted, rel=1e-9)
    assert len({str(found.made(v)) for v in chosen}) > 2, "something is divided"
