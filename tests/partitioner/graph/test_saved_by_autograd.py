"""What is declared to be kept is what autograd keeps, of ops that have no rule too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from partitioner import trace
from partitioner.graph.graph import has_gradient
from partitioner.graph.saved_by_autograd import hidden, hides, saved, saved_bytes


class Gate(torch.autograd.Function):
    """Keeps its first operand and something of its own: not the second, nor the result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, torch.sigmoid(y) > 0.5)
        return x.abs() + y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, mask = ctx.saved_tensors
        return grads[0] * x.sign(), grads[0] * mask


class Free(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return grads[0], grads[0]


class Model(nn.Module):
    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.function, self.a, self.b = function, nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.function.apply(self.a(x), self.b(x)).sum()


def test_a_function_is_watched() -> None:
    graph = trace(Model(Gate), {"x": torch.randn(2, 6)}, compare=False)
    nodes, differentiable = graph.module.graph, has_gradient(graph.module.graph)
    (gate,) = (n for n in nodes.nodes if "Gate" in str(n.target))
    assert saved(gate, differentiable) == [gate.args[0]]
    assert hides(gate)
    assert hidden(gate) == 2 * 6  # a mask of bools
    assert saved_bytes(nodes, differentiable)[gate] == 2 * 6 * 4 + 2 * 6


def test_one_that_keeps_nothing_keeps_nothing() -> None:
    graph = trace(Model(Free), {"x": torch.randn(2, 6)}, compare=False)
    nodes, differentiable = graph.module.graph, has_gradient(graph.module.graph)
    (free,) = (n for n in nodes.nodes if "Free" in str(n.target))
    assert saved(free, differentiable) == []
    assert not hides(free)
