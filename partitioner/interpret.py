"""A Graph run op by op on one process, on real tensors: its batch is the whole global batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from partitioner.graph import Graph
from partitioner.step_inputs import BATCH_SHARE, SAMPLE_COUNT, SAMPLE_KEYS

Named = Mapping[str, torch.Tensor]


def interpret(graph: Graph, parameters: Named, batch: Named, keys: torch.Tensor) -> torch.Tensor:
    """The loss. ``keys`` (int64, (b,)) are the samples' keys, from which all that is random is drawn."""
    result = fx.Interpreter(graph.module).run(*arguments(graph, parameters, step_values(graph, batch, keys)))
    return result[0] if isinstance(result, tuple | list) else result


def step_values(graph: Graph, batch: Named, keys: torch.Tensor) -> dict[str, torch.Tensor]:
    """The batch with what a step gives beside it (step_inputs.py)."""
    values = dict(batch)
    values[SAMPLE_KEYS] = keys
    values[SAMPLE_COUNT] = torch.tensor(graph.batch)
    values[BATCH_SHARE] = torch.tensor(1.0, dtype=torch.float64)
    for count in graph.counts:
        given = {f"buffer:{n}": b for n, b in graph.buffers.items()} | values
        values[count.name] = count.module(*(given[n] for n in count.arguments))
    return values


def arguments(graph: Graph, parameters: Named, values: Named) -> list[torch.Tensor]:
    """What the graph's placeholders stand for, in order."""
    tables = {"parameter": parameters, "buffer": graph.buffers, "input": values}
    nodes = [n for n in graph.module.graph.nodes if n.op == "placeholder"]
    return [tables[n.meta["kind"]][n.meta["source"]] for n in nodes]
