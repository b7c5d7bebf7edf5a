"""The laws that a number may follow with the batch size: what two traces tell of it, and it as a function of samples.

    4, 5          n             as many as samples           -1/4, -1/5     1/n
    16, 25        n n           pairs of samples             6, 10          n (n - 1) / 2      pairs of two
    19, 24        5 n - 1       an integer that grows by 5 with each
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import fx

from partitioner.constants import module_path
from partitioner.errors import InputError
from partitioner.shapes import emit
from partitioner.step_inputs import sample_count

aten = torch.ops.aten
Sizes = tuple[int, int]
Number = Callable[[fx.Graph, fx.Node, torch.dtype], fx.Node]


def module_name(node: fx.Node) -> str:
    """The module whose forward made a node."""
    return ".".join(module_path(node)[-1:]) or "the model"


def expected(x: float, y: float, sizes: Sizes, samples: int) -> float | None:
    """The number for ``samples`` that is ``x`` for the first size and ``y`` for the second, by the law it follows."""
    if x == y:
        return x
    n, _ = sizes
    for basis, _ in _BASES:
        if _follows(x, y, basis, sizes):
            return x * basis(samples) / basis(n)
    slope = _slope(x, y, sizes)
    return None if slope is None else x + slope * (samples - n)


def _follows(x: float, y: float, basis: Callable[[int], float], sizes: Sizes) -> bool:
    return math.isclose(x * basis(sizes[1]), y * basis(sizes[0]), rel_tol=1e-12)


def _slope(x: float, y: float, sizes: Sizes) -> int | None:
    """By how much an integer grows with each sample, if evenly."""
    n, m = sizes
    evenly = isinstance(x, int) and isinstance(y, int) and (y - x) % (m - n) == 0
    return int(y - x) // (m - n) if evenly else None


def number_of(x: float, y: float, sizes: Sizes, node: fx.Node) -> Number:
    """A number that is ``x`` for the first size and ``y`` for the second, as a function of the samples."""
    n, m = sizes
    for basis, build in _BASES:
        if _follows(x, y, basis, sizes):
            factor = x // basis(n) if isinstance(x, int) and x % basis(n) == 0 else x / basis(n)
            return lambda graph, like, dtype: _times(graph, like, build(graph, like, dtype), factor)
    if (slope := _slope(x, y, sizes)) is not None:
        return lambda graph, like, dtype: emit(
            graph, like, aten.add.Tensor, _times(graph, like, _samples(graph, like, dtype), slope), x - slope * n
        )
    raise InputError(
        f"{node.target} in {module_name(node)} has the number {x} for {n} samples and {y} for {m}: of the batch size "
        "only multiples, multiples of its reciprocal and of the number of pairs, and integers that grow with it evenly "
        "are understood"
    )


def _samples(graph: fx.Graph, like: fx.Node, dtype: torch.dtype) -> fx.Node:
    samples = sample_count(graph)
    return emit(graph, like, aten.to.dtype, samples, dtype) if dtype.is_floating_point else samples


def _squared(graph: fx.Graph, like: fx.Node, dtype: torch.dtype) -> fx.Node:
    samples = _samples(graph, like, dtype)
    return emit(graph, like, aten.mul.Tensor, samples, samples)


def _pairs(graph: fx.Graph, like: fx.Node, dtype: torch.dtype) -> fx.Node:
    samples = _samples(graph, like, dtype)
    return emit(graph, like, aten.mul.Tensor, samples, emit(graph, like, aten.add.Tensor, samples, -1))


def _reciprocal(graph: fx.Graph, like: fx.Node, dtype: torch.dtype) -> fx.Node:
    wide = dtype if dtype.is_floating_point else torch.float32
    return emit(graph, like, aten.reciprocal.default, _samples(graph, like, wide))


_BASES: tuple[tuple[Callable[[int], float], Number], ...] = (
    (lambda n: n, _samples),
    (lambda n: 1 / n, _reciprocal),
    (lambda n: n * n, _squared),
    (lambda n: n * (n - 1), _pairs),
)


def _times(graph: fx.Graph, like: fx.Node, node: fx.Node, factor: float) -> fx.Node:
    return node if factor == 1 else emit(graph, like, aten.mul.Tensor, node, factor)
