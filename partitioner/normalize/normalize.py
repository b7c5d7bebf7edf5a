"""From the IR that export captures to the one that rules read: few passes, each Graph -> Graph with the same numbers.

After the passes every node returns one tensor, nothing is changed in place, every view is a reshape, permute, expand or
part, a bias is an add, a loss is a sum over a count, no dropout is fused, and what is random is drawn by key.
"""

from __future__ import annotations

import torch
from torch import fx

from partitioner.draws.keyed_draws import key_draws, name_draws
from partitioner.functionalize.functionalize import functionalize, inline_regions
from partitioner.graph.counts import Count
from partitioner.graph.graph import loss_node
from partitioner.graph.nodes import arguments, propagate, shape_of, to_meta
from partitioner.normalize.canonical_ops import canonicalize
from partitioner.normalize.constant_values import fold_constants, sort_by_dependence
from partitioner.normalize.index_ops import aligned_indexes, plain_indexes, slice_indexes
from partitioner.normalize.loss_forms import loss_forms
from partitioner.normalize.selection_ops import in_order
from partitioner.normalize.unsorted_experts import undo_sorting
from partitioner.ops.own_ops import own
from partitioner.samples.batch_dimension import separate
from partitioner.samples.sample_inputs import Mixed

aten = torch.ops.aten


def normal_ops(module: fx.GraphModule, buffers: dict[str, torch.Tensor]) -> None:
    """Rewrite ``module`` in place into few ops, each functional and of one result; nothing here knows the batch."""
    graph = module.graph
    inline_regions(module)
    to_meta(graph)
    name_draws(graph)
    functionalize(graph)
    propagate(module, missing_only=True)
    canonicalize(graph)
    slice_indexes(graph, buffers)
    tile_slices(graph)
    undo_sorting(graph)
    in_order(graph)
    plain_indexes(graph, buffers)
    aligned_indexes(graph, buffers)
    loss_forms(graph)
    output = next(n for n in graph.nodes if n.op == "output")
    output.args = (loss_node(graph),)
    graph.eliminate_dead_code()


def normal_samples(
    module: fx.GraphModule, buffers: dict[str, torch.Tensor], batch: int
) -> tuple[tuple[Count, ...], Mixed | None]:
    """Rewrite ``module``, whose batch dimension has ``batch`` samples, so that the samples can be divided.

    Returns the counts of a step, and what mixes samples (None for nothing).
    """
    graph = module.graph
    key_draws(graph, batch)
    fold_constants(module, buffers, batch)
    found = separate(graph, batch)
    sort_by_dependence(graph)
    _drop_unread(graph)
    propagate(module)
    return found


def _drop_unread(graph: fx.Graph) -> None:
    graph.eliminate_dead_code()
    for node in graph.nodes:
        if node.op == "placeholder" and node.meta["kind"] == "buffer" and not node.users:
            graph.erase_node(node)


def tile_slices(graph: fx.Graph) -> None:
    """Slices that together tile a dimension become parts of it (Phi-3's fused q, k, v)."""
    groups: dict[tuple[fx.Node, int], list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_function" and node.target == aten.slice.Tensor and len(node.args) >= 4:
            if len(node.args) > 4 and node.args[4] != 1:
                continue
            source, dim = node.args[0], int(node.args[1])
            groups.setdefault((source, dim % len(shape_of(source))), []).append(node)
    for (source, dim), nodes in groups.items():
        extent = shape_of(source)[dim]
        bounds = sorted({_bounds(n, extent) for n in nodes})
        gaps = any(a[1] != b[0] for a, b in zip(bounds, bounds[1:], strict=False))
        if bounds[0][0] or bounds[-1][1] != extent or gaps:
            continue
        sizes = [end - start for start, end in bounds]
        for node in nodes:
            node.target = own.part.default
            node.args = (source, dim, sizes, bounds.index(_bounds(node, extent)))


def _bounds(node: fx.Node, extent: int) -> tuple[int, int]:
    start, end = (int(a) if a is not None else d for a, d in zip(arguments(node)[2:4], (0, extent), strict=True))
    start, end = (min(max(v + extent if v < 0 else v, 0), extent) for v in (start, end))
    return start, end
