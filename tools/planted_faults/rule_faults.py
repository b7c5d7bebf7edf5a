"""A fault in a rule: search and lower under an op's rule that forgets the sum over a sharded factor."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace

from partitioner.sharding.equations import Strategy
from partitioner.sharding.layout import PARTIAL, REPLICATE, Shard
from partitioner.sharding.op_equations import Op
from partitioner.sharding.op_rules import RULES


@contextmanager
def forgetting(name: str) -> Generator[None]:
    """The rule of this op calls the sum over a sharded factor whole, and lets a Partial through; "" names none."""
    if not name:
        yield
        return
    rule = RULES[name]
    RULES[name] = replace(rule, complete=_without_sum(rule.complete), linear=((0,),))
    try:
        yield
    finally:
        RULES[name] = rule


def _without_sum(complete: Callable[..., Strategy | None]) -> Callable[..., Strategy | None]:
    def wrong(op: Op, slot: int, shard: Shard, ranks: int) -> Strategy | None:
        found = complete(op, slot, shard, ranks)
        return replace(found, result=REPLICATE) if found is not None and found.result == PARTIAL else found

    return wrong
