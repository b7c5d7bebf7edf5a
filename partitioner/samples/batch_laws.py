"""How a number of a traced graph follows from the batch size: told from two captures, held against a third.

    4 samples   5 samples   law                       at 64 samples
    64          80          16 x samples              1,024
    1/4         1/5         1 / samples               1/64
    3           4           samples - 1               63
    4           5           samples                   6: ``min(samples, 6)`` is no such law, and is refused
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from partitioner.errors import InputError
from partitioner.graph.dependence import module_of
from partitioner.graph.nodes import emit
from partitioner.graph.step_inputs import sample_count
from partitioner.samples.paired_captures import Sizes

aten = torch.ops.aten
Buffers = dict[str, torch.Tensor]
_COUNTING = (aten.arange.default, aten.arange.start, aten.arange.start_step)  # their numbers are sizes


@dataclass(frozen=True)
class Law:
    """``factor * samples ** power + constant``; a power is 1 or -1."""

    power: int
    factor: float
    constant: int = 0

    def at(self, samples: int) -> float:
        """The number for so many samples."""
        return self.factor * samples**self.power + self.constant

    def emit(self, graph: fx.Graph, like: fx.Node, dtype: torch.dtype) -> fx.Node:
        """The number for the step's samples, as a scalar tensor of ``dtype`` (a reciprocal is no integer)."""
        if self.power == 1:
            value = _samples(graph, like, dtype)
        else:
            wide = dtype if dtype.is_floating_point else torch.float32
            value = emit(graph, like, aten.reciprocal.default, _samples(graph, like, wide))
        value = value if self.factor == 1 else emit(graph, like, aten.mul.Tensor, value, self.factor)
        return emit(graph, like, aten.add.Tensor, value, self.constant) if self.constant else value


def _samples(graph: fx.Graph, like: fx.Node, dtype: torch.dtype) -> fx.Node:
    samples = sample_count(graph)
    return emit(graph, like, aten.to.dtype, samples, dtype) if dtype.is_floating_point else samples


def law_of(x: float, y: float, sizes: Sizes, node: fx.Node) -> Law:
    """Of a number of ``node`` that is ``x`` for the first size and ``y`` for the second; raises InputError."""
    n, m = sizes
    if math.isclose(x * m, y * n, rel_tol=1e-12):
        return Law(1, x // n if isinstance(x, int) and x % n == 0 else x / n)
    if math.isclose(x * n, y * m, rel_tol=1e-12):
        return Law(-1, x * n)
    if isinstance(x, int) and isinstance(y, int) and (y - x) % (m - n) == 0:
        slope = (y - x) // (m - n)
        return Law(1, slope, x - slope * n)
    raise InputError(
        f"{node.target} in {module_of(node)} has the number {x} for {n} samples and {y} for {m}: of the batch size "
        "only multiples, multiples of its reciprocal and integers that grow with it evenly are understood"
    )


def is_size(node: fx.Node, path: tuple[Any, ...]) -> bool:
    """Whether the argument at a path of the tree (args, kwargs) counts elements, and is no value."""
    if node.target in _COUNTING:
        return True
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return False
    which, key = path[0].idx, path[1]
    argument = schema.arguments[key.idx] if which == 0 else next(a for a in schema.arguments if a.name == key.key)
    return "int" in str(argument.type)
