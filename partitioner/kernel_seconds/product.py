"""Seconds of a product of matrices, m x k by k x n: the fastest tiling, or what its bytes take, and what is fixed.

    compute = waves x tile x (k / splits + depth) / rate of the tile     least over tiles and splits
    seconds = (compute ^ norm + memory ^ norm) ^ (1 / norm) x droop + fixed
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from partitioner.hardware.device import Device, Products
from partitioner.sharding.products import Gemm

SPLITS = (1, 2, 3, 4, 6, 8, 12)  # in how many parts kernels cut the inner dimension
_SUM = 4  # bytes of a number of a part's result where the inner dimension is split


def gemm_seconds(gemm: Gemm, device: Device, dtype: str, itemsize: float, recipe: str = "") -> float:
    """Seconds of a product in ``dtype``, of ``itemsize`` bytes a number; ``recipe``: by which its operands were
    made few bits before. Raises InputError where the device has no such peak."""
    peak = device.peak(dtype) * device.sustained
    numbers = peak, device.multiprocessors, device.memory_bytes_per_second, device.tiles
    return _seconds(gemm, device.products_of(recipe or dtype), numbers, itemsize)


Tiles = tuple[tuple[int, int], ...]
Numbers = tuple[float, int, float, Tiles]


@lru_cache(maxsize=1 << 16)
def _seconds(gemm: Gemm, row: Products, numbers: Numbers, itemsize: float) -> float:
    sizes = np.array([gemm.m]), np.array([gemm.n]), np.array([gemm.k]), np.array([max(1.0, gemm.count)])
    return float(seconds(*sizes, row, *numbers, itemsize)[0])


def seconds(
    m: np.ndarray, n: np.ndarray, k: np.ndarray, count: np.ndarray, row: Products, peak: float, multiprocessors: int,
    bandwidth: float, tiles: Tiles, itemsize: float,
) -> np.ndarray:  # fmt: skip
    """Of many products at once, whose operands are as they read them; ``peak`` in FLOP/s, ``bandwidth`` in
    bytes/s."""
    streamed = bandwidth * row.memory_share
    flops = 2.0 * m * n * k * count
    memory = ((m * k + k * n) * itemsize + m * n * max(itemsize, 2.0)) * count / streamed
    if multiprocessors == 1:
        return np.maximum(flops / (peak * row.share), memory) + row.fixed_seconds
    compute = _tiled((m, n, k, count), row, tiles, peak * row.share / multiprocessors, multiprocessors, streamed)
    longest = np.maximum(compute, memory)
    joined = longest * (1.0 + (np.minimum(compute, memory) / longest) ** row.norm) ** (1.0 / row.norm)
    grown = row.droop / (1.0 + np.exp(-(np.log2(flops / 1e9) - row.droop_at) / row.droop_span))
    return row.fixed_seconds + joined * (1.0 + grown)


def quantize_seconds(m: np.ndarray, k: np.ndarray, row: Products, bandwidth: float) -> np.ndarray:
    """What first operands, m x k, took as they were made few bits before measured products; bytes/s."""
    return row.quantize_seconds + row.quantize_bytes_each * m * k / bandwidth


def _tiled(
    sizes: tuple[np.ndarray, ...], row: Products, tiles: Tiles, rate: float, multiprocessors: int, streamed: float
) -> np.ndarray:
    """The fastest of all tiles and splits; ``rate``: FLOP/s of the best tile on one multiprocessor."""
    rows, columns = (np.array(side, float)[:, None] for side in zip(*tiles, strict=True))
    splits = np.array(SPLITS, float)
    m, n, k, count = (x[:, None, None] for x in sizes)
    loss = 1.0 + (row.tile_loss * (rows + columns) / (rows * columns)) ** row.tile_power
    waves = np.ceil(m / rows) * np.ceil(n / columns) * count * splits / multiprocessors
    whole = np.floor(waves)
    begun = waves - whole
    waves = np.maximum(1.0, whole + np.where(begun > 0, row.last_wave + (1.0 - row.last_wave) * begun, 0.0))
    tile = 2.0 * rows * columns * (k / splits + row.tile_depth) * loss / loss.min() / rate
    parts = row.split_passes * _SUM * splits * m * n * count / streamed
    return (waves * tile + np.where(splits > 1, row.split_seconds + parts, 0.0)).min((1, 2))
