"""Every rule checks itself: the real op and its backward, run on shards and combined, equal the op run whole."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from calls import Sample
from samples import POINTWISE, SAMPLES
from torch import fx

from partitioner.graph.graph import op_of
from partitioner.graph.nodes import operands, propagate
from partitioner.layouts.local_sizes import localize
from partitioner.ops.cut_tensors import assemble, take
from partitioner.sharding.equations import Strategy
from partitioner.sharding.layout import PARTIAL, REPLICATE, WHOLE, Placement, Segment, Shard, shard_whole
from partitioner.sharding.op_rules import RULES, complete, partial, replicated, rule_of

# Rules that forbid more than mathematics does: queries and keys, and values' width, are sharded by no plan of ours.
_STRICT = {
    "aten.scaled_dot_product_attention.default", "aten.embedding.default",
}  # fmt: skip


def _node(sample: Sample) -> tuple[fx.Node, list[torch.Tensor]]:
    """The sample as a graph node whose operands are placeholders, and the operands' values."""
    graph, values = fx.Graph(), []

    def hold(argument: object) -> object:
        if isinstance(argument, list):
            return [hold(a) for a in argument] if any(isinstance(a, torch.Tensor) for a in argument) else argument
        if not isinstance(argument, torch.Tensor):
            return argument
        values.append(argument)
        node = graph.placeholder(f"x{len(values)}")
        node.meta["val"] = torch.empty_like(argument, device="meta")
        return node

    node = graph.call_function(sample.target, tuple(hold(a) for a in sample.args), sample.kwargs)
    propagate(fx.GraphModule(torch.nn.Module(), graph))
    return node, values


