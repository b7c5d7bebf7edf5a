"""Per-op layouts of the folded graph on one axis, those on outer axes fixed, optimal.

A table of costs for each op, port and parameter, and one for each value over all that read it, because one conversion
serves all readers that need the same layout; their sum is minimized exactly by eliminating one variable after
another. A block whose tables grow too wide for that goes to HiGHS as a 0/1 program.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np
from torch import fx

from partitioner.graph.tied_blocks import Folded, Port, Value
from partitioner.layouts.solution import Solution
from partitioner.layouts.strategies import Space
from partitioner.sharding.layout import Layout
from partitioner.solve import variable_elimination
from partitioner.solve.choices import Allowed, Choices, NoLayout, Prices, Read
from partitioner.solve.integer_program import minimize01
from partitioner.solve.variable_elimination import Array, Order, Table, TooWide, elimination_order, minimize

T = TypeVar("T")
_SAME = 1e-12  # of the seconds: rounding
MOST_JOINED = 100_000  # entries of a value's table over all its readers; beyond, each conversion is a variable


def solve(folded: Folded, options: Space, prices: Prices, allowed: Allowed = lambda value, placement: True) -> Solution:
    """The cheapest layouts. ``allowed(value, placement)`` restricts a parameter or a port (a pin).

    Raises NoLayout when the pins leave none.
    """
    return _Solver(Choices(folded, options, prices, allowed)).at(prices.micro_batches)


def solve_each(
    folded: Folded, options: Space, prices: Prices, counts: Iterable[int],
    allowed: Allowed = lambda value, placement: True,
) -> dict[int, Solution]:  # fmt: skip
    """The cheapest layouts for each of ``counts`` micro-batches that may share a step, one object where one is enough.

    Layouts cost a constant and a step's sync times 1 / count, so the least over all of them is concave in 1 / count:
    what is cheapest at two counts is cheapest at all between. Raises NoLayout as ``solve`` does.
    """
    rising = sorted(set(counts))
    solver = _Solver(Choices(folded, options, prices, allowed))
    return {n: line.solution for n, line in _between(solver, rising, {}).items()} if rising else {}


class _Line(NamedTuple):
    """Layouts whose objective is a line in 1 / micro-batches: seconds each, and once a step."""

    solution: Solution
    each: float
    once: float

    def at(self, micro_batches: int) -> float:
        return self.each + self.once / micro_batches


def _between(solver: _Solver, rising: Sequence[int], ends: Mapping[int, _Line]) -> dict[int, _Line]:
    """``ends``: what is known to be the cheapest at the first and the last of ``rising``."""
    first, last = rising[0], rising[-1]
    most = ends[last] if last in ends else solver.line(last)
    if first == last or not most.once:  # a sync that weighs more makes nothing else cheaper
        return dict.fromkeys(rising, most)
    least = ends[first] if first in ends else solver.line(first)
    if most.at(first) <= least.at(first) * (1 + _SAME):
        return dict.fromkeys(rising, most)
    if len(rising) == 2:
        return {first: least, last: most}
    middle = len(rising) // 2
    upper = _between(solver, rising[middle:], {last: most})
    return _between(solver, rising[: middle + 1], {first: least, rising[middle]: upper[rising[middle]]}) | upper


def increases(choices: Choices) -> dict[Value, Array]:
    """Of each value and choice, what the objective grows at least when it is forced; empty for a block too wide."""
    tables = _Tables(choices)
    try:
        found = variable_elimination.increases(tables.domains, tables.found)
    except TooWide:
        return {}
    return {value: found[n] for value, n in tables.variable.items()}


def _solution(choices: Choices, seconds: float, chosen: Mapping[Value, int]) -> Solution:
    made = {value: choices.of[value][n] for value, n in chosen.items()}
    nodes, left = {v: c for v, c in made.items() if isinstance(v, fx.Node)}, choices.left
    strategies = {v: left.together(v, c.strategy) for v, c in nodes.items() if c.strategy is not None}
    ports = {v: choices.layout(v, c.placement) for v, c in made.items() if isinstance(v, Port)}
    parameters = {v: choices.layout(v, c.placement) for v, c in nodes.items() if c.strategy is None}
    return Solution(choices.prices.setting.axes, strategies, ports, parameters, seconds, choices.prices.scarcity)


class _Solver:
    """The choices' minimum at any number of micro-batches, what does not depend on it made once."""

    def __init__(self, choices: Choices) -> None:
        self.choices, self.tables = choices, _Tables(choices)

    @cached_property
    def order(self) -> Order:
        return elimination_order(self.tables.domains, self.tables.found)

    def at(self, micro_batches: int) -> Solution:
        choices = self.choices.at(micro_batches)
        try:
            seconds, chosen = self.eliminated(choices)
        except TooWide:
            seconds, chosen = minimize01(choices)
        if not math.isfinite(seconds):
            raise NoLayout("no layout satisfies the pins: relax one")
        return _solution(choices, seconds, chosen)

    def line(self, micro_batches: int) -> _Line:
        found = self.at(micro_batches)
        once = sum(self.choices.sync_seconds(node, layout[-1]) for node, layout in found.parameters.items())
        return _Line(found, found.seconds - once / micro_batches, once)

    def eliminated(self, choices: Choices) -> tuple[float, dict[Value, int]]:
        seconds, chosen = minimize(self.tables.domains, self.tables.at(choices), self.order)
        return seconds, {value: chosen[n] for value, n in self.tables.variable.items()}


