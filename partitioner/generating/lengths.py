"""A model traced at two lengths: of the longest text that is to be made, and of one position more or less.

Where it is given a source beside the text, whose length is another number, both are traced with a shorter one as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from partitioner.errors import InputError
from partitioner.generating.causal_masks import LOW
from partitioner.generating.derive import Derivation
from partitioner.generating.ends import begins, ends, needed
from partitioner.generating.numbers import Numbers, UnlikeLengths, at_length, sized_dimension
from partitioner.generating.refusal import refused
from partitioner.graph.dependence import constants, evaluate
from partitioner.graph.graph import Graph, placeholders
from partitioner.graph.nodes import operands, shape_of
from partitioner.graph.resize_batch import resize
from partitioner.sharding.op_rules import rule_of
from partitioner.user_code.batches import flat

aten = torch.ops.aten
NEAR = 1e-5  # numbers of tables that differ by less are the same, made by another kernel
OF_LENGTH = "hangs on the whole length of the text"
_FOLLOWED = (aten.add.Tensor, aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.to.dtype, aten.clone.default)

Trace = Callable[[Mapping[str, Any]], Graph]


@dataclass(frozen=True)
class Lengths:
    """The training graph of texts of ``length`` positions, and that of ``length + more``; ``shorter``: both with
    sources of one position less than ``source``, None where no source has a length of its own."""

    graph: Graph
    other: Graph
    length: int
    more: int
    source: int | None = None
    shorter: tuple[Graph, Graph] | None = None

    def derivation(self, rows: int, source: int | None = None) -> Derivation:
        """How ``rows`` texts at once are made, of sources of so many positions. Raises NotDerived, naming the op, where
        they can't be made position by position."""
        first, second = (resize(self._of_source(n, source), rows) for n in (0, 1))
        numbers = Numbers(first.module.graph, second.module.graph, (self.length, self.length + self.more))
        return Derivation.of(first, ends(first), numbers)

    def _of_source(self, which: int, positions: int | None) -> Graph:
        graph = (self.graph, self.other)[which]
        if positions is None or self.source is None or positions == self.source:
            return graph
        if self.shorter is None:
            raise InputError(f"sources of {positions} positions: the model takes {self.source}")
        twin = self.shorter[which].module.graph
        return at_length(graph, Numbers(graph.module.graph, twin, (self.source, self.source - 1)), positions)

    @property
    def begins(self) -> tuple[int, ...]:
        """The tokens with which the model itself begins every text; none where the user gives them."""
        return begins(self.graph, ends(self.graph))


def lengths(batch: Mapping[str, Any], length: int, trace: Trace) -> Lengths:
    """Of a model that is traced on a batch like ``batch`` by ``trace``, for texts of up to ``length`` positions.

    Raises NotDerived where its ops are not the same at two lengths, or it ends in no logits.
    """
    if length < 2:
        raise InputError(f"a text of {length} positions: take at least 2")
    seen = trace(batch)
    found = ends(seen)
    own = shape_of(found.tokens)[1]
    first = seen if own == length else trace(longer(batch, found.asks, length - own))
    if (made := shape_of(ends(first).tokens)[1]) != length:
        raise InputError(f"a batch of {length} positions has {made} tokens looked up")
    failure: UnlikeLengths | None = None
    for more in (-1, 1):
        try:
            second = trace(longer(batch, found.asks, length - own + more))
            numbers = Numbers(first.module.graph, second.module.graph, (length, length + more))
            _check_tables(first, second, numbers)
            sources = _source_lengths(seen, batch, length - own, (0, more), trace)
            return Lengths(first, second, length, more, *sources)
        except UnlikeLengths as error:
            failure = failure or error
    assert failure is not None
    raise failure


