"""Operands of products in few bits are quantized as a program does it; what that streams is counted by hand."""

from __future__ import annotations

import pytest
import torch

from partitioner.kernel_seconds.work import Quantized, Work, quantized, weight_once
from partitioner.sharding.products import Gemm

GEMM = Gemm(6, 5, 4, 2)  # two products: activations of 24 numbers, weights of 20, results of 30


def elements(rows: tuple[Quantized, ...]) -> list[float]:
    return [row.elements for row in rows]


def test_what_is_kept_is_quantized_in_forward_alone() -> None:
    forward, backward = quantized(GEMM, once=True, weights_once=True, scanned=False)
    assert (elements(forward), elements(backward)) == ([48], [60])
    assert all(row.both for row in (*forward, *backward))
    forward, backward = quantized(GEMM, once=True, weights_once=False, scanned=False)
    assert (elements(forward), elements(backward)) == ([48, 40], [60])


def test_each_product_quantizes_what_it_reads() -> None:
    forward, backward = quantized(GEMM, once=False, weights_once=False, scanned=True)
    assert (elements(forward), elements(backward)) == ([48, 40], [60, 48, 40])
    assert [row.both for row in (*forward, *backward)] == [False, False, True, False, False]
    assert all(row.scanned for row in (*forward, *backward))


@pytest.mark.parametrize(
    ("both", "scanned", "copies", "streamed"), [(True, False, 2, 4), (True, False, 1, 3), (False, True, 2, 5)]
)
def test_bytes_of_a_number(both: bool, scanned: bool, copies: int, streamed: int) -> None:
    """Read in 2 bytes, once more for a scale of the whole, written in 1, twice where both orders are needed."""
    assert Quantized(10, both, scanned).bytes(2, 1.0, copies) == 10 * streamed


def test_they_are_kernels_that_stream() -> None:
    work = Work(torch.bfloat16, (GEMM,), kernels=1, recipe="fp8")
    found = work.with_quantized((Quantized(1, True, True), Quantized(1, True, False)))
    assert (found.kernels, found.streams) == (4, 3)
    once = weight_once(work, scanned=True)
    assert (once.gemms, once.kernels, elements(once.quantized)) == ((), 2, [40])
