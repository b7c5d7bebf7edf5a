"""Seconds and bytes of one op, one collective, one optimizer step: pure functions of work and a Cluster.

product      waves of tiles over the multiprocessors, a tile's depth and what filling it costs; or its bytes
attention    FLOPs of the fused kernel
the rest     bytes / reached bandwidth + launch
collective   hops x latency + bytes / bandwidth, ring or tree, inside a node or through its ports     (alpha-beta)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import fx

from partitioner.cluster import Cluster, Device, Route
from partitioner.cost.op_work import Gemm, Setting, Work, op_work
from partitioner.graph.nodes import operands
from partitioner.ops.collective_kinds import KINDS
from partitioner.ops.collectives import conversion, payloads
from partitioner.ops.payloads import vocabulary_sums
from partitioner.sharding.equations import Strategy
from partitioner.sharding.layout import REPLICATE, WHOLE, Placement, Shard

TILES = ((256, 128), (128, 256), (128, 128), (128, 64), (64, 64))
_TILE_LOSS = 10.0  # a tile's rate is i / (i + loss) of the best, i its products for each element read
_TILE_DEPTH = 128  # steps of the inner dimension in which filling and draining a tile's pipeline would do
_BEST_TILE = 256 * 128 / (256 + 128)
_TREE_HOPS = 2  # messages that a node of a binary tree waits for at each level, one from each child
CROSS_ENTROPY = "partitioner.cross_entropy.default"


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


def op_seconds(setting: Setting, node: fx.Node, strategy: Strategy, cluster: Cluster) -> Seconds:
    """Time of one op where the fullest rank's share of it runs; views, and a bias that joins its GEMM, are free."""
    return Seconds(*(work_seconds(work, cluster) for work in op_work(setting, node, strategy)))


def work_seconds(work: Work, cluster: Cluster) -> float:
    """What an op does, one part after the other."""
    device = cluster.device
    peak = device.peak(dtype_name(work.dtype)) if work.gemms or work.attention_flops else math.inf
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


def dtype_name(dtype: torch.dtype) -> str:
    """As cluster files have it; a complex product is priced in the type of its parts."""
    return str(dtype.to_real() if dtype.is_complex else dtype).removeprefix("torch.")


def collective_seconds(kind: str, payload: float, route: Route) -> float:
    """One collective of ``payload`` bytes (all_gather: gathered; all_to_all: held by a rank) over a group's ranks.

    A ring passes every member in each of its phases; an all_reduce that spans nodes may go by a tree of them instead.
    """
    ranks = route.ranks
    if not kind or ranks == 1 or not payload:
        return 0.0
    row = KINDS[kind]
    if row.own_part:
        far = payload * (ranks - ranks / route.nodes) / ranks / route.far_bytes_per_second if route.nodes > 1 else 0.0
        return _hops(route, route.nodes - 1) + max(far, payload * (ranks - 1) / ranks / route.bytes_per_second)
    moved = row.phases * payload * (ranks - 1) / ranks / route.bytes_per_second
    far_hops = route.nodes - 1
    if row.tree:
        far_hops = min(far_hops, _TREE_HOPS * math.ceil(math.log2(route.nodes)))
    return row.phases * _hops(route, far_hops) + moved


def _hops(route: Route, far: int) -> float:
    inside = math.ceil(route.ranks / route.nodes) - 1
    return inside * route.hop_seconds + far * route.far_hop_seconds


def convert_seconds(
    setting: Setting, node: fx.Node, source: Placement, target: Placement, route: Route
) -> Seconds | None:
    """Time to turn one placement of a value into another, both phases; None where no collective does."""
    if source == target:
        return ZERO
    differentiable = node in setting.folded.differentiable
    rows = conversion(source, target, setting.ranks, differentiable)
    if rows is None:
        return None
    size = setting.bytes(node, REPLICATE)
    forward, backward = (payloads(size, rows, setting.ranks, phase) for phase in ("forward", "backward"))
    return Seconds(
        sum(collective_seconds(kind, size, route) for kind, size in forward),
        sum(collective_seconds(kind, size, route) for kind, size in backward) if differentiable else 0.0,
    )


def reductions(setting: Setting, node: fx.Node, strategy: Strategy) -> list[tuple[str, float]]:
    """(kind, bytes) of what cross entropy over divided classes sums of each token."""
    logits = strategy.operands[0] if str(node.target) == CROSS_ENTROPY else None
    if not isinstance(logits, Shard) or logits.dim != 1:
        return []
    labels, value = operands(node)[1], operands(node)[0].meta["val"]
    size = labels.meta["val"].numel() * setting.share(labels, WHOLE) * value.element_size()
    return vocabulary_sums(size, node.args[3])
