"""Small float64 calls of every op that has a rule; 2 and 3 ranks shard their sizes evenly here, unevenly there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from partitioner.ops import own

aten = torch.ops.aten
Op = Callable[..., torch.Tensor]
_RANDOM = torch.Generator().manual_seed(3)


@dataclass(frozen=True)
class Sample:
    """``target(*args, **kwargs)``; tensors among the arguments (also in a list) are the operands.

    Those of ``fixed`` can have no gradient: torch has no derivative, or none for this shape.
    """

    target: Op
    args: tuple[object, ...]
    kwargs: dict[str, object] = field(default_factory=dict)
    fixed: tuple[int, ...] = ()

    def __str__(self) -> str:
        words = [_word(a) for a in (*self.args, *self.kwargs.values())]
        return f"{self.target}-{','.join(words)}"


def _word(argument: object) -> str:
    if isinstance(argument, torch.Tensor):
        return "x".join(map(str, argument.shape))
    return "+".join(map(_word, argument)) if isinstance(argument, list) else str(argument)


def real(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=_RANDOM)


COMPLEX = torch.complex128


def compound(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=COMPLEX, generator=_RANDOM)


def positive(*shape: int) -> torch.Tensor:
    return real(*shape).abs() + 0.5


def integers(high: int, *shape: int) -> torch.Tensor:
    return torch.randint(high, shape, generator=_RANDOM)


def truth(*shape: int) -> torch.Tensor:
    return integers(2, *shape).bool()


def _unary(targets: tuple[Op, ...], make: Callable[..., torch.Tensor], *rest: object) -> list[Sample]:
    return [Sample(t, (make(4, 6), *rest)) for t in targets]


def _binary(targets: tuple[Op, ...], make: Callable[..., torch.Tensor]) -> list[Sample]:
    return [Sample(t, (make(4, 6), make(*shape))) for t in targets for shape in ((4, 6), (6,), (4, 1))]


def _conv(target: Op, n: int) -> list[tuple[object, ...]]:
    """Stride, padding, dilation and groups, each in turn; with and without a bias; one sample without its dimension."""
    space, named = [5] * n, str(target).endswith("padding")
    plain: list[object] = [[1] * n, "valid" if named else [0] * n, [1] * n, 1]
    changes = (([2] * n, 0), ("same" if named else [1] * n, 1), ([2] * n, 2), (6, 3), (3, 3))
    one = (real(3, *space), real(6, 3, *[2] * n))
    rows: list[tuple[object, ...]] = [(real(4, 3, *space), real(6, 3, *[2] * n), real(6)), one]
    for value, place in changes:
        rest = [*plain[:place], value, *plain[place + 1 :]]
        groups = value if place == 3 else 1
        assert isinstance(groups, int)
        rows.append((real(2, 6, *space), real(6, 6 // groups, *[2] * n), real(6), *rest))
    return rows


def _transposed(n: int) -> list[tuple[object, ...]]:
    """Stride, padding, output padding, groups and dilation, each in turn."""
    space, plain = [4] * n, [[1] * n, [0] * n, [0] * n, 1, [1] * n]
    weight = real(3, 6, *[2] * n)
    rows: list[tuple[object, ...]] = [(real(4, 3, *space), weight), (real(3, *space), weight)]
    for value, place in (([2] * n, 0), ([1] * n, 1), ([1] * n, 2), (6, 3), (3, 3), ([2] * n, 4)):
        rest: list[object] = [*plain[:place], value, *plain[place + 1 :]]
        rest[0] = [2] * n if place == 2 else rest[0]
        groups = value if place == 3 else 1
        assert isinstance(groups, int)
        rows.append((real(2, 6, *space), real(6, 12 // groups, *[2] * n), real(12), *rest))
    return rows


def _attention(keys: int, *rest: object) -> Sample:
    tensors = (real(2, 6, 5, 4), real(2, 6, keys, 4), real(2, 6, keys, 4))
    return Sample(aten.scaled_dot_product_attention.default, (*tensors, *rest), {"scale": 0.3})


def _resampled(target: Op, n: int, corners: tuple[bool, ...]) -> list[Sample]:
    """To sizes and by factors, corners aligned and not."""
    x, rest = real(2, 4, *[4] * n), [(c,) for c in corners] or [()]
    calls = [(x, [6] * n, *r, None) for r in rest] + [(x, None, *r, [2.0] * n) for r in rest]
    return [Sample(target, call) for call in calls]


SHARED: dict[str, object] = {"enable_gqa": True}
_SCATTERS: list[tuple[Op, dict[str, object]]] = [
    (aten.scatter.src, {}), (aten.scatter_add.default, {}), (aten.scatter_reduce.two, {"reduce": "amax"}),
    (aten.scatter_reduce.two, {"reduce": "sum", "include_self": False}),
]  # fmt: skip
_POOLS: list[tuple[Op, int]] = [(aten.avg_pool1d.default, 1), (aten.avg_pool2d.default, 2)]

_RULED: list[Sample] = [
    Sample(aten.linear.default, (real(4, 6, 9), real(5, 9))),
    Sample(aten.matmul.default, (real(6, 9), real(9, 5))),
    Sample(aten.matmul.default, (real(2, 4, 6, 9), real(2, 4, 9, 5))),
    Sample(aten.matmul.default, (real(4, 3, 6), real(6, 5))),
    _attention(5, None, 0.0, True),
    _attention(7, truth(2, 1, 5, 7).logical_or(torch.arange(7) == 3)),
    _attention(7, real(1, 6, 5, 7)),
    Sample(aten.linear.default, (real(9), real(6, 9))),
    Sample(aten.linear.default, (real(4, 9), real(9))),
    Sample(aten.linear.default, (real(4, 9), real(6, 9), real(6))),
    Sample(aten.linear.default, (compound(4, 9), compound(6, 9))),
    Sample(aten.matmul.default, (real(4, 6, 9), real(9))),
    Sample(aten.matmul.default, (real(9), real(4, 9, 6))),
    Sample(aten.matmul.default, (real(9), real(9))),
    Sample(aten.matmul.default, (real(1, 6, 9), real(4, 9, 5))),
    Sample(aten.matmul.default, (compound(4, 6, 9), real(9, 5).to(COMPLEX))),
    *(Sample(target, args) for target in (aten.conv1d.default, aten.conv1d.padding) for args in _conv(target, 1)),
    *(Sample(target, args) for target in (aten.conv2d.default, aten.conv2d.padding) for args in _conv(target, 2)),
    *(Sample(target, args) for target in (aten.conv3d.default, aten.conv3d.padding) for args in _conv(target, 3)),
    *(Sample(aten.conv_transpose1d.default, args) for args in _transposed(1)),
    *(Sample(aten.conv_transpose2d.input, args) for args in _transposed(2)),
    Sample(own.expert_linear.default, (real(8, 6), real(3, 6, 4), integers(3, 8))),
    Sample(aten.scaled_dot_product_attention.default, (real(2, 6, 5, 4), real(2, 2, 5, 4), real(2, 2, 5, 4)), SHARED),
    Sample(aten.scaled_dot_product_attention.default, (real(6, 5, 4), real(6, 7, 4), real(6, 7, 8), None, 0.0, True)),
    Sample(aten.scaled_dot_product_attention.default, (*(real(2, 4, 5, 4) for _ in range(3)), None, 1.0)),
    Sample(aten.embedding.default, (real(7, 6), integers(7, 4, 5))),
    Sample(aten.embedding.default, (real(7, 6), integers(7, 4, 5), 3)),
    Sample(aten.embedding.default, (real(7, 6), integers(3, 4, 5), -1, True)),
    Sample(aten.embedding.default, (real(7, 6), integers(3, 4, 5), 2, True)),
    Sample(aten.embedding.default, (real(7, 6), integers(7, 4, 5), -1, False, True)),
    Sample(aten.embedding.default, (real(7, 6), integers(7))),
    Sample(aten.one_hot.default, (integers(3, 4, 6), 3)),
    Sample(aten.one_hot.default, (integers(3, 4, 6), 5)),
    Sample(aten.bucketize.Tensor, (real(4, 6), real(6).sort().values)),
    Sample(aten.bucketize.Tensor, (integers(4, 4, 6), torch.arange(4), ), {"right": True, "out_int32": True}),
    Sample(own.cross_entropy_sum.default, (real(9, 7), integers(7, 9), 3, 0.0)),
    Sample(own.cross_entropy_sum.default, (real(9, 7), integers(7, 9), 3, 0.1)),
    Sample(own.cross_entropy_sum.default, (real(9, 7), integers(7, 9), -100, 0.0)),
    Sample(aten.gather.default, (real(4, 6), -1, integers(6, 4, 3))),
    Sample(aten.gather.default, (real(4, 6), 0, integers(4, 3, 6)), {"sparse_grad": True}),
    Sample(aten.gather.default, (real(4, 6, 5), 1, integers(6, 2, 6, 5))),
    Sample(aten.gather.default, (real(), 0, integers(1))),
    Sample(aten.index.Tensor, (real(4, 6, 5), [None, integers(6, 8)])),
    Sample(aten.index.Tensor, (real(4, 6, 5), [integers(4, 8, 1), integers(6, 6)])),
    Sample(aten.index.Tensor, (real(4, 6, 5), [integers(4, 8), None, integers(5, 8)])),
    Sample(aten.index.Tensor, (real(4, 6, 5), [None, None, integers(5, 3, 2)])),
    Sample(aten.index_select.default, (real(4, 6), 1, integers(6, 8))),
    Sample(aten.index_select.default, (real(4, 6), -2, integers(4, 2))),
    Sample(aten.index_put.default, (real(4, 6, 5), [None, integers(6, 8)], real(4, 8, 5), True)),
    Sample(aten.index_put.default, (real(4, 6, 5), [torch.tensor([3, 1])], real(5))),
    Sample(aten.index_put.default, (real(4, 6), [truth(4, 6)], real())),
    Sample(aten.index_add.default, (real(4, 6), 1, integers(6, 8), real(4, 8))),
    Sample(aten.index_add.default, (real(4, 6), -2, integers(4, 8), real(8, 6)), {"alpha": 2.0}),
    *(Sample(target, (real(4, 6), *call), rest, fixed) for target, rest in _SCATTERS for *call, fixed in (
        (1, torch.arange(6).repeat(4, 1)[:, 1:4], real(4, 3), ()),
        (-2, torch.arange(4).repeat(6, 1).T[1:4], real(3, 6), ()),
        (1, torch.arange(6).repeat(4, 1)[:3, 1:4], real(4, 6), (0, 2)),
        (1, torch.arange(6).repeat(4, 1)[:, 1:4], real(6, 3), (0, 2)),
    )),
    Sample(aten.scatter.value, (real(4, 6), -1, integers(6, 4, 3), 0.5)),
    Sample(aten.scatter.value, (real(4, 6), 0, integers(4, 2, 6), 2.5)),
    Sample(own.top_indices.default, (real(4, 6), 2, -1)),
    Sample(own.top_indices.default, (real(4, 6), 3, 0)),
    Sample(own.site_keys.default, (integers(99, 6), 3)),
    Sample(own.site_keys.default, (integers(99, 6), 4)),
    Sample(aten.layer_norm.default, (real(4, 6, 8), [8], real(8), real(8))),
    Sample(aten.layer_norm.default, (real(4, 6, 8), [8])),
    Sample(aten.layer_norm.default, (real(4, 6, 8), [6, 8], real(6, 8), None, 0.1)),
    Sample(aten.layer_norm.default, (real(4, 6, 8), [8], None, real(8))),
    Sample(aten.rms_norm.default, (real(4, 6, 8), [8], real(8))),
    Sample(aten.rms_norm.default, (real(4, 6, 8), [6, 8], real(6, 8), 0.1)),
    Sample(aten.rms_norm.default, (real(4, 6, 8), [8])),
    Sample(aten.group_norm.default, (real(4, 12, 5), 6, real(12), real(12))),
    Sample(aten.group_norm.default, (real(4, 12, 2, 3), 3, None, None, 0.1)),
    Sample(aten.group_norm.default, (real(4, 6), 2)),
    Sample(aten.instance_norm.default, (real(4, 6, 5), real(6), real(6), None, None, True, 0.1, 1e-5, False)),
    Sample(aten.instance_norm.default, (real(4, 6, 5), None, None, None, None, True, 0.2, 0.1, False)),
    Sample(aten.instance_norm.default, (real(4, 6, 5), None, None, real(6), positive(6), False, 0.1, 1e-5, False),
           {}, (1, 2)),
    Sample(aten.batch_norm.default, (real(4, 6, 5), real(6), real(6), real(6), positive(6), False, 0.1, 1e-5, False),
           {}, (3, 4)),
    Sample(aten.batch_norm.default, (real(4, 6), None, None, None, None, True, 0.2, 0.1, False)),
    *(Sample(target, (real(4, 6, 8), dim, kind)) for target in (aten.softmax.int, aten.log_softmax.int)
      for dim, kind in ((-1, None), (1, None), (0, torch.float64))),
    Sample(aten.softmax.int, (real(), 0)),
    Sample(aten.reshape.default, (real(4, 6, 8), [24, 8])),
    Sample(aten.reshape.default, (real(4, 6, 8), [4, 48])),
    Sample(aten.reshape.default, (real(4, 24), [4, 6, 4])),
    Sample(aten.reshape.default, (real(24, 8), [4, 6, 1, 8])),
    Sample(aten.reshape.default, (compound(4, 6, 8), [24, -1])),
    Sample(aten.permute.default, (real(2, 4, 6), [2, 0, 1])),
    Sample(aten.permute.default, (real(2, 4, 6), [-1, 1, 0])),
    Sample(aten.expand.default, (real(4, 1, 6), [4, 8, 6])),
    Sample(aten.expand.default, (real(1, 6), [4, 2, 6])),
    Sample(aten.expand.default, (real(4, 1, 6), [-1, 8, -1])),
    Sample(own.part.default, (real(5, 16), 1, [8, 4, 4], 1)),
    Sample(own.part.default, (real(12, 6), 0, [6, 6], 0)),
    Sample(aten.slice.Tensor, (real(4, 6), 1, 1, 5)),
    Sample(aten.slice.Tensor, (real(4, 6), -2, 1)),
    Sample(aten.slice.Tensor, (real(4, 6), 1, 0, 6, 2)),
    Sample(aten.slice.Tensor, (real(4, 6), 1, 0, 6)),
    Sample(aten.select.int, (real(4, 6), 1, 2)),
    Sample(aten.select.int, (real(4, 6), -2, -1)),
    Sample(aten.unfold.default, (real(4, 6), 1, 2, 1)),
    Sample(aten.unfold.default, (real(4, 6), -2, 3, 2)),
    Sample(aten.pad.default, (real(4, 6), [0, 2])),
    Sample(aten.pad.default, (real(4, 6), [0, 0, 1, -1], "constant", 0.5)),
    *(Sample(aten.pad.default, (real(2, 4, 6), [1, 1], mode)) for mode in ("circular", "reflect", "replicate")),
    Sample(aten.constant_pad_nd.default, (real(4, 6), [1, 0])),
    Sample(aten.constant_pad_nd.default, (real(4, 6), [-1, 1], 0.5)),
    Sample(aten.slice_scatter.default, (real(4, 6), real(4, 3), 1, 2, 5)),
    Sample(aten.slice_scatter.default, (real(4, 6), real(3, 6), -2, 1)),
    Sample(aten.slice_scatter.default, (real(4, 6), real(4, 3), 1, 0, 6, 2)),
    Sample(aten.select_scatter.default, (real(4, 6), real(4), 1, 2)),
    Sample(aten.select_scatter.default, (real(4, 6), real(6), -2, -1)),
    Sample(aten.cat.default, ([real(4, 6), real(4, 2)], 1)),
    Sample(aten.cat.default, ([real(4, 6), real(2, 6), real(4, 6)], -2)),
    Sample(aten.cat.default, ([compound(4, 6), compound(4, 6)],)),
    Sample(aten.roll.default, (real(4, 6, 5), [1, 2], [1, -1])),
    Sample(aten.roll.default, (real(4, 6), [2])),
    Sample(aten.flip.default, (real(4, 6, 5), [1])),
    Sample(aten.flip.default, (real(4, 6, 5), [-3, 2])),
    *(Sample(target, (real(4, 6, 6), *rest)) for target in (aten.tril.default, aten.triu.default)
      for rest in ((), (1,))),
    Sample(aten.view_as_complex.default, (real(4, 6, 2),)),
    Sample(aten.view_as_real.default, (compound(4, 6),)),
    *_unary((aten.real.default, aten.imag.default, aten.conj_physical.default), compound),
    Sample(aten.complex.default, (real(4, 6), real(4, 1))),
    Sample(aten.polar.default, (positive(4, 6), real(6))),
    Sample(aten.sum.dim_IntList, (real(4, 6, 3), [1])),
    Sample(aten.sum.dim_IntList, (real(4, 6), [-1], True)),
    Sample(aten.sum.dim_IntList, (real(4, 6), None)),
    Sample(aten.sum.dim_IntList, (integers(9, 4, 6), [0]), {"dtype": torch.int32}),
    Sample(aten.sum.default, (real(4, 6),)),
    Sample(aten.sum.default, (compound(4, 6),)),
    Sample(aten.sum.default, (truth(4, 6),), {"dtype": torch.float64}),
    Sample(aten.mean.dim, (real(4, 6, 8), [-1], True)),
    Sample(aten.mean.dim, (real(4, 6, 8), [1])),
    Sample(aten.mean.dim, (integers(9, 4, 6), None), {"dtype": torch.float64}),
    Sample(aten.cumsum.default, (real(4, 6), 1)),
    Sample(aten.cumsum.default, (integers(9, 4, 6), -2), {"dtype": torch.float64}),
    *(Sample(target, (real(4, 6, 8), *rest)) for target in (aten.var.dim, aten.std.dim) for rest in (
        ([-1],), ([1], False, True), (None,),
    )),
    *(Sample(target, (real(4, 6, 8), *rest), words) for target in (aten.var.correction, aten.std.correction)
      for rest, words in ((([-1],), {}), (([0, 1],), {"correction": 0, "keepdim": True}), ((), {}))),
    *(Sample(aten.prod.dim_int, (positive(4, 6), *rest), words) for rest, words in (
        ((1,), {}), ((-2, True), {"dtype": torch.float64}),
    )),
    *(Sample(aten.cumprod.default, (positive(4, 6), dim), words) for dim, words in (
        (1, {}), (-2, {"dtype": torch.float64}),
    )),
    Sample(aten.glu.default, (real(4, 6, 8),)),
    Sample(aten.glu.default, (real(4, 6, 8), 1)),
    *(Sample(target, (real(4, 6, 8), *rest), words) for target in (
        aten.linalg_vector_norm.default, aten.linalg_norm.default,
    ) for rest, words in (((2.0, [-1]), {}), ((1.0, [1], True), {"dtype": torch.float64}))),
    Sample(aten.linalg_vector_norm.default, (real(4, 6),)),
    Sample(aten.linalg_norm.default, (real(4, 6), None, [0, 1])),
    Sample(aten.norm.ScalarOpt_dim, (real(4, 6), 2, [-1])),
    Sample(aten.norm.ScalarOpt_dim, (real(4, 6), 3, [0], True)),
    *(Sample(target, (real(4, 6, 8), *rest)) for target in (
        aten.amax.default, aten.amin.default, aten.logsumexp.default,
    ) for rest in (([-1],), ([0, 1], True))),
    Sample(aten.amax.default, (real(4, 6),)),
    Sample(aten.logcumsumexp.default, (real(4, 6), 1)),
    Sample(aten.logcumsumexp.default, (real(4, 6), -2)),
    *(Sample(target, (real(4, 6), *rest)) for target in (aten.argmax.default, aten.argmin.default)
      for rest in ((-1,), (0, True), ())),
    *(Sample(aten.argsort.default, (real(4, 6), *rest)) for rest in ((), (0, True))),
    *(Sample(target, (truth(4, 6), *rest)) for target in (aten.any.dim, aten.all.dim) for rest in ((-1,), (0, True))),
    Sample(aten.cosine_similarity.default, (real(4, 6, 8), real(6, 8), -1)),
    Sample(aten.cosine_similarity.default, (real(4, 6, 8), real(4, 6, 8))),
    Sample(aten.cosine_similarity.default, (real(4, 6), real(4, 6), 1, 0.5)),
    *(Sample(target, (real(2, 4, *[6] * n), [2] * n, *rest)) for target, n in _POOLS for rest in (
        (), ([1] * n,), ([2] * n, [1] * n), ([3] * n, [1] * n, True), ([2] * n, [1] * n, False, False),
    )),
    *(Sample(target, (real(2, 4, *[6] * n), [3] * n)) for target, n in (*_POOLS, (aten.max_pool2d.default, 2))),
    Sample(aten.avg_pool2d.default, (real(2, 4, 6, 6), [2, 2], [2, 2], [0, 0], False, True, 3)),
    *(Sample(aten.max_pool2d.default, (real(2, 4, 6, 6), [2, 2], *rest)) for rest in (
        (), ([1, 1],), ([2, 2], [1, 1]), ([2, 2], [0, 0], [2, 2]), ([2, 2], [0, 0], [1, 1], True),
    )),
    *(Sample(aten.adaptive_avg_pool1d.default, (real(2, 4, 6), [size])) for size in (2, 3)),
    *(Sample(aten.adaptive_avg_pool2d.default, (real(2, 4, 6, 6), [size, size])) for size in (2, 3)),
    *_resampled(aten.upsample_linear1d.vec, 1, (False, True)),
    *_resampled(aten.upsample_bilinear2d.vec, 2, (False, True)),
    *_resampled(aten.upsample_bicubic2d.vec, 2, (False, True)),
    *_resampled(aten.upsample_nearest2d.vec, 2, ()),
    Sample(own.dropout.default, (real(4, 6, 5), 0.0, integers(99, 4), 0)),
    Sample(own.dropout.default, (real(6, 1, 1), 0.5, integers(99, 6), 1)),
    *(Sample(target, (real(4, 6), real(4, 1)), {"alpha": 2.0}) for target in (aten.add.Tensor, aten.sub.Tensor)),
    *(Sample(target, (compound(4, 6), real(4, 1))) for target in (aten.mul.Tensor, aten.add.Tensor, aten.div.Tensor)),
    Sample(aten.mul.Tensor, (compound(4, 6), compound(6))),
    *_unary((aten.abs.default, aten.exp.default), compound),
    *_binary((aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor), real),
    *_binary((aten.div.Tensor,), positive),
    *_unary((aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor), real, 2.0),
    *_binary((aten.minimum.default, aten.maximum.default, aten.min.other, aten.max.other), real),
    *_binary((aten.eq.Tensor, aten.ne.Tensor, aten.gt.Tensor, aten.ge.Tensor, aten.lt.Tensor, aten.le.Tensor), real),
    *_binary(
        (
            aten.bitwise_and.Tensor, aten.__and__.Tensor, aten.__or__.Tensor, aten.logical_and.default,
            aten.logical_or.default,
        ),
        truth,
    ),
    *_unary(
        (
            aten.neg.default, aten.clone.default, aten.tanh.default, aten.relu.default, aten.exp.default,
            aten.sigmoid.default, aten.gelu.default, aten.silu.default, aten.cos.default, aten.sin.default,
            aten.abs.default, aten.square.default, aten.softplus.default, aten.leaky_relu.default, aten.elu.default,
            aten.mish.default, aten.hardtanh.default, aten.detach.default, aten.log_sigmoid.default,
            aten.hardswish.default,
        ),
        real,
    ),
    *_unary((aten.rsqrt.default, aten.sqrt.default, aten.log.default), positive),
    *_unary((aten.pow.Tensor_Scalar,), positive, 2),
    *_unary((aten.clamp.default,), real, -0.5, 0.5),
    *_unary((aten.to.dtype,), real, torch.float64),
    *_unary((aten.to.dtype,), real, torch.int64),
    *_unary((aten.to.dtype,), real, COMPLEX),
    *(Sample(aten.gelu.default, (real(4, 6),), {"approximate": kind}) for kind in ("none", "tanh")),
    *_unary((aten.pow.Tensor_Scalar,), positive, -0.5),
    *_unary((aten.clamp.default,), real, 0.1),
    *_unary((aten.softplus.default,), real, 2.0, 0.5),
    *_unary((aten.leaky_relu.default,), real, 0.2),
    *_unary((aten.elu.default,), real, 0.5, 2.0, 3.0),
    *_unary((aten.hardtanh.default,), real, -0.5, 0.5),
    *(sample for other in (0.0, 1.0) for sample in _unary((
        aten.eq.Scalar, aten.ne.Scalar, aten.gt.Scalar, aten.ge.Scalar, aten.lt.Scalar, aten.le.Scalar,
    ), real, other)),
    *_unary((aten.logical_not.default, aten.bitwise_not.default), truth),
    Sample(aten.masked_fill.Scalar, (real(4, 6), truth(4, 6), 7.0)),
    Sample(aten.masked_fill.Scalar, (real(4, 6), truth(1, 6), 7.0)),
    Sample(aten.masked_fill.Scalar, (real(6), truth(4, 1), 2.0)),
    Sample(aten.masked_fill.Tensor, (real(4, 6), truth(1, 6), real())),
    Sample(aten.where.Scalar, (truth(4, 6), 1.0, 0.0)),
    Sample(aten.where.Scalar, (truth(4, 6), 2.0, 1.0)),
    Sample(aten.where.ScalarOther, (truth(4, 6), real(4, 6), 2.0)),
    Sample(aten.where.ScalarSelf, (truth(4, 6), 2.0, real(4, 6))),
    Sample(aten.prelu.default, (real(4, 6, 5), real(6))),
    Sample(aten.prelu.default, (real(4, 6, 5), real(1))),
    Sample(aten.where.ScalarOther, (truth(4, 6), real(4, 6), 7.0)),
    Sample(aten.where.ScalarOther, (truth(4, 1), real(4, 6), 7.0)),
    Sample(aten.where.ScalarSelf, (truth(4, 6), 7.0, real(4, 6))),
    Sample(aten.where.self, (truth(4, 6), real(4, 6), real(6))),
]  # fmt: skip
POINTWISE = [
    *_unary((aten.angle.default,), compound),
    *(Sample(aten.div.Tensor_mode, (real(4, 6), positive(6)), {"rounding_mode": m}) for m in ("floor", "trunc", None)),
    Sample(aten.pow.Tensor_Tensor, (positive(4, 6), real(4, 1))),
    Sample(aten.log1p.default, (positive(4, 6),)),
    *_unary((aten.erf.default, aten.lgamma.default, aten.atan.default, aten.hardsigmoid.default), real),
    *_binary((aten.atan2.default,), real),
    Sample(aten.addcmul.default, (real(4, 6), real(4, 6), real(6))),
    Sample(aten.lerp.Tensor, (real(4, 6), real(4, 1), real(6))),
]  # fmt: skip
SAMPLES = [*_RULED, *POINTWISE]
