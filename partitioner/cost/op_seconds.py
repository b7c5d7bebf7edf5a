"""Seconds of one op: a pure function of its work and a Cluster.

product      waves of tiles over the multiprocessors, a tile's depth and what filling it costs; or its bytes
attention    FLOPs of the fused kernel
the rest     bytes / reached bandwidth + launch
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import fx

from partitioner.cluster import Cluster, Device
from partitioner.cost.op_work import Setting, Work, op_work
from partitioner.precision import OWN, SINGLE, TF32, Precision
from partitioner.sharding.equations import Strategies
from partitioner.sharding.products import Gemm

TILES = ((256, 128), (128, 256), (128, 128), (128, 64), (64, 64))
_TILE_LOSS = 10.0  # a tile's rate is i / (i + loss) of the best, i its products for each element read
_TILE_DEPTH = 128  # steps of the inner dimension in which filling and draining a tile's pipeline would do
_BEST_TILE = 256 * 128 / (256 + 128)


@dataclass(frozen=True)
class Seconds:
    """Time of one micro-batch, forward and backward."""

    forward: float
    backward: float

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.forward + other.forward, self.backward + other.backward)

    @property
    def total(self) -> float:
        """Forward and backward together."""
        return self.forward + self.backward


ZERO = Seconds(0.0, 0.0)


def op_seconds(setting: Setting, node: fx.Node, strategies: Strategies, cluster: Cluster) -> Seconds:
    """Time of one op where the fullest rank's share of it runs; views, and a bias that joins its GEMM, are free."""
    rows, precision = op_work(setting, node, strategies), setting.folded.graph.precision
    return Seconds(*(work_seconds(work, cluster, precision) for work in rows))


def work_seconds(work: Work, cluster: Cluster, precision: Precision = OWN) -> float:
    """What an op does, one part after the other."""
    device, kind = cluster.device, product_type(dtype_name(work.dtype), precision)
    peak = device.peak(kind) if work.gemms or work.attention_flops else math.inf
    products = sum(gemm_seconds(g, device, peak, work.dtype.itemsize) for g in work.gemms)
    attention = work.attention_flops / (peak * device.attention_efficiency)
    whole = products + attention + work.streamed_bytes / streaming(device) + work.kernels * device.launch_seconds
    return whole / cluster.software.efficiency


def gemm_seconds(gemm: Gemm, device: Device, peak: float, itemsize: int) -> float:
    """The fastest tiling's waves over the multiprocessors, or what reading and writing the matrices takes.

    A device of one multiprocessor is a CPU's core: its products of 128 steps run as fast as those of 2048.
    """
    rate = peak * device.gemm_efficiency / device.multiprocessors
    tiled = device.multiprocessors > 1
    computed = min(_tiled(gemm, tile, device, rate) for tile in TILES) if tiled else gemm.flops / rate
    moved = (gemm.m * gemm.k + gemm.k * gemm.n + gemm.m * gemm.n) * gemm.count * itemsize
    return max(computed, moved / streaming(device))


def _tiled(gemm: Gemm, tile: tuple[int, int], device: Device, rate: float) -> float:
    rows, columns = tile
    tiles = math.ceil(gemm.m / rows) * math.ceil(gemm.n / columns) * max(1.0, gemm.count)
    waves = math.ceil(tiles / device.multiprocessors)
    intensity = rows * columns / (rows + columns)
    reached = (intensity / (intensity + _TILE_LOSS)) / (_BEST_TILE / (_BEST_TILE + _TILE_LOSS))
    return waves * 2.0 * rows * columns * (gemm.k + _TILE_DEPTH) / (rate * reached)


def streaming(device: Device) -> float:
    """Bytes a second that a kernel reaches which only reads and writes."""
    return device.memory_bytes_per_second * device.memory_efficiency


def product_type(dtype: str, precision: Precision) -> str:
    """In which products of ``dtype`` run, as cluster files have it."""
    return TF32 if precision.tf32 and dtype == SINGLE else dtype


def dtype_name(dtype: torch.dtype) -> str:
    """As cluster files have it; a complex product is priced in the type of its parts."""
    return str(dtype.to_real() if dtype.is_complex else dtype).removeprefix("torch.")
