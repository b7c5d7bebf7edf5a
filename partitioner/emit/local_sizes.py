"""Literal sizes in an op's arguments (a reshape's target, a part's sizes, groups), those of the part of one rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import fx

from partitioner.sharding.layout import Placement, Shard

_SHAPES = {"aten.reshape.default": 1, "aten.expand.default": 1, "aten.full.default": 0}
_PART = "partitioner.part.default"
_GROUPS = {
    **{f"aten.conv{n}d.{name}": 6 for n in (1, 2, 3) for name in ("default", "padding")},
    "aten.conv_transpose1d.default": 6,
    "aten.conv_transpose2d.input": 6,
    "aten.group_norm.default": 1,
}

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
        shape = list(node.meta["val"].shape)
        shape[dim] = change(node.meta["val"].shape[dim])
        args[_SHAPES[name]] = shape
    elif name == _PART and args[1] == dim:
        args[2] = [change(size) for size in args[2]]  # type: ignore[union-attr, operator]
    elif _in_groups(name, args) and dim == len(node.meta["val"].shape) - _space(node) - 1:
        args[_GROUPS[name]] = change(args[_GROUPS[name]])  # type: ignore[arg-type]
    return tuple(args), dict(node.kwargs)


def _in_groups(name: str, args: Sequence[object]) -> bool:
    place = _GROUPS.get(name)
    return place is not None and len(args) > place and args[place] != 1


def _space(node: fx.Node) -> int:
    """Dimensions behind the channels: as many as a kernel has, of a norm all but the samples."""
    weight = node.args[1]
    return len((weight if isinstance(weight, fx.Node) else node).meta["val"].shape) - 2
