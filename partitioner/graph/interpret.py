"""A Graph run op by op on one process, on real tensors: its batch is the whole global batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from partitioner.graph.graph import Graph
from partitioner.graph.nodes import buffer_name
from partitioner.graph.step_inputs import BATCH_SHARE, SAMPLE_COUNT, SAMPLE_KEYS, STEP_KEY
from partitioner.ops.own_ops import mix64

Named = Mapping[str, torch.Tensor]


def interpret(graph: Graph, parameters: Named, batch: Named, seed: int = 0, step: int = 0) -> torch.Tensor:
    """The loss; all that is random is drawn as a run of this ``seed`` draws it in this ``step``."""
    result = fx.Interpreter(graph.module).run(*arguments(graph, parameters, step_values(graph, batch, seed, step)))
    return result[0] if isinstance(result, tuple | list) else result


def step_values(graph: Graph, batch: Named, seed: int = 0, step: int = 0) -> dict[str, torch.Tensor]:
    """The batch with what a step gives beside it (step_inputs.py)."""
    values = dict(batch)
    keys = [mix64(seed, step, sample) for sample in range(graph.batch)]
    values[SAMPLE_KEYS] = torch.tensor(keys, dtype=torch.int64)
    values[STEP_KEY] = torch.tensor(mix64(seed, step))
    values[SAMPLE_COUNT] = torch.tensor(graph.batch)
    values[BATCH_SHARE] = torch.tensor(1.0, dtype=torch.float64)
    for count in graph.counts:
        given = {buffer_name(n): b for n, b in graph.buffers.items()} | values
        values[count.name] = count.module(*(given[n] for n in count.arguments))
    return values


def samples_of(graph: Graph, batch: Named) -> int:
    """How many samples a batch has."""
    return batch[graph.batched[0]].shape[0]


def arguments(graph: Graph, parameters: Named, values: Named) -> list[torch.Tensor]:
    """What the graph's placeholders stand for, in order."""
    tables = {"parameter": parameters, "buffer": graph.buffers, "input": values}
    nodes = [n for n in graph.module.graph.nodes if n.op == "placeholder"]
    return [tables[n.meta["kind"]][n.meta["source"]] for n in nodes]
