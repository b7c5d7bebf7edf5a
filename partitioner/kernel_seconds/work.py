"""What one op makes one rank do: products, attention, operands made few bits, bytes streamed, kernels launched."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from partitioner.kernel_seconds.attention import Attended
from partitioner.sharding.products import Gemm


@dataclass(frozen=True)
class Quantized:
    """An operand of products in few bits, read in its own type and written in those.

    ``both``: written a second time in the order in which backward's products read it. ``scanned``: read once more
    before, for its largest number.
    """

    elements: float
    both: bool
    scanned: bool

    @property
    def kernels(self) -> int:
        """Those that do it."""
        return 1 + self.scanned

    def bytes(self, itemsize: float, few: float, copies: int) -> float:
        """What is streamed, of ``itemsize`` bytes a number before and ``few`` after; ``copies``: of one that is needed
        in both orders."""
        return self.elements * (itemsize * self.kernels + few * (copies if self.both else 1))


@dataclass(frozen=True)
class Work:
    """``attended``: of fused attention; ``streamed_bytes`` exclude what products and fused attention read and write,
    and what becomes of ``quantized`` operands.
    ``kernels``: all that are launched, of which ``streams`` are neither products nor attention.
    ``recipe``: in which few bits its products run.
    """

    dtype: torch.dtype
    gemms: tuple[Gemm, ...] = ()
    attended: tuple[Attended, ...] = ()
    streamed_bytes: float = 0.0
    kernels: int = 0
    recipe: str = ""
    quantized: tuple[Quantized, ...] = ()

    @property
    def streams(self) -> int:
        """Kernels that only read and write."""
        return self.kernels - len(self.gemms) - len(self.attended)

    def with_quantized(self, rows: tuple[Quantized, ...]) -> Work:
        """And these operands made few bits."""
        return replace(self, quantized=rows, kernels=self.kernels + sum(row.kernels for row in rows))


def quantized(
    gemm: Gemm, once: bool, weights_once: bool, scanned: bool
) -> tuple[tuple[Quantized, ...], tuple[Quantized, ...]]:
    """What becomes of a product's operands in forward, an activation and a weight; and in backward, the gradient that
    both of its products read, and what was not kept for them. ``weights_once``: the weight comes as it is."""
    sizes = [gemm.m * gemm.k] if weights_once else [gemm.m * gemm.k, gemm.k * gemm.n]
    operands = tuple(Quantized(size * gemm.count, once, scanned) for size in sizes)
    return operands, (Quantized(gemm.m * gemm.n * gemm.count, True, scanned), *(() if once else operands))


def weight_once(forward: Work, scanned: bool) -> Work:
    """What is done once a step to the weight of a product in few bits, where micro-batches share what comes of it."""
    (gemm,) = forward.gemms
    return Work(forward.dtype, recipe=forward.recipe).with_quantized(
        (Quantized(gemm.k * gemm.n * gemm.count, True, scanned),)
    )
