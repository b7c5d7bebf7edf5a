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
    """``target(*args, **kwargs)``; tensors among the arguments (also in a list) are the operands."""

    target: Op
    args: tuple[object, ...]
    kwargs: dict[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        shapes = ",".join("x".join(map(str, a.shape)) for a in self.args if isinstance(a, torch.Tensor))
        return f"{self.target}-{shapes}"


def real(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=_RANDOM)


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


def _attention(keys: int, *rest: object) -> Sample:
    tensors = (real(2, 6, 5, 4), real(2, 6, keys, 4), real(2, 6, keys, 4))
    return Sample(aten.scaled_dot_product_attention.default, (*tensors, *rest), {"scale": 0.3})


_RULED: list[Sample] = [
    Sample(aten.linear.default, (real(4, 6, 9), real(5, 9))),
    Sample(aten.matmul.default, (real(6, 9), real(9, 5))),
    Sample(aten.matmul.default, (real(2, 4, 6, 9), real(2, 4, 9, 5))),
    Sample(aten.matmul.default, (real(4, 3, 6), real(6, 5))),
    _attention(5, None, 0.0, True),
    _attention(7, truth(2, 1, 5, 7).logical_or(torch.arange(7) == 3)),
    _attention(7, real(1, 6, 5, 7)),
    Sample(aten.conv1d.default, (real(4, 3, 8), real(6, 3, 3), real(6))),
    Sample(aten.conv1d.default, (real(4, 4, 8), real(6, 4, 3))),
    Sample(aten.conv2d.default, (real(4, 3, 8, 8), real(6, 3, 2, 2), real(6), [2, 2])),
    Sample(own.expert_linear.default, (real(8, 6), real(3, 6, 4), integers(3, 8))),
    Sample(aten.embedding.default, (real(7, 6), integers(7, 4, 5))),
    Sample(own.cross_entropy.default, (real(9, 7), integers(7, 9), 3, 0.0)),
    Sample(own.cross_entropy.default, (real(9, 7), integers(7, 9), 3, 0.1)),
    Sample(aten.gather.default, (real(4, 6), -1, integers(6, 4, 3))),
    Sample(aten.scatter.value, (real(4, 6), -1, integers(6, 4, 3), 0.5)),
    Sample(aten.scatter.src, (real(4, 6), 1, torch.arange(6).repeat(4, 1)[:, 1:4], real(4, 3))),
    Sample(own.top_indices.default, (real(4, 6), 2, -1)),
    Sample(own.site_keys.default, (integers(99, 6), 3)),
    Sample(own.draw.default, (integers(99, 6), "normal", [0.0, 1.0], 3, [4], torch.float64)),
    Sample(own.draw.default, (integers(99), "uniform", [0.0, 2.0], 3, [6, 4], torch.float64)),
    Sample(aten.layer_norm.default, (real(4, 6, 8), [8], real(8), real(8))),
    Sample(aten.layer_norm.default, (real(4, 6, 8), [8])),
    Sample(aten.rms_norm.default, (real(4, 6, 8), [8], real(8))),
    Sample(aten.softmax.int, (real(4, 6, 8), -1)),
    Sample(aten.log_softmax.int, (real(4, 6), 1)),
    Sample(aten.reshape.default, (real(4, 6, 8), [24, 8])),
    Sample(aten.reshape.default, (real(4, 6, 8), [4, 48])),
    Sample(aten.reshape.default, (real(4, 24), [4, 6, 4])),
    Sample(aten.reshape.default, (real(24, 8), [4, 6, 1, 8])),
    Sample(aten.permute.default, (real(2, 4, 6), [2, 0, 1])),
    Sample(aten.expand.default, (real(4, 1, 6), [4, 8, 6])),
    Sample(aten.expand.default, (real(1, 6), [4, 2, 6])),
    Sample(own.part.default, (real(5, 16), 1, [8, 4, 4], 1)),
    Sample(own.part.default, (real(12, 6), 0, [6, 6], 0)),
    Sample(aten.slice.Tensor, (real(4, 6), 1, 1, 5)),
    Sample(aten.select.int, (real(4, 6), 1, 2)),
    Sample(aten.pad.default, (real(4, 6), [0, 2])),
    Sample(aten.constant_pad_nd.default, (real(4, 6), [1, 0])),
    Sample(aten.slice_scatter.default, (real(4, 6), real(4, 3), 1, 2, 5)),
    Sample(aten.select_scatter.default, (real(4, 6), real(4), 1, 2)),
    Sample(aten.cat.default, ([real(4, 6), real(4, 2)], 1)),
    Sample(aten.sum.dim_IntList, (real(4, 6, 3), [1])),
    Sample(aten.sum.dim_IntList, (real(4, 6), [-1], True)),
    Sample(aten.sum.default, (real(4, 6),)),
    Sample(aten.mean.dim, (real(4, 6, 8), [-1], True)),
    Sample(aten.mean.dim, (real(4, 6, 8), [1])),
    Sample(aten.cumsum.default, (real(4, 6), 1)),
    Sample(own.dropout.default, (real(4, 6, 5), 0.0, integers(99, 4), 0)),
    Sample(own.dropout.default, (real(6, 1, 1), 0.5, integers(99, 6), 1)),
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
            aten.mish.default, aten.hardtanh.default, aten.detach.default,
        ),
        real,
    ),
    *_unary((aten.rsqrt.default, aten.sqrt.default, aten.log.default), positive),
    *_unary((aten.pow.Tensor_Scalar,), positive, 2),
    *_unary((aten.clamp.default,), real, -0.5, 0.5),
    *_unary((aten.to.dtype,), real, torch.float64),
    *_unary(
        (aten.eq.Scalar, aten.ne.Scalar, aten.gt.Scalar, aten.ge.Scalar, aten.lt.Scalar, aten.le.Scalar), real, 0.0
    ),
    *_unary((aten.logical_not.default, aten.bitwise_not.default), truth),
    Sample(aten.masked_fill.Scalar, (real(4, 6), truth(4, 6), 7.0)),
    Sample(aten.masked_fill.Scalar, (real(4, 6), truth(1, 6), 7.0)),
    Sample(aten.where.ScalarOther, (truth(4, 6), real(4, 6), 7.0)),
    Sample(aten.where.ScalarOther, (truth(4, 1), real(4, 6), 7.0)),
    Sample(aten.where.ScalarSelf, (truth(4, 6), 7.0, real(4, 6))),
    Sample(aten.where.self, (truth(4, 6), real(4, 6), real(6))),
]  # fmt: skip
POINTWISE = [
    *_unary((aten.erf.default, aten.lgamma.default, aten.atan.default, aten.hardsigmoid.default), real),
    *_binary((aten.atan2.default,), real),
    Sample(aten.addcmul.default, (real(4, 6), real(4, 6), real(6))),
    Sample(aten.lerp.Tensor, (real(4, 6), real(4, 1), real(6))),
]  # fmt: skip
SAMPLES = [*_RULED, *POINTWISE]
