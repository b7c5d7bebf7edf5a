"""The exact minimum of a sum of cost tables over discrete variables, one variable eliminated at a time.

    min over a, b, c of  f(a, b) + g(b, c)   =   min over a, b of  f(a, b) + h(b),    h(b) = min over c of g(b, c)

Bertele and Brioschi, Nonserial Dynamic Programming, 1972; Dechter, Bucket Elimination, 1999. Time and memory grow with
the largest table that arises, which for a transformer block is small: few values live at any cut of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
Order = list[tuple[int, tuple[int, ...]]]
MOST_ENTRIES = 20_000_000


class TooWide(Exception):
    """No elimination order was found whose tables stay below MOST_ENTRIES."""


@dataclass(frozen=True)
class Table:
    """``costs`` has one dimension for each variable of ``scope``, of its domain's size; infinite where illegal."""

    scope: tuple[int, ...]
    costs: Array


class _Bucket(NamedTuple):
    """A variable on its way out: the sum of ``tables`` over it and ``scope``, and what its minimum leaves."""

    variable: int
    scope: tuple[int, ...]
    tables: list[Table]
    joined: Array
    left: Table


def minimize(domains: Sequence[int], tables: Sequence[Table], order: Order | None = None) -> tuple[float, list[int]]:
    """The least total cost, infinite where nothing is legal, and each variable's choice; the first among equals.

    ``order``: that of ``elimination_order``, for tables whose scopes have been looked at already.
    """
    total = float(sum(float(t.costs) for t in tables if not t.scope))
    decided: list[tuple[int, tuple[int, ...], Array]] = []
    for bucket in _buckets(domains, tables, elimination_order(domains, tables) if order is None else order):
        decided.append((bucket.variable, bucket.scope, bucket.joined.argmin(axis=0)))
        total += 0.0 if bucket.scope else float(bucket.left.costs)
    chosen = [0] * len(domains)
    for variable, scope, best in reversed(decided):
        chosen[variable] = int(best[tuple(chosen[u] for u in scope)])
    return total, chosen


def increases(domains: Sequence[int], tables: Sequence[Table]) -> list[Array]:
    """By variable and choice: by how much the least total grows when the choice is forced and all others are free.

    What ``minimize`` hands down the line of buckets comes back up: of each, the least of all the rest.
    """
    buckets = list(_buckets(domains, tables, elimination_order(domains, tables)))
    outside = {id(bucket.left): np.zeros(bucket.left.costs.shape) for bucket in buckets}
    found: list[Array] = [np.zeros(0)] * len(domains)
    for bucket in reversed(buckets):
        scope = (bucket.variable, *bucket.scope)
        whole = bucket.joined + outside[id(bucket.left)]
        least = whole.reshape(len(whole), -1).min(axis=1)
        found[bucket.variable] = least - least.min() if np.isfinite(least).any() else least
        for table in bucket.tables:
            if id(table) in outside:
                inside = _joined(domains, scope, [table])
                rest = np.where(np.isfinite(inside), whole - np.where(np.isfinite(inside), inside, 0.0), np.inf)
                left = [v for v in scope if v in table.scope]
                least = rest.min(axis=tuple(n for n, v in enumerate(scope) if v not in table.scope))
                outside[id(table)] = least.transpose([left.index(v) for v in table.scope])
    return found


def elimination_order(domains: Sequence[int], tables: Sequence[Table]) -> Order:
    """Each variable with those that its elimination joins, the smallest table first. Raises TooWide."""
    near: dict[int, set[int]] = {v: set() for v in range(len(domains))}
    for table in tables:
        for v in table.scope:
            near[v] |= set(table.scope) - {v}
    found: Order = []
    entries = {v: _entries(domains, v, others) for v, others in near.items()}
    while near:
        variable = min(entries, key=lambda v: (entries[v], v))
        if entries.pop(variable) > MOST_ENTRIES:
            raise TooWide
        scope = tuple(sorted(near.pop(variable)))
        found.append((variable, scope))
        for u in scope:
            near[u] = (near[u] | set(scope)) - {u, variable}
            entries[u] = _entries(domains, u, near[u])
    return found


def _buckets(domains: Sequence[int], tables: Sequence[Table], order: Order) -> Iterator[_Bucket]:
    live: dict[int, list[Table]] = {v: [] for v in range(len(domains))}
    for table in tables:
        for v in table.scope:
            live[v].append(table)
    for variable, scope in order:
        own = live.pop(variable)
        joined = _joined(domains, (variable, *scope), own)
        left = Table(scope, joined.min(axis=0))
        for u in scope:
            live[u] = [t for t in live[u] if variable not in t.scope] + [left]
        yield _Bucket(variable, scope, own, joined, left)


def _entries(domains: Sequence[int], variable: int, others: set[int]) -> int:
    return domains[variable] * math.prod(domains[u] for u in others)


def _joined(domains: Sequence[int], scope: tuple[int, ...], tables: list[Table]) -> Array:
    """The sum of tables over all variables of ``scope``, in its order."""
    joined = np.zeros([domains[v] for v in scope])
    for table in tables:
        order = sorted(range(len(table.scope)), key=lambda n: scope.index(table.scope[n]))
        shape = [domains[v] if v in table.scope else 1 for v in scope]
        joined += table.costs.transpose(order).reshape(shape)
    return joined
