"""Literal sizes in an op's arguments (a reshape's target, a part's sizes, groups), those of the part of one rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from partitioner.graph.nodes import argument_place, op_of
from partitioner.sharding.layout import Placement, Shard
from partitioner.sharding.op_rules import rule_of

Arguments = tuple[tuple[object, ...], dict[str, object]]


def localize(node: fx.Node, result: Placement, ranks: int) -> Arguments:
    """The arguments of ``node`` (operands untouched) when its result lies as ``result`` on an axis of ``ranks`` ranks.

    The same for all ranks. A dimension of uneven shards is written -1, which reshape infers from its operand.
    """
    if not isinstance(result, Shard):
        return tuple(node.args), dict(node.kwargs)
    if result.is_even(ranks):
        return resized(node, result.dim, lambda size: size // ranks)
    return resized(node, result.dim, lambda _: -1)


def resized(node: fx.Node, dim: int, change: Callable[[int], int]) -> Arguments:
    """The arguments of ``node`` when dimension ``dim`` of its result has ``change`` of its size."""
    args: list[Any] = list(node.args)
    rule = rule_of(str(node.target))
    place = argument_place(node, rule.literals.argument) if rule and rule.literals else len(args)
    if rule and rule.literals and place < len(args):
        args[place] = _CHANGED[rule.literals.kind](node, args[place], dim, change)
    return tuple(args), dict(node.kwargs)


def _shape(node: fx.Node, _: Any, dim: int, change: Callable[[int], int]) -> list[int]:
    shape = list(node.meta["val"].shape)
    shape[dim] = change(shape[dim])
    return shape


def _parts(node: fx.Node, sizes: Any, dim: int, change: Callable[[int], int]) -> list[int]:
    return [change(size) for size in sizes] if op_of(node).literal("dim") == dim else sizes


def _groups(node: fx.Node, groups: Any, dim: int, change: Callable[[int], int]) -> int:
    return change(groups) if groups != 1 and dim == len(node.meta["val"].shape) - _space(node) - 1 else groups


def _space(node: fx.Node) -> int:
    """Dimensions behind the channels: as many as a kernel has, of a norm all but the samples."""
    weight = node.args[1]
    return len((weight if isinstance(weight, fx.Node) else node).meta["val"].shape) - 2


_CHANGED: dict[str, Callable[[fx.Node, Any, int, Callable[[int], int]], object]] = {
    "shape": _shape, "grown": _shape, "parts": _parts, "groups": _groups,
}  # fmt: skip
