"""Literal sizes in an op's arguments (a reshape's target, a part's sizes) rewritten for the part of one rank."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from partitioner.layout import Placement, Shard

_SHAPES = {"aten.reshape.default": 1, "aten.expand.default": 1, "aten.full.default": 0}
_PART = "partitioner.part.default"

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
    args, name = list(node.args), str(node.target)
    if name in _SHAPES:
        shape = list(args[_SHAPES[name]])  # type: ignore[call-overload]
        shape[dim] = change(node.meta["val"].shape[dim])
        args[_SHAPES[name]] = shape
    elif name == _PART and args[1] == dim:
        args[2] = [change(size) for size in args[2]]  # type: ignore[union-attr, operator]
    return tuple(args), dict(node.kwargs)
