"""The graph that reads a source: an encoder, and what each decoder block makes of it; it leaves values, no answer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from partitioner.generating.answering_graph import Writer
from partitioner.generating.cached_values import has_own_samples
from partitioner.generating.ends import needed
from partitioner.generating.refusal import refused
from partitioner.graph.dependence import module_path
from partitioner.graph.graph import Graph
from partitioner.graph.nodes import shape_of
from partitioner.graph.step_inputs import FRESH

own = torch.ops.partitioner


class SourceGraph(Writer):
    """``memory``: what is left, of the training graph ``source``, by the name under which it is kept.

    It is stored in the module of each of its ``readers``, ops of the training graph: wherever one of them is run, in
    another pipeline stage than the others perhaps, it has what it reads. Where the module makes it, once it is made.
    """

    def __init__(self, source: Graph, memory: Mapping[fx.Node, str], readers: Mapping[fx.Node, list[fx.Node]]) -> None:
        super().__init__()
        self.source, self.memory = source, memory
        self.places: dict[fx.Node, fx.Node] = {}
        self.read_by: dict[fx.Node, list[fx.Node]] = {}
        for top, ops in readers.items():
            for op in dict.fromkeys(top if module_path(op) == module_path(top) else op for op in ops):
                self.read_by.setdefault(op, []).append(top)

    def written(self) -> fx.Graph:
        """All of it."""
        fresh = self.input(FRESH, (self.source.batch,), torch.bool)
        values: dict[fx.Node, fx.Node] = {}
        every, stored = needed(self.memory, None), list[fx.Node]()
        for node in self.source.module.graph.nodes:
            if node in every:
                values[node] = self.like(node) if node.op == "placeholder" else self.copy(node, values)
            stored += [self.stored(top, values[top], fresh, node) for top in self.read_by.get(node, ())]
        return self.finish(self.emit(stored[-1], own.done.default, stored[-1]))

    def stored(self, node: fx.Node, value: fx.Node, fresh: fx.Node, reader: fx.Node) -> fx.Node:
        if not has_own_samples(self.source, node):
            raise refused(node, "is of a source, and has samples that are merged with others")
        if node not in self.places:
            self.places[node] = self.keep(self.memory[node], shape_of(node), node.meta["val"].dtype)
        place = self.places[node]
        return self.emit(reader, own.store.default, place, value, fresh, self.source.batch_layout[node.name].dim)
