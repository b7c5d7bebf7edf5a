"""Identical blocks, found from the sequence of ops alone: no class or parameter name is looked at.

    ops          e e  a b c d  a b c d  a b c d  h
    period 4          ^---------------------^          sig[i] == sig[i + 4]
    cut phase         |        |        |              where the fewest live bytes cross

    ops          e e  a b c d  a b c d  x  a b c d  a b c d  x  h
    spaced 4          |        |        |  |        |        |      a few extras stand between some blocks

What is left between them is divided by its modules (unlike.py): two or more blocks that have no twin.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

import numpy as np
from torch import fx

from partitioner.graph.dependence import input_free, module_path, parameter_free
from partitioner.graph.graph import Unit
from partitioner.graph.nodes import operands, shape_of
from partitioner.tracing.block_reads import part_reads
from partitioner.tracing.unlike_blocks import Modules, is_weighty, shared_depth, unlike_blocks

MOST_EXTRAS, SHORTEST = (
    4,
    6,
)  # ops between two blocks that are none of either's; ops of a block that has such neighbours


def find_units(graph: fx.Graph) -> tuple[Unit, ...]:
    """Cover the ops that have a gradient, in order, by blocks and by what stands between them."""
    body, ahead = _body(graph), input_free(graph)
    live = _live_bytes(body, ahead)
    cuts: list[tuple[int, int]] = []
    _split(_signatures(body), live, body, 0, len(body), cuts)
    modules, alone = Modules(body, ahead), not cuts
    unlike = [unlike_blocks(modules, live, gap, alone) for gap in _gaps(cuts, len(body))]
    names = {body[start]: name for found in unlike for (start, _), name in found.items()}
    cuts += [cut for found in unlike for cut in found]
    blocks = [body[start:end] for start, end in sorted(cuts)]
    part_reads(graph, blocks, set(body))
    body = _body(graph)
    place = {n: i for i, n in enumerate(body)}
    return _units(body, [(place[nodes[0]], place[nodes[-1]] + 1) for nodes in blocks], names)


def _gaps(cuts: list[tuple[int, int]], end: int) -> list[tuple[int, int]]:
    """What lies between the blocks, ahead of and behind them."""
    starts, ends = zip(*sorted(cuts), strict=True) if cuts else ((), ())
    return [(a, b) for a, b in zip((0, *ends), (*starts, end), strict=True) if a < b]


def _body(graph: fx.Graph) -> list[fx.Node]:
    free = parameter_free(graph)
    return [n for n in graph.nodes if n.op == "call_function" and n not in free]


def _signatures(body: list[fx.Node]) -> np.ndarray:
    """An integer a node: target, result shape and parameter shapes; literals may differ from block to block."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(_shallow(n), len(seen)) for n in body], dtype=np.int64)


def _shallow(node: fx.Node) -> Hashable:
    parameters = tuple(shape_of(n) for n in operands(node) if n.op == "placeholder" and n.meta["kind"] == "parameter")
    value = node.meta["val"]
    shape = tuple(value.shape) if hasattr(value, "shape") else tuple(tuple(v.shape) for v in value)
    return str(node.target), shape, parameters


def _split(
    marks: np.ndarray, live: np.ndarray, body: list[fx.Node], start: int, end: int, cuts: list[tuple[int, int]]
) -> None:
    """Find the periodic run that covers most of [start, end); go on left and right of it."""
    found = _best_run(marks[start:end], body[start:end])
    new: list[tuple[int, int]] = []
    if found is not None:
        offset, length, period = found
        first, blocks = _phase(live, body, start + offset, length, period)
        new = [(first + i * period, first + (i + 1) * period) for i in range(blocks)]
    covered = new[-1][1] - new[0][0] if new else 0
    spaced = _best_spaced(marks[start:end], live[start:end], body[start:end], len(new), covered)
    new = [(start + a, start + b) for a, b in spaced] or new
    if len(new) < 2:
        return
    cuts += new
    _split(marks, live, body, start, new[0][0], cuts)
    _split(marks, live, body, new[-1][1], end, cuts)


def _best_run(marks: np.ndarray, body: list[fx.Node]) -> tuple[int, int, int] | None:
    """(offset, length, period) of the longest periodic run of chained blocks; shortest period first."""
    best: tuple[int, int, int] | None = None
    for period in range(2, len(marks) // 2 + 1):
        offset, length = _longest(marks[:-period] == marks[period:])
        covered = length + period
        better = best is None or covered > best[1] + period // 2
        if length >= period and better and _is_chain(body[offset : offset + 2 * period], period):
            best = (offset, covered, period)
    return best


def _best_spaced(
    marks: np.ndarray, live: np.ndarray, body: list[fx.Node], blocks: int, covered: int
) -> list[tuple[int, int]]:
    """Equal stretches with few extras between them: more than ``blocks``, over as many ops as ``covered`` or more.

    Empty where there are none. Of the stretches that are most it is the longest, which the fewest bytes enter.
    """
    best: list[tuple[int, int]] = []
    for period in range(SHORTEST, len(marks) // max(blocks + 1, 2) + 1):
        runs = _spaced(marks, period) if period * len(best) <= len(marks) else []
        most = max((len(run) for run in runs), default=0)
        if most < max(blocks + 1, len(best), 2):
            continue
        runs = [run for run in runs if len(run) == most and run[-1] + 2 * period > covered + run[0]]
        runs = [run for run in runs if _is_chain(body[run[0] : run[1] + period], period)]
        if runs:
            run = min(runs, key=lambda r: (max(live[c] for c in r[1:]), -shared_depth(body, r[1]), r[0]))
            best = [(at, at + period) for at in run]
    return best


def _spaced(marks: np.ndarray, period: int) -> list[list[int]]:
    """Where equal stretches of ``period`` ops begin, each within MOST_EXTRAS behind the last; some extras there are."""
    after: dict[int, int] = {}
    extras = False
    for shift in range(period + MOST_EXTRAS, period - 1, -1):
        sums = np.concatenate(([0], np.cumsum(marks[:-shift] == marks[shift:]))) if shift < len(marks) else np.zeros(1)
        equal = np.flatnonzero(sums[period:] - sums[:-period] == period).tolist()
        extras = extras or shift > period and bool(equal)
        after |= {i: i + shift for i in equal}
    found: list[list[int]] = []
    for first in sorted(after.keys() - set(after.values())) if extras else ():
        found.append([first])
        while found[-1][-1] in after:
            found[-1].append(after[found[-1][-1]])
    return found


def _is_chain(nodes: list[fx.Node], period: int) -> bool:
    """Whether a period holds a product with a parameter, and the next one reads what it computes."""
    first, second = nodes[:period], set(nodes[period:])
    weighty = any(is_weighty(n) for n in first)
    return weighty and any(user in second for n in first for user in n.users)


def _longest(equal: np.ndarray) -> tuple[int, int]:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], equal.view(np.int8), [0]))))
    if not len(edges):
        return 0, 0
    lengths = edges[1::2] - edges[::2]
    at = int(np.argmax(lengths))
    return int(edges[2 * at]), int(lengths[at])


