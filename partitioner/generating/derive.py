"""Graphs that answer, derived from a training graph at the length of the longest text.

    answering(n)    n positions of each text, their logits; prompts are read by many positions, answers made by one
    source()        where the model is given more than tokens: what it makes of that, once for each text

``whole_text`` keeps nothing: all positions of a text each time, where they can't be derived.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import fx, nn

from partitioner.generating.answering_graph import AnsweringGraph, Writer
from partitioner.generating.ends import Ends, ends, needed
from partitioner.generating.numbers import Numbers
from partitioner.generating.positions import Walked, walk
from partitioner.generating.refusal import refused
from partitioner.generating.source_graph import SourceGraph
from partitioner.graph.graph import Graph, gradient_free, placeholders
from partitioner.graph.nodes import op_of, operands, shape_of
from partitioner.graph.step_inputs import FRESH, LAST, START, TOKENS
from partitioner.tracing.find_blocks import find_units

own = torch.ops.partitioner


@dataclass(frozen=True)
class Derivation:
    """A training graph, of so many texts as it has samples, and how positions go through it."""

    graph: Graph
    ends: Ends
    numbers: Numbers
    walked: Walked

    @staticmethod
    def of(graph: Graph, ends: Ends, numbers: Numbers) -> Derivation:
        """Raises NotDerived, naming the op, where answers can't be made position by position."""
        return Derivation(graph, ends, numbers, walk(graph, ends, numbers))

    def answering(self, n: int, chunk: int) -> Graph:
        """The Graph of a call of ``n`` positions of each text; its output are the logits (b, 1, classes) of position
        ``last`` of each.

        It reads the inputs of graph/step_inputs.py and the parameters, among which stand what is kept from call to
        call: caches, large enough for calls of up to ``chunk`` positions, and what a source has left.
        """
        writer = self._answering(n, chunk)
        return _assembled(self.graph, writer, writer.written(), (TOKENS, START, LAST))

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """The inputs beside tokens; none of a decoder alone."""
        return tuple(n for n in self.graph.inputs if n in self.walked.given)

    def source(self) -> Graph:
        """The Graph that leaves what a source is to its text, for the rows that are ``fresh``; it returns a 0."""
        answering = self._answering(1, 1)
        answering.written()
        writer = SourceGraph(self.graph, answering.memory, answering.readers)
        return _assembled(self.graph, writer, writer.written(), (FRESH, *self.sources))

    def _answering(self, n: int, chunk: int) -> AnsweringGraph:
        return AnsweringGraph(self.graph, self.ends, self.numbers, self.walked, n, chunk)


def whole_text(graph: Graph) -> Graph:
    """The Graph of all positions of texts of the length that ``graph`` was traced at: it keeps nothing, and looks at
    what it likes. Its output are the logits (b, 1, classes) of each text's position ``last``."""
    found, writer = ends(graph), Writer()
    tokens = writer.input(TOKENS, shape_of(found.tokens), found.tokens.meta["val"].dtype)
    last, values = writer.input(LAST, (graph.batch,), torch.int64), {found.tokens: tokens}
    every = needed([found.logits], found.tokens)
    for node in (n for n in graph.module.graph.nodes if n in every and n is not found.tokens):
        values[node] = writer.like(node) if node.op == "placeholder" else writer.copy(node, values)
    sample = graph.batch_layout[found.logits.name].dim
    places = [d for d, n in enumerate(shape_of(found.logits)) if d != sample and n == shape_of(tokens)[1]]
    if len(shape_of(found.logits)) != 3 or not places:
        raise refused(found.logits, "makes logits that are not of each position")
    logits = writer.emit(found.logits, own.last_position.default, values[found.logits], last, sample, places[0])
    logits = writer.emit(found.logits, own.whole.default, logits)
    new = writer.finish(logits)
    inputs = (TOKENS, LAST, *(n for n in graph.inputs if n in placeholders(new, "input")))
    return _assembled(graph, writer, new, inputs)


def _assembled(source: Graph, writer: Writer, graph: fx.Graph, inputs: tuple[str, ...]) -> Graph:
    """What a writer has written, of a training graph."""
    graph.eliminate_dead_code(lambda n: n.op in ("placeholder", "output") or n.target in _WRITE)
    for node in list(graph.nodes):
        if node.op == "placeholder" and not node.users and node.meta["source"] not in inputs:
            graph.erase_node(node)
    read: Mapping[str, object] = placeholders(graph, "parameter") | placeholders(graph, "buffer")
    parameters = {n: replace(p, requires_grad=False) for n, p in source.parameters.items() if n in read}
    fixed, prelude = gradient_free(graph)
    return Graph(
        module=fx.GraphModule(nn.Module(), graph),
        parameters=parameters | {n: p for n, p in writer.kept.items() if n in read},
        buffers={n: b for n, b in source.buffers.items() if n in read}, inputs=inputs, batch=source.batch,
        units=find_units(graph), constants=fixed, prelude=prelude,
        batch_layout={}, batched=inputs, plain=source.plain, notes=source.notes, precision=source.precision,
    )  # fmt: skip


_WRITE = (own.store.default,)  # ops that are there for what they write
_CACHES = own.extend_cache.default


def sample_dimensions(graph: Graph) -> dict[str, int]:
    """The dimension that carries texts of each cache."""
    found = dict[str, int]()
    for node in graph.module.graph.nodes:
        if node.target == _CACHES:
            found[operands(node)[0].meta["source"]] = op_of(node).dim("sample", len(shape_of(node)))
    return found
