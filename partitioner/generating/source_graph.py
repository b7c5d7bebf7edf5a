"""The graph that reads a source: an encoder, and what each decoder block makes of it; it leaves values, no answer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from partitioner.generating.answering_graph import Writer
from partitioner.generating.cached_values import has_own_samples
from partitioner.generating.ends import needed
from partitioner.generating.refusal import refused
from partitioner.graph.graph import Graph
from partitioner.graph.nodes import shape_of
from partitioner.graph.step_inputs import FRESH

own = torch.ops.partitioner


class SourceGraph(Writer):
    """``memory``: what is left, of the training graph ``source``, by the name under which it is kept."""

    def __init__(self, source: Graph, memory: Mapping[fx.Node, str]) -> None:
        super().__init__()
        self.source, self.memory = source, memory

    def written(self) -> fx.Graph:
        """All of it."""
        fresh = self.input(FRESH, (self.source.batch,), torch.bool)
        values: dict[fx.Node, fx.Node] = {}
        every, stored = needed(self.memory, None), list[fx.Node]()
        for node in self.source.module.graph.nodes:
            if node not in every:
                continue
            values[node] = self.like(node) if node.op == "placeholder" else self.copy(node, values)
            if node in self.memory:
                stored.append(self.stored(node, values[node], fresh))
        return self.finish(self.emit(stored[-1], own.done.default, stored[-1]))

    def stored(self, node: fx.Node, value: fx.Node, fresh: fx.Node) -> fx.Node:
        if not has_own_samples(self.source, node):
            raise refused(node, "is of a source, and has samples that are merged with others")
        place = self.keep(self.memory[node], shape_of(node), node.meta["val"].dtype)
        return self.emit(node, own.store.default, place, value, fresh, self.source.batch_layout[node.name].dim)
