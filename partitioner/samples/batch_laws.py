"""The laws that a number may follow with the batch size: told from two captures, then a function of the samples.

    at 4     at 5     law                             at 64
    64       80       16 n                            1,024
    1/4      1/5      1 / n                           1/64
    16       25       n n, pairs of samples           4,096
    6        10       n (n - 1) / 2, pairs of two     2,016
    19       24       5 n - 1                         319
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import fx

from partitioner.errors import InputError
from partitioner.graph.dependence import module_of
from partitioner.graph.nodes import emit
from partitioner.graph.step_inputs import sample_count
from partitioner.samples.paired_captures import Sizes

aten = torch.ops.aten
Build = Callable[[fx.Graph, fx.Node, torch.dtype], fx.Node]


def _samples(graph: fx.Graph, like: fx.Node, dtype: torch.dtype) -> fx.Node:
    samples = sample_count(graph)
    return emit(graph, like, aten.to.dtype, samples, dtype) if dtype.is_floating_point else samples


def _reciprocal(graph: fx.Graph, like: fx.Node, dtype: torch.dtype) -> fx.Node:
    wide = dtype if dtype.is_floating_point else torch.float32
    return emit(graph, like, aten.reciprocal.default, _samples(graph, like, wide))


def _squared(graph: fx.Graph, like: fx.Node, dtype: torch.dtype) -> fx.Node:
    samples = _samples(graph, like, dtype)
    return emit(graph, like, aten.mul.Tensor, samples, samples)


def _pairs(graph: fx.Graph, like: fx.Node, dtype: torch.dtype) -> fx.Node:
    samples = _samples(graph, like, dtype)
    return emit(graph, like, aten.mul.Tensor, samples, emit(graph, like, aten.add.Tensor, samples, -1))


class Basis(NamedTuple):
    """What a law is a multiple of: for so many samples, and in a graph."""

    at: Callable[[int], float]
    build: Build


_SAMPLES = Basis(lambda n: n, _samples)
_BASES = (
    _SAMPLES, Basis(lambda n: 1 / n, _reciprocal), Basis(lambda n: n * n, _squared),
    Basis(lambda n: n * (n - 1), _pairs),
)  # fmt: skip


@dataclass(frozen=True)
class Law:
    """``factor`` times a basis, plus ``constant``."""

    basis: Basis
    factor: float
    constant: int = 0

    def at(self, samples: int) -> float:
        """The number for so many samples."""
        return self.factor * self.basis.at(samples) + self.constant

    def emit(self, graph: fx.Graph, like: fx.Node, dtype: torch.dtype) -> fx.Node:
        """The number for the step's samples, as a scalar tensor of ``dtype`` (a reciprocal is no integer)."""
        value = self.basis.build(graph, like, dtype)
        value = value if self.factor == 1 else emit(graph, like, aten.mul.Tensor, value, self.factor)
        return emit(graph, like, aten.add.Tensor, value, self.constant) if self.constant else value


def law_of(x: float, y: float, sizes: Sizes) -> Law | None:
    """Of a number that is ``x`` for the first size and ``y``, another, for the second; None where it follows none."""
    n, m = sizes
    for basis in _BASES:
        one, other = basis.at(n), basis.at(m)
        if math.isclose(x * other, y * one, rel_tol=1e-12):
            return Law(basis, x // one if isinstance(x, int) and x % one == 0 else x / one)
    if isinstance(x, int) and isinstance(y, int) and (y - x) % (m - n) == 0:
        slope = (y - x) // (m - n)
        return Law(_SAMPLES, slope, x - slope * n)
    return None


def known_law(x: float, y: float, sizes: Sizes, node: fx.Node) -> Law:
    """``law_of`` a number of ``node``; raises InputError where it follows none."""
    law = law_of(x, y, sizes)
    if law is None:
        raise InputError(
            f"{node.target} in {module_of(node)} has the number {x} for {sizes[0]} samples and {y} for {sizes[1]}: of "
            "the batch size only multiples, multiples of its reciprocal and of the number of pairs, and integers that "
            "grow with it evenly are understood"
        )
    return law
