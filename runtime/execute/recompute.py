"""A call of which backward runs all, or a region, again: under torch's checkpoint, on modules bound for each phase."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, repeat
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.utils.fuser_utils import fuse_by_partitions
from torch.utils.checkpoint import checkpoint, noop_context_fn

from runtime.mesh.kept_results import contexts

Run = Callable[..., Any]
REGION = "again_"


def checkpointed(first: Run, later: Run, keeps: bool) -> Run:
    """``first``, whose activations are dropped where gradients are asked for, and ``later`` when backward needs them;
    ``keeps``: whether there are nodes whose results are kept."""

    def run(*arguments: torch.Tensor) -> Any:
        if not torch.is_grad_enabled():
            return first(*arguments)
        return checkpoint(
            _in_turn(first, later), *arguments, use_reentrant=False, preserve_rng_state=False,
            context_fn=contexts if keeps else noop_context_fn,
        )  # fmt: skip

    return run


def _in_turn(first: Run, later: Run) -> Run:
    """``first`` when it is called first, ``later`` from then on."""
    runs = chain((first,), repeat(later))
    return lambda *arguments: next(runs)(*arguments)


def outlined(module: fx.GraphModule, regions: tuple[frozenset[str], ...]) -> fx.GraphModule:
    """A copy in which the nodes of each region, by name, are one call of a module of their own."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    whole = fx.GraphModule(nn.Module(), graph, class_name=module.__class__.__name__)
    names = dict(zip(whole.graph.nodes, (node.name for node in module.graph.nodes), strict=True))
    partitions: list[dict[fx.Node, int | None]] = [
        {node: None for node, name in names.items() if name in region} for region in regions
    ]
    return fuse_by_partitions(whole, partitions, REGION)


class Again(nn.Module):
    """A region of a block, checkpointed."""

    def __init__(self, first: fx.GraphModule, later: fx.GraphModule) -> None:
        super().__init__()
        self.forward = checkpointed(first.forward, later.forward, keeps=False)