def _shards(size: int, dim: int, ranks: int) -> Iterator[Shard]:
    """Contiguous, strided (merged dimensions) and in granules, evenly and unevenly."""
    if size >= ranks:
        yield shard_whole(dim, size, ranks)
    for repeat, granule in ((2, 1), (1, 2), (2, 2), (4, 1), (1, 4)):
        if size % (repeat * granule) == 0 and size // (repeat * granule) >= ranks:
            yield Shard(dim, (Segment(repeat, size // (repeat * granule), granule),)).canonical(ranks)
    if size % 4 == 0 and size // 4 >= ranks:
        fused = (Segment(1, size // 2, 1), Segment(1, size // 4, 1), Segment(1, size // 4, 1))
        yield Shard(dim, fused).canonical(ranks)


def _strategies(node: fx.Node, ranks: int) -> Iterator[tuple[int, Shard, Strategy | None]]:
    op = op_of(node)
    for slot, shape in [*enumerate(op.operands), (-1, op.result)]:
        for dim, size in enumerate(shape):
            for shard in _shards(size, dim, ranks):
                yield slot, shard, complete(op, slot, shard, ranks)


def _scatter(value: torch.Tensor, placement: Placement, ranks: int, partial: Placement) -> list[torch.Tensor]:
    """Each rank's tensor; ``partial`` is the word of a random sum (PARTIAL forward, REPLICATE backward)."""
    if isinstance(placement, Shard):
        return [take(value, placement, r, ranks) for r in range(ranks)]
    if placement != partial or (partial == REPLICATE and not _continuous(value)):
        return [value] * ranks
    parts = [torch.randn_like(value) if _continuous(value) else value * r for r in range(1, ranks)]
    return [*parts, value - sum(parts)]


def _gather(parts: list[torch.Tensor], placement: Placement, partial: Placement) -> torch.Tensor:
    if isinstance(placement, Shard):
        return assemble(parts, placement)
    if placement == partial:
        return torch.stack(parts).sum(0, dtype=parts[0].dtype)
    for part in parts[1:]:
        torch.testing.assert_close(part, parts[0], rtol=1e-9, atol=1e-9)
    return parts[0]


def _run(
    node: fx.Node, values: list[torch.Tensor], args: tuple[object, ...], kwargs: dict[str, object]
) -> torch.Tensor:
    given = dict(zip(dict.fromkeys(operands(node)), values, strict=True))
    return node.target(*fx.map_arg(args, lambda n: given[n]), **fx.map_arg(kwargs, lambda n: given[n]))  # type: ignore[operator]


def _continuous(value: torch.Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()


def _leaves(values: list[torch.Tensor], trained: set[int]) -> list[torch.Tensor]:
    return [v.detach().clone().requires_grad_(n in trained) for n, v in enumerate(values)]


def _gradients(result: torch.Tensor, leaves: list[torch.Tensor], gradient: torch.Tensor) -> list[torch.Tensor]:
    wanted = [v for v in leaves if v.requires_grad]
    if not result.requires_grad:
        return []
    found = torch.autograd.grad(result, wanted, gradient, allow_unused=True)
    dense = [g.to_dense() if g is not None and g.is_sparse else g for g in found]
    return [torch.zeros_like(v) if g is None else g for v, g in zip(wanted, dense, strict=True)]


def _by_class(node: fx.Node, strategy: Strategy, values: list[list[torch.Tensor]]) -> list[torch.Tensor] | None:
    """The ops that a plan replaces by one that reduces by itself, written in plain torch over all ranks' parts."""
    shard, name = strategy.operands[0], str(node.target)
    if not isinstance(shard, Shard) or (name, shard.dim) not in _CLASSES:
        return None
    ranks = len(values)
    if name == "aten.embedding.default":
        rows = torch.arange(node.args[0].meta["val"].shape[0])  # type: ignore[union-attr]
        padding = node.args[2] if len(node.args) > 2 else -1
        return [_rows(table, index, take(rows, shard, r, ranks), padding) for r, (table, index) in enumerate(values)]
    logits = [[v[0] if r == own else v[0].detach() for r, v in enumerate(values)] for own in range(ranks)]
    return [node.target(assemble(parts, shard), *values[0][1:], *node.args[2:]) for parts in logits]  # type: ignore[operator]


_CLASSES = {
    ("aten.embedding.default", 0), ("partitioner.cross_entropy.default", 1),
    *(("partitioner.whole.default", dim) for dim in range(3)),
}  # fmt: skip


def _rows(table: torch.Tensor, index: torch.Tensor, where: torch.Tensor, padding: object) -> torch.Tensor:
    rows, trained = (index[..., None] == where).to(table.dtype), (index != padding).to(table.dtype)[..., None]
    return (rows * trained) @ table + (rows * (1 - trained)) @ table.detach()


def _check(
    node: fx.Node, values: list[torch.Tensor], strategy: Strategy, ranks: int, fixed: tuple[int, ...] = ()
) -> None:
    """With a gradient in all operands that can have one, and in each of them alone."""
    able = {n for n, v in enumerate(values) if _continuous(v)} - {*fixed}
    for trained in [able, *({n} for n in able if len(able) > 1)]:
        _check_trained(node, values, strategy, ranks, trained)


def _check_trained(
    node: fx.Node, values: list[torch.Tensor], strategy: Strategy, ranks: int, trained: set[int]
) -> None:
    whole = _leaves(values, trained)
    result = _run(node, whole, node.args, dict(node.kwargs))
    gradient = torch.randn_like(result) if _continuous(result) else result
    expected = _gradients(result, whole, gradient)

    placed = [_scatter(v, p, ranks, PARTIAL) for v, p in zip(values, strategy.operands, strict=True)]
    locals_ = [_leaves(list(row), trained) for row in zip(*placed, strict=True)]
    args, kwargs = localize(node, (strategy.result,), (("tp", ranks),))
    results = _by_class(node, strategy, locals_) or [_run(node, row, args, kwargs) for row in locals_]
    torch.testing.assert_close(_gather(results, strategy.result, PARTIAL), result, rtol=1e-9, atol=1e-9)

    sent = _scatter(gradient, strategy.result, ranks, REPLICATE)
    found = [_gradients(r, row, g) for r, row, g in zip(results, locals_, sent, strict=True)]
    placements = [p for n, p in enumerate(strategy.operands) if n in trained]
    for placement, want, parts in zip(placements, expected, zip(*found, strict=True), strict=False):
        torch.testing.assert_close(_gather(list(parts), placement, REPLICATE), want, rtol=1e-9, atol=1e-9)


def _is_static(node: fx.Node, strategy: Strategy, ranks: int) -> bool:
    """Whether one set of literals serves all ranks: an expand or a part of an uneven dimension has none."""
    uneven = isinstance(strategy.result, Shard) and not strategy.result.is_even(ranks)
    return not uneven or str(node.target) not in ("aten.expand.default", "partitioner.part.default")


def test_every_rule_has_a_sample() -> None:
    assert {str(s.target) for s in SAMPLES} == {*RULES, *(str(s.target) for s in POINTWISE)}
    assert not RULES.keys() & {str(s.target) for s in POINTWISE}


def test_a_random_or_reducing_op_has_no_rule_by_its_tag() -> None:
    names = ("aten.bernoulli.default", "aten.sort.default", "aten.add_.Tensor", "aten.nothing.default", "x", "a.b.c")
    assert not any(rule_of(name) for name in names)


_NO_NUMBER = {
    "memory_format", "non_blocking", "copy", "implicit", "cudnn_enable", "cudnn_enabled", "layout", "device",
    "pin_memory",
}  # fmt: skip
_OURS = {("partitioner.dropout.default", name) for name in ("axis", "dim", "segments")}  # what lowering writes


@pytest.mark.parametrize("target", RULES)
def test_every_argument_of_a_rule_is_tried(target: str) -> None:
    """A rule sees two values of each argument that its op's schema allows, and calls with and without each operand."""
    samples = [_node(s)[0] for s in SAMPLES if str(s.target) == target]
    tried: dict[str, set[str]] = {}
    for node in samples:
        for name, value in op_of(node).arguments.items():
            tried.setdefault(name, set()).add(str(value))
    for argument in samples[0].target._schema.arguments:  # type: ignore[union-attr]
        least = 1 if str(argument.type) in ("Tensor", "List[Tensor]") else 2
        if argument.name not in _NO_NUMBER and (target, argument.name) not in _OURS:
            assert len(tried[argument.name]) >= least, f"{target}: no sample varies {argument.name}"


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
@pytest.mark.parametrize("ranks", [2, 3])
def test_shards_combine_to_the_whole(sample: Sample, ranks: int) -> None:
    node, values = _node(sample)
    torch.manual_seed(0)
    seen: set[Strategy] = set()
    for _, _, strategy in _strategies(node, ranks):
        if strategy is not None and strategy not in seen and _is_static(node, strategy, ranks):
            seen.add(strategy)
            _check(node, values, strategy, ranks, sample.fixed)


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_partials_flow_through_linear_ops(sample: Sample) -> None:
    node, values = _node(sample)
    torch.manual_seed(0)
    for strategy in partial(op_of(node)):
        assert strategy.result == PARTIAL
        _check(node, values, strategy, 3, sample.fixed)
    for strategy in replicated(len(values)) if values else ():
        assert strategy.result in (WHOLE, REPLICATE)
        _check(node, values, strategy, 2, sample.fixed)


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_forbidden_shards_really_differ(sample: Sample) -> None:
    node, values = _node(sample)
    whole = _run(node, values, node.args, dict(node.kwargs))
    for slot, shard, strategy in _strategies(node, 2):
        same = slot >= 0 and values[slot].dim() == whole.dim() and shard.dim < whole.dim()
        if strategy is None and same and str(node.target) not in _STRICT and len(values) == 1:
            pieces = _scatter(values[0], shard, 2, PARTIAL)
            assert not _agrees(node, pieces, shard, whole), f"{shard} of operand {slot} is forbidden and right"


def _agrees(node: fx.Node, pieces: list[torch.Tensor], shard: Shard, whole: torch.Tensor) -> bool:
    try:
        results = [_run(node, [piece], *localize(node, (shard,), (("tp", 2),))) for piece in pieces]
        return assemble(results, shard).equal(whole)
    except (RuntimeError, IndexError):
        return False


def test_a_partial_does_not_flow_through_a_nonlinear_op() -> None:
    nonlinear = [s for s in SAMPLES if not partial(op_of(_node(s)[0]))]
    assert {"aten.gelu.default", "aten.layer_norm.default", "aten.softmax.int", "aten.maximum.default"} <= {
        str(s.target) for s in nonlinear
    }
