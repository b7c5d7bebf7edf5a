"""Literal sizes in an op's arguments (a reshape's target, a part's sizes, groups), those of the part of one rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import fx

from partitioner.graph.nodes import argument_place, op_of
from partitioner.sharding.layout import Layout, Shard
from partitioner.sharding.mesh_axes import Axes
from partitioner.sharding.op_rules import rule_of

Arguments = tuple[tuple[object, ...], dict[str, object]]
Changes = Mapping[int, Callable[[int], int]]  # of the sizes of a dimension's parts


def localize(node: fx.Node, result: Layout, axes: Axes) -> Arguments:
    """The arguments of ``node`` (operands untouched) when its result lies as ``result`` on ``axes``.

    The same for all ranks. A dimension of uneven shards is written -1, which reshape infers from its operand.
    """
    divisors: dict[int, int] = {}
    for placement, (_, ranks) in zip(result, axes, strict=True):
        if isinstance(placement, Shard):
            known = divisors.get(placement.dim, 1)
            divisors[placement.dim] = known * ranks if placement.is_even(ranks) and known else 0
    return resized(node, {dim: _divided(divisor) for dim, divisor in divisors.items()})


def _divided(divisor: int) -> Callable[[int], int]:
    return lambda size: size // divisor if divisor else -1


def resized(node: fx.Node, changes: Changes) -> Arguments:
    """The arguments of ``node`` when dimensions of its result have the sizes of ``changes``."""
    args: list[Any] = list(node.args)
    rule = rule_of(str(node.target))
    place = argument_place(node, rule.literals.argument) if changes and rule and rule.literals else len(args)
    if rule and rule.literals and place < len(args):
        args[place] = _CHANGED[rule.literals.kind](node, args[place], changes)
    return tuple(args), dict(node.kwargs)


def _shape(node: fx.Node, _: Any, changes: Changes) -> list[int]:
    return [changes[dim](size) if dim in changes else size for dim, size in enumerate(node.meta["val"].shape)]


def _parts(node: fx.Node, sizes: Any, changes: Changes) -> list[int]:
    dim: Any = op_of(node).literal("dim")
    return [changes[dim](size) for size in sizes] if dim in changes else sizes


def _groups(node: fx.Node, groups: Any, changes: Changes) -> int:
    dim = len(node.meta["val"].shape) - _space(node) - 1
    return changes[dim](groups) if groups != 1 and dim in changes else groups


def _space(node: fx.Node) -> int:
    """Dimensions behind the channels: as many as a kernel has, of a norm all but the samples."""
    weight = node.args[1]
    return len((weight if isinstance(weight, fx.Node) else node).meta["val"].shape) - 2


_CHANGED: dict[str, Callable[[fx.Node, Any, Changes], object]] = {
    "shape": _shape, "grown": _shape, "parts": _parts, "groups": _groups,
}  # fmt: skip
