"""What a step gives a Program beside the batch: the samples' keys, how many samples there are, a share of the batch.

name            dtype, shape       value
sample_keys     int64, (b,)        a key of each sample of the micro-batch, for what is drawn at random
step_key        int64, ()          the step's key, for draws that are alike for all samples
sample_count    int64, ()          samples of the global batch
batch_share     float64, ()        samples of the micro-batch / samples of the global batch
count_N         any                a count over the samples of the global batch (counts.py)

What a call that answers is given instead:

tokens          int64, (b, n)      n positions of each text
start           int64, (b,)        how many positions of each came before
last            int64, (b,)        which of the n is to have logits
fresh           bool, (b,)         whether a row's source is a new one

and among the parameters, each with a number behind, what is kept from call to call and written in place:

cache:          what positions before have left for those that look at them
memory:         what a source has left for the positions of its answer
"""

from __future__ import annotations

import torch
from torch import fx

SAMPLE_KEYS, STEP_KEY = "sample_keys", "step_key"
SAMPLE_COUNT, BATCH_SHARE = "sample_count", "batch_share"
TOKENS, START, LAST, FRESH = "tokens", "start", "last", "fresh"
CACHE, MEMORY = "cache:", "memory:"


def step_input(graph: fx.Graph, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> fx.Node:
    """The placeholder of ``name``, made behind the others where there is none yet."""
    holders = [n for n in graph.nodes if n.op == "placeholder"]
    for node in holders:
        if node.meta["source"] == name:
            return node
    with graph.inserting_after(holders[-1]):
        node = graph.placeholder(name)
    node.meta |= {"source": name, "kind": "input", "val": torch.empty(shape, dtype=dtype, device="meta")}
    return node


def sample_keys(graph: fx.Graph, batch: int) -> fx.Node:
    """The key of each sample of a micro-batch."""
    node = step_input(graph, SAMPLE_KEYS, (batch,), torch.int64)
    node.meta["batch_dims"] = (0,)
    return node


def step_key(graph: fx.Graph) -> fx.Node:
    """The key of the step."""
    return step_input(graph, STEP_KEY, (), torch.int64)


def sample_count(graph: fx.Graph) -> fx.Node:
    """How many samples the global batch has."""
    return step_input(graph, SAMPLE_COUNT, (), torch.int64)


def batch_share(graph: fx.Graph) -> fx.Node:
    """The part of the global batch that a micro-batch is."""
    return step_input(graph, BATCH_SHARE, (), torch.float64)


def is_kept(name: str) -> bool:
    """Whether a parameter is none of the model's, but what is kept from call to call."""
    return name.startswith((CACHE, MEMORY))
