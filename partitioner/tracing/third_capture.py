"""A capture at the size that will be trained, held against what two captures at small sizes foretell of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from partitioner.errors import InputError
from partitioner.graph.dependence import module_of
from partitioner.samples.batch_laws import is_size, law_of
from partitioner.samples.paired_captures import pairs, unlike
from partitioner.tracing.capture import Captured, Example, capture
from partitioner.tracing.repeated_modules import Run

Captures = tuple[Captured, Captured, Captured]
Nodes = tuple[fx.Node, fx.Node, fx.Node]
Samples = tuple[int, int, int]


def check_at(
    samples: int, model: nn.Module, two: tuple[Captured, Captured], batches: tuple[Example, Example],
    runs: tuple[Run, ...],
) -> None:  # fmt: skip
    """Whether ``model`` does with so many samples what it does with few: the same ops, sizes and numbers by one law.

    ``two`` captures of the ``batches``, not rewritten yet. Raises InputError naming the op that is another, its module.
    """
    first, more = batches
    grown = tuple(n for n, t in more.flat.tensors.items() if t.shape != first.flat.tensors[n].shape)
    third = capture(model, first.hollow(samples, grown), runs, [])
    _check_laws((*two, third), (first.samples, more.samples, samples))


def _check_laws(captures: Captures, samples: Samples) -> None:
    graphs, ends = [c.module.graph for c in captures], (samples[0], samples[2])
    others = dict(pairs(graphs[0], graphs[2], ends))
    for a, b in pairs(graphs[0], graphs[1], samples[:2]):
        nodes = a, b, others[a]
        for x, y, z, size in (*_sizes(nodes, samples), *_constants(nodes, captures), *_numbers(nodes, samples)):
            if not _follows(x, y, z, size, samples, a):
                raise InputError(
                    f"{a.target} in {module_of(a)} has the number {x} for {ends[0]} samples, {y} for {samples[1]} and "
                    f"{z} for {ends[1]}: a number that follows from the batch size must do so by one law for all sizes"
                )


Number = tuple[Any, Any, Any, bool]  # what three captures of an op have of it, and whether it is a size


def _sizes(nodes: Nodes, samples: Samples) -> Iterator[Number]:
    """Of what an op makes."""
    if not isinstance(nodes[0].meta.get("val"), torch.Tensor):
        return
    shapes = [n.meta["val"].shape for n in nodes]
    if len({len(shape) for shape in shapes}) > 1:
        raise unlike(nodes[0], nodes[2], (samples[0], samples[2]))
    for x, y, z in zip(*shapes, strict=True):
        yield x, y, z, True


def _constants(nodes: Nodes, captures: Captures) -> Iterator[Number]:
    """A scalar that forward makes of a number of Python."""
    if nodes[0].op != "placeholder" or nodes[0].meta["kind"] != "buffer":
        return
    x, y, z = (c.buffers[n.meta["source"]] for c, n in zip(captures, nodes, strict=True))
    if x.dim() == 0 and not (x.is_meta or y.is_meta or z.is_meta):
        yield x.item(), y.item(), z.item(), False


def _numbers(nodes: Nodes, samples: Samples) -> Iterator[Number]:
    """Among an op's arguments."""
    if nodes[0].op != "call_function":
        return
    trees = [pytree.tree_flatten_with_path((n.args, n.kwargs)) for n in nodes]
    if len({str(spec) for _, spec in trees}) > 1:
        raise unlike(nodes[0], nodes[2], (samples[0], samples[2]))
    for (path, x), (_, y), (_, z) in zip(*(leaves for leaves, _ in trees), strict=True):
        if not isinstance(x, fx.Node):
            yield x, y, z, is_size(nodes[0], path)


def _follows(x: Any, y: Any, z: Any, size: bool, samples: Samples, node: fx.Node) -> bool:
    """Whether the third is what the first two foretell."""
    n, m, last = samples
    if x == y or x != x or not isinstance(x, int | float):
        return bool(x == z or x != x and z != z)
    if size:
        return bool(x + Fraction(y - x, m - n) * (last - n) == z)
    return math.isclose(law_of(x, y, (n, m), node).at(last), z, rel_tol=1e-12)
