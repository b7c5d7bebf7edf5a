"""The op of ours that does an op's work on one rank, as its row names it, where a strategy asks for one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

import partitioner.ops.own_ops
import partitioner.ops.payloads
from partitioner.sharding.equations import Strategy
from partitioner.sharding.op_equations import Op
from partitioner.sharding.op_rules import rule_of

_SCHEMAS = (partitioner.ops.own_ops, partitioner.ops.payloads)  # importing them registers what the rows name


def rank_form(
    op: Op, args: Sequence[Any], strategy: Strategy, axis: str
) -> tuple[Callable[..., object], tuple[Any, ...]] | None:
    """The op and its arguments, on a rank of ``axis``; None where ``op`` itself stands there."""
    rule = rule_of(op.target)
    form = rule.on_rank(op, args, strategy, axis) if rule else None
    return (getattr(torch.ops.partitioner, form[0]).default, form[1]) if form else None
