"""Where the batch dimension lies in every value, and whether the loss is a sum over samples."""

from __future__ import annotations

import math

import torch
from torch import fx

from partitioner.constants import module_path
from partitioner.equations import Strategy
from partitioner.graph import placeholders
from partitioner.layout import PARTIAL, REPLICATE, Segment, Shard
from partitioner.rules import complete, partial, rule_of
from partitioner.shapes import op_of, operands, shape_of

MOST_ELEMENTS = 50_000_000  # of the operands and the result of an op that is tried out


def batch_layouts(graph: fx.Graph, batch: int) -> tuple[dict[str, Shard], str | None]:
    """Follow the batch dimension from the inputs through every op's rule, in both directions along the edges.

    Returns where it lies in each value, and the first op that mixes samples (None when there is none): one whose rule
    needs the batch whole, or one that is not linear in a sum over samples.
    """
    found: dict[fx.Node, Shard] = {}
    sums: set[fx.Node] = set()
    for node in placeholders(graph, "input").values():
        shape = shape_of(node)
        if shape and shape[0] == batch:
            found[node] = Shard(0, (Segment(1, batch, 1),))
    work, problem = list(found), None
    while work and not problem:
        node = work.pop()
        for op, slot in _places(node):
            strategy = complete(op_of(op), slot, found[node], batch) or _tried(op, found[node], batch)
            problem = problem or _follow(op, strategy, found, work)
            if strategy and strategy.result == PARTIAL:
                sums.add(op)
    return {n.name: s for n, s in found.items()}, problem or _nonlinear(graph, sums)


def _places(node: fx.Node) -> list[tuple[fx.Node, int]]:
    """Each op that reads ``node``, with the operand's number; and the op that makes it, with -1."""
    made = [(node, -1)] if node.op == "call_function" else []
    readers = [(u, i) for u in node.users for i, n in enumerate(operands(u)) if n is node]
    return made + [(u, i) for u, i in readers if u.op == "call_function"]


def _tried(op: fx.Node, shard: Shard, batch: int) -> Strategy | None:
    """The batch through an op without a rule, found by running it on random samples, together and one by one."""
    sides = [op, *operands(op)]
    size = sum(math.prod(shape_of(n)) for n in sides if isinstance(n.meta["val"], torch.Tensor))
    tensors = all(isinstance(n.meta["val"], torch.Tensor) for n in sides)
    if rule_of(str(op.target)) or shard.dim or not tensors or size > MOST_ELEMENTS or shape_of(op)[:1] != (batch,):
        return None
    generator = torch.Generator().manual_seed(0)
    values = {n: _random(n.meta["val"], generator) for n in operands(op)}
    split = {n for n in values if shape_of(n)[:1] == (batch,) and n.meta.get("kind", "input") == "input"}

    def run(first: int, last: int) -> torch.Tensor:
        rows = {n: x[first:last] if n in split else x for n, x in values.items()}
        args, kwargs = fx.map_arg((op.args, op.kwargs), lambda n: rows[n])
        return op.target(*args, **kwargs)  # type: ignore[operator]

    try:
        parts = [run(n, n + 1) for n in range(batch)]
        alike = torch.allclose(torch.cat(parts), run(0, batch), equal_nan=True)
    except (RuntimeError, IndexError, ValueError, TypeError):
        return None
    placements = tuple(shard if n in split else REPLICATE for n in operands(op))
    return Strategy(placements, shard) if alike else None


def _random(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if like.is_floating_point():
        return torch.rand(like.shape, generator=generator).to(like.dtype)
    return torch.randint(2, like.shape, generator=generator).to(like.dtype)


def _follow(op: fx.Node, strategy: Strategy | None, found: dict[fx.Node, Shard], work: list[fx.Node]) -> str | None:
    if strategy is None:
        return f"{_named(op)} mixes samples"
    for node, placement in [*zip(operands(op), strategy.operands, strict=True), (op, strategy.result)]:
        if not isinstance(placement, Shard):
            continue
        if node.op == "placeholder" and node.meta["kind"] != "input":
            return f"{_named(op)} ties the batch to {node.meta['source']}"
        if node not in found:
            found[node] = placement
            work.append(node)
        elif found[node] != placement:
            return f"{_named(op)} reads {node.name} with the batch in two places"
    return None


def _nonlinear(graph: fx.Graph, sums: set[fx.Node]) -> str | None:
    """The first op that reads a sum over samples and is not linear in it."""
    for node in graph.nodes:
        read = {i for i, n in enumerate(operands(node)) if n in sums} if node.op == "call_function" else set[int]()
        if not read:
            continue
        linear = [{i for i, p in enumerate(s.operands) if p == PARTIAL} for s in partial(op_of(node))]
        if read not in linear:
            return f"{_named(node)} mixes samples"
        sums.add(node)
    return None


def _named(op: fx.Node) -> str:
    return f"{op.name} ({op.target}) in {'.'.join(module_path(op)[-1:]) or 'the model'}"
