"""Ops of ours that do an op's work on one rank, where a strategy divides what the op reduces, looks up or draws.

    embedding(%weight, %index)      weight S(0)     vocab_parallel_embedding(%weight, %index, -1, "tp", [1, 32, 1])
    dropout(%x, 0.1, %keys, 3)      x S(2)          dropout(%x, 0.1, %keys, 3, "tp", 2, [1, 64, 1])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from partitioner.sharding.equations import Strategy
from partitioner.sharding.layout import Shard, flat
from partitioner.sharding.op_equations import Op
from partitioner.sharding.rule import RankForm


def by_vocabulary(op: Op, args: Sequence[Any], strategy: Strategy, axis: str) -> RankForm | None:
    """A table divided by rows."""
    table = _shard(strategy)
    if table is None or table.dim != 0:
        return None
    padding = args[2] if len(args) > 2 else -1
    return "vocab_parallel_embedding", (*args[:2], padding, axis, flat(table.segments))


def by_class(op: Op, args: Sequence[Any], strategy: Strategy, axis: str) -> RankForm | None:
    """A loss whose classes are divided."""
    logits = _shard(strategy)
    if logits is None or logits.dim != 1:
        return None
    return "vocab_parallel_cross_entropy", (*args, axis, flat(logits.segments))


def by_element(op: Op, args: Sequence[Any], strategy: Strategy, axis: str) -> RankForm | None:
    """Draws for each element of a whole sample, of which a rank has a part; whole samples bring their own keys."""
    x = _shard(strategy)
    return ("dropout", (*args, axis, x.dim, flat(x.segments))) if x and x.dim != 0 else None


def of_all(op: Op, args: Sequence[Any], strategy: Strategy, axis: str) -> RankForm | None:
    """What is divided, perhaps unevenly, and wanted whole."""
    x = _shard(strategy)
    return ("gathered", (args[0], axis, x.dim, flat(x.segments))) if x else None


def _shard(strategy: Strategy) -> Shard | None:
    first = strategy.operands[0]
    return first if isinstance(first, Shard) else None
