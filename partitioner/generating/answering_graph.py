"""The graph that answers, written op by op from a training graph: n positions of each text, and what is kept of others.

    training     k = linear(x, wk)    scores = matmul(q, permute(k))       softmax(scores + mask)
    answering    k = linear(x, wk)    keys = extend_cache(cache, k)        softmax(hide_unseen(scores + at(mask)))
                                      scores = matmul(q, permute(keys))
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

import partitioner.ops.cache_ops
from partitioner.generating.cached_values import (
    can_be_cached,
    reaches,
    shared_heads,
    slots,
    smallest_view,
    way_up,
)
from partitioner.generating.ends import Ends, needed
from partitioner.generating.last_unit import last_unit
from partitioner.generating.numbers import Numbers, flat_arguments, sized_dimension
from partitioner.generating.positions import Reading, Walked
from partitioner.generating.refusal import refused
from partitioner.graph.graph import Graph, ParameterInfo
from partitioner.graph.nodes import evaluate, is_parameter, op_of, operands, shape_of
from partitioner.graph.step_inputs import CACHE, LAST, MEMORY, START, TOKENS
from partitioner.sharding.op_rules import rule_of

own, aten = torch.ops.partitioner, torch.ops.aten
_SCHEMAS = partitioner.ops.cache_ops  # importing it registers them
_ORIGIN = ("modules", "stack_trace", "site")


class Writer:
    """A graph in the making: placeholders ahead of ops that are made like those of another graph."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self._body = self.graph.placeholder("body")
        self.kept: dict[str, ParameterInfo] = {}

    def finish(self, output: fx.Node) -> fx.Graph:
        """The graph that returns ``output``."""
        self.graph.output(output)
        self.graph.erase_node(self._body)
        return self.graph

    def placeholder(self, name: str, meta: Mapping[str, Any]) -> fx.Node:
        """One more."""
        with self.graph.inserting_before(self._body):
            node = self.graph.placeholder(re.sub(r"\W", "_", name))
        node.meta = dict(meta)
        return node

    def like(self, node: fx.Node) -> fx.Node:
        """A placeholder of another graph; no parameter trains."""
        frozen = {"trains": False} if node.meta["kind"] == "parameter" else {}
        return self.placeholder(node.name, {k: v for k, v in node.meta.items() if k != "slopes"} | frozen)

    def input(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> fx.Node:
        """What every call is given."""
        meta = {"kind": "input", "source": name, "val": torch.empty(shape, dtype=dtype, device="meta")}
        return self.placeholder(name, meta)

    def keep(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> fx.Node:
        """What is kept from call to call."""
        self.kept[name] = ParameterInfo((name,), shape, dtype, False)
        value = torch.empty(shape, dtype=dtype, device="meta")
        return self.placeholder(name, {"kind": "parameter", "source": name, "trains": False, "val": value})

    def copy(self, node: fx.Node, values: Mapping[fx.Node, fx.Node]) -> fx.Node:
        """An op as it is, of other operands."""
        new = self.graph.node_copy(node, values.__getitem__)
        new.meta = {k: v for k, v in node.meta.items() if k != "slopes"}
        return new

    def emit(self, like: fx.Node, target: Callable[..., object], *args: Any, **kwargs: Any) -> fx.Node:
        """A new op, in the module of another."""
        new = self.graph.call_function(target, args, kwargs)
        new.meta = {k: v for k, v in like.meta.items() if k in _ORIGIN}
        new.meta["val"] = evaluate(new)
        return new


class AnsweringGraph(Writer):
    """``n`` positions of each text a call, of at the most ``chunk`` in any call on the same caches."""

    def __init__(self, source: Graph, ends: Ends, numbers: Numbers, walked: Walked, n: int, chunk: int) -> None:
        super().__init__()
        self.source, self.ends, self.numbers, self.walked = source, ends, numbers, walked
        self.n, self.chunk, self.reach = n, chunk, reaches(source, walked, numbers.length)
        self.root, self.tail = last_unit(source, ends, walked)
        self.values: dict[fx.Node, fx.Node] = {}
        self.keys: dict[fx.Node, fx.Node] = {}
        self.cut: dict[tuple[object, ...], fx.Node] = {}  # what hangs on positions alone
        self.memory: dict[fx.Node, str] = {}
        self.readers: dict[fx.Node, list[fx.Node]] = {}  # of what is in memory
        self.tables = needed((n for n, _ in self.table_readings()), None)
        self.given = {ends.tokens, *(n for n in needed([ends.logits], ends.tokens) if self.hangs_on_input(n))}

    def table_readings(self) -> list[tuple[fx.Node, Reading]]:
        """What is cut at positions."""
        rows = ((operands(node), readings) for node, readings in self.walked.readings.items())
        return [(n, r) for read, own_rows in rows for n, r in zip(read, own_rows, strict=True) if r.is_table]

    def hangs_on_input(self, node: fx.Node) -> bool:
        """Whether a value hangs on what the model is given beside tokens."""
        return node not in self.walked.places and self.walked.is_given(node)

    def written(self) -> fx.Graph:
        """All of it."""
        b = self.source.batch
        tokens = self.input(TOKENS, (b, self.n), self.ends.tokens.meta["val"].dtype)
        self.start, self.last = self.input(START, (b,), torch.int64), self.input(LAST, (b,), torch.int64)
        self.values[self.ends.tokens] = tokens
        every = needed([self.ends.logits], self.ends.tokens)
        for node in self.source.module.graph.nodes:
            if node in every and node not in self.given:
                self.values[node] = self.node(node)
                if node is self.root:
                    self.values[node] = self.at_last(node)
        logits = self.values[self.ends.logits]
        return self.finish(self.emit(self.ends.logits, own.whole.default, logits))

    def node(self, node: fx.Node) -> fx.Node:
        """One of the training graph's."""
        if node.op == "placeholder":
            return self.like(node)
        if node in self.walked.places:
            return self.write(node)
        rule = rule_of(str(node.target))
        if node not in self.tables or (rule and (rule.lookup or rule.computes)):
            return self.copy(node, self.values)
        return self.copy(node, self.values | {n: self.all_of(n) for n in operands(node) if is_parameter(n)})

    def all_of(self, parameter: fx.Node) -> fx.Node:
        """A parameter that is a table, which ranks may have parts of by positions."""
        return self.once(parameter, own.whole.default, self.values[parameter])

    def at_last(self, node: fx.Node) -> fx.Node:
        """Each text's last position of a value, behind which nothing looks at others."""
        (sample, _), places = self.samples(node), self.walked.places[node]
        assert places.query
        return self.emit(node, own.last_position.default, self.values[node], self.last, sample, places.query.dim)

    def write(self, node: fx.Node) -> fx.Node:
        """An op at n positions."""
        rows = zip(operands(node), self.walked.readings[node], strict=True)
        read = [self.operand(node, operand, reading) for operand, reading in rows]
        rule = rule_of(str(node.target))
        if rule and rule.attention and node in self.walked.masks:
            return self.attention(node, read)
        if node in self.walked.masks:
            read[0] = self.hidden(node, read[0])
        return self.again(node, read, self.sized(node))

    def again(self, node: fx.Node, read: list[fx.Node], sized: Mapping[int, int]) -> fx.Node:
        """The op of other operands, where dimensions of its result are of so many positions."""
        given = iter(read)
        new = self.graph.node_copy(node, lambda _: next(given))
        new.meta = {k: v for k, v in node.meta.items() if k in _ORIGIN}
        if differing := self.numbers.differing(node):
            leaves, spec = flat_arguments(new)
            for place, number in differing.items():
                dim = sized_dimension(node, place)
                if dim is None or dim not in sized:
                    raise refused(node, "has a number that hangs on the whole length")
                leaves[place] = self.numbers.at(number, sized[dim])
            args, kwargs = pytree.tree_unflatten(leaves, spec)
            new.args, new.kwargs = tuple(args), dict(kwargs)
        new.meta["val"] = evaluate(new)
        return new

    def uniform(self, node: fx.Node, sized: Mapping[int, int]) -> fx.Node:
        """A constant of one number, of so many positions along dimensions of its own."""
        number = self.walked.masks_of.value(node).flatten()[0].item()
        shape = [self.numbers.size(node, d, sized[d]) if d in sized else n for d, n in enumerate(shape_of(node))]
        return self.emit(node, aten.full.default, shape, number, dtype=node.meta["val"].dtype)

    def sized(self, node: fx.Node) -> dict[int, int]:
        """How many positions an op's result has, by dimension."""
        places = self.walked.places[node]
        found = {places.query.dim: self.positions(node)} if places.query else {}
        return found | ({places.key.dim: self.slots(node)} if places.key else {})

    def positions(self, node: fx.Node) -> int:
        """A text's own, of a call."""
        return 1 if node in self.tail else self.n

    def operand(self, node: fx.Node, operand: fx.Node, reading: Reading) -> fx.Node:
        """What an op reads in an operand's place."""
        if reading.cached:
            return self.cached(operand)
        if reading.made is not None:
            query, key = reading.made
            sized = {query: self.positions(node)} if query >= 0 else {}
            return self.uniform(operand, sized | ({key: self.slots(node)} if key >= 0 else {}))
        is_memory = operand in self.given and operand is not self.ends.tokens
        value = self.remembered(operand, node) if is_memory else None
        value = value or self.values[operand]
        if not reading.is_table:
            return value
        sample, repeat = self.samples(node)
        inner = shape_of(node)[sample] // (self.source.batch * repeat)
        looked = self.slots(node) if reading.key >= 0 else 0
        literals = (len(shape_of(node)), sample, repeat, inner, reading.query, self.n, reading.key, looked)
        return self.once(node, own.at_positions.default, value, self.start, *literals)

    def slots(self, node: fx.Node) -> int:
        """How many an op's keys have."""
        rule = rule_of(str(node.target))
        if rule and rule.attention:
            return shape_of(self.cached(operands(node)[1]))[-2]
        for n, reading in zip(operands(node), self.walked.readings[node], strict=True):
            places = self.walked.places.get(n)
            if reading.cached and places and places.query:
                return shape_of(self.cached(n))[places.query.dim]
            if places and places.key:
                return shape_of(self.values[n])[places.key.dim]
        raise refused(node, "reads a table of pairs of positions where no keys are")

    def samples(self, node: fx.Node) -> tuple[int, int]:
        """The dimension of a value that carries samples, and how many runs of them it has."""
        shard = self.source.batch_layout.get(node.name)
        if shard is None:
            raise refused(node, "has samples that can't be told apart")
        (segment,) = shard.segments
        return shard.dim, segment.repeat

    def hidden(self, node: fx.Node, scores: fx.Node) -> fx.Node:
        """Scores whose sum leaves out what may not be seen."""
        places = self.walked.places[node]
        if places.query is None or places.key is None:
            raise refused(node, "sums over keys without a position of its own")
        return self.emit(node, own.hide_unseen.default, scores, self.seen(node, places.query.dim, places.key.dim, 0))

    def seen(self, node: fx.Node, query: int, key: int, window: int) -> fx.Node:
        """Which slots the positions of an op's result may look at."""
        sample, repeat = self.samples(node)
        merged = [repeat, shape_of(node)[sample] // (self.source.batch * repeat)]
        literals = (self.n, self.slots(node), window, [sample, query, key], max(len(shape_of(node)), key + 1), merged)
        return self.once(node, own.seen_slots.default, self.start, *literals)

    def once(self, node: fx.Node, target: Callable[..., object], *arguments: Any) -> fx.Node:
        """An op that hangs on positions alone, for all that ask for the same."""
        if (key := (target, str(arguments))) not in self.cut:
            self.cut[key] = self.emit(node, target, *arguments)
        return self.cut[key]

    def attention(self, node: fx.Node, read: list[fx.Node]) -> fx.Node:
        """One op, to what is cached."""
        mask, rank = self.walked.masks[node], len(shape_of(node))
        window = mask.reach if mask.exact and mask.reach < self.numbers.length else 0
        allowed = self.seen(node, rank - 2, rank - 1, window)
        if len(read) > 3 and not mask.exact:
            is_flag = read[3].meta["val"].dtype == torch.bool
            target = aten.bitwise_and.Tensor if is_flag else own.hide_unseen.default
            allowed = self.once(node, target, read[3], allowed)
        literals = (allowed, self.n, op_of(node).literal("scale"))
        shared = [shared_heads(n) for n in operands(node)[1:3]]
        if None in shared or shape_of(allowed)[-3:-2] not in ((), (1,)):
            return self.emit(node, own.cached_attention.default, *read[:3], *literals)
        shape, (keys, values) = shape_of(read[0]), (self.cached(n) for n in shared if n is not None)
        few = shape_of(keys)
        heads = [*shape[:-3], few[-4], shape[-3] // few[-4] * self.n]
        read = [self.reshaped(node, read[0], [*heads, shape[-1]])]
        read += [self.reshaped(node, n, [*few[:-3], *shape_of(n)[-2:]]) for n in (keys, values)]
        found = self.emit(node, own.cached_attention.default, *read, *literals)
        return self.reshaped(node, found, [*shape[:-1], shape_of(found)[-1]])

    def reshaped(self, like: fx.Node, value: fx.Node, shape: list[int]) -> fx.Node:
        """A value in another shape."""
        return self.emit(like, aten.reshape.default, value, shape)

    def cached(self, node: fx.Node) -> fx.Node:
        """All positions so far of a value."""
        if node in self.keys:
            return self.keys[node]
        way = way_up(self.source, self.walked, node, self.numbers.length)
        top = way[-1]
        if top not in self.keys:
            self.keys[top] = self.cache(top, self.reach[top])
        (many,) = {shape_of(self.keys[top])[p.dim] for p in [self.walked.places[top].query] if p}
        for at in reversed(way[:-1]):
            if at not in self.keys:
                query = self.walked.places[at].query
                assert query
                self.keys[at] = self.again(at, [self.keys[n] for n in operands(at)], {query.dim: many})
        return self.keys[node]

    def cache(self, node: fx.Node, reach: int) -> fx.Node:
        """Its new positions written behind those before, in memory that is kept."""
        if not can_be_cached(self.source, self.walked, node, self.numbers.length):
            raise refused(node, "is looked at, and has positions or samples that are merged with others")
        query, (sample, _) = self.walked.places[node].query, self.samples(node)
        assert query
        shape = list(shape_of(node))
        shape[query.dim] = slots(reach, self.numbers.length, self.chunk)
        place = self.keep(f"{CACHE}{len(self.keys)}", tuple(shape), node.meta["val"].dtype)
        places = self.once(node, own.slot_places.default, self.start, self.n, shape[query.dim])
        return self.emit(node, own.extend_cache.default, place, self.values[node], places, sample, query.dim)

    def remembered(self, node: fx.Node, reader: fx.Node) -> fx.Node:
        """What a text's source has left for an op."""
        top = smallest_view(self.source, node)
        if top not in self.values:
            self.memory[top] = f"{MEMORY}{len(self.memory)}"
            self.values[top] = self.keep(self.memory[top], shape_of(top), top.meta["val"].dtype)
        if node is top:
            self.readers.setdefault(top, []).append(reader)
        if node not in self.values:
            (viewed,) = operands(node)
            self.values[node] = self.copy(node, {viewed: self.remembered(viewed, node)})
        return self.values[node]
