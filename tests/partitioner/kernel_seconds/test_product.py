"""Tiles come in waves, thin products are bound by memory, a deep one may be split; the formula against its sums."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from partitioner import Cluster
from partitioner.errors import InputError
from partitioner.hardware.device import Device, Products
from partitioner.kernel_seconds.product import SPLITS, gemm_seconds, quantize_seconds
from partitioner.sharding.products import Gemm
from tools.measured_kernels.kernel_prices import product_seconds
from tools.measured_kernels.kernel_tables import Measured

A100 = Cluster.load("dgx-a100").device
PLAIN = Products(
    ("float16",), 0.5, 1.0, tile_loss=1e-9, tile_depth=0.0, last_wave=1.0, fixed_seconds=0.0, norm=64.0,
    split_seconds=1e3,
)  # fmt: skip
DEVICE = replace(
    A100, products=(PLAIN,), flops_per_second={"float16": 1000.0}, memory_bytes_per_second=1e12, multiprocessors=10,
    tiles=((4, 4), (2, 2)), sustained=1.0,
)  # fmt: skip


def seconds(gemm: Gemm, device: Device = DEVICE, **changed: float) -> float:
    device = replace(device, products=tuple(replace(row, **changed) for row in device.products))
    return gemm_seconds(gemm, device, "float16", 2)


def test_waves_are_counted() -> None:
    """A multiprocessor does 50 FLOPs a second: a tile of 4 x 4 x 8 takes 256 / 50 s, of 2 x 2 x 8 a quarter."""
    whole, quarter = 256 / 50, 64 / 50
    assert seconds(Gemm(4, 40, 8)) == pytest.approx(whole)  # 10 tiles, or 4 waves of quarters
    assert seconds(Gemm(4, 20, 8)) == pytest.approx(2 * quarter)  # 5 tiles leave half idle, 20 quarters none
    assert seconds(Gemm(4, 44, 8)) == pytest.approx(5 * quarter)  # 11 tiles are two waves, 44 quarters five
    assert seconds(Gemm(4, 44, 8), last_wave=0.0) == pytest.approx(4.4 * quarter)  # what is begun counts by its share
    assert seconds(Gemm(4, 4, 8, 10)) == pytest.approx(whole)


def test_depth_and_what_is_fixed_are_added() -> None:
    assert seconds(Gemm(4, 40, 8), tile_depth=4.0) == pytest.approx(256 / 50 * 12 / 8)
    assert seconds(Gemm(4, 40, 8), fixed_seconds=3.0) == pytest.approx(256 / 50 + 3)


def test_a_deep_product_of_few_tiles_is_split() -> None:
    deep = Gemm(4, 4, 8000)  # quarters fill four multiprocessors of ten
    alone = 2 * 2 * 2 * 8000 / 50
    assert seconds(deep) == pytest.approx(alone)
    split = seconds(deep, split_seconds=1.0, split_passes=0.0)
    assert split == pytest.approx(5 * 2 * 2 * 2 * (8000 / 12) / 50 + 1)  # 48 quarters in five waves of 12 parts
    assert (SPLITS[0], SPLITS[-1]) == (1, 12)


def test_a_thin_product_is_bound_by_memory() -> None:
    thin, slow = Gemm(1, 4096, 8), replace(DEVICE, memory_bytes_per_second=10.0)
    moved = 2 * (8 + 4096 * 8 + 4096)
    assert seconds(thin, slow) == pytest.approx(moved / 10, rel=1e-6)
    assert seconds(thin, slow, memory_share=0.5) == pytest.approx(moved / 5, rel=1e-6)


def test_smaller_tiles_are_slower_by_what_they_read() -> None:
    """A tile of 2 x 2 does one product for each element read, of 4 x 4 two."""
    loss = {"tile_loss": 1.0, "tile_power": 1.0}
    rates = 1 / (1 + 1.0), 1 / (1 + 0.5)
    only = replace(DEVICE, tiles=((2, 2),))
    assert seconds(Gemm(2, 20, 8), only, **loss) == pytest.approx(64 / 50)  # the best tile there is
    assert seconds(Gemm(2, 20, 8), DEVICE, **loss) == pytest.approx(64 / 50 * rates[1] / rates[0])


def test_large_products_fall_behind() -> None:
    """Half of the droop is seen where the logarithm of GFLOPs is ``droop_at``."""
    gemm = Gemm(4000, 4000, 8000)
    at = math.log2(gemm.flops / 1e9)
    plain = seconds(gemm)
    assert seconds(gemm, droop=0.4, droop_at=at) == pytest.approx(1.2 * plain)
    assert seconds(gemm, droop=0.4, droop_at=at - 40) == pytest.approx(1.4 * plain)


def test_only_measured_products_include_quantizing() -> None:
    row = replace(PLAIN, types=("fp8",), quantize_seconds=2.0, quantize_bytes_each=1e12)
    device, sizes = replace(DEVICE, products=(PLAIN, row)), (np.array([4.0]), np.array([8.0]))
    plain = gemm_seconds(Gemm(4, 40, 8), device, "float16", 2)
    assert gemm_seconds(Gemm(4, 40, 8), device, "float16", 1, "fp8") == pytest.approx(plain)
    assert quantize_seconds(*sizes, row, 1e12)[0] == pytest.approx(2 + 4 * 8)
    group = Measured("gemm", "", "fp8", np.array([[4.0, 40.0, 8.0]]), np.array([1.0]))
    few = replace(device, flops_per_second={"float8_e4m3fn": 1000.0})
    assert product_seconds(group, few)[0] == pytest.approx(plain + 2 + 4 * 8)


def test_what_is_sustained_and_one_core() -> None:
    assert gemm_seconds(Gemm(4, 40, 8), replace(DEVICE, sustained=0.5), "float16", 2) == pytest.approx(2 * 256 / 50)
    core = replace(DEVICE, multiprocessors=1)
    assert gemm_seconds(Gemm(3, 5, 7), core, "float16", 2) == pytest.approx(2 * 3 * 5 * 7 / 500)
    with pytest.raises(InputError, match="has no peak for products in int8"):
        gemm_seconds(Gemm(3, 5, 7), core, "int8", 2)


def test_a_large_product_on_a_gpu_nears_its_share() -> None:
    gemm = Gemm(8192 * 4, 8192, 8192)
    reached = gemm.flops / gemm_seconds(gemm, A100, "bfloat16", 2) / A100.peak("bfloat16") / A100.sustained
    assert 0.9 * A100.products[0].share < reached <= A100.products[0].share
