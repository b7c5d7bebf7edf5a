"""Tiles come in waves, small products are bound by memory, groups share ports; published timings are met."""

from __future__ import annotations

import pytest
import torch

from partitioner import Cluster
from partitioner.cost.collective_seconds import collective_seconds
from partitioner.cost.op_seconds import gemm_seconds, work_seconds
from partitioner.cost.op_work import Work
from partitioner.precision import PRESETS
from partitioner.sharding.products import Gemm

A100, H100 = Cluster.load("dgx-a100", nodes=16), Cluster.load("dgx-h100", nodes=64)
EFA = Cluster.load("p5-h100", nodes=64)


def seconds(gemm: Gemm, cluster: Cluster = A100) -> float:
    return gemm_seconds(gemm, cluster.device, cluster.device.peak("bfloat16"), 2)


def test_a_tile_more_than_a_wave_takes_a_wave_more() -> None:
    tiles = A100.device.multiprocessors  # of 256 x 128
    rows = 256 * tiles // 4
    full, more = seconds(Gemm(rows, 1024, 8192)), seconds(Gemm(rows + 1, 1024, 8192))
    assert more > 1.2 * full
    assert seconds(Gemm(rows - 30, 1024, 8192)) == full


def test_a_large_product_reaches_the_ceiling() -> None:
    gemm = Gemm(8192 * 27, 8192, 8192)
    reached = gemm.flops / seconds(gemm) / A100.device.peak("bfloat16")
    assert 0.95 * A100.device.gemm_efficiency < reached <= A100.device.gemm_efficiency


def test_a_thin_product_is_bound_by_memory() -> None:
    gemm = Gemm(1, 65536, 8192)
    moved = (8192 + 8192 * 65536 + 65536) * 2
    assert seconds(gemm) == pytest.approx(moved / (2039e9 * A100.device.memory_efficiency))


def test_a_shallow_product_is_slower_for_its_flops() -> None:
    deep, shallow = Gemm(8192, 8192, 8192), Gemm(8192, 8192, 512)
    assert shallow.flops / seconds(shallow) < 0.9 * deep.flops / seconds(deep)


def test_members_of_a_node_share_their_ports() -> None:
    alone = H100.route(16, stride=8)
    together = H100.route(16, stride=4)
    assert (alone.nodes, together.nodes) == (16, 8)
    assert together.bytes_per_second == pytest.approx(2 * alone.bytes_per_second)
    assert H100.route(8).nodes == 1
    assert H100.route(16).bytes_per_second == pytest.approx(min(H100.node.speed, 8 * H100.network.speed))


PUBLISHED = {
    # NCCL all_reduce in one DGX A100, bytes and microseconds (stas00/ml-engineering, network/README.md)
    "a100, 64 MB": (A100, "all_reduce", 67108864, 8, 684.6),
    "a100, 256 MB": (A100, "all_reduce", 268435456, 8, 2420.6),
    "a100, 1 GB": (A100, "all_reduce", 1073741824, 8, 8203.9),
    # NCCL over EFA, 8 H100 a node, 256 MB, by bus bandwidth in GB/s (the nanotron authors' benchmark)
    "efa, gather, 4 nodes": (EFA, "all_gather", 268435456, 32, 268435456 * 31 / 32 / 118.97e3),
    "efa, gather, 16 nodes": (EFA, "all_gather", 268435456, 128, 268435456 * 127 / 128 / 54.97e3),
    "efa, gather, 64 nodes": (EFA, "all_gather", 268435456, 512, 268435456 * 511 / 512 / 11.04e3),
    "efa, reduce, 8 nodes": (EFA, "all_reduce", 268435456, 64, 2 * 268435456 * 63 / 64 / 99.56e3),
    "efa, reduce, 16 nodes": (EFA, "all_reduce", 268435456, 128, 2 * 268435456 * 127 / 128 / 84.74e3),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_collectives_take_what_was_measured(name: str) -> None:
    cluster, kind, size, ranks, microseconds = PUBLISHED[name]
    found = collective_seconds(kind, size, cluster.route(ranks))
    assert found * 1e6 == pytest.approx(microseconds, rel=0.35 if "efa" in name else 0.15)


def test_products_of_float32_run_in_tf32_where_it_is_decided() -> None:
    work = Work(torch.float32, attention_flops=1e12)
    plain, fast = (work_seconds(work, A100, PRESETS[name]) for name in ("fp32", "tf32"))
    peaks = A100.device.flops_per_second
    assert plain / fast == pytest.approx(peaks["tf32"] / peaks["float32"])
    half = Work(torch.bfloat16, attention_flops=1e12)
    assert work_seconds(half, A100, PRESETS["tf32"]) == work_seconds(half, A100)
