"""One row an op, of all that is known of it: how it divides, what its backward saves, the product that it is.

An op that torch tags as pointwise needs no row. Any other op with no row stays replicated, and the plan says so.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch

from partitioner.sharding import products, rank_forms
from partitioner.sharding.cache_equations import (
    cached_attention,
    extended,
    forgetful,
    gathered,
    last_position,
    positioned,
    stored,
)
from partitioner.sharding.channel_equations import batch_norm, convolution, group_norm, instance_norm, prelu
from partitioner.sharding.einsum_equations import einsum
from partitioner.sharding.equations import Strategy
from partitioner.sharding.layout import PARTIAL, REPLICATE, WHOLE, Placement, Shard
from partitioner.sharding.op_equations import (
    Op,
    along,
    attention,
    cross_entropy,
    draw,
    elementwise,
    embedding,
    equation,
    gather,
    hot,
    index,
    index_add,
    index_put,
    index_select,
    linear,
    matmul,
    norm,
    padded,
    scatter,
    scatter_at,
    similarity,
    sliced,
    sum_over,
    trailing,
    undivided,
    unreduced,
    windows,
)
from partitioner.sharding.rule import Literals, Rule
from partitioner.sharding.view_equations import cat, expand, part, permute, reshape


def _attention_flops(op: Op) -> float:
    queries, keys = op.operands[0], op.operands[1]
    causal = 0.5 if op.literal("is_causal") is True else 1.0
    return causal * 2.0 * math.prod(queries[:-1]) * keys[-2] * (queries[-1] + op.operands[2][-1])


def _statistics(count: int) -> Callable[[Op, int], float]:
    """``count`` float32 numbers for each normalized row."""
    return lambda op, _: 4.0 * count * math.prod(op.result[: -len(op.dims("normalized_shape", 1))])


def _log_softmax_gradient(strategy: Strategy) -> int:
    """Over divided classes it is written where the log-softmax lay."""
    logits = strategy.operands[0]
    return -1 if isinstance(logits, Shard) and logits.dim == 1 else 1


def _unary(*, saves: tuple[int | str, ...] = (), linear: bool = False) -> Rule:
    return Rule(elementwise(1), ((0,),) if linear else (), saves)


def _binary(*, linear: tuple[tuple[int, ...], ...] = ()) -> Rule:
    return Rule(elementwise(2), linear)


_FIRST = ((0,),)
_REDUCED = Rule(equation(along("dim")), (), (0,))
_MOVED = Rule(equation(along("dims")), _FIRST)
_GROUPS = Literals("groups", "groups")
_CONVOLUTION = Rule(convolution(), (), (0, 1), gemm=products.convolution, literals=_GROUPS)
_TRANSPOSED = Rule(
    convolution(transposed=True), (), (0, 1), gemm=products.transposed_convolution, literals=_GROUPS
)  # fmt: skip
_FLAT, _AREA = (Rule(equation(trailing(n)), (), (0,)) for n in (1, 2))

RULES: dict[str, Rule] = {
    # products
    "aten.linear.default": Rule(
        equation(linear), _FIRST, (0, 1), arity=2, bilinear=True, gemm=products.linear, weight="n k"
    ),
    "aten.matmul.default": Rule(
        equation(matmul), ((0,), (1,)), (0, 1), bilinear=True, gemm=products.matmul, weight="k n"
    ),
    "aten.einsum.default": Rule(
        equation(einsum), ((0,), (1,), (2,), (3,)), (0, 1, 2, 3), bilinear=True, gemm=products.einsum
    ),
    "aten.scaled_dot_product_attention.default": Rule(
        equation(attention), (), (0, 1, 2, "out"), attention=_attention_flops,
        hidden=lambda op, _: 4.0 * math.prod(op.result[:-1]),
    ),
    **{f"aten.conv{n}d.{name}": _CONVOLUTION for n in (1, 2, 3) for name in ("default", "padding")},
    "aten.conv_transpose1d.default": _TRANSPOSED,
    "aten.conv_transpose2d.input": _TRANSPOSED,
    "partitioner.expert_linear.default": Rule(
        equation("t k, g! k n, t -> t n"), ((0,), (1,)), (0, 1), bilinear=True, gemm=products.experts
    ),
    # caches of keys, and positions of their own
    "partitioner.extend_cache.default": Rule(equation(extended), writes=True, view=True),
    "partitioner.store.default": Rule(equation(stored), writes=True, view=True),
    "partitioner.done.default": Rule(forgetful),
    "partitioner.whole.default": Rule(gathered, on_rank=rank_forms.of_all),
    "partitioner.at_positions.default": Rule(equation(positioned), _FIRST),
    "partitioner.hide_unseen.default": Rule(elementwise(2)),
    **{f"partitioner.{name}.default": Rule(undivided) for name in ("slot_places", "seen_slots")},
    "partitioner.cached_attention.default": Rule(cached_attention, attention=_attention_flops),
    "partitioner.last_position.default": Rule(equation(last_position), _FIRST),
    # tables and losses
    "aten.embedding.default": Rule(equation(embedding), (), (1,), lookup=True, on_rank=rank_forms.by_vocabulary),
    "aten.one_hot.default": Rule(equation(hot)),
    "aten.bucketize.Tensor": Rule(equation("*m, edges! -> *m")),
    "partitioner.cross_entropy.default": Rule(
        cross_entropy, hidden=lambda op, size: size * math.prod(op.operands[0]),  # the log-softmax
        scratch=_log_softmax_gradient, on_rank=rank_forms.by_class,
    ),
    **{f"aten.{name}.default": Rule(unreduced, (), (0, 1)) for name in (
        "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "kl_div", "binary_cross_entropy",
        "binary_cross_entropy_with_logits",
    )},
    "aten.gather.default": Rule(equation(gather), _FIRST, (1,)),
    "aten.index.Tensor": Rule(equation(index), _FIRST, (1, 2, 3)),
    "aten.index_select.default": Rule(equation(index_select), _FIRST, (1,)),
    "aten.index_put.default": Rule(equation(index_put), (), (1, 2, 3)),
    "aten.index_add.default": Rule(equation(index_add), ((0, 2),), (1,)),
    **{f"aten.scatter.{name}": Rule(equation(scatter_at), (), (1,)) for name in ("value", "src")},
    "aten.scatter_add.default": Rule(equation(scatter_at), ((0, 2),), (1,)),
    "aten.scatter_reduce.two": Rule(equation(scatter_at), (), (0, 1, 2, "out")),
    "partitioner.top_indices.default": Rule(equation(along("dim"))),
    "partitioner.site_keys.default": _unary(),
    "partitioner.draw.default": Rule(equation(draw)),
    # norms and softmax
    "aten.layer_norm.default": Rule(equation(norm), (), (0,), hidden=_statistics(2)),
    "aten.rms_norm.default": Rule(equation(norm), (), (0,), hidden=_statistics(1)),
    "aten.group_norm.default": Rule(group_norm, (), (0,), literals=Literals("num_groups", "groups")),
    "aten.instance_norm.default": Rule(equation(instance_norm), (), (0,)),
    "aten.batch_norm.default": Rule(equation(batch_norm), (), (0,)),
    "aten.softmax.int": Rule(equation(along("dim")), (), ("out",), fuses="sink"),
    "aten.log_softmax.int": Rule(equation(along("dim")), (), ("out",)),
    # views
    "aten.reshape.default": Rule(reshape, _FIRST, view=True, literals=Literals("shape", "shape")),
    "aten.permute.default": Rule(permute, _FIRST, view=True, reorders=True),
    "aten.expand.default": Rule(expand, _FIRST, view=True, literals=Literals("size", "grown")),
    "partitioner.part.default": Rule(part, _FIRST, view=True, literals=Literals("sizes", "parts")),
    "aten.full.default": Rule(undivided, literals=Literals("size", "shape")),
    "aten.slice.Tensor": Rule(equation(sliced), _FIRST, view=True),
    "aten.select.int": Rule(equation(along("dim")), _FIRST, view=True),
    "aten.unfold.default": Rule(equation(windows), _FIRST),
    "aten.view_as_complex.default": Rule(equation("*m two! -> *m"), _FIRST, view=True),
    "aten.view_as_real.default": Rule(equation("*m -> *m two!"), _FIRST, view=True),
    **{f"aten.{name}.default": Rule(elementwise(1), _FIRST, view=True) for name in ("real", "imag", "alias")},
    "aten.pad.default": Rule(equation(padded)),
    "aten.constant_pad_nd.default": Rule(equation(padded)),
    "aten.slice_scatter.default": Rule(equation(scatter)),
    "aten.select_scatter.default": Rule(equation(scatter)),
    "aten.cat.default": Rule(cat, joint=True, fuses="chain"),
    "aten.roll.default": _MOVED,
    "aten.flip.default": _MOVED,
    **{f"aten.{name}.default": Rule(equation(trailing(2)), _FIRST) for name in ("tril", "triu")},
    # reductions
    "aten.sum.dim_IntList": Rule(equation(sum_over), _FIRST),
    "aten.sum.default": Rule(equation(sum_over), _FIRST),
    "aten.mean.dim": Rule(equation(along("dim")), _FIRST, fuses="chain"),
    "aten.cumsum.default": Rule(equation(along("dim")), _FIRST),
    **{f"aten.{name}": _REDUCED for name in (
        "var.dim", "var.correction", "std.dim", "std.correction", "prod.dim_int", "cumprod.default", "glu.default",
        "linalg_vector_norm.default", "linalg_norm.default", "norm.ScalarOpt_dim",
    )},
    **{f"aten.{name}": Rule(equation(along("dim")), (), (0, "out")) for name in (
        "amax.default", "amin.default", "logsumexp.default", "logcumsumexp.default",
    )},
    **{f"aten.{name}": Rule(equation(along("dim"))) for name in (
        "argmax.default", "argmin.default", "argsort.default", "any.dim", "all.dim",
    )},
    "aten.cosine_similarity.default": Rule(equation(similarity), (), (0, 1)),
    **{f"aten.{name}": _FLAT for name in (
        "avg_pool1d.default", "adaptive_avg_pool1d.default", "upsample_linear1d.vec",
    )},
    **{f"aten.{name}": _AREA for name in (
        "avg_pool2d.default", "adaptive_avg_pool2d.default", "max_pool2d.default", "upsample_bilinear2d.vec",
        "upsample_nearest2d.vec", "upsample_bicubic2d.vec",
    )},
    # elementwise, by what backward keeps
    "partitioner.dropout.default": Rule(
        equation("b *m, b -> b *m"), _FIRST, hidden=lambda op, size: size * math.prod(op.result),  # the scaled mask
        fused_hidden=lambda op, _: math.prod(op.result), fuses="chain", on_rank=rank_forms.by_element,
    ),
    "aten.add.Tensor": Rule(elementwise(2), ((0, 1),), sum=True, bias=True),
    "aten.sub.Tensor": Rule(elementwise(2), ((0, 1),), sum=True),
    "aten.mul.Tensor": Rule(elementwise(2), ((0,), (1,)), (0, 1), bilinear=True),
    "aten.div.Tensor": Rule(elementwise(2), ((0,),), (0, 1), bilinear=True),
    "aten.to.dtype": Rule(elementwise(1), _FIRST, fuses="chain"),
    **{name: _unary(linear=True) for name in (
        "aten.neg.default", "aten.clone.default", "aten.conj_physical.default",
    )},
    "aten.complex.default": _binary(linear=((0, 1),)),
    "aten.polar.default": Rule(elementwise(2), (), (0, 1)),
    **{name: _unary(saves=("out",)) for name in (
        "aten.tanh.default", "aten.rsqrt.default", "aten.relu.default", "aten.exp.default", "aten.sigmoid.default",
        "aten.sqrt.default",
    )},
    **{name: _unary(saves=(0,)) for name in (
        "aten.gelu.default", "aten.silu.default", "aten.pow.Tensor_Scalar", "aten.cos.default", "aten.sin.default",
        "aten.log.default", "aten.abs.default", "aten.square.default", "aten.clamp.default", "aten.softplus.default",
        "aten.leaky_relu.default", "aten.elu.default", "aten.mish.default", "aten.hardtanh.default",
        "aten.log_sigmoid.default", "aten.hardswish.default",
    )},
    **{name: _unary() for name in (
        "aten.eq.Scalar", "aten.ne.Scalar", "aten.gt.Scalar", "aten.ge.Scalar", "aten.lt.Scalar", "aten.le.Scalar",
        "aten.logical_not.default", "aten.bitwise_not.default", "aten.detach.default",
    )},
    **{name: _binary() for name in (
        "aten.eq.Tensor", "aten.ne.Tensor", "aten.gt.Tensor", "aten.ge.Tensor", "aten.lt.Tensor", "aten.le.Tensor",
        "aten.bitwise_and.Tensor", "aten.__and__.Tensor", "aten.__or__.Tensor", "aten.logical_and.default",
        "aten.logical_or.default", "aten.floor_divide.default",
    )},
    **{name: Rule(elementwise(2), (), (0, 1)) for name in (
        "aten.minimum.default", "aten.maximum.default", "aten.min.other", "aten.max.other",
    )},
    "aten.masked_fill.Scalar": Rule(elementwise(2), (), (1,)),
    "aten.masked_fill.Tensor": Rule(elementwise(3), (), (1,)),
    "aten.where.Scalar": _unary(),
    "aten.prelu.default": Rule(equation(prelu), (), (0, 1)),
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
    rule, cast = rule_of(op.target), op.literal("dtype")
    if rule is None or (isinstance(cast, torch.dtype) and not (cast.is_floating_point or cast.is_complex)):
        return ()  # a cast to integers rounds
    found: list[Strategy] = []
    for slots in rule.linear if rule.arity in (None, len(op.operands)) else ():
        known = slots[-1] < len(op.operands)  # x + 1 is not linear in x
        if known and not any(op.dtypes[i] == torch.bool for i in slots):
            operands = tuple(PARTIAL if i in slots else REPLICATE for i in range(len(op.operands)))
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


def is_written(op: str) -> bool:
    """Whether an op writes to its first operand."""
    rule = rule_of(op)
    return bool(rule and rule.writes)