class _Tables:
    """The choices as variables and tables."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.variable = {value: n for n, value in enumerate(choices.of)}
        self.domains = [len(rows) for rows in choices.of.values()]
        self.found = self.own(choices)
        for read in choices.reads:
            self.read(read)

    def own(self, choices: Choices) -> list[Table]:
        """Of each value what its choices cost by themselves."""
        return [Table((n,), np.array([c.seconds for c in choices.of[v]])) for v, n in self.variable.items()]

    def at(self, choices: Choices) -> list[Table]:
        """All tables, with the values' own prices from ``choices``."""
        return [*self.own(choices), *self.found[len(self.variable) :]]

    def read(self, read: Read) -> None:
        """One table over the value and its readers, or where that is large, a variable for each conversion."""
        readers = [self.narrowed(reader, needs) for reader, needs in read.needs.items()]
        makes = self.made(read.value)
        size = len(makes[1]) * math.prod(len(needs) for _, needs in readers)
        if size <= MOST_JOINED:
            self.joined(read, makes, readers)
        else:
            self.apart(read, makes, readers)

    def made(self, value: Value) -> tuple[int, list[Layout]]:
        """A variable over the distinct layouts in which a value may be made."""
        rows = [self.choices.layout(value, c.placement) for c in self.choices.of[value]]
        return self.image(self.variable[value], rows)

    def narrowed(
        self, reader: Value, needs: tuple[tuple[Layout, ...], ...]
    ) -> tuple[int, list[tuple[Layout, ...]]]:
        """A variable over the distinct needs of a reader."""
        return self.image(self.variable[reader], list(needs))

    def image(self, variable: int, rows: list[T]) -> tuple[int, list[T]]:
        """The variable's choices told apart by ``rows`` alone: itself, or a new variable tied to it."""
        kinds = list(dict.fromkeys(rows))
        if len(kinds) == len(rows):
            return variable, rows
        tie = np.full((len(rows), len(kinds)), np.inf)
        for n, row in enumerate(rows):
            tie[n, kinds.index(row)] = 0.0
        self.domains.append(len(kinds))
        self.found.append(Table((variable, len(self.domains) - 1), tie))
        return len(self.domains) - 1, kinds

    def prices(self, read: Read, sources: list[Layout], targets: list[Layout]) -> Array:
        rows = [[self.choices.conversion_cost(read, s, t) for t in targets] for s in sources]
        return np.array([[np.inf if c is None else c * read.count for c in row] for row in rows])

    def joined(
        self, read: Read, makes: tuple[int, list[Layout]], readers: list[tuple[int, list[tuple[Layout, ...]]]]
    ) -> None:
        variable, sources = makes
        targets = list(dict.fromkeys(t for _, needs in readers for need in needs for t in need))
        prices = self.prices(read, sources, targets)
        paid = np.zeros(len(targets), dtype=bool)  # (each reader's choice, target): whether any needs it
        for _, needs in readers:
            paid = paid[..., None, :] | np.array([[t in need for t in targets] for need in needs])
        costs = np.where(paid, prices.reshape(len(sources), *(1 for _ in readers), -1), 0.0).sum(-1)
        self.found.append(Table((variable, *(v for v, _ in readers)), costs))

    def apart(
        self, read: Read, makes: tuple[int, list[Layout]], readers: list[tuple[int, list[tuple[Layout, ...]]]]
    ) -> None:
        variable, sources = makes
        for target in dict.fromkeys(t for _, needs in readers for need in needs for t in need):
            price = self.prices(read, sources, [target])[:, 0]
            self.domains.append(2)
            paid = len(self.domains) - 1
            self.found.append(Table((variable, paid), np.stack([np.zeros(len(sources)), price], axis=1)))
            free = np.array([s == target for s in sources])
            for reader, needs in readers:
                needy = np.array([target in need for need in needs])
                refused = np.zeros((len(sources), len(needs), 2))
                refused[:, :, 0][np.outer(~free, needy)] = np.inf
                self.found.append(Table((variable, reader, paid), refused))
