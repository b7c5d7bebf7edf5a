"""The plain model's training steps on one process: the graph interpreted, no rule and no lowering touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx, nn

from partitioner.batch import resize
from partitioner.graph import Graph
from partitioner.losses import count_targets
from partitioner.ops import mix64
from runtime.resample import carriers


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
        loss = run(graph, parameters, batch, seed, step)
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in parameters.items() if p.grad is not None}
        norm = float(torch.nn.utils.clip_grad_norm_(trained, clip))
        first = first or (float(loss.detach()), gradients, norm)
        optimizer.step()
    assert first is not None
    return Steps(*first, {n: p.detach() for n, p in parameters.items()})


def run(
    graph: Graph,
    parameters: Mapping[str, torch.Tensor],
    batch: Mapping[str, torch.Tensor],
    seed: int = 0,
    step: int = 0,
) -> torch.Tensor:
    """The loss of the graph's batch, by torch.fx.Interpreter."""
    result = fx.Interpreter(graph.module).run(*arguments(graph, parameters, inputs(graph, batch, seed, step)))
    return result[0] if isinstance(result, tuple | list) else result


def samples_of(graph: Graph, batch: Mapping[str, torch.Tensor]) -> int:
    """How many samples a batch has; inputs that have no row a sample do not tell."""
    rows = (batch[n].shape[0] for n in sorted(carriers(graph)) if n in batch)
    return next(rows, graph.batch)


def inputs(graph: Graph, batch: Mapping[str, torch.Tensor], seed: int = 0, step: int = 0) -> dict[str, torch.Tensor]:
    """The batch, its samples' dropout keys and the number of its counted targets."""
    values = dict(batch)
    values["sample_keys"] = torch.tensor([mix64(seed, step, g) for g in range(graph.batch)], dtype=torch.int64)
    counter, names = count_targets(graph.module.graph)
    if counter is not None:
        given = {f"buffer:{n}": b for n, b in graph.buffers.items()} | values
        values["loss_count"] = counter(*(given[n] for n in names)).double()
    return values


def arguments(
    graph: Graph, parameters: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]
) -> list[torch.Tensor]:
    """What the graph's placeholders stand for, in order."""
    tables = {"parameter": parameters, "buffer": graph.buffers, "input": values}
    nodes = [n for n in graph.module.graph.nodes if n.op == "placeholder"]
    return [tables[n.meta["kind"]][n.meta["source"]] for n in nodes]


__all__ = ["Steps", "arguments", "inputs", "run", "samples_of", "train"]
