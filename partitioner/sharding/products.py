"""The product that an op is, m x k by k x n, from the sizes that a rank has of its operands and its result."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from partitioner.sharding.einsum_equations import products
from partitioner.sharding.op_equations import Op

Sizes = Sequence[float]


@dataclass(frozen=True)
class Gemm:
    """``count`` products of m x k by k x n."""

    m: float
    n: float
    k: float
    count: float = 1.0

    @property
    def flops(self) -> float:
        """Multiplications and additions."""
        return 2.0 * self.m * self.n * self.k * self.count


Gemms = Callable[[Op, Sizes, Sizes, Sizes], Gemm]


def linear(op: Op, x: Sizes, weight: Sizes, result: Sizes) -> Gemm:
    """A weight is (n, k), or one row of it."""
    return Gemm(math.prod(x[:-1]), weight[0] if len(weight) > 1 else 1.0, x[-1])


def matmul(op: Op, x: Sizes, y: Sizes, result: Sizes) -> Gemm:
    """A second operand without a batch is the weight of all rows."""
    if len(y) <= 2:
        return Gemm(math.prod(x[:-1]), y[-1] if len(y) > 1 else 1.0, x[-1])
    rows = result[-2] if len(x) > 1 else 1.0
    return Gemm(rows, result[-1], x[-1], math.prod(result) / (rows * result[-1]))


def experts(op: Op, x: Sizes, weight: Sizes, result: Sizes) -> Gemm:
    """Rows (t, k) in equal parts times the matrices (g, k, n) of their experts."""
    return Gemm(x[0] / weight[0], weight[2], x[1], weight[0])


def convolution(op: Op, x: Sizes, weight: Sizes, result: Sizes) -> Gemm:
    """A weight is (n, channels of a group, *kernel); each place of the result is a row."""
    return Gemm(math.prod(result) / result[_channel(x, weight)], weight[0], math.prod(weight[1:]))


def transposed_convolution(op: Op, x: Sizes, weight: Sizes, result: Sizes) -> Gemm:
    """A weight is (channels, n of a group, *kernel); each place of the operand is a row."""
    channels = x[_channel(x, weight)]
    return Gemm(math.prod(x) / channels, math.prod(weight[1:]), channels)


def _channel(x: Sizes, weight: Sizes) -> int:
    return len(x) - len(weight) + 1


def einsum(op: Op, x: Sizes, y: Sizes, result: Sizes) -> Gemm:
    """Of more than two operands the largest of the products, as often as makes them all."""
    found = [Gemm(*sizes) for sizes in products(op, (x, y, *op.operands[2:]))]
    largest = max(found, key=lambda gemm: gemm.flops)
    times = sum(gemm.flops for gemm in found) / largest.flops
    return Gemm(largest.m, largest.n, largest.k, largest.count * times)
