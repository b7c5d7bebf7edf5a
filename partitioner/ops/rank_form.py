"""The op of ours that does an op's work on one rank, as its row names it, where a strategy asks for one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

import partitioner.ops.own_ops
import partitioner.ops.payloads
from partitioner.sharding.equations import Strategies, Strategy
from partitioner.sharding.layout import joined
from partitioner.sharding.mesh_axes import Axes, wholes
from partitioner.sharding.op_equations import Op
from partitioner.sharding.op_rules import rule_of

_SCHEMAS = (partitioner.ops.own_ops, partitioner.ops.payloads)  # importing them registers what the rows name


class RankForm(NamedTuple):
    """The op and its arguments, on a rank of ``axis``, and their places among the axes along which ops lie."""

    axis: str
    op: Callable[..., object]
    arguments: tuple[Any, ...]
    slots: tuple[int, ...]


def rank_forms(op: Op, args: Sequence[Any], strategies: Strategies, axes: Axes) -> Iterator[RankForm]:
    """Of each axis that asks for one; none where ``op`` itself stands there. A program has no more than one an op."""
    rule = rule_of(op.target)
    for axis, strategy, slots in _lines(strategies, axes) if rule else ():
        form = rule.on_rank(op, args, strategy, axis) if rule else None
        if form:
            yield RankForm(axis, getattr(torch.ops.partitioner, form[0]).default, form[1], slots)


def _lines(strategies: Strategies, axes: Axes) -> Iterator[tuple[str, Strategy, tuple[int, ...]]]:
    """The strategies along each axis, of those that refine one together where that says the same."""
    for name, slots in wholes(axes):
        own = [strategies.each[slot] for slot in slots]
        if len(own) == 1:
            yield axes[slots[0]][0], own[0], slots
            continue
        sizes = [axes[slot][1] for slot in slots]
        sides = [joined(side, sizes) for side in zip(*((*s.operands, s.result) for s in own), strict=True)]
        if None in sides:
            yield from ((axes[slot][0], strategies.each[slot], (slot,)) for slot in slots)
        else:
            yield name, Strategy(tuple(sides[:-1]), sides[-1]), slots  # type: ignore[arg-type]
