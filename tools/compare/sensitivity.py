"""How the ranking of plans hangs on the cluster: break-even points of bandwidth, what memory admits, price.

Each plan's decisions stay as they are and are priced again on clusters whose links are faster or slower.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

from partitioner import Cluster
from partitioner.searching.reprice import Repricer
from tools.figures.columns import Column
from tools.figures.figures import dollars
from tools.plan.replan import graph_of
from tools.screen import number, size, status

WIDEST = 16.0  # times as fast, or as slow
GRID = 17
ROUNDS = 20  # of bisection


def _node(cluster: Cluster, factor: float) -> Cluster:
    return replace(cluster, node=cluster.node.scaled(factor))


def _network(cluster: Cluster, factor: float) -> Cluster:
    return replace(cluster, network=cluster.network.scaled(factor))


CHANGES: dict[str, Callable[[Cluster, float], Cluster]] = {
    "bandwidth inside a node": _node, "bandwidth across nodes": _network,
}  # fmt: skip


def lines(columns: list[Column]) -> list[str]:
    """What changes the ranking, and at which point."""
    with status("pricing on other clusters"):
        priced = [_Priced(column) for column in columns]
        found: list[str] = []
        for name, change in CHANGES.items():
            if not name.endswith("nodes") or any(row.cluster.nodes > 1 for row in priced):
                found += [f"if {name} were more or less, everything else as it is:"]
                found += [f"  {line}" for line in _ranking(change, priced)]
    found += ["if a device had more or less memory:", *(f"  {line}" for line in _memory(columns))]
    bought = [f"  {line}" for line in _price(columns)]
    return [*found, *(["if devices cost more or less:", *bought] if bought else [])]


class _Priced:
    """A plan, and its step on changed clusters."""

    def __init__(self, column: Column) -> None:
        assert column.plan is not None
        self.name, self.plan = column.name, column.plan
        self.repricer = Repricer(graph_of(column.plan), column.plan)
        self.cluster = column.plan.machine

    def step(self, change: Callable[[Cluster, float], Cluster], factor: float) -> float:
        return self.repricer.cost(change(self.cluster, factor)).step_seconds


def _ranking(change: Callable[[Cluster, float], Cluster], priced: list[_Priced]) -> Iterator[str]:
    """What each plan's step becomes at half and at double, then where two of them change places."""
    for row in priced:
        now, half, twice = (row.step(change, factor) for factor in (1.0, 0.5, 2.0))
        yield f"{row.name}: half of it makes the step {half / now:.2f}x as long, double {twice / now:.2f}x"
    crossed = False
    for a, b in itertools.combinations(priced, 2):
        at = break_even(functools.partial(_apart, a, b, change))
        if at is not None:
            crossed = True
            yield f"{a.name} and {b.name} break even at {number(at)} times as much"
    if len(priced) > 1 and not crossed:
        yield f"no two change places between 1/{WIDEST:.0f} and {WIDEST:.0f} times as much"


def _apart(a: _Priced, b: _Priced, change: Callable[[Cluster, float], Cluster], factor: float) -> float:
    return a.step(change, factor) - b.step(change, factor)


def break_even(difference: Callable[[float], float]) -> float | None:
    """The factor nearest to 1 at which a difference changes its sign, within WIDEST; None where it does not."""
    grid = [WIDEST ** (2 * n / (GRID - 1) - 1) for n in range(GRID)]
    values = [difference(factor) for factor in grid]
    crossings = [
        _bisected(difference, low, high)
        for (low, x), (high, y) in itertools.pairwise(zip(grid, values, strict=True)) if (x < 0) != (y < 0)
    ]  # fmt: skip
    return min(crossings, key=lambda factor: abs(math.log(factor)), default=None)


def _bisected(difference: Callable[[float], float], low: float, high: float) -> float:
    sign = difference(low) < 0
    for _ in range(ROUNDS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if (difference(middle) < 0) == sign else (low, middle)
    return math.sqrt(low * high)


def _memory(columns: list[Column]) -> Iterator[str]:
    """The least memory with which each plan fits; which of those that fit is then the fastest."""
    rows = sorted((c.plan.cost.peak_bytes, c.name, c.plan) for c in columns if c.plan)
    for n, (need, name, plan) in enumerate(rows):
        device = Cluster.from_dict(plan.cluster).device
        least = need / device.room * device.memory_bytes
        best = min(rows[: n + 1], key=lambda row: row[2].cost.step_seconds)[1]
        yield f"{name} needs devices of {size(least)}; from there on {best} is the fastest that fits"


def _price(columns: list[Column]) -> Iterator[str]:
    """Between clusters: what an hour of a device may cost until another plan is the cheaper one."""
    rows = [(c.name, c.plan, price) for c in columns if c.plan and (price := dollars(c.plan)) is not None]
    for (a, plan, x), (b, other, y) in itertools.combinations(rows, 2):
        name, hour = plan.cluster["device"]["name"], plan.cluster["device"]["dollars_per_hour"]
        if name != other.cluster["device"]["name"] and x and y:
            even = f"where an hour of {name} costs ${number(hour * y / x)}, not ${hour:g}"
            yield f"{a} costs as much a token as {b} {even}"
