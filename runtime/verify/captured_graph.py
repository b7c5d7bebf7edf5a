"""The traced graph against the eager module in the model's own dtypes; how far apart they may be follows from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from partitioner.graph.graph import Graph
from partitioner.graph.interpret import interpret, samples_of
from partitioner.graph.resize_batch import resize
from partitioner.tracing.cast_parameters import computing_in
from partitioner.user_code.batches import flat
from partitioner.user_code.compiled import written_parameters
from runtime.verify.eager_steps import first_step, steps_in_float64
from runtime.verify.parity import difference
from runtime.verify.plain_steps import Steps

ROUNDING = 8  # times what eager rounds by itself: a graph may add in another order than its module
FEWEST = 16  # units in the last place, where eager happens to round less


@dataclass(frozen=True)
class Captured:
    """The largest relative error of loss and gradients, what eager itself is off float64, and what is a difference.

    ``dtype`` is the lowest that the module makes; a limit is at most the square root of its unit, so that a module
    whose numbers jump (experts chosen by a hair) is not free to differ at will.
    """

    error: float
    rounded: float
    dtype: torch.dtype
    worst: str

    @property
    def limit(self) -> float:
        """The largest error that is rounding."""
        unit = torch.finfo(self.dtype).eps
        return min(max(ROUNDING * self.rounded, FEWEST * unit), math.sqrt(unit))

    @property
    def passed(self) -> bool:
        """Whether graph and module are the same but for rounding."""
        return self.error <= self.limit


def captured(module: nn.Module, graph: Graph, batch: Mapping[str, Any]) -> Captured:
    """Graph and module on ``batch``, of any size; what is random both draw by the same keys."""
    exact = steps_in_float64(module, graph, batch, 1)
    with computing_in(module, graph.precision) as cast:
        own, made = first_step(cast, graph, batch), _graph_step(cast, graph, flat(batch).tensors)
    found = difference(made, own.steps)
    rounded = difference(own.steps, exact.steps)
    dtype = max(own.made or {torch.float32}, key=lambda made: torch.finfo(made).eps)
    return Captured(max(found.loss, found.gradient), max(rounded.loss, rounded.gradient), dtype, found.worst)


def _graph_step(module: nn.Module, graph: Graph, batch: Mapping[str, torch.Tensor]) -> Steps:
    """Loss and gradients of the graph at the batch's size; nothing is updated."""
    graph = resize(graph, samples_of(graph, batch))
    own = written_parameters(module)
    copies = {n: own[n].detach().clone().requires_grad_(p.requires_grad) for n, p in graph.parameters.items()}
    loss = interpret(graph, copies, batch)
    loss.backward()
    gradients = {n: p.grad for n, p in copies.items() if p.grad is not None}
    return Steps(float(loss.detach()), gradients, math.nan, {n: p.detach() for n, p in copies.items()})
