"""One line an op: its sharding equation, the operands it is linear in, and what its backward saves.

A rule answers two questions. ``complete``: if one operand (or the result) lies as this shard, how must the others lie?
``linear``: which sets of operands may be Partial together and leave the result Partial? An op with no row stays
replicated, and the plan says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from partitioner.equations import Shape, Strategy, bind
from partitioner.layout import PARTIAL, REPLICATE, WHOLE, Placement, Segment, Shard, reshape_shard


@dataclass(frozen=True)
class Op:
    """What a rule may look at: an op's name, the shapes of its tensor operands and result, and its other arguments.

    ``literals`` are all positional arguments with each tensor (or list of tensors) replaced by None.
    """

    target: str
    operands: tuple[Shape, ...]
    result: Shape
    literals: tuple[object, ...]
    present: tuple[bool, ...] = ()

    def literal(self, index: int, default: object = None) -> object:
        """Positional argument ``index``, or ``default``."""
        return self.literals[index] if index < len(self.literals) else default

    def dims(self, index: int, rank: int) -> tuple[int, ...]:
        """Positional argument ``index`` (an int, a list of ints or None for all) as non-negative dimensions."""
        value = self.literal(index)
        dims = range(rank) if value is None or value == [] else [value] if isinstance(value, int) else value
        return tuple(int(d) % rank for d in dims)  # type: ignore[union-attr, arg-type]


Complete = Callable[[Op, int, Shard, int], Strategy | None]


@dataclass(frozen=True)
class Rule:
    """``saves`` names what backward keeps: operand indices, and "out" for the result. ``flops`` are per result."""

    complete: Complete
    linear: tuple[tuple[int, ...], ...] = ()
    saves: tuple[int | str, ...] = ()
    flops: Callable[[Op], float] | None = None
    view: bool = False


def _equation(text: str | Callable[[Op], str]) -> Complete:
    def complete(op: Op, slot: int, shard: Shard, ranks: int) -> Strategy | None:
        equation = text if isinstance(text, str) else text(op)
        return bind(equation, op.operands, op.result).complete(slot, shard)

    return complete


def _elementwise(operands: int) -> Complete:
    return _equation(", ".join(["*m"] * operands) + " -> *m")


def _letters(rank: int) -> list[str]:
    return [f"d{i}" for i in range(rank)]


def _along(position: int, keep: bool) -> Callable[[Op], str]:
    """Unary op that needs the dimensions named by argument ``position`` whole; reductions drop or keep them."""

    def text(op: Op) -> str:
        names = _letters(len(op.operands[0]))
        dims = op.dims(position, len(names))
        left = [n + "!" if i in dims else n for i, n in enumerate(names)]
        if keep or len(op.result) == len(names):
            return f"{' '.join(left)} -> {' '.join(left)}"
        return f"{' '.join(left)} -> {' '.join(n for i, n in enumerate(names) if i not in dims)}"

    return text


def _sum(op: Op) -> str:
    names = _letters(len(op.operands[0]))
    dims = op.dims(1, len(names)) if op.target != "aten.sum.default" else tuple(range(len(names)))
    kept = [f"one{i}" if i in dims else n for i, n in enumerate(names)]
    result = kept if len(op.result) == len(names) else [n for i, n in enumerate(names) if i not in dims]
    return f"{' '.join(names)} -> {' '.join(result)}"


def _reshape(op: Op, slot: int, shard: Shard, ranks: int) -> Strategy | None:
    source, target = op.operands[0], op.result
    if slot < 0:
        operand = reshape_shard(shard, target, source, ranks)
        return Strategy((operand,), shard) if operand else None
    result = reshape_shard(shard, source, target, ranks)
    return Strategy((shard,), result) if result else None


def _permute(op: Op, slot: int, shard: Shard, ranks: int) -> Strategy | None:
    dims = op.dims(1, len(op.result))
    if slot < 0:
        return Strategy((shard.moved(dims[shard.dim]),), shard)
    return Strategy((shard,), shard.moved(dims.index(shard.dim)))


def _expand(op: Op, slot: int, shard: Shard, ranks: int) -> Strategy | None:
    source, extra = op.operands[0], len(op.result) - len(op.operands[0])
    if slot >= 0:
        return Strategy((shard,), shard.moved(shard.dim + extra)) if source[shard.dim] > 1 else None
    dim = shard.dim - extra
    grown = dim < 0 or source[dim] != op.result[shard.dim]
    return Strategy((REPLICATE if grown else shard.moved(dim),), shard)


def _part(op: Op, slot: int, shard: Shard, ranks: int) -> Strategy | None:
    """Arguments (x, dim, sizes, index): the parts of a fused dimension are sharded each on its own."""
    dim, sizes, index = op.literal(1), op.literal(2), op.literal(3)
    assert isinstance(dim, int) and isinstance(sizes, list | tuple) and isinstance(index, int)
    if shard.dim != dim:
        return Strategy((shard,), shard)
    if slot < 0:
        return _part_of_whole(shard, dim, tuple(sizes), index, ranks)
    offset, want = sum(sizes[:index]), sizes[index]
    position = 0
    for segment in shard.segments:
        if position == offset and segment.size == want:
            return Strategy((shard,), Shard(dim, (segment,)))
        position += segment.size
    return None


def _part_of_whole(shard: Shard, dim: int, sizes: tuple[int, ...], index: int, ranks: int) -> Strategy | None:
    if len(shard.segments) > 1:
        return None
    own = shard.segments[0]
    segments: list[Segment] = []
    for i, size in enumerate(sizes):
        units = own if i == index else _like(own, size, ranks)
        if units is None:
            return None
        segments.append(units)
    return Strategy((Shard(dim, tuple(segments)),), shard)


def _like(segment: Segment, size: int, ranks: int) -> Segment | None:
    """A segment of another size divided the same way: in equal parts, or else in the same granules."""
    if segment.is_even(ranks):
        return Segment(segment.repeat, ranks, size // (segment.repeat * ranks)) if size % (segment.repeat * ranks) == 0 else None
    block = segment.repeat * segment.granule
    return Segment(segment.repeat, size // block, segment.granule) if size % block == 0 else None


def _cat(op: Op, slot: int, shard: Shard, ranks: int) -> Strategy | None:
    rank = len(op.result)
    dim = int(op.literal(1, 0)) % rank  # type: ignore[call-overload]
    if shard.dim == dim:
        return None
    return Strategy((shard,) * len(op.operands), shard)


def _pad(op: Op) -> str:
    names = _letters(len(op.operands[0]))
    same = [a == b for a, b in zip(op.operands[0], op.result, strict=True)]
    term = " ".join(n if keep else n + "!" for n, keep in zip(names, same, strict=True))
    return f"{term} -> {term}"


def _slice(op: Op) -> str:
    return _pad(op)


def _scatter(op: Op) -> str:
    names = _letters(len(op.operands[0]))
    dim = int(op.literal(2, 0)) % len(names)  # type: ignore[call-overload]
    whole = [n + "!" if i == dim else n for i, n in enumerate(names)]
    short = whole if "slice" in op.target else [n for i, n in enumerate(names) if i != dim]
    return f"{' '.join(whole)}, {' '.join(short)} -> {' '.join(whole)}"


def _select(op: Op) -> str:
    names = _letters(len(op.operands[0]))
    dim = int(op.literal(1, 0)) % len(names)  # type: ignore[call-overload]
    left = " ".join(n + "!" if i == dim else n for i, n in enumerate(names))
    return f"{left} -> {' '.join(n for i, n in enumerate(names) if i != dim)}"


def _top(op: Op) -> str:
    names = _letters(len(op.operands[0]))
    dim = int(op.literal(2, -1)) % len(names)  # type: ignore[call-overload]
    return " ".join(n + "!" if i == dim else n for i, n in enumerate(names)) + " -> " + " ".join(
        "top!" if i == dim else n for i, n in enumerate(names)
    )


def _gather(op: Op) -> str:
    """Sharded along a dimension that is not gathered where both operands have all of it; picks may be divided."""
    dim = int(op.literal(1, 0)) % len(op.result)  # type: ignore[call-overload]
    sizes = zip(op.operands[0], op.operands[1], strict=True)
    terms = [("from!", "pick") if i == dim else (f"d{i}",) * 2 if a == b else (f"x{i}!", f"d{i}!") for i, (a, b) in enumerate(sizes)]
    source, places = (" ".join(words) for words in zip(*terms, strict=True))
    return f"{source}, {places} -> {places}"


def _norm(op: Op) -> str:
    shape = op.literal(1)
    assert isinstance(shape, list | tuple)
    tail = " ".join(f"n{i}!" for i in range(len(shape)))
    return f"*m {tail}" + f", {tail}" * (len(op.operands) - 1) + f" -> *m {tail}"


def _attention(op: Op) -> str:
    mask = ", *b q! k!" if len(op.operands) == 4 else ""
    return f"*b q! e!, *b k! e!, *b k! v!{mask} -> *b q! v!"


def _cross_entropy(op: Op, slot: int, shard: Shard, ranks: int) -> Strategy | None:
    """Sharded over classes the op reduces by itself and returns the whole loss; over tokens its loss is Partial."""
    strategy = bind("t v, t -> ", op.operands, op.result).complete(slot, shard)
    by_class = strategy is not None and isinstance(strategy.operands[0], Shard) and strategy.operands[0].dim == 1
    return Strategy(strategy.operands, WHOLE) if strategy and by_class else strategy


def _matmul_flops(op: Op) -> float:
    return 2.0 * math.prod(op.result) * op.operands[0][-1]


def _attention_flops(op: Op) -> float:
    queries, keys = op.operands[0], op.operands[1]
    causal = 0.5 if op.literal(5, False) is True else 1.0
    return causal * 2.0 * math.prod(queries[:-1]) * keys[-2] * (queries[-1] + op.operands[2][-1])


def _conv(op: Op) -> str:
    space = " ".join(f"x{i}!" for i in range(len(op.operands[0]) - 2))
    kernel = " ".join(f"k{i}!" for i in range(len(op.operands[0]) - 2))
    out = " ".join(f"y{i}!" for i in range(len(op.operands[0]) - 2))
    bias = ", o" if len(op.operands) == 3 else ""
    channels = "c" if len(op.operands) == 2 else "c!"
    return f"n {channels} {space}, o {channels} {kernel}{bias} -> n o {out}"


def _conv_flops(op: Op) -> float:
    return 2.0 * math.prod(op.result) * math.prod(op.operands[1][1:])


def _unary(*, saves: tuple[int | str, ...] = (), linear: bool = False) -> Rule:
    return Rule(_elementwise(1), ((0,),) if linear else (), saves)


def _binary(*, saves: tuple[int | str, ...] = (), linear: tuple[tuple[int, ...], ...] = ()) -> Rule:
    return Rule(_elementwise(2), linear, saves)


_VIEW_LINEAR = ((0,),)

RULES: dict[str, Rule] = {
    # products
    "aten.linear.default": Rule(_equation("*m k, n k -> *m n"), ((0,),), (0, 1), _matmul_flops),
    "aten.matmul.default": Rule(_equation("*b m k, *b k n -> *b m n"), ((0,), (1,)), (0, 1), _matmul_flops),
    "aten.scaled_dot_product_attention.default": Rule(_equation(_attention), (), (0, 1, 2, "out"), _attention_flops),
    "aten.conv1d.default": Rule(_equation(_conv), (), (0, 1), _conv_flops),
    "aten.conv2d.default": Rule(_equation(_conv), (), (0, 1), _conv_flops),
    "partitioner.expert_linear.default": Rule(
        _equation("t k, g! k n, t -> t n"), ((0,), (1,)), (0, 1, 2), _matmul_flops
    ),
    # tables and losses
    "aten.embedding.default": Rule(_equation("v n, *m -> *m n"), (), (1,)),
    "partitioner.cross_entropy_sum.default": Rule(_cross_entropy, (), (0,)),
    "aten.gather.default": Rule(_equation(_gather), ((0,),), (2,)),
    "partitioner.top_indices.default": Rule(_equation(_top)),
    "partitioner.site_keys.default": _unary(),
    # norms and softmax
    "aten.layer_norm.default": Rule(_equation(_norm), (), (0,)),
    "aten.rms_norm.default": Rule(_equation(_norm), (), (0,)),
    "aten.softmax.int": Rule(_equation(_along(1, True)), (), ("out",)),
    "aten.log_softmax.int": Rule(_equation(_along(1, True)), (), ("out",)),
    # views
    "aten.reshape.default": Rule(_reshape, _VIEW_LINEAR, view=True),
    "aten.permute.default": Rule(_permute, _VIEW_LINEAR, view=True),
    "aten.expand.default": Rule(_expand, _VIEW_LINEAR, view=True),
    "partitioner.part.default": Rule(_part, _VIEW_LINEAR, view=True),
    "aten.slice.Tensor": Rule(_equation(_slice), _VIEW_LINEAR, view=True),
    "aten.select.int": Rule(_equation(_select), _VIEW_LINEAR, view=True),
    "aten.pad.default": Rule(_equation(_pad)),
    "aten.constant_pad_nd.default": Rule(_equation(_pad)),
    "aten.slice_scatter.default": Rule(_equation(_scatter)),
    "aten.select_scatter.default": Rule(_equation(_scatter)),
    "aten.cat.default": Rule(_cat),
    # reductions
    "aten.sum.dim_IntList": Rule(_equation(_sum), ((0,),)),
    "aten.sum.default": Rule(_equation(_sum), ((0,),)),
    "aten.mean.dim": Rule(_equation(_along(1, False)), ((0,),)),
    "aten.cumsum.default": Rule(_equation(_along(1, True))),
    # elementwise, by what backward keeps
    "partitioner.dropout.default": Rule(_equation("b *m, b -> b *m"), ((0,),)),
    **{name: _binary(linear=((0, 1),)) for name in ("aten.add.Tensor", "aten.sub.Tensor")},
    "aten.mul.Tensor": _binary(saves=(0, 1), linear=((0,), (1,))),
    "aten.div.Tensor": _binary(saves=(0, 1), linear=((0,),)),
    **{name: _unary(linear=True) for name in ("aten.neg.default", "aten.to.dtype", "aten.clone.default")},
    **{name: _unary(saves=("out",)) for name in (
        "aten.tanh.default", "aten.rsqrt.default", "aten.relu.default", "aten.exp.default", "aten.sigmoid.default",
        "aten.sqrt.default",
    )},
    **{name: _unary(saves=(0,)) for name in (
        "aten.gelu.default", "aten.silu.default", "aten.pow.Tensor_Scalar", "aten.cos.default", "aten.sin.default",
        "aten.log.default", "aten.abs.default", "aten.square.default", "aten.clamp.default", "aten.softplus.default",
        "aten.leaky_relu.default", "aten.elu.default", "aten.mish.default", "aten.hardtanh.default",
    )},
    **{name: _unary() for name in (
        "aten.eq.Scalar", "aten.ne.Scalar", "aten.gt.Scalar", "aten.ge.Scalar", "aten.lt.Scalar", "aten.le.Scalar",
        "aten.logical_not.default", "aten.bitwise_not.default", "aten.detach.default", "aten.masked_fill.Scalar",
    )},
    **{name: _binary() for name in (
        "aten.eq.Tensor", "aten.ne.Tensor", "aten.gt.Tensor", "aten.ge.Tensor", "aten.lt.Tensor", "aten.le.Tensor",
        "aten.bitwise_and.Tensor", "aten.__and__.Tensor", "aten.__or__.Tensor", "aten.logical_and.default",
        "aten.logical_or.default", "aten.masked_fill.Scalar", "aten.minimum.default", "aten.maximum.default",
        "aten.min.other", "aten.max.other", "aten.where.ScalarOther", "aten.where.ScalarSelf",
    )},
    "aten.where.self": Rule(_elementwise(3), (), (0,)),
}  # fmt: skip


def replicated(operands: int) -> tuple[Strategy, ...]:
    """The two strategies every op has: computed by all ranks alike, its gradient whole, or Partial, throughout."""
    return tuple(Strategy((word,) * operands, word) for word in (WHOLE, REPLICATE))


def partial(op: Op) -> tuple[Strategy, ...]:
    """The strategies in which a Partial flows through an op that is linear in it."""
    rule = RULES.get(op.target)
    if rule is None:
        return ()
    found: list[Strategy] = []
    for linear in rule.linear:
        if linear[-1] < len(op.operands):  # x + 1 is not linear in x
            operands = tuple(PARTIAL if i in linear else REPLICATE for i in range(len(op.operands)))
            found.append(Strategy(operands, PARTIAL))
    return tuple(found)


def complete(op: Op, slot: int, shard: Shard, ranks: int) -> Strategy | None:
    """The strategy in which operand ``slot`` (-1: the result) lies as ``shard`` on an axis of ``ranks`` ranks.

    None where the op has no rule or the rule forbids it. Every shard in the answer is canonical.
    """
    rule = RULES.get(op.target)
    strategy = rule.complete(op, slot, shard, ranks) if rule else None
    if strategy is None:
        return None
    return Strategy(tuple(_canonical(p, ranks) for p in strategy.operands), _canonical(strategy.result, ranks))


def _canonical(placement: Placement | tuple[Placement, ...], ranks: int) -> Placement:
    assert not isinstance(placement, tuple)
    return placement.canonical(ranks) if isinstance(placement, Shard) else placement

