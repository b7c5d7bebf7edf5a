"""The traced graph run by the plain fx interpreter, the model run eagerly, and the distance between the two."""

from __future__ import annotations

from functools import cache

import torch
from models import make
from torch import nn

from partitioner.graph import interpret as interpreter
from partitioner.graph.graph import Graph
from partitioner.tracing.trace import trace

Result = tuple[torch.Tensor, dict[str, torch.Tensor]]


@cache
def traced(name: str, dropout: float = 0.0) -> tuple[nn.Module, Graph]:
    """One of the fifteen models and its graph, made once for all tests."""
    model, batch = make(name, dropout=dropout)
    return model, trace(model, batch, compare=False)


def interpret(graph: Graph, model: nn.Module, batch: dict[str, torch.Tensor]) -> Result:
    """The loss and every gradient, by running the graph node by node with the model's own weights."""
    tensors = dict(model.named_parameters(remove_duplicate=False))
    weights = {n: tensors[n].detach().clone().requires_grad_(p.requires_grad) for n, p in graph.parameters.items()}
    loss = interpreter.interpret(graph, weights, batch, 7)
    loss.backward()
    return loss.detach(), {name: w.grad for name, w in weights.items() if w.grad is not None}


def run_eagerly(model: nn.Module, batch: dict[str, torch.Tensor]) -> Result:
    """The loss and every gradient of the model as it is."""
    model.zero_grad(set_to_none=True)
    output = model(**batch)
    loss = output if isinstance(output, torch.Tensor) else output.loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def error(a: Result, b: Result) -> float:
    """The largest relative error of the loss or of a gradient, each relative to its own largest element."""
    assert a[1].keys() == b[1].keys()
    sizes = sorted(float(g.abs().max()) for g in b[1].values())
    floor = 1e-3 * sizes[len(sizes) // 2]
    errors = [float((a[1][n] - g).abs().max()) / max(float(g.abs().max()), floor) for n, g in b[1].items()]
    return max(*errors, float((a[0] - b[0]).abs() / b[0].abs()))
