"""Constant attention masks become flags: causal, or none where nothing is masked.

A mask of long sequences does not lie in memory: it is looked at block by block of its rows, each computed from what
small constants are broadcast to it (positions compared with positions).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from partitioner.graph.dependence import evaluate
from partitioner.graph.nodes import call, op_of, shape_of
from partitioner.sharding.layout import Segment, Shard
from partitioner.sharding.op_rules import complete, rule_of

aten = torch.ops.aten
_ATTENTION = aten.scaled_dot_product_attention.default
_EXPAND = aten.expand.default
MOST_ELEMENTS = 1 << 26  # of what is evaluated at once


def flag_masks(graph: fx.Graph, fixed: set[fx.Node], buffers: dict[str, torch.Tensor]) -> None:
    """Of attention whose mask is a constant of ``fixed``."""
    masks: dict[fx.Node, list[fx.Node]] = {}
    for user in (n for n in graph.nodes if n.target == _ATTENTION and len(n.args) > 3):
        if user.args[3] in fixed:
            masks.setdefault(user.args[3], []).append(user)
    found = dict[fx.Node, str]()
    for mask in masks:
        mask_of_all = _alike(mask)  # T5 makes a mask for each block: many are one
        if mask_of_all not in found:
            found[mask_of_all] = _kind(mask_of_all, graph, fixed, buffers)
        for user in masks[mask] if found[mask_of_all] else ():
            user.update_arg(3, None)
            if found[mask_of_all] == "causal":
                user.update_arg(5, True)


def _alike(mask: fx.Node) -> fx.Node:
    """The mask before it is repeated for samples or heads."""
    while _has_the_rows_of_its_source(mask):
        (mask,) = mask.all_input_nodes
    return mask


def _has_the_rows_of_its_source(node: fx.Node) -> bool:
    """Whether it is a view with other dimensions before rows and columns alone."""
    rule = rule_of(str(node.target))
    if rule is None or not rule.view or rule.reorders or len(node.all_input_nodes) != 1:
        return False
    return shape_of(node)[-2:] == shape_of(node.all_input_nodes[0])[-2:]


def _kind(mask: fx.Node, graph: fx.Graph, fixed: set[fx.Node], buffers: dict[str, torch.Tensor]) -> str:
    """ "every" where it lets everything pass, "causal", or "" for any other."""
    every, causal = True, shape_of(mask)[-2:-1] == shape_of(mask)[-1:]
    for first, rows in _blocks(mask, graph, fixed, buffers):
        allowed = rows if rows.dtype == torch.bool else rows == 0
        every, causal = every and bool(allowed.all()), causal and _is_causal(allowed, first)
        if not (every or causal):
            return ""
        if rows.dtype != torch.bool and not bool((allowed | (rows <= torch.finfo(rows.dtype).min / 2)).all()):
            return ""
    return "every" if every else "causal" if causal else ""


def _is_causal(allowed: torch.Tensor, first: int) -> bool:
    """Of a block of rows: all before the diagonal, a square of it, nothing behind."""
    before, square, behind = allowed.tensor_split([first, first + allowed.shape[-2]], -1)
    return bool(before.all()) and bool((square == torch.ones_like(square).tril()).all()) and not bool(behind.any())


def _blocks(
    mask: fx.Node, graph: fx.Graph, fixed: set[fx.Node], buffers: dict[str, torch.Tensor]
) -> Iterator[tuple[int, torch.Tensor]]:
    """Blocks of rows (..., rows, columns) and the first row of each; one of nothing where they can't be computed so."""
    small = _leaves(mask)
    if small is None:
        yield 0, torch.full((1, 1), 0.5)
        return
    whole, (rows, columns) = evaluate(graph, fixed, small, buffers), shape_of(mask)[-2:]
    each = max(1, MOST_ELEMENTS * rows * columns // (columns * mask.meta["val"].numel()))
    for first in range(0, rows, each):
        block = _rows_of(mask, whole, rows, first, min(rows, first + each))
        yield first, torch.broadcast_to(block, (*block.shape[:-2], min(rows, first + each) - first, columns))


def _leaves(mask: fx.Node) -> set[fx.Node] | None:
    """The small values from which a large one is made row by row; None where an op makes it otherwise."""
    if mask.meta["val"].numel() <= MOST_ELEMENTS:
        return {mask}
    if not (mask.target == _EXPAND or _has_the_rows_of_its_source(mask) or _goes_by_rows(mask)):
        return None
    found = [_leaves(node) for node in mask.all_input_nodes]
    return None if None in found else set[fx.Node]().union(*(row for row in found if row))


def _goes_by_rows(node: fx.Node) -> bool:
    """Whether its rule lets an op be divided by rows."""
    rule, (rows, _) = rule_of(str(node.target)), shape_of(node)[-2:]
    shard = Shard(len(shape_of(node)) - 2, (Segment(1, rows, 1),))
    return rule is not None and not rule.view and complete(op_of(node), -1, shard, rows) is not None


def _rows_of(node: fx.Node, whole: dict[fx.Node, torch.Tensor], rows: int, first: int, last: int) -> torch.Tensor:
    if node in whole:
        value = whole[node]
        return value[..., first:last, :] if value.dim() > 1 and value.shape[-2] == rows else value
    parts = {n: _rows_of(n, whole, rows, first, last) for n in node.all_input_nodes}
    if node.target == _EXPAND or _has_the_rows_of_its_source(node):
        return parts[node.all_input_nodes[0]]  # what reads it broadcasts
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: parts[n])
    with torch.no_grad():
        return call(node, *args, **kwargs)
