"""The plain model's training steps on one process: the graph interpreted, no rule and no lowering touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from partitioner.graph.graph import Graph
from partitioner.graph.interpret import interpret, samples_of
from partitioner.graph.resize_batch import resize


@dataclass(frozen=True)
class Steps:
    """What the first step gave (loss, every gradient as it came, their norm) and the parameters after all steps."""

    loss: float
    gradients: dict[str, torch.Tensor]
    norm: float
    parameters: dict[str, torch.Tensor]


def train(
    graph: Graph,
    start: Mapping[str, torch.Tensor],
    batch: Mapping[str, torch.Tensor],
    steps: int,
    clip: float,
    lr: float,
    seed: int = 0,
) -> Steps:
    """``steps`` AdamW steps on one batch from the parameters ``start``; dropout draws the masks of every plan."""
    graph = resize(graph, samples_of(graph, batch))
    parameters = {n: nn.Parameter(start[n].clone(), p.requires_grad) for n, p in graph.parameters.items()}
    trained = [p for p in parameters.values() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr)
    first: tuple[float, dict[str, torch.Tensor], float] | None = None
    for step in range(steps):
        optimizer.zero_grad()
        loss = interpret(graph, parameters, batch, seed, step)
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in parameters.items() if p.grad is not None}
        norm = float(torch.nn.utils.clip_grad_norm_(trained, clip))
        first = first or (float(loss.detach()), gradients, norm)
        optimizer.step()
    assert first is not None
    return Steps(*first, {n: p.detach() for n, p in parameters.items()})