def _live_bytes(body: list[fx.Node], ahead: set[fx.Node]) -> np.ndarray:
    """Bytes of body values alive across each cut position (before op i), a value that no later op reads excluded.

    Functions of parameters alone, which stand ahead of the blocks, are no reason to cut at one place or another.
    """
    index = {n: i for i, n in enumerate(body)}
    change = np.zeros(len(body) + 1)
    for node, i in index.items():
        last = max((index.get(u, len(body) - 1) for u in node.users), default=i)
        value = node.meta["val"]
        size = value.numel() * value.element_size() if hasattr(value, "numel") and node not in ahead else 0
        change[i + 1] += size
        change[last + 1] -= size if last + 1 <= len(body) else 0
    return np.cumsum(change)[:-1]


def _phase(live: np.ndarray, body: list[fx.Node], start: int, length: int, period: int) -> tuple[int, int]:
    """First block's position and the number of blocks, cutting where the fewest bytes cross."""

    def key(phase: int) -> tuple[float, int, int, int]:
        blocks = (length - phase) // period
        cuts = [start + phase + i * period for i in range(blocks)]
        return float(max(live[c] for c in cuts[1:])), -blocks, shared_depth(body, cuts[1]), phase

    phases = [p for p in range(period) if (length - p) // period >= 2]
    if not phases:
        return start, 0
    phase = min(phases, key=key)
    return start + phase, (length - phase) // period


def _units(body: list[fx.Node], cuts: list[tuple[int, int]], named: Mapping[fx.Node, str]) -> tuple[Unit, ...]:
    """``named``: blocks by their first node that are not named by what they all hold."""
    kinds: dict[Hashable, int] = {}
    names: dict[str, int] = {}
    units: list[Unit] = []
    position = 0
    for start, end in [*cuts, (len(body), len(body))]:
        if position < start:
            nodes = body[position:start]
            units.append(_unit(nodes, _name(nodes, False), kinds, names, False))
        if start < end:
            nodes = body[start:end]
            units.append(_unit(nodes, named.get(nodes[0]) or _name(nodes, True), kinds, names, True))
        position = end
    return tuple(units)


def _unit(
    nodes: list[fx.Node], name: str, kinds: dict[Hashable, int], names: dict[str, int], is_block: bool
) -> Unit:  # fmt: skip
    kind = kinds.setdefault(_deep(nodes) if is_block else nodes[0].name, len(kinds))
    names[name] = names.get(name, 0) + 1
    unique = name if names[name] == 1 else f"{name}#{names[name]}"
    return Unit(unique, tuple(n.name for n in nodes), kind, is_block)


def _deep(nodes: list[fx.Node]) -> Hashable:
    """Everything that must agree for two blocks to be the same program: targets, literals, shapes, wiring."""
    index: dict[fx.Node, Hashable] = {n: ("own", i) for i, n in enumerate(nodes)}

    def name(node: fx.Node) -> Hashable:
        if node not in index:
            kind = node.meta.get("kind", "value") if node.op == "placeholder" else "value"
            index[node] = (kind, len(index), shape_of(node), str(node.meta["val"].dtype))
        return index[node]

    return tuple((str(n.target), words((n.args, n.kwargs), name), str(n.meta["val"])) for n in nodes)


def words(value: object, name: Callable[[fx.Node], Hashable]) -> Hashable:
    """Nested arguments as nested tuples, each node by its name."""
    if isinstance(value, fx.Node):
        return "node", name(value)
    if isinstance(value, tuple | list):
        return tuple(words(v, name) for v in value)
    if isinstance(value, dict):
        return tuple((k, words(v, name)) for k, v in sorted(value.items()))
    return repr(value)


def _name(nodes: list[fx.Node], is_block: bool) -> str:
    """The deepest module that holds a whole block; else the first and the last module."""
    paths = [module_path(n) for n in nodes if any(module_path(n))]
    if not paths:
        return nodes[0].name
    shared = [parts[0] for parts in zip(*paths, strict=False) if len(set(parts)) == 1]
    if is_block and shared and shared[-1]:
        return shared[-1]
    first, last = paths[0][-1], paths[-1][-1]
    return first if first == last else f"{first}..{last}"
