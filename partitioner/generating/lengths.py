"""A model traced at two lengths: of the longest text that is to be made, and of one position more or less.

Where it is given a source beside the text, whose length is another number, both are traced with a shorter one as well.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from partitioner.errors import InputError
from partitioner.generating.derive import Derivation
from partitioner.generating.ends import begins, check_positions, ends, needed, vocabulary
from partitioner.generating.numbers import Numbers, UnlikeLengths, at_length
from partitioner.generating.refusal import NotDerived
from partitioner.generating.tables import check_tables
from partitioner.graph.graph import Graph, placeholders
from partitioner.graph.nodes import shape_of
from partitioner.graph.resize_batch import resize
from partitioner.user_code.batches import flat

Trace = Callable[[Mapping[str, Any]], Graph]


@dataclass(frozen=True)
class Lengths:
    """The training graph of texts of ``length`` positions, and that of ``length + more``; ``shorter``: both with
    sources of one position less than ``source``, None where no source has a length of its own; ``usual``: how long
    the example's sources are."""

    graph: Graph
    other: Graph
    length: int
    more: int
    source: int | None = None
    shorter: tuple[Graph, Graph] | None = None
    usual: int | None = None

    def derivation(self, rows: int, source: int | None = None) -> Derivation:
        """How ``rows`` texts at once are made, of sources of so many positions, None: as the example has. Raises
        NotDerived, naming the op, where they can't be made position by position."""
        first, second = (resize(self._of_source(n, source or self.usual), rows) for n in (0, 1))
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

    @property
    def vocabulary(self) -> int:
        """How many tokens the model knows: 0 and up to one less than this."""
        return vocabulary(self.graph, ends(self.graph))


def lengths(batch: Mapping[str, Any], length: int, trace: Trace, optional: Collection[str] = ()) -> Lengths:
    """Of a model that is traced on a batch like ``batch`` by ``trace``, for texts of up to ``length`` positions.

    Of the inputs that are ``optional`` those without which it runs are left out (positions, masks of packed documents).
    Raises NotDerived where its ops are not the same at two lengths, or it ends in no logits, InputError where texts
    are longer than a table of positions.
    """
    if length < 2:
        raise InputError(f"a text of {length} positions: take at least 2")
    batch, seen = _least(batch, trace, optional)
    found = ends(seen)
    own, sources = shape_of(found.tokens)[1], _token_sources(seen)
    usual = sources.positions
    if apart := _apart(usual, length):
        batch = longer(batch, sources.names, apart)
    first = seen if own == length and not apart else trace(longer(batch, found.asks, length - own))
    if (made := shape_of(ends(first).tokens)[1]) != length:
        raise InputError(f"a batch of {length} positions has {made} tokens looked up")
    check_positions(first, ends(first))
    failure: UnlikeLengths | None = None
    for more in (-1, 1):
        try:
            second = trace(longer(batch, found.asks, length - own + more))
            numbers = Numbers(first.module.graph, second.module.graph, (length, length + more))
            check_tables(first, second, numbers)
            if usual is None:
                return Lengths(first, second, length, more)
            less = longer(batch, sources.names, -1)
            one, other = (trace(longer(less, found.asks, length - own + n)) for n in (0, more))
            return Lengths(first, second, length, more, usual + apart, (one, other), usual)
        except UnlikeLengths as error:
            failure = failure or error
    assert failure is not None
    raise failure


def _least(
    batch: Mapping[str, Any], trace: Trace, optional: Collection[str]
) -> tuple[Mapping[str, Any], Graph]:  # fmt: skip
    """The batch without what logits hang on beside tokens, if the model runs without; and its graph."""
    seen = trace(batch)
    for name in [n for n in optional if n in batch and n in _beside(seen, optional)]:
        less = {n: value for n, value in batch.items() if n != name}
        try:
            graph = trace(less)
            ends(graph)
        except InputError:
            continue
        batch, seen = less, graph
    return batch, seen


def _beside(graph: Graph, otherwise: Collection[str]) -> Collection[str]:
    """The inputs beside tokens on which logits hang; what is said ``otherwise`` where tokens can't be told."""
    try:
        found = ends(graph)
    except NotDerived:
        return otherwise
    read, inputs = needed([found.logits], found.tokens), placeholders(graph.module.graph, "input")
    return [n for n in graph.inputs if inputs[n] in read and n not in found.asks]


class _Sources(NamedTuple):
    """Inputs that are tokens of sources, and of how many positions: None where they differ, or there are none."""

    names: list[str]
    positions: int | None


def _token_sources(seen: Graph) -> _Sources:
    inputs, names = placeholders(seen.module.graph, "input"), _beside(seen, ())
    tokens = [n for n in names if len(shape_of(inputs[n])) == 2 and not inputs[n].meta["val"].is_floating_point()]
    sizes = {shape_of(inputs[n])[1] for n in tokens}
    return _Sources(tokens, sizes.pop() if len(sizes) == 1 else None)


def _apart(source: int | None, length: int) -> int:
    """By how many positions sources are traced longer, or shorter, for no length of theirs to be one of the texts':
    what hangs on both alike would be made once, and be other ops."""
    if source is None or not length - 1 <= source <= length + 2:
        return 0
    return (length - 2 if length > 4 else length + 3) - source


def longer(batch: Mapping[str, Any], names: Collection[str], more: int) -> dict[str, Any]:
    """The batch whose tensors of these names have ``more`` positions, begun again where they end."""
    given = flat(batch)
    tensors = dict(given.tensors)
    for name in names:
        size = tensors[name].shape[1] + more
        tensors[name] = tensors[name][:, torch.arange(size, device=tensors[name].device) % tensors[name].shape[1]]
    return given.together(tensors)


def optional_inputs(model: nn.Module) -> list[str]:
    """The arguments that a model's forward may be called without."""
    parameters = inspect.signature(model.forward).parameters.values()
    return [p.name for p in parameters if p.default is not inspect.Parameter.empty]


def of_length(batch: Mapping[str, Any], length: int, trace: Trace, optional: Collection[str] = ()) -> Graph:
    """The training graph of texts of ``length`` positions alone, of a model whose ops may be others for others."""
    batch, seen = _least(batch, trace, optional)
    found = ends(seen)
    own = shape_of(found.tokens)[1]
    graph = seen if own == length else trace(longer(batch, found.asks, length - own))
    check_positions(graph, ends(graph))
    return graph


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
