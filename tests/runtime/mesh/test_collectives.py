"""Every collective and its backward twin on 2 and 3 ranks, against the whole tensors in one process."""

from __future__ import annotations

from collections.abc import Callable

import plans
import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from partitioner.ops.cut_tensors import take
from partitioner.ops.own_ops import dropout, dropout_mask
from partitioner.sharding.layout import Segment, Shard, flat, shard_whole
from runtime.mesh.axis import join, split
from runtime.mesh.bind import bind
from runtime.mesh.groups import Groups

own, aten = torch.ops.partitioner, torch.ops.aten
SHAPE = (3, 12, 24)


def shards(ranks: int) -> list[Shard]:
    """Even divisions: first, inner and last dimension, repeated, in granules, in several segments."""
    return [
        shard_whole(0, 3, 3 if ranks == 3 else 1),
        shard_whole(1, 12, ranks),
        Shard(1, (Segment(2, ranks, 6 // ranks),)),
        Shard(2, (Segment(1, ranks, 24 // ranks),)),
        Shard(2, (Segment(1, ranks, 6 // ranks), Segment(1, ranks, 6 // ranks), Segment(2, ranks, 6 // ranks))),
    ][0 if ranks == 3 else 1 :]


def bound(groups: Groups, target: Callable[..., object], *literals: object, inputs: int = 1) -> fx.GraphModule:
    """A bound module of one node; ``literals`` follow the inputs."""
    graph = fx.Graph()
    nodes = [graph.placeholder(f"x{i}") for i in range(inputs)]
    graph.output(graph.call_function(target, (*nodes, *literals)))
    return bind(fx.GraphModule(nn.Module(), graph), groups)


def draw(seed: int, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(module: fx.GraphModule, x: torch.Tensor, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    y = module(x * 1.0)
    return y.detach(), torch.autograd.grad(y, x, grad)[0]


def _table(rank: int, ranks: int) -> None:
    """Parts differ by rank; a Partial is the sum of all ranks' values."""
    groups = Groups(plans.program(tp=ranks))
    xs, gs = [draw(r) for r in range(ranks)], [draw(10 + r) for r in range(ranks)]
    x, g, sum_x, sum_g = xs[rank], gs[rank], sum(xs), sum(gs)

    def check(module: fx.GraphModule, value: torch.Tensor, grad: torch.Tensor, y: object, dx: object) -> None:
        for got, want in zip(run(module, value, grad), (y, dx), strict=True):
            torch.testing.assert_close(got, want)

    check(bound(groups, own.all_reduce.default, "tp", False), x, g, sum_x, g)
    check(bound(groups, own.all_reduce.default, "tp", True), x, g, sum_x, sum_g)
    check(bound(groups, own.copy.default, "tp"), x, g, x, sum_g)
    for s in shards(ranks):
        row = (s.dim, flat(s.segments))
        part, part_g = take(x, s, rank, ranks).contiguous(), take(g, s, rank, ranks)
        whole = torch.cat([split(xs[r], s, ranks)[r : r + 1] for r in range(ranks)])
        torch.testing.assert_close(join(split(x, s, ranks), s), x)
        gathered = join(whole, s)
        gathered_g = join(torch.cat([split(gs[r], s, ranks)[r : r + 1] for r in range(ranks)]), s)
        check(bound(groups, own.all_gather.default, "tp", *row, False), part, g, gathered, part_g)
        check(bound(groups, own.all_gather.default, "tp", *row, True), part, g, gathered, take(sum_g, s, rank, ranks))
        check(bound(groups, own.reduce_scatter.default, "tp", *row), x, part_g, take(sum_x, s, rank, ranks), gathered_g)
        check(bound(groups, own.shard.default, "tp", *row, True), x, part_g, part, gathered_g)
        inside = torch.zeros_like(x).requires_grad_()
        (own_part,) = torch.autograd.grad(take(inside, s, rank, ranks), inside, part_g)
        check(bound(groups, own.shard.default, "tp", *row, False), x, part_g, part, own_part)
        for t in shards(ranks):
            if t.dim != s.dim:
                module = bound(groups, own.all_to_all.default, "tp", *row, t.dim, flat(t.segments))
                same_g = take(gathered, t, rank, ranks)
                check(module, part, same_g, take(gathered, t, rank, ranks), part)


def _vocabulary(rank: int, ranks: int) -> None:
    """Uneven classes and rows, ignored and padded ones, smoothing."""
    groups = Groups(plans.program(tp=ranks))
    classes, rows = 11, 7
    s = shard_whole(1, classes, ranks)
    logits, target = draw(1, (rows, classes)) * 5, torch.tensor([0, 10, 5, -100, 3, 7, 10])
    for smoothing in (0.0, 0.2):
        whole = logits.clone().requires_grad_()
        loss = F.cross_entropy(whole, target, reduction="none", label_smoothing=smoothing)
        given = draw(2, (rows,))
        (grad,) = torch.autograd.grad(loss, whole, given)
        names = (-100, smoothing, "tp", flat(s.segments))
        module = bound(groups, own.vocab_parallel_cross_entropy.default, *names, inputs=2)
        part = take(logits, s, rank, ranks).clone().requires_grad_()
        got = module(part, target)
        torch.testing.assert_close(got, loss)
        (local,) = torch.autograd.grad(got, part, given)
        torch.testing.assert_close(local, take(grad, s, rank, ranks))
    with pytest.raises(RuntimeError, match="a target is not a class"):
        module(part, target.where(target != 5, 11))
    _embedding(rank, ranks, groups, classes)


def _embedding(rank: int, ranks: int, groups: Groups, classes: int) -> None:
    s, weight, index = shard_whole(0, classes, ranks), draw(2, (11, 4)), torch.tensor([[0, 10, 5, 5], [3, 7, 10, 1]])
    for padding in (-1, 5):
        whole = weight.clone().requires_grad_()
        y = F.embedding(index, whole, padding if padding >= 0 else None)
        seed = draw(3, tuple(y.shape))
        (grad,) = torch.autograd.grad(y, whole, seed)
        names = (padding, "tp", flat(s.segments))
        graph = fx.Graph()
        nodes = [graph.placeholder(name) for name in ("weight", "index")]
        partial = graph.call_function(own.vocab_parallel_embedding.default, (*nodes, *names))
        graph.output(graph.call_function(own.all_reduce.default, (partial, "tp", False)))
        module = bind(fx.GraphModule(nn.Module(), graph), groups)
        part = take(weight, s, rank, ranks).clone().requires_grad_()
        got = module(part, index)
        torch.testing.assert_close(got, y)
        torch.testing.assert_close(torch.autograd.grad(got, part, seed)[0], take(grad, s, rank, ranks))


def _dropout(rank: int, ranks: int) -> None:
    groups = Groups(plans.program(tp=ranks))
    keys = torch.tensor([5, 6, 7])
    for s in shards(ranks):
        if s.dim:
            graph = fx.Graph()
            x, k = graph.placeholder("x"), graph.placeholder("keys")
            rest = (3, "tp", s.dim, flat(s.segments))
            graph.output(graph.call_function(own.dropout.default, (x, 0.5, k, *rest)))
            module = bind(fx.GraphModule(nn.Module(), graph), groups)
            whole = dropout(draw(0), 0.5, keys, 3)
            torch.testing.assert_close(module(take(draw(0), s, rank, ranks), keys), take(whole, s, rank, ranks))
    assert dropout_mask((4, 4), 0.5, 5, 3, torch.device("cpu")).float().mean() not in (0, 1)


def _all(rank: int, ranks: int) -> None:
    _table(rank, ranks)
    _vocabulary(rank, ranks)
    _dropout(rank, ranks)


@pytest.mark.parametrize("ranks", [2, 3])
def test_collectives_equal_one_process(ranks: int) -> None:
    plans.spawn(_all, ranks, ranks)
