"""Identical blocks, found from the sequence of ops alone: no class or parameter name is looked at.

    ops          e e  a b c d  a b c d  a b c d  h
    period 4          ^---------------------^          sig[i] == sig[i + 4]
    cut phase         |        |        |              where the fewest live bytes cross
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
from torch import fx

from partitioner.constants import module_path, parameter_free
from partitioner.graph import Unit
from partitioner.shapes import operands, shape_of


def find_units(graph: fx.Graph) -> tuple[Unit, ...]:
    """Cover the ops that have a gradient, in order, by blocks and by what stands between them."""
    free = parameter_free(graph)
    body = [n for n in graph.nodes if n.op == "call_function" and n not in free]
    live = _live_bytes(body)
    cuts: list[tuple[int, int]] = []
    _split(_signatures(body), live, body, 0, len(body), cuts)
    return _units(body, sorted(cuts))


def _signatures(body: list[fx.Node]) -> np.ndarray:
    """An integer a node: target, result shape and parameter shapes; literals may differ from block to block."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(_shallow(n), len(seen)) for n in body], dtype=np.int64)


def _shallow(node: fx.Node) -> Hashable:
    parameters = tuple(shape_of(n) for n in operands(node) if n.op == "placeholder" and n.meta["kind"] == "parameter")
    value = node.meta["val"]
    shape = tuple(value.shape) if hasattr(value, "shape") else tuple(tuple(v.shape) for v in value)
    return str(node.target), shape, parameters


def _split(marks: np.ndarray, live: np.ndarray, body: list[fx.Node], start: int, end: int, cuts: list[tuple[int, int]]) -> None:
    """Find the periodic run that covers most of [start, end); go on left and right of it."""
    found = _best_run(marks[start:end], body[start:end])
    if found is None:
        return
    offset, length, period = found
    first, blocks = _phase(live, body, start + offset, length, period)
    if blocks < 2:
        return
    cuts += [(first + i * period, first + (i + 1) * period) for i in range(blocks)]
    _split(marks, live, body, start, first, cuts)
    _split(marks, live, body, first + blocks * period, end, cuts)


def _best_run(marks: np.ndarray, body: list[fx.Node]) -> tuple[int, int, int] | None:
    """(offset, length, period) of the longest periodic run with a parameter in each period; shortest period first."""
    weighty = np.array([any(n.op == "placeholder" and n.meta["kind"] == "parameter" for n in operands(node)) for node in body])
    best: tuple[int, int, int] | None = None
    for period in range(2, len(marks) // 2 + 1):
        equal = marks[:-period] == marks[period:]
        offset, length = _longest(equal)
        if length < period or not weighty[offset : offset + period].any():
            continue
        covered = length + period
        if best is None or covered > best[1] + period // 2:
            best = (offset, covered, period)
    return best


def _longest(equal: np.ndarray) -> tuple[int, int]:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], equal.view(np.int8), [0]))))
    if not len(edges):
        return 0, 0
    lengths = edges[1::2] - edges[::2]
    at = int(np.argmax(lengths))
    return int(edges[2 * at]), int(lengths[at])


def _live_bytes(body: list[fx.Node]) -> np.ndarray:
    """Bytes of body values alive across each cut position (before op i), a value that no later op reads excluded."""
    index = {n: i for i, n in enumerate(body)}
    change = np.zeros(len(body) + 1)
    for node, i in index.items():
        last = max((index.get(u, len(body) - 1) for u in node.users), default=i)
        value = node.meta["val"]
        size = value.numel() * value.element_size() if hasattr(value, "numel") else 0
        change[i + 1] += size
        change[last + 1] -= size if last + 1 <= len(body) else 0
    return np.cumsum(change)[:-1]


def _phase(live: np.ndarray, body: list[fx.Node], start: int, length: int, period: int) -> tuple[int, int]:
    """First block's position and the number of blocks, cutting where the fewest bytes cross."""

    def key(phase: int) -> tuple[float, int, int, int]:
        blocks = (length - phase) // period
        cuts = [start + phase + i * period for i in range(blocks)]
        return float(max(live[c] for c in cuts[1:])), -blocks, _depth(body, cuts[1]), phase

    phases = [p for p in range(period) if (length - p) // period >= 2]
    if not phases:
        return start, 0
    phase = min(phases, key=key)
    return start + phase, (length - phase) // period


def _depth(body: list[fx.Node], cut: int) -> int:
    """How deep the module is that both sides of a cut share: a layer boundary is shallow."""
    before, after = module_path(body[cut - 1]), module_path(body[cut])
    return sum(1 for a, b in zip(before, after, strict=False) if a == b)


def _units(body: list[fx.Node], cuts: list[tuple[int, int]]) -> tuple[Unit, ...]:
    kinds: dict[Hashable, int] = {}
    units: list[Unit] = []
    position = 0
    for start, end in [*cuts, (len(body), len(body))]:
        if position < start:
            units.append(_unit(body[position:start], kinds, False))
        if start < end:
            units.append(_unit(body[start:end], kinds, True))
        position = end
    return tuple(units)


def _unit(nodes: list[fx.Node], kinds: dict[Hashable, int], is_block: bool) -> Unit:
    kind = kinds.setdefault(_deep(nodes) if is_block else nodes[0].name, len(kinds))
    return Unit(_name(nodes), tuple(n.name for n in nodes), kind, is_block)


def _deep(nodes: list[fx.Node]) -> Hashable:
    """Everything that must agree for two blocks to be the same program: targets, literals, shapes, wiring."""
    index: dict[fx.Node, Hashable] = {n: ("own", i) for i, n in enumerate(nodes)}

    def name(node: fx.Node) -> Hashable:
        if node not in index:
            kind = node.meta.get("kind", "value") if node.op == "placeholder" else "value"
            index[node] = (kind, len(index), shape_of(node), str(node.meta["val"].dtype))
        return index[node]

    return tuple(
        (str(n.target), str(fx.map_arg((n.args, n.kwargs), lambda x: _Word(name(x)))), str(n.meta["val"])) for n in nodes
    )


class _Word:
    def __init__(self, value: Hashable) -> None:
        self.value = value

    def __repr__(self) -> str:
        return repr(self.value)


def _name(nodes: list[fx.Node]) -> str:
    """The deepest module that holds every node, by the names that the source model gives it."""
    paths = [module_path(n) for n in nodes if module_path(n)]
    if not paths:
        return nodes[0].name
    shared = [parts[0] for parts in zip(*paths, strict=False) if len(set(parts)) == 1]
    return (shared[-1] if shared else "") or nodes[0].name

