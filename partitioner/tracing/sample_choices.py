"""Which inputs carry samples: a batch does not say, so choices are tried until the graph of one holds.

    x (4, 4), labels (4, 4), cos (4, 8), sin (4, 8)     4 samples of 4 tokens, or tables of 4 rows
    all of them            the first choice: whatever is as long as the batch
    x, labels              where that is refused or mixes samples: cos and sin are then the same for all samples

An input that is wrongly taken for one without samples is read whole, as the eager module reads it; a run refuses it
where it has another shape than the example's or is not the same on all data ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from partitioner.errors import InputError
from partitioner.graph.dependence import input_free, parameter_free
from partitioner.graph.graph import Graph
from partitioner.samples.sample_inputs import UnlikeBatches
from partitioner.tracing.capture import Example

MOST_CHOICES = 64  # that are tried of one model


@dataclass(frozen=True)
class Traced:
    """The graph of one choice; ``read``: the inputs of which the first op that mixes samples, if any, takes rows."""

    graph: Graph
    read: frozenset[str] = frozenset()


Attempt = Callable[[Example], Traced]


def first_that_holds(given: Example, attempt: Attempt) -> Graph:
    """The first choice that keeps samples apart, else the first that is not refused; raises the first refusal."""
    failure: InputError | None = None
    second: Graph | None = None
    for start in (given, *_other_sizes(given)):
        choices = _Choices(start)
        for choice in choices:
            try:
                traced = attempt(choice)
            except InputError as error:
                failure = failure or error
                choices.fewer(choice, error.read if isinstance(error, UnlikeBatches) else frozenset())
                continue
            works = _works_on_samples(traced.graph)
            if works and traced.graph.inseparable is None:
                return traced.graph
            second = second or (traced.graph if works or choice is given else None)
            if second is not None and works and not traced.read:
                return second  # it mixes samples by itself, not by rows of a table
            choices.fewer(choice, traced.read)
    if second is None:
        assert failure is not None
        raise failure
    return second


def _works_on_samples(graph: Graph) -> bool:
    """Whether most of what is made of inputs carries samples, or the batch is but an input at the side."""
    nodes = graph.module.graph
    fixed = input_free(nodes) | parameter_free(nodes)
    sizes = [(n.name, n.meta["val"].numel()) for n in nodes.nodes if n.op == "call_function" and n not in fixed]
    return 2 * sum(size for name, size in sizes if name in graph.batch_layout) >= sum(size for _, size in sizes)


class _Choices:
    """Examples with ever fewer inputs that carry samples, the likely ones first."""

    def __init__(self, start: Example) -> None:
        self.likely, self.others = [start], list[Example]()
        self.seen = {start.long}

    def __iter__(self) -> Iterator[Example]:
        for _ in range(MOST_CHOICES):
            if not self.likely and not self.others:
                return
            yield (self.likely or self.others).pop(0)

    def fewer(self, choice: Example, read: frozenset[str]) -> None:
        """Go on with ``choice`` less each input of ``read``; where that says nothing, less those of a shape."""
        singles = [(n,) for n in choice.long if n in read] if read else [(n,) for n in choice.long]
        self._add(choice, singles if read else _alike(choice), self.likely)
        self._add(choice, singles, self.others)

    def _add(self, choice: Example, without: list[tuple[str, ...]], queue: list[Example]) -> None:
        for names in without:
            left = tuple(n for n in choice.long if n not in names)
            if left and left not in self.seen:
                self.seen.add(left)
                queue.append(replace(choice, long=left))


def _alike(choice: Example) -> list[tuple[str, ...]]:
    """Inputs by shape and dtype: those of tokens and labels, of two tables."""
    found: dict[object, list[str]] = {}
    for name in choice.long:
        tensor = choice.flat.tensors[name]
        found.setdefault((tensor.shape, tensor.dtype), []).append(name)
    return [tuple(names) for names in found.values()]


def _other_sizes(given: Example) -> list[Example]:
    """The batch as one of as many samples as other inputs are long (tables outnumber the samples' tensors)."""
    lengths: dict[int, list[str]] = {}
    for name, tensor in given.flat.tensors.items():
        if tensor.dim() and name not in given.long:
            lengths.setdefault(tensor.shape[0], []).append(name)
    found: list[Example] = []
    for length, names in lengths.items():
        tensors = given.flat.tensors
        if length == 1:
            tensors = {n: torch.cat([t, t]) if n in names else t for n, t in tensors.items()}
        if length:
            found.append(Example(replace(given.flat, tensors=tensors), max(length, 2), tuple(names)))
    return found