def _check_tables(first: Graph, second: Graph, numbers: Numbers) -> None:
    """Raises NotDerived, naming the op, where a table has no row for a position, or what is made of no token is another
    for texts of another length: answers would hang on the length of the longest text."""
    found = ends(first)
    fixed, wanted = constants(first.module.graph), needed([found.logits], found.tokens)
    for node in (n for n in first.module.graph.nodes if n in wanted and n.op == "call_function"):
        _check_rows(first, fixed, node)
        if node not in fixed and any(sized_dimension(node, place) is None for place in numbers.differing(node)):
            raise refused(node, OF_LENGTH)
    other = {numbers.twin[n] for n in fixed}
    for node in (n for n in fixed & wanted if any(u in wanted and u not in fixed for u in n.users)):
        twin = numbers.twin[node]
        here = evaluate(first.module.graph, fixed, {node}, first.buffers)[node]
        there = evaluate(second.module.graph, other, {twin}, second.buffers)[twin]
        if here.dim() != there.dim():
            raise refused(node, OF_LENGTH)
        both = tuple(slice(0, min(sizes)) for sizes in zip(here.shape, there.shape, strict=True))
        if not _alike(here[both], there[both]) and not (
            _moves_rows(here[both], there[both]) and _is_forgotten(node, wanted)
        ):
            raise refused(node, OF_LENGTH)


def _check_rows(graph: Graph, fixed: set[fx.Node], node: fx.Node) -> None:
    if node.target != aten.embedding.default or (index := operands(node)[1]) not in fixed:
        return
    rows = shape_of(operands(node)[0])[0]
    last = int(evaluate(graph.module.graph, fixed, {index}, graph.buffers)[index].max())
    if last >= rows:
        raise refused(node, f"looks up row {last} of a table of {rows}")


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.is_floating_point() or a.is_complex():
        return torch.allclose(a, b, NEAR, NEAR, equal_nan=True)
    return torch.equal(a, b)


def _moves_rows(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tables differ by one number for each row, where they hide nothing."""
    if not a.is_floating_point() or a.dim() == 0 or not torch.equal(a > LOW, b > LOW):
        return False
    apart, seen = a - b, a > LOW
    most, least = apart.where(seen, -math.inf).amax(-1), apart.where(seen, math.inf).amin(-1)
    return bool((most - least <= NEAR * (1 + a.where(seen, 0).abs().amax())).all())


def _is_forgotten(node: fx.Node, wanted: set[fx.Node]) -> bool:
    """Whether all that sees a table is a softmax over its last dimension, which forgets what all of a row has more."""
    work = [user for user in node.users if user in wanted]
    for at in work:
        rule = rule_of(str(at.target))
        if rule and rule.attention:
            if at.args[3] is not node:
                return False
        elif at.target == aten.softmax.int:
            if at.args[1] not in (-1, len(shape_of(at)) - 1):
                return False
        elif at.target in _FOLLOWED:
            work += [user for user in at.users if user in wanted and user not in work]
        else:
            return False
    return True


def _source_lengths(
    seen: Graph, batch: Mapping[str, Any], grown: int, more: tuple[int, int], trace: Trace
) -> tuple[int | None, tuple[Graph, Graph] | None]:
    """How long sources are, and both graphs with shorter ones, where the model runs with such."""
    found = ends(seen)
    read = needed([found.logits], found.tokens)
    inputs = placeholders(seen.module.graph, "input")
    names = [n for n in seen.inputs if inputs[n] in read and n not in found.asks]
    tokens = [n for n in names if len(shape_of(inputs[n])) == 2 and not inputs[n].meta["val"].is_floating_point()]
    sizes = {shape_of(inputs[n])[1] for n in tokens}
    if len(sizes) != 1:
        return None, None
    (size,) = sizes
    less = longer(batch, tokens, -1)
    return size, tuple(trace(longer(less, found.asks, grown + n)) for n in more)  # type: ignore[return-value]


def longer(batch: Mapping[str, Any], names: Collection[str], more: int) -> dict[str, Any]:
    """The batch whose tensors of these names have ``more`` positions, begun again where they end."""
    given = flat(batch)
    tensors = dict(given.tensors)
    for name in names:
        size = tensors[name].shape[1] + more
        tensors[name] = tensors[name][:, torch.arange(size, device=tensors[name].device) % tensors[name].shape[1]]
    return given.together(tensors)


@contextmanager
def answering(model: nn.Module) -> Generator[None]:
    """In it nothing of ``model`` trains and it is in eval mode; afterwards all is as it was."""
    modes = {module: module.training for module in model.modules()}
    trained = [p for p in model.parameters() if p.requires_grad]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, is_training in modes.items():
            module.training = is_training
        for parameter in trained:
            parameter.requires_grad_(True)
