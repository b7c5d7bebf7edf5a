"""Where the samples lie in the values around a random call, and a value turned so that they come first.

(s, b h, d)   repeat 1, granule h    -->    (b, s, h, d)        each sample's elements together, in their order
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from partitioner.equations import Strategy
from partitioner.graph import placeholders
from partitioner.layout import PARTIAL, Placement, Segment, Shard
from partitioner.rules import complete
from partitioner.shapes import op_of, operands, shape_of

aten = torch.ops.aten
Make = Callable[..., Any]


def batch_places(graph: fx.Graph, batch: int) -> tuple[dict[fx.Node, Shard], set[fx.Node]]:
    """Where samples lie, followed from the inputs along ops in both directions; and values that are alike for all.

    An op that mixes samples, or that has no rule, ends the way: what is found behind it comes from elsewhere.
    """
    found: dict[fx.Node, Shard] = {}
    alike: set[fx.Node] = set()
    for node in placeholders(graph, "input").values():
        if shape_of(node)[:1] == (batch,):
            found[node] = Shard(0, (Segment(1, batch, 1),))
    work = list(found)
    while work:
        node = work.pop()
        for op, slot in _places(node):
            strategy = _strategy(op, slot, found[node], batch) if _is_tensor(op) else None
            if strategy is not None:
                sides = [*zip(operands(op), strategy.operands, strict=True), (op, strategy.result)]
                for other, placement in sides:
                    _note(other, placement, found, alike, work)
    return found, _made_of(graph, alike - found.keys()) - found.keys()


def _strategy(op: fx.Node, slot: int, shard: Shard, batch: int) -> Strategy | None:
    """A dropout that has no key yet has no rule either; it moves nothing."""
    if op.target == aten.dropout.default:
        return Strategy((shard,), shard)
    return complete(op_of(op), slot, shard, batch)


def _is_tensor(node: fx.Node) -> bool:
    return all(isinstance(n.meta.get("val"), torch.Tensor) for n in (node, *operands(node)))


def _places(node: fx.Node) -> list[tuple[fx.Node, int]]:
    readers = [(u, i) for u in node.users if u.op == "call_function" for i, n in enumerate(operands(u)) if n is node]
    return readers + ([(node, -1)] if node.op == "call_function" else [])


def _note(
    node: fx.Node, placement: Placement | tuple[Placement, ...], found: dict[fx.Node, Shard], alike: set[fx.Node],
    work: list[fx.Node],
) -> None:  # fmt: skip
    if node.op == "placeholder" and node.meta["kind"] != "input":
        return
    if not isinstance(placement, Shard):
        if placement != PARTIAL:
            alike.add(node)
    elif node not in found:
        found[node] = placement
        work.append(node)


def _made_of(graph: fx.Graph, alike: set[fx.Node]) -> set[fx.Node]:
    """With what an op that reduces nothing makes them of."""
    for node in reversed(graph.nodes):
        if node in alike and node.op == "call_function" and _is_tensor(node):
            alike.update(n for n in operands(node) if n.meta["val"].numel() <= node.meta["val"].numel())
    return alike


def place_of(
    node: fx.Node, batch: int, places: tuple[dict[fx.Node, Shard], set[fx.Node]], merged: bool
) -> Shard | None:
    """Where samples lie in a value, None where it is alike for all: as was found along the ops.

    Where nothing was found, its first dimension holds them if it is ``batch``, or may be ``merged`` of that.
    """
    found, alike = places
    shape, shard = shape_of(node), found.get(node)
    if shard is not None and len(shard.segments) == 1:
        return shard
    if node in alike or not shape or not shape[0] or shape[0] % batch or (shape[0] != batch and not merged):
        return None
    return Shard(0, (Segment(1, batch, shape[0] // batch),))


def of_one_sample(shape: Sequence[int], place: Shard) -> list[int]:
    """The shape that each sample's part of a value has."""
    before, (repeat, _, granule), after = _parts(shape, place)
    return [*before, *(n for n in (repeat, granule) if n > 1), *after]


def samples_first(make: Make, x: Any, shape: Sequence[int], place: Shard) -> Any:
    """A value of ``shape`` as (samples, one sample's shape)."""
    apart, at = _apart(shape, place)
    x = x if apart == list(shape) else make(aten.reshape.default, x, apart)
    return make(aten.permute.default, x, [at, *(d for d in range(len(apart)) if d != at)]) if at else x


def samples_back(make: Make, x: Any, shape: Sequence[int], place: Shard) -> Any:
    """The value of ``shape`` that ``samples_first`` made ``x`` of."""
    apart, at = _apart(shape, place)
    if at:
        x = make(aten.permute.default, x, [*range(1, at + 1), 0, *range(at + 1, len(apart))])
    return x if apart == list(shape) else make(aten.reshape.default, x, list(shape))


def _apart(shape: Sequence[int], place: Shard) -> tuple[list[int], int]:
    """The shape with the samples in a dimension of their own, and which."""
    before, (repeat, samples, granule), after = _parts(shape, place)
    lead = [*before, *([repeat] if repeat > 1 else [])]
    return [*lead, samples, *([granule] if granule > 1 else []), *after], len(lead)


def _parts(shape: Sequence[int], place: Shard) -> tuple[list[int], tuple[int, int, int], list[int]]:
    (segment,) = place.segments
    samples = shape[place.dim] // (segment.repeat * segment.granule)
    return [*shape[: place.dim]], (segment.repeat, samples, segment.granule), [*shape[place.dim + 1 :]]
