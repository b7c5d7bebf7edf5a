"""A sweep's timings become a cluster's numbers: each is the one with which partitioner/cost repeats the timings.

product, stream, attention   the median over their samples of what the price's own formula needs
launch                       what a tiny transformer's block takes, for each kernel that the price counts of it
efficiency                   of everything: what larger blocks reach of the sum of their parts
links                        latency and bandwidth by least squares of relative errors, neither below 0

A relative error is (predicted - measured) / sqrt(predicted measured): twice as long is as wrong as half as long.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import nnls
from torch import nn

from partitioner import trace
from partitioner.cluster import Cluster
from partitioner.cost.op_seconds import work_seconds
from partitioner.cost.op_work import op_work
from partitioner.errors import InputError
from partitioner.graph.tied_blocks import fold
from partitioner.hardware.device import Attention, Device, one_row
from partitioner.hardware.link import Link, Route
from partitioner.kernel_seconds.attention import Attended, attention_seconds
from partitioner.kernel_seconds.collective import collective_seconds
from partitioner.kernel_seconds.product import gemm_seconds
from partitioner.kernel_seconds.work import Work
from partitioner.searching.candidates import layouts
from partitioner.searching.pins import Pins
from partitioner.searching.splits import Setup
from partitioner.sharding.products import Gemm
from partitioner.software import Software
from runtime.measure.device_probes import block
from runtime.measure.sweep import Sample, Sweep

POINTWISE_PASSES, POINTWISE_KERNELS = 13, 5  # of x by norm, gelu and sum, as work counts: 2 + 2 + 3, and back 3 + 3
ATTENTION_KERNELS = 3  # of fused attention, forward and backward
ALLOCATOR_SHARE = {"cuda": 0.9}  # not measured: the presets' fit, docs/accuracy.md
LEAST_HIDDEN = 0.5  # share that must pass beside products for a program to count on it
LEAST_EFFICIENCY = 1e-3
LEAST_VISIBLE = 0.05  # share of the largest message's seconds that its bytes must take for a link's speed to be told
ROUNDS = 20  # of least squares, each weighted by the last's predictions


@dataclass(frozen=True)
class LinkFit:
    """Latency and bytes a second of a link, and the median relative error of the samples that they were fitted to."""

    latency_seconds: float
    speed: float
    error: float
    samples: int


def fit_link(samples: Sequence[Sample]) -> LinkFit | None:
    """The alpha-beta form of ``collective_seconds`` over all kinds, sizes and groups; None without samples.

    Raises InputError where bytes take less than LEAST_VISIBLE of every message: noise hides the link's speed.
    """
    if not samples:
        return None
    found = np.zeros(2)
    rows = np.array([coefficients(s) for s in samples])
    seconds = np.array([s.seconds for s in samples])
    predicted = seconds
    for _ in range(ROUNDS):
        scale = 1 / np.sqrt(predicted * seconds)
        found, _ = nnls(rows * scale[:, None], seconds * scale)
        predicted = np.maximum(rows @ found, seconds / 100)
    latency, per_byte = map(float, found)
    if (rows[:, 1] * per_byte / predicted).max() < LEAST_VISIBLE:
        raise InputError("messages between ranks take no longer the larger they are: calibrate on a quiet machine")
    errors = np.abs(predicted / seconds - 1)
    return LinkFit(latency, 1 / per_byte, float(np.median(errors)), len(samples))


def coefficients(sample: Sample) -> tuple[float, float]:
    """How often a sample's price counts a link's latency, and how many bytes it divides by its speed."""
    if sample.kind == "send":
        return 1.0, float(sample.size[0])
    # A group that spans nodes has one rank on each, so its ring and its hops are all the network's.
    def priced(hop: float, speed: float) -> float:
        route = Route(sample.ranks, sample.nodes, speed, speed, hop, hop)
        return collective_seconds(sample.kind, float(sample.size[0]), route)

    return priced(1.0, math.inf), priced(0.0, 1.0)


def link_fits(sweep: Sweep) -> dict[str, LinkFit | None]:
    """Of both links; None for one that no group saw."""
    return {name: fit_link(_links(sweep, across)) for name, across in (("node", False), ("network", True))}


def fit(sweep: Sweep, name: str) -> Cluster:
    """The cluster that a sweep saw; where it saw one kind of link alone, that stands for both."""
    inside, across = link_fits(sweep).values()
    seen = inside or across
    assert seen is not None
    attention = "math" if sweep.keeps_scores else "flash"
    best = [max((_payload_rate(s) for s in _links(sweep, n)), default=0.0) for n in (False, True)]
    software = Software(
        overlap_gradients=sweep.hidden_share >= LEAST_HIDDEN, overlap_sends=sweep.hidden_sends >= LEAST_HIDDEN
    )
    cluster = Cluster(
        name, attention, fit_device(sweep), _link(inside or seen, best[0] or best[1]), sweep.ranks // sweep.nodes,
        _link(across or seen, best[1] or best[0]), 1, software,
    )  # fmt: skip
    return fit_blocks(sweep, cluster)


def fit_blocks(sweep: Sweep, cluster: Cluster) -> Cluster:
    """With the host's part of a kernel, which a CPU adds to it and a GPU hides behind it; and with ``efficiency``."""
    tiny, *rows = [s for s in sweep.samples if s.kind == "block"]
    kernels = sum(work.kernels for work in block_work(tiny.size, cluster))
    host = tiny.seconds / kernels
    if sweep.kind == "cpu":
        cluster = replace(cluster, device=launched(cluster.device, host))
    else:
        cluster = replace(cluster, software=replace(cluster.software, dispatch_seconds=host))
    shares = [sum(work_seconds(w, cluster) for w in block_work(s.size, cluster)) / s.seconds for s in rows]
    return replace(cluster, software=replace(cluster.software, efficiency=_share(shares)))


