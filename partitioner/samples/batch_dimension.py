"""Where the batch lies in every value, and the loss as a sum over samples, or what keeps it from being one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx

from partitioner.graph.counts import Count, Separation
from partitioner.graph.dependence import constants, module_path
from partitioner.graph.graph import loss_node, placeholders
from partitioner.graph.nodes import call, op_of, operands, shape_of
from partitioner.ops.own_ops import own
from partitioner.samples.sample_inputs import Mixed, inputs_of
from partitioner.sharding.equations import Strategy
from partitioner.sharding.layout import PARTIAL, REPLICATE, Segment, Shard
from partitioner.sharding.op_rules import complete, rule_of

aten = torch.ops.aten

_TAKE_ROWS = (
    aten.slice.Tensor, own.part.default, aten.select.int, aten.index.Tensor, aten.index_select.default,
    aten.embedding.default, aten.gather.default,
)  # fmt: skip
MOST_ELEMENTS = 50_000_000  # of the operands and the result of an op that is tried out


@dataclass(frozen=True)
class Followed:
    """``layout``: where samples lie in each node; ``sums``: nodes summed over them; ``mixed``: ops that mix them."""

    layout: dict[fx.Node, Shard]
    sums: set[fx.Node]
    mixed: dict[fx.Node, str]


def separate(graph: fx.Graph, batch: int) -> tuple[tuple[Count, ...], Mixed | None]:
    """Rewrite ``graph`` so that the losses of its micro-batches add up to that of the global batch, where they can.

    Notes in ``meta["samples"]`` how the batch lies in each node that carries it. Returns the counts that a step needs,
    and the first op that mixes samples, so that dp and micro-batches are not to be had; None when there is none.
    """
    followed = follow(graph, batch)
    work = Separation(graph, set(followed.layout), followed.sums)
    work.run(loss_node(graph))
    for node, shard in followed.layout.items():
        node.meta["samples"] = shard
    mixed = followed.mixed | {n: f"{_named(n)} mixes samples" for n in work.mixed}
    first = next((n for n in graph.nodes if n in mixed), None)
    if first is None:
        return tuple(work.counts), None
    return tuple(work.counts), Mixed(mixed[first], inputs_of([first] if first.target in _TAKE_ROWS else []))


def follow(graph: fx.Graph, batch: int) -> Followed:
    """Follow the batch dimension from the inputs through every op's rule, in both directions along the edges.

    An op mixes samples whose rule needs the batch whole, or which reads a constant that is another for each sample.
    """
    found: dict[fx.Node, Shard] = {}
    sums: set[fx.Node] = set()
    mixed: dict[fx.Node, str] = {}
    for node in placeholders(graph, "input").values():
        if 0 in node.meta.get("batch_dims", ()):
            found[node] = Shard(0, (Segment(1, batch, 1),))
    work = list(found)
    while work:
        node = work.pop()
        for op, slot in _places(node):
            strategy = _strategy(op, slot, found[node], batch)
            problem = _follow(op, strategy, found, work)
            if problem:
                mixed.setdefault(op, problem)
            elif strategy and strategy.result == PARTIAL:
                sums.add(op)
    mixed |= {n: f"{_named(n)} tells samples apart by their place in the batch" for n in _placed(graph, found)}
    sized = {n: f"{_named(n)} has a size that follows from the batch size" for n in _sized(graph, found)}
    mixed = sized | mixed
    return Followed(found, sums, mixed)


def _placed(graph: fx.Graph, found: dict[fx.Node, Shard]) -> list[fx.Node]:
    """What reads a constant that has samples and was not found to be the same for all of them."""
    fixed = constants(graph)
    odd = {n for n in fixed if n in found and n.op == "call_function" and not n.meta.get("grown")}
    return [u for n in odd for u in n.users if u not in fixed and u.op == "call_function"]


def _sized(graph: fx.Graph, found: dict[fx.Node, Shard]) -> list[fx.Node]:
    """What grows with the batch though not by its samples (``x[:, :b]``), and what is of such a constant."""
    fixed = constants(graph)
    calls = [n for n in graph.nodes if n.op == "call_function"]
    grows = [n for n in calls if n not in fixed and n.meta.get("batch_dims") and not _samples_in(n, found)]
    return grows + [n for n in calls if n.meta.get("sized")]


def _samples_in(node: fx.Node, found: dict[fx.Node, Shard]) -> bool:
    """Whether samples are all that makes a node grow with the batch."""
    return node in found and node.meta["batch_dims"] == (found[node].dim,)


def _places(node: fx.Node) -> list[tuple[fx.Node, int]]:
    """Each op that reads ``node``, with the operand's number; and the op that makes it, with -1."""
    made = [(node, -1)] if node.op == "call_function" else []
    readers = [(u, i) for u in node.users for i, n in enumerate(operands(u)) if n is node]
    return made + [(u, i) for u, i in readers if u.op == "call_function"]


def _strategy(op: fx.Node, slot: int, shard: Shard, batch: int) -> Strategy | None:
    if op.target == torch.ops.aten.dropout.default:  # it has no key yet, so it has no rule
        return Strategy((shard,), shard)
    return complete(op_of(op), slot, shard, batch) or _tried(op, shard, batch)


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
            result = call(op, *args, **kwargs)
        if not result.requires_grad:
            return result, {}
        seed = above[first:last].to(result.dtype)
        found = torch.autograd.grad(result, list(leaves.values()), seed, materialize_grads=True)
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
    """In double, so that what differs is no rounding."""
    if like.is_floating_point() or like.is_complex():
        return draw(like.shape, generator=generator).to(torch.complex128 if like.is_complex() else torch.float64)
    return torch.randint(2, like.shape, generator=generator).to(like.dtype)


def _follow(op: fx.Node, strategy: Strategy | None, found: dict[fx.Node, Shard], work: list[fx.Node]) -> str | None:
    if strategy is None:
        return f"{_named(op)} mixes samples"
    for node, placement in [*zip(operands(op), strategy.operands, strict=True), (op, strategy.result)]:
        if not isinstance(placement, Shard):
            continue
        if node.op == "placeholder" and node.meta["kind"] != "input":
            return f"{_named(op)} mixes samples: it ties the batch to {node.meta['source']}"
        if node not in found:
            found[node] = placement
            work.append(node)
        elif found[node] != placement:
            return f"{_named(op)} mixes samples: {node.name} has the batch in two places"
    return None


def _named(op: fx.Node) -> str:
    return f"{op.name} ({op.target}) in {'.'.join(module_path(op)[-1:]) or 'the model'}"
