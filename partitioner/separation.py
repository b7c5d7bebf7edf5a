"""Where the batch dimension lies in every value, and whether the loss is a sum over samples."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import fx

from partitioner.constants import module_path
from partitioner.equations import Strategy
from partitioner.graph import placeholders
from partitioner.layout import PARTIAL, REPLICATE, Segment, Shard
from partitioner.rules import complete, partial, rule_of
from partitioner.shapes import op_of, operands, shape_of

MOST_ELEMENTS = 50_000_000  # of the operands and the result of an op that is tried out


def batch_layouts(graph: fx.Graph, batch: int, batched: tuple[str, ...]) -> tuple[dict[str, Shard], str | None]:
    """Follow the batch dimension from the inputs ``batched`` through every op's rule, in both directions of the edges.

    Returns where it lies in each value, and the first op that mixes samples (None when there is none): one whose rule
    needs the batch whole, or one that is not linear in a sum over samples.
    """
    found: dict[fx.Node, Shard] = {}
    sums: set[fx.Node] = set()
    for name, node in placeholders(graph, "input").items():
        if name in (*batched, "sample_keys"):
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
    """The batch through an op without a rule, found by running it on random samples, together and one by one.

    Its backward must come to the same: a sample's gradient hangs on no other's, and a shared operand's is their sum.
    """
    sides = [op, *operands(op)]
    size = sum(math.prod(shape_of(n)) for n in sides if isinstance(n.meta["val"], torch.Tensor))
    tensors = all(isinstance(n.meta["val"], torch.Tensor) for n in sides)
    if rule_of(str(op.target)) or shard.dim or not tensors or size > MOST_ELEMENTS or shape_of(op)[:1] != (batch,):
        return None
    of_samples = {n for n in operands(op) if shape_of(n)[:1] == (batch,) and n.meta.get("kind", "input") == "input"}
    if not all(_is_apart(op, of_samples, batch, draw) for draw in (torch.rand, torch.randn)):
        return None
    return Strategy(tuple(shard if n in of_samples else REPLICATE for n in operands(op)), shard)


def _is_apart(op: fx.Node, of_samples: set[fx.Node], batch: int, draw: Callable[..., torch.Tensor]) -> bool:
    """Whether an op does to all samples together what it does to each, on drawn operands and a drawn gradient."""
    generator = torch.Generator().manual_seed(0)
    values = {n: _random(n.meta["val"], generator, draw) for n in operands(op)}
    above = _random(op.meta["val"], generator, draw)

    def run(first: int, last: int) -> tuple[torch.Tensor, dict[fx.Node, torch.Tensor]]:
        rows = {n: x[first:last].clone() if n in of_samples else x.clone() for n, x in values.items()}
        leaves = {n: x.requires_grad_() for n, x in rows.items() if x.is_floating_point() or x.is_complex()}
        args, kwargs = fx.map_arg((op.args, op.kwargs), lambda n: rows[n])
        with torch.enable_grad():
            result = op.target(*args, **kwargs)  # type: ignore[operator]
        if not result.requires_grad:
            return result, {}
        found = torch.autograd.grad(result, list(leaves.values()), above[first:last], materialize_grads=True)
        return result.detach(), dict(zip(leaves, found, strict=True))

    try:
        whole, parts = run(0, batch), [run(n, n + 1) for n in range(batch)]
        alike = _close(torch.cat([result for result, _ in parts]), whole[0])
        for n, gradient in whole[1].items():
            found = [gradients[n] for _, gradients in parts]
            alike = alike and _close(torch.cat(found) if n in of_samples else torch.stack(found).sum(0), gradient)
        return alike
    except (RuntimeError, IndexError, ValueError, TypeError, KeyError, AssertionError):
        return False


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    precise = a.dtype not in (torch.float16, torch.bfloat16)
    relative, absolute = (1e-4, 1e-6) if precise else (2e-2, 1e-3)
    return a.shape == b.shape and torch.allclose(a, b, relative, absolute, equal_nan=True)


def _random(like: torch.Tensor, generator: torch.Generator, draw: Callable[..., torch.Tensor]) -> torch.Tensor:
    if like.is_floating_point() or like.is_complex():
        return draw(like.shape, generator=generator).to(like.dtype)
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