def block_work(size: tuple[int, ...], cluster: Cluster) -> list[Work]:
    """What the price counts of a block of b, s, heads and width."""
    return priced_work(*block(size, torch.device("meta")), cluster)


def priced_work(module: nn.Module, batch: dict[str, torch.Tensor], cluster: Cluster) -> list[Work]:
    """What the price counts of a module on one device, op by op, forward and backward."""
    one = replace(cluster, nodes=1, node_devices=1)
    priced = layouts(fold(trace(module, batch)), one, Setup((), 1), [1], Pins({}, {}))[1]
    strategies, folded = priced.solution.strategies, priced.folded
    bodies = [folded.body(g) for g, units in enumerate(folded.groups) for _ in units]
    return [work for body in bodies for n in body for work in op_work(priced.setting, n, strategies[n])]


def _links(sweep: Sweep, across: bool) -> list[Sample]:
    return [s for s in sweep.samples if s.ranks > 1 and (s.nodes > 1) == across]


def _payload_rate(sample: Sample) -> float:
    """Bytes a second of a link in one collective, latency and all."""
    return coefficients(sample)[1] / sample.seconds


def _link(found: LinkFit, best: float) -> Link:
    """The best rate that any sample reached stands for the datasheet's."""
    peak = max(best, found.speed)
    return Link(peak, found.speed / peak, found.latency_seconds)


def fit_device(sweep: Sweep) -> Device:
    """Peaks are the best that was reached, efficiencies what training-sized work reaches of them."""
    kinds = {s.kind: [r for r in sweep.samples if r.kind == s.kind] for s in sweep.samples}
    peaks = peak_flops([*kinds["peak"], *kinds.get("gemm", ())])
    launch = statistics.median(s.seconds / s.size[0] for s in kinds["launch"])
    stream = max(s.size[0] / s.seconds for s in (*kinds["add"], *kinds["copy"]))
    streamed = _share(_pointwise(s, launch) / stream for s in kinds["pointwise"])
    device = Device(
        sweep.device, sweep.memory_bytes, stream, launch, streamed, sweep.multiprocessors, sweep.spread, peaks,
        one_row(peaks, 1.0, streamed), Attention(1.0), allocator_share=ALLOCATOR_SHARE.get(sweep.kind, 1.0),
    )  # fmt: skip
    product = _share(_product_share(s, device) for s in kinds["gemm"])
    attention = product if sweep.keeps_scores else _share(_attention_share(s, device) for s in kinds["attention"])
    device = replace(device, products=one_row(peaks, product, streamed), attention=Attention(attention))
    return launched(device, launch)


def launched(device: Device, seconds: float) -> Device:
    """With so much for each kernel, whatever it does."""
    products = tuple(replace(row, fixed_seconds=seconds) for row in device.products)
    attention = replace(device.attention, fixed_seconds=seconds)
    return replace(device, launch_seconds=seconds, products=products, attention=attention)


def peak_flops(samples: Iterable[Sample]) -> dict[str, float]:
    """The best rate of a product, by dtype."""
    found: dict[str, float] = {}
    for s in samples:
        m, n, k = s.size
        found[s.dtype] = max(found.get(s.dtype, 0.0), 2.0 * m * n * k / s.seconds)
    return found


def _share(values: Iterable[float]) -> float:
    return min(1.0, max(LEAST_EFFICIENCY, statistics.median(values)))


def _pointwise(sample: Sample, launch: float) -> float:
    """Bytes a second, by the bytes that the price counts."""
    itemsize = getattr(torch, sample.dtype).itemsize
    busy = max(sample.seconds - POINTWISE_KERNELS * launch, sample.seconds / 2)
    return POINTWISE_PASSES * itemsize * math.prod(sample.size) / busy


def _product_share(sample: Sample, device: Device) -> float:
    m, n, k = sample.size
    dtype = getattr(torch, sample.dtype)
    busy = max(sample.seconds - device.launch_seconds, sample.seconds / 2)
    return gemm_seconds(Gemm(m, n, k), device, sample.dtype, dtype.itemsize) / busy


def _attention_share(sample: Sample, device: Device) -> float:
    b, h, s, e = sample.size
    seen = Attended(b * h * s, 0.5 * b * h * s * s, s, 2 * e, b * h * s)
    full = sum(attention_seconds(a, device, sample.dtype) for a in (seen, replace(seen, backward=True)))
    busy = max(sample.seconds - ATTENTION_KERNELS * device.launch_seconds, sample.seconds / 2)
    return full / busy
