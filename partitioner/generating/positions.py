"""Positions followed through every op: which dimension of a value they are, where a second one arises, what is kept.

    tokens (b, L)                       query 1
    q, k, v (b, h, L, d)                query 2
    scores = q @ k^T  (b, h, L, L)      query 2, key 3      k^T's positions became a second dimension: k is cached
    probabilities @ v (b, h, L, d)      query 2             v's positions met the keys: v is cached

Positions are an axis along which a value may lie like any other: an op treats each by itself where its rule would let
them be divided. What a rule needs whole mixes them, and is refused, but for the few ops of ``_ALONG_KEYS``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import fx

from partitioner.generating.causal_masks import Mask, Masks
from partitioner.generating.ends import Ends, needed
from partitioner.generating.numbers import Numbers
from partitioner.generating.refusal import refused
from partitioner.graph.graph import Graph
from partitioner.graph.nodes import op_of, operands, shape_of
from partitioner.sharding.equations import Strategy
from partitioner.sharding.layout import Segment, Shard
from partitioner.sharding.op_rules import complete, rule_of

aten = torch.ops.aten
_ALONG_KEYS: dict[object, str] = {aten.softmax.int: "dim"}  # reduce over keys, hidden ones left out


@dataclass(frozen=True)
class Places:
    """Where a value's positions are: its own (``query``) and those that it looks at (``key``). ``hides``: what is not
    to be seen is 0 in it."""

    query: Shard | None = None
    key: Shard | None = None
    hides: bool = False


@dataclass(frozen=True)
class Reading:
    """How an op reads an operand: as it is, of all positions so far (``cached``), or, of a table by positions, its
    rows and columns (dimensions as the op aligns them, -1 for none). ``made``: of one number throughout, it is made as
    large as is needed along these dimensions of its own, of the positions and the keys.
    """

    cached: bool = False
    query: int = -1
    key: int = -1
    made: tuple[int, int] | None = None

    @property
    def is_table(self) -> bool:
        """Whether it is cut at each sequence's positions."""
        return self.query >= 0 or self.key >= 0


@dataclass
class Walked:
    """What ``walk`` found, ``masks_of`` a graph: of each op that hangs on tokens its places, how it reads, and the mask
    under which it sums over keys; of all others (``inputs``) what they hang on beside tokens."""

    masks_of: Masks
    inputs: Mapping[fx.Node, frozenset[str]]
    places: dict[fx.Node, Places] = field(default_factory=dict)
    readings: dict[fx.Node, tuple[Reading, ...]] = field(default_factory=dict)
    masks: dict[fx.Node, Mask] = field(default_factory=dict)

    def is_given(self, node: fx.Node) -> bool:
        """Whether a value hangs on what the model is given beside tokens."""
        return bool(self.inputs.get(node))

    @property
    def given(self) -> frozenset[str]:
        """What that is, of all that answers hang on."""
        return frozenset().union(*self.inputs.values())


def walk(graph: Graph, ends: Ends, numbers: Numbers) -> Walked:
    """From the tokens to the logits. Raises NotDerived, naming the op that mixes positions."""
    walker = _Walker(graph, ends, numbers)
    wanted = needed([ends.logits], ends.tokens) - {ends.tokens}
    for node in (n for n in graph.module.graph.nodes if n in wanted and n.op == "call_function"):
        if any(n in walker.found.places for n in operands(node)):
            walker.visit(node)
    if walker.found.places.get(ends.logits, Places()).query is None:
        raise refused(ends.logits, "makes logits that are not of each position")
    return walker.found


def _given(graph: Graph, ends: Ends) -> dict[fx.Node, frozenset[str]]:
    """The inputs on which what stands beside the tokens hangs, by node."""
    wanted, found = needed([ends.logits], ends.tokens), dict[fx.Node, frozenset[str]]()
    for node in (n for n in graph.module.graph.nodes if n in wanted and n is not ends.tokens):
        own = {node.meta["source"]} if node.op == "placeholder" and node.meta["kind"] == "input" else set[str]()
        found[node] = frozenset(own).union(*(found.get(n, frozenset()) for n in node.all_input_nodes))
    return found


