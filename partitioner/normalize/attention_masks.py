"""Constant attention masks become flags: causal, or none where nothing is masked.

A mask of long sequences does not lie in memory: it is looked at block by block of its rows, each computed from what
small constants are broadcast to it (positions compared with positions).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import fx

from partitioner.graph.dependence import evaluate
from partitioner.graph.nodes import call, op_of, operands, shape_of
from partitioner.sharding.layout import Segment, Shard
from partitioner.sharding.op_rules import complete, rule_of

aten = torch.ops.aten
_ATTENTION = aten.scaled_dot_product_attention.default
_EXPAND = aten.expand.default
_TRIANGLES = (aten.tril.default, aten.triu.default)
MOST_ELEMENTS = 1 << 26  # of what is evaluated at once
MOST_WHOLE = 1 << 28  # where rows can't be computed alone


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
    every, causal, seen = True, shape_of(mask)[-2:-1] == shape_of(mask)[-1:], False
    for first, rows in _blocks(mask, graph, fixed, buffers):
        seen = True
        allowed = rows if rows.dtype == torch.bool else rows == 0
        every, causal = every and bool(allowed.all()), causal and _is_causal(allowed, first)
        if not (every or causal):
            return ""
        if rows.dtype != torch.bool and not bool((allowed | (rows <= torch.finfo(rows.dtype).min / 2)).all()):
            return ""
    return "" if not seen else "every" if every else "causal" if causal else ""


def _is_causal(allowed: torch.Tensor, first: int) -> bool:
    """Of a block of rows: all before the diagonal, a square of it, nothing behind."""
    before, square, behind = allowed.tensor_split([first, first + allowed.shape[-2]], -1)
    return bool(before.all()) and bool((square == torch.ones_like(square).tril()).all()) and not bool(behind.any())


def _blocks(
    mask: fx.Node, graph: fx.Graph, fixed: set[fx.Node], buffers: dict[str, torch.Tensor]
) -> Iterator[tuple[int, torch.Tensor]]:
    """Blocks of rows (..., rows, columns) and the first row of each; none where the mask is too large to look at."""
    rows, columns = shape_of(mask)[-2:]
    leaves, size = _leaves(mask, len(shape_of(mask)) - 2), mask.meta["val"].numel()
    if leaves is None:
        leaves = {mask} if size <= MOST_WHOLE else set[fx.Node]()
    if not leaves:
        return
    whole = evaluate(graph, fixed, leaves, buffers)
    each = max(1, MOST_ELEMENTS * rows // size) if mask not in whole else rows
    for first in range(0, rows, each):
        window = _Window(first, min(rows, first + each))
        block = _part(mask, len(shape_of(mask)) - 2, window, whole)
        yield first, torch.broadcast_to(block, (*block.shape[:-2], window.last - first, columns))


class _Window(NamedTuple):
    """Rows."""

    first: int
    last: int


def _leaves(node: fx.Node, dim: int | None) -> set[fx.Node] | None:
    """The small values, and what lies in memory, from which a large one is made rows by rows, its rows being dimension
    ``dim``; None where an op makes it otherwise."""
    if node.meta["val"].numel() <= MOST_ELEMENTS or node.op == "placeholder":
        return {node}
    if dim is None or (sources := _sources(node, dim)) is None:
        return None
    found = [_leaves(source, place) for source, place in sources]
    return None if None in found else set[fx.Node]().union(*(row for row in found if row))


def _sources(node: fx.Node, dim: int) -> list[tuple[fx.Node, int | None]] | None:
    """What a value is made of, and which dimension of each its rows are; None where it can't be made rows by rows."""
    if node.target in _TRIANGLES:
        return [(node.all_input_nodes[0], dim)]
    rows, rule = shape_of(node)[dim], rule_of(str(node.target))
    if node.target == _EXPAND or _has_the_rows_of_its_source(node):
        (source,) = node.all_input_nodes
        place = dim - len(shape_of(node)) + len(shape_of(source))
        return [(source, place if place >= 0 and shape_of(source)[place] == rows else None)]
    if rule is None or rule.view:
        return None
    strategy = complete(op_of(node), -1, Shard(dim, (Segment(1, rows, 1),)), rows)
    if strategy is None:
        return None
    places = (p.dim if isinstance(p, Shard) else None for p in strategy.operands)
    return list(zip(operands(node), places, strict=True))


def _part(node: fx.Node, dim: int | None, window: _Window, whole: dict[fx.Node, torch.Tensor]) -> torch.Tensor:
    """The rows of a value, all of it where ``dim`` is None."""
    if node in whole:
        return whole[node] if dim is None else whole[node].narrow(dim, window.first, window.last - window.first)
    assert dim is not None
    sources = _sources(node, dim)
    assert sources is not None
    parts = {source: _part(source, place, window, whole) for source, place in sources}
    if node.target == _EXPAND or _has_the_rows_of_its_source(node):
        return parts[node.all_input_nodes[0]]  # what reads it broadcasts
    args, kwargs = fx.map_arg((node.args, node.kwargs), parts.__getitem__)
    if node.target in _TRIANGLES:
        diagonal = int(node.args[1]) if len(node.args) > 1 else 0  # type: ignore[arg-type]
        args = (args[0], diagonal + window.first)
    with torch.no_grad():
        return call(node, *args, **kwargs)
