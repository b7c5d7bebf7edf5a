"""The layout choices as a 0/1 program for HiGHS (scipy.optimize.milp): exact whatever the shape of the graph.

    x[v, i]          1 for the chosen choice of each value
    c[v, p, d]       1 where v, made in p, is converted to d; one conversion serves all that need d
    sum_i x[v, i] = 1       c[v, p, d] <= x[v makes p]       x[reader needs d of v] <= sum_p c[v, p, d]

Its LP relaxation is not integral, so optimality is the integer program's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from partitioner.errors import InputError
from partitioner.graph.tied_blocks import Value
from partitioner.sharding.layout import Layout
from partitioner.solve.choices import Choices, Read

LIMIT_SECONDS = 600.0
_SCALE = 1e6  # microseconds: HiGHS's tolerances are absolute


def minimize01(choices: Choices) -> tuple[float, dict[Value, int]]:
    """The least seconds, infinite where nothing is legal, and the number of each value's choice.

    Raises InputError when optimality is not proved in LIMIT_SECONDS.
    """
    problem = _Problem(choices)
    for read in choices.reads:
        problem.link(read)
    return problem.run()


@dataclass
class _Rows:
    """A sparse constraint matrix in the making: low <= row x <= high."""

    entries: list[tuple[int, int, float]] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)

    def add(self, terms: Mapping[int, float], low: float, high: float) -> None:
        self.entries += [(len(self.low), column, weight) for column, weight in terms.items()]
        self.low.append(low)
        self.high.append(high)


class _Problem:
    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.costs: list[float] = []
        self.integral: list[bool] = []
        self.rows = _Rows()
        self.columns = {value: [self.column(c.seconds, True) for c in rows] for value, rows in choices.of.items()}
        for columns in self.columns.values():
            self.rows.add(dict.fromkeys(columns, 1.0), 1, 1)

    def column(self, cost: float, integral: bool) -> int:
        self.costs.append(cost)
        self.integral.append(integral)
        return len(self.costs) - 1

    def link(self, read: Read) -> None:
        makes: dict[Layout, list[int]] = {}
        for column, choice in zip(self.columns[read.value], self.choices.of[read.value], strict=True):
            makes.setdefault(self.choices.layout(read.value, choice.placement), []).append(column)
        needs: dict[tuple[Value, Layout], list[int]] = {}
        for reader, rows in read.needs.items():
            for column, layouts in zip(self.columns[reader], rows, strict=True):
                for layout in layouts:
                    needs.setdefault((reader, layout), []).append(column)
        arriving: dict[Layout, dict[int, float]] = {}
        for target in dict.fromkeys(layout for _, layout in needs):
            arriving[target] = {}
            for source, makers in makes.items():
                cost = self.choices.conversion_cost(read, source, target)
                if cost is None:
                    continue
                column = self.column(cost * read.count, False)
                arriving[target][column] = -1.0
                self.rows.add({column: 1.0, **dict.fromkeys(makers, -1.0)}, -np.inf, 0)
        for (_, target), columns in needs.items():
            self.rows.add({**dict.fromkeys(columns, 1.0), **arriving[target]}, -np.inf, 0)

    def run(self) -> tuple[float, dict[Value, int]]:
        rows, columns, weights = zip(*self.rows.entries, strict=True)
        matrix = coo_array((weights, (rows, columns)), shape=(len(self.rows.low), len(self.costs))).tocsr()
        low, high = np.array(self.rows.low), np.array(self.rows.high)
        found = milp(
            np.array(self.costs) * _SCALE,
            integrality=np.array(self.integral, dtype=int),
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(matrix, low, high),  # pyright: ignore[reportArgumentType]
            options={"mip_rel_gap": 0.0, "time_limit": LIMIT_SECONDS},
        )
        if found.status == 2:
            return math.inf, {}
        if found.status != 0:
            raise InputError(f"the layouts were not proved optimal in {LIMIT_SECONDS:g} s: pin more ({found.message})")
        chosen = {v: next(n for n, c in enumerate(own) if found.x[c] > 0.5) for v, own in self.columns.items()}
        return float(found.fun) / _SCALE, chosen