class _Walker:
    def __init__(self, graph: Graph, ends: Ends, numbers: Numbers) -> None:
        self.graph, self.numbers, self.length = graph, numbers, numbers.length
        self.masks = Masks(graph)
        self.found = Walked(self.masks, _given(graph, ends))
        self.found.places[ends.tokens] = Places(self.along(1))

    def along(self, dim: int) -> Shard:
        """All positions, along a dimension."""
        return Shard(dim, (Segment(1, self.length, 1),))

    def complete(self, node: fx.Node, slot: int, shard: Shard) -> Strategy | None:
        return complete(op_of(node), slot, shard, self.length)

    def visit(self, node: fx.Node) -> None:
        rule = rule_of(str(node.target))
        if rule is None:
            raise refused(node, "has no rule that says whether it treats each position by itself")
        if rule.attention:
            self.attend(node)
        else:
            self.follow(node)

    def moving(self, node: fx.Node) -> Iterator[tuple[int, Places]]:
        """The operands that hang on tokens, by place."""
        for slot, operand in enumerate(operands(node)):
            if operand in self.found.places:
                yield slot, self.found.places[operand]

    def growing(self, node: fx.Node) -> Iterator[tuple[int, tuple[int, ...]]]:
        """The other operands that are of another size for every length, by place, and which dimensions grow."""
        for slot, operand in enumerate(operands(node)):
            dims = self.numbers.grown(operand) if operand not in self.found.places else ()
            if dims and not self.masks.is_uniform(operand):
                yield slot, dims

    def follow(self, node: fx.Node) -> None:
        cached = self.second_positions(node)
        keys = self.keys(node, cached)
        queries = self.queries(node, cached, keys)
        self.read(node, cached, queries, keys)

    def second_positions(self, node: fx.Node) -> dict[int, Shard]:
        """Operands whose positions meet those that others look at, or become a second dimension beside another's."""
        found: dict[int, Shard] = {}
        moving = dict(self.moving(node))
        looked = [(slot, places.key) for slot, places in moving.items() if places.key]
        for slot, dims in self.growing(node):
            if len(dims) > 1:  # rows and columns
                looked.append((slot, self.along(dims[-1])))
        for slot, key in looked:
            strategy = self.complete(node, slot, key)
            for other, places in moving.items() if strategy else ():
                if other != slot and places.query and places.query == strategy.operands[other]:  # type: ignore[union-attr]
                    found[other] = places.query
        first = next((slot for slot, places in moving.items() if slot not in found and places.query), None)
        strategy = None if first is None else self.complete(node, first, moving[first].query)  # type: ignore[arg-type]
        for slot, places in moving.items() if strategy else ():
            if slot not in found and slot != first and places.query and places.query != strategy.operands[slot]:  # type: ignore[union-attr]
                found[slot] = places.query
        return found

    def keys(self, node: fx.Node, cached: dict[int, Shard]) -> Strategy | None:
        """How the op lies along the positions that are looked at; None where there are none."""
        looked = [(slot, places.key) for slot, places in self.moving(node) if places.key] + list(cached.items())
        looked += [(slot, self.along(dims[-1])) for slot, dims in self.growing(node) if len(dims) > 1]
        found: Strategy | None = None
        for slot, key in looked:
            strategy = self.complete(node, slot, key)
            if strategy is None and self.sums_over(node, key):
                return Strategy((key,), key)
            if strategy is None or found not in (None, strategy):
                raise refused(node, "needs all positions that are looked at together")
            found = strategy
        return found

    def sums_over(self, node: fx.Node, key: Shard) -> bool:
        """Whether it is known to leave out hidden keys, and they are hidden."""
        name = _ALONG_KEYS.get(node.target)
        if name is None or op_of(node).dims(name, len(shape_of(node))) != (key.dim,):
            return False
        mask = self.masks.hides(operands(node)[0])
        if mask is None:
            raise refused(node, "looks at what comes later, or at what is not known to be hidden")
        self.found.masks[node] = mask
        return True

    def queries(self, node: fx.Node, cached: dict[int, Shard], keys: Strategy | None) -> Strategy | None:
        """How the op lies along each sequence's own positions; None where it has none."""
        own = [(slot, places.query) for slot, places in self.moving(node) if places.query and slot not in cached]
        for slot, dims in self.growing(node):
            own += [(slot, self.along(d)) for d in dims if keys is None or keys.operands[slot] != self.along(d)]
        found: Strategy | None = None
        for slot, query in own:
            strategy = self.complete(node, slot, query)
            if strategy is None or found not in (None, strategy):
                raise refused(node, "mixes positions")
            found = strategy
        return found

    def read(self, node: fx.Node, cached: dict[int, Shard], queries: Strategy | None, keys: Strategy | None) -> None:
        operand_places, readings = dict(self.moving(node)), list[Reading]()
        for slot, operand in enumerate(operands(node)):
            if slot in cached:
                readings.append(Reading(cached=True))
            elif operand in operand_places or slot in operand_places or not self.numbers.grown(operand):
                readings.append(Reading())
            else:
                readings.append(self.table(node, slot, queries, keys))
        result = Places(
            self.result(node, queries, "positions"), self.result(node, keys, "keys"), self.stays_hidden(node, keys)
        )
        self.found.places[node], self.found.readings[node] = result, tuple(readings)

    def table(self, node: fx.Node, slot: int, queries: Strategy | None, keys: Strategy | None) -> Reading:
        operand = operands(node)[slot]
        placed = [s.operands[slot] if s else None for s in (queries, keys)]
        if self.masks.is_uniform(operand):
            query, key = (p.dim if isinstance(p, Shard) else -1 for p in placed)
            if set(self.numbers.grown(operand)) <= {query, key}:
                return Reading(made=(query, key))
        behind = len(shape_of(node)) - len(shape_of(operand))
        dims = [p.dim + behind if isinstance(p, Shard) else -1 for p in placed]
        pointwise = all(len(shape_of(n)) <= len(shape_of(node)) for n in operands(node))
        if not pointwise or any(isinstance(p, Shard) and p != self.along(p.dim) for p in placed):
            raise refused(node, "reads a table by positions that are merged with others")
        return Reading(query=dims[0], key=dims[1])

    def result(self, node: fx.Node, strategy: Strategy | None, what: str) -> Shard | None:
        if strategy is None:
            return None
        if isinstance(strategy.result, Shard):
            return strategy.result
        hidden = any(p.hides and p.key for _, p in self.moving(node))
        if what == "keys" and hidden and (rule := rule_of(str(node.target))) and rule.linear:
            return None
        raise refused(node, f"sums over {what}")

    def stays_hidden(self, node: fx.Node, keys: Strategy | None) -> bool:
        if node in self.found.masks:
            return True
        rule = rule_of(str(node.target))
        alone = [slots[0] for slots in rule.linear if len(slots) == 1] if rule else []
        return bool(keys) and any(p.hides and slot in alone for slot, p in self.moving(node))

    def attend(self, node: fx.Node) -> None:
        """Attention by one op: keys and values that hang on tokens are cached, others are what they are."""
        read, op = operands(node), op_of(node)
        query, key, value = (self.found.places.get(n) for n in read[:3])
        mask = read[3] if len(read) > 3 else None
        rows = self.along(len(shape_of(node)) - 2)
        if query is None or query != Places(rows):
            raise refused(node, "has queries that are not of each position")
        if key is None and value is None:
            if op.literal("is_causal") or self.numbers.grown(read[1]):
                raise refused(node, "looks at keys that hang on no token, position by position")
            grown = self.numbers.grown(mask) if mask is not None and mask not in self.found.places else ()
            readings = [Reading()] * len(read)
            if grown:
                readings[3] = Reading(query=rows.dim)
            self.found.places[node], self.found.readings[node] = Places(rows), tuple(readings)
            return
        if key != Places(rows) or value != Places(rows):
            raise refused(node, "has keys or values that are not of each position")
        found = Mask(self.length, True) if op.literal("is_causal") else mask and self.masks.hides(mask)
        if not found:
            raise refused(node, "looks at what comes later, or at what is not known to be hidden")
        readings = [Reading(), Reading(cached=True), Reading(cached=True)]
        if mask is not None:
            readings.append(self.mask(node, mask, rows, found))
        self.found.masks[node] = found
        self.found.places[node], self.found.readings[node] = Places(rows), tuple(readings)

    def mask(self, node: fx.Node, mask: fx.Node, rows: Shard, found: Mask) -> Reading:
        columns = self.along(rows.dim + 1)
        if (own := self.found.places.get(mask)) is not None:
            if own == Places(columns):
                return Reading(cached=True)
            if own.query not in (None, rows) or own.key not in (None, columns):
                raise refused(node, "has a mask whose positions lie otherwise than the scores'")
            return Reading()
        grown, behind = self.numbers.grown(mask), len(shape_of(node)) - len(shape_of(mask))
        dims = {d + behind for d in grown}
        return Reading(query=rows.dim if rows.dim in dims else -1, key=columns.dim if columns.dim in dims else -1)
