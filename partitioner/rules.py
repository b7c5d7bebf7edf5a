"""One line an op: its sharding equation, the operands it is linear in, and what its backward saves.

A rule answers two questions. ``complete``: if one operand (or the result) lies as this shard, how must the others lie?
``linear``: which sets of operands may be Partial together and leave the result Partial? An op that torch tags as
pointwise needs no row. Any other op with no row stays replicated, and the plan says so.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from partitioner.equations import Strategy
from partitioner.layout import PARTIAL, REPLICATE, WHOLE, Placement, Shard
from partitioner.shardings import (
    Complete,
    Op,
    along,
    attention,
    cat,
    convolution,
    cross_entropy,
    draw,
    elementwise,
    equation,
    expand,
    gather,
    norm,
    pad,
    part,
    permute,
    reshape,
    scatter,
    scatter_at,
    select,
    sum_over,
    top,
    unreduced,
)


@dataclass(frozen=True)
class Rule:
    """``saves`` names what backward keeps: operand indices, and "out" for the result; with ``product`` an operand is
    kept only where another one has a gradient. ``hidden`` are bytes of what only backward sees (masks, statistics),
    given the result's element size. ``flops`` are the forward's. ``joint``: linear in all operands together.
    """

    complete: Complete
    linear: tuple[tuple[int, ...], ...] = ()
    saves: tuple[int | str, ...] = ()
    flops: Callable[[Op], float] | None = None
    view: bool = False
    product: bool = False
    hidden: Callable[[Op, int], float] | None = None
    joint: bool = False


def _matmul_flops(op: Op) -> float:
    return 2.0 * math.prod(op.result) * op.operands[0][-1]


def _attention_flops(op: Op) -> float:
    queries, keys = op.operands[0], op.operands[1]
    causal = 0.5 if op.literal(5, False) is True else 1.0
    return causal * 2.0 * math.prod(queries[:-1]) * keys[-2] * (queries[-1] + op.operands[2][-1])


def _conv_flops(op: Op) -> float:
    return 2.0 * math.prod(op.result) * math.prod(op.operands[1][1:])


def _statistics(count: int) -> Callable[[Op, int], float]:
    """``count`` float32 numbers for each normalized row."""
    return lambda op, _: 4.0 * count * math.prod(op.result[: -len(op.literals[1])])  # type: ignore[arg-type]


def _unary(*, saves: tuple[int | str, ...] = (), linear: bool = False) -> Rule:
    return Rule(elementwise(1), ((0,),) if linear else (), saves)


def _binary(*, linear: tuple[tuple[int, ...], ...] = ()) -> Rule:
    return Rule(elementwise(2), linear)


_VIEW_LINEAR = ((0,),)

RULES: dict[str, Rule] = {
    # products
    "aten.linear.default": Rule(equation("*m k, n k -> *m n"), ((0,),), (0, 1), _matmul_flops, product=True),
    "aten.matmul.default": Rule(
        equation("*b m k, *b k n -> *b m n"), ((0,), (1,)), (0, 1), _matmul_flops, product=True
    ),
    "aten.scaled_dot_product_attention.default": Rule(
        equation(attention), (), (0, 1, 2, "out"), _attention_flops,
        hidden=lambda op, _: 4.0 * math.prod(op.result[:-1]),
    ),
    "aten.conv1d.default": Rule(equation(convolution), (), (0, 1), _conv_flops),
    "aten.conv2d.default": Rule(equation(convolution), (), (0, 1), _conv_flops),
    "partitioner.expert_linear.default": Rule(
        equation("t k, g! k n, t -> t n"), ((0,), (1,)), (0, 1), _matmul_flops, product=True
    ),
    # tables and losses
    "aten.embedding.default": Rule(equation("v n, *m -> *m n"), (), (1,)),
    "partitioner.cross_entropy.default": Rule(
        cross_entropy, (), (), hidden=lambda op, size: size * math.prod(op.operands[0])  # the log-softmax
    ),
    **{name: Rule(unreduced(place), (), (0, 1)) for name, place in (
        ("aten.mse_loss.default", 2), ("aten.l1_loss.default", 2), ("aten.smooth_l1_loss.default", 2),
        ("aten.huber_loss.default", 2), ("aten.kl_div.default", 2), ("aten.soft_margin_loss.default", 2),
        ("aten.binary_cross_entropy.default", 3), ("aten.binary_cross_entropy_with_logits.default", 4),
        ("aten.poisson_nll_loss.default", 5),
    )},
    "aten.gather.default": Rule(equation(gather), ((0,),), (2,)),
    "aten.scatter.value": Rule(equation(scatter_at), (), (1,)),
    "aten.scatter.src": Rule(equation(scatter_at), (), (1,)),
    "partitioner.top_indices.default": Rule(equation(top)),
    "partitioner.site_keys.default": _unary(),
    "partitioner.draw.default": Rule(equation(draw)),
    # norms and softmax
    "aten.layer_norm.default": Rule(equation(norm), (), (0,), hidden=_statistics(2)),
    "aten.rms_norm.default": Rule(equation(norm), (), (0,), hidden=_statistics(1)),
    "aten.softmax.int": Rule(equation(along(1, True)), (), ("out",)),
    "aten.log_softmax.int": Rule(equation(along(1, True)), (), ("out",)),
    # views
    "aten.reshape.default": Rule(reshape, _VIEW_LINEAR, view=True),
    "aten.permute.default": Rule(permute, _VIEW_LINEAR, view=True),
    "aten.expand.default": Rule(expand, _VIEW_LINEAR, view=True),
    "partitioner.part.default": Rule(part, _VIEW_LINEAR, view=True),
    "aten.slice.Tensor": Rule(equation(pad), _VIEW_LINEAR, view=True),
    "aten.select.int": Rule(equation(select), _VIEW_LINEAR, view=True),
    "aten.pad.default": Rule(equation(pad)),
    "aten.constant_pad_nd.default": Rule(equation(pad)),
    "aten.slice_scatter.default": Rule(equation(scatter)),
    "aten.select_scatter.default": Rule(equation(scatter)),
    "aten.cat.default": Rule(cat, joint=True),
    # reductions
    "aten.sum.dim_IntList": Rule(equation(sum_over), ((0,),)),
    "aten.sum.default": Rule(equation(sum_over), ((0,),)),
    "aten.mean.dim": Rule(equation(along(1, False)), ((0,),)),
    "aten.cumsum.default": Rule(equation(along(1, True))),
    # elementwise, by what backward keeps
    "partitioner.dropout.default": Rule(
        equation("b *m, b -> b *m"), ((0,),), hidden=lambda op, size: size * math.prod(op.result)  # the scaled mask
    ),
    **{name: _binary(linear=((0, 1),)) for name in ("aten.add.Tensor", "aten.sub.Tensor")},
    "aten.mul.Tensor": Rule(elementwise(2), ((0,), (1,)), (0, 1), product=True),
    "aten.div.Tensor": Rule(elementwise(2), ((0,),), (0, 1), product=True),
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
        "aten.logical_not.default", "aten.bitwise_not.default", "aten.detach.default",
    )},
    **{name: _binary() for name in (
        "aten.eq.Tensor", "aten.ne.Tensor", "aten.gt.Tensor", "aten.ge.Tensor", "aten.lt.Tensor", "aten.le.Tensor",
        "aten.bitwise_and.Tensor", "aten.__and__.Tensor", "aten.__or__.Tensor", "aten.logical_and.default",
        "aten.logical_or.default",
    )},
    **{name: Rule(elementwise(2), (), (0, 1)) for name in (
        "aten.minimum.default", "aten.maximum.default", "aten.min.other", "aten.max.other",
    )},
    "aten.masked_fill.Scalar": Rule(elementwise(2), (), (1,)),
    **{name: Rule(elementwise(2), (), (0,)) for name in ("aten.where.ScalarOther", "aten.where.ScalarSelf")},
    "aten.where.self": Rule(elementwise(3), (), (0,)),
}  # fmt: skip


def rule_of(target: str) -> Rule | None:
    """The rule of an op by its name, ``aten.add.Tensor``; None where it has none."""
    return RULES.get(target) or _pointwise(target)


@functools.cache
def _pointwise(target: str) -> Rule | None:
    """The rule of an op that torch tags as pointwise and draws nothing; backward may keep all that it reads."""
    names = target.split(".")
    if len(names) != 3 or not hasattr(torch.ops, names[0]):
        return None
    op = getattr(getattr(getattr(torch.ops, names[0]), names[1], None), names[2], None)
    if not isinstance(op, torch._ops.OpOverload):  # pyright: ignore[reportPrivateUsage]
        return None
    schema = op._schema  # pyright: ignore[reportPrivateUsage]
    draws = torch.Tag.nondeterministic_seeded in op.tags
    if torch.Tag.pointwise not in op.tags or draws or schema.is_mutable or len(schema.returns) != 1:
        return None
    operands = sum(str(argument.type) in ("Tensor", "Optional[Tensor]") for argument in schema.arguments)
    return Rule(lambda op, *rest: elementwise(len(op.operands))(op, *rest), (), tuple(range(operands)))


def replicated(operands: int) -> tuple[Strategy, ...]:
    """The two strategies every op has: computed by all ranks alike, its gradient whole, or Partial, throughout."""
    return tuple(Strategy((word,) * operands, word) for word in (WHOLE, REPLICATE))


def partial(op: Op) -> tuple[Strategy, ...]:
    """The strategies in which a Partial flows through an op that is linear in it."""
    rule = rule_of(op.target)
    if rule is None:
        return ()
    found: list[Strategy] = []
    for linear in rule.linear:
        if linear[-1] < len(op.operands):  # x + 1 is not linear in x
            operands = tuple(PARTIAL if i in linear else REPLICATE for i in range(len(op.operands)))
            found.append(Strategy(operands, PARTIAL))
    if rule.joint:
        found.append(Strategy((PARTIAL,) * len(op.operands), PARTIAL))
    return tuple(found)


def complete(op: Op, slot: int, shard: Shard, ranks: int) -> Strategy | None:
    """The strategy in which operand ``slot`` (-1: the result) lies as ``shard`` on an axis of ``ranks`` ranks.

    None where the op has no rule or the rule forbids it. Every shard in the answer is canonical.
    """
    rule = rule_of(op.target)
    strategy = rule.complete(op, slot, shard, ranks) if rule else None
    if strategy is None:
        return None
    return Strategy(tuple(_canonical(p, ranks) for p in strategy.operands), _canonical(strategy.result, ranks))


def _canonical(placement: Placement | tuple[Placement, ...], ranks: int) -> Placement:
    assert not isinstance(placement, tuple)
    return placement.canonical(ranks) if isinstance(placement, Shard) else placement

