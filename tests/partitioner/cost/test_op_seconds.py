"""Groups share ports; products run in the type that is decided; a launch is counted once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from partitioner import Cluster
from partitioner.cost.op_seconds import work_seconds
from partitioner.kernel_seconds.attention import Attended
from partitioner.kernel_seconds.product import gemm_seconds
from partitioner.kernel_seconds.work import Work
from partitioner.precision import PRESETS
from partitioner.sharding.products import Gemm
from partitioner.software import Software

A100, H100 = Cluster.load("dgx-a100", nodes=16), Cluster.load("dgx-h100", nodes=64)


def test_members_of_a_node_share_their_ports() -> None:
    alone = H100.route(16, stride=8)
    together = H100.route(16, stride=4)
    assert (alone.nodes, together.nodes) == (16, 8)
    assert together.bytes_per_second == pytest.approx(2 * alone.bytes_per_second)
    assert H100.route(8).nodes == 1
    assert H100.route(16).bytes_per_second == pytest.approx(min(H100.node.speed, 8 * H100.network.speed))


def test_products_of_float32_run_in_tf32_where_it_is_decided() -> None:
    work = Work(torch.float32, attended=(Attended(8192.0, 1e9, 8192.0, 128.0, 0.0),), kernels=1)
    device = replace(A100.device, attention=replace(A100.device.attention, fixed_seconds=0.0, key_bytes_each=0.0))
    cluster = replace(A100, device=device)
    plain, fast = (work_seconds(work, cluster, PRESETS[name]) for name in ("fp32", "tf32"))
    peaks = A100.device.flops_per_second
    assert plain / fast == pytest.approx(peaks["tf32"] / peaks["float32"])
    half = replace(work, dtype=torch.bfloat16)
    assert work_seconds(half, A100, PRESETS["tf32"]) == work_seconds(half, A100)


def test_an_op_is_its_products_what_it_streams_and_those_launches() -> None:
    gemm, device = Gemm(1024, 1024, 1024), A100.device
    work = Work(torch.bfloat16, (gemm, gemm), (), 1e9, 3)
    found = 2 * gemm_seconds(gemm, device, "bfloat16", 2) + 1e9 / device.streaming + device.launch_seconds
    assert work_seconds(work, A100) == pytest.approx(found)
    assert work_seconds(work, replace(A100, software=Software(efficiency=0.5))) == pytest.approx(2 * found)
