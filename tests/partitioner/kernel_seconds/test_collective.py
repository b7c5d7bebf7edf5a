"""A collective is its bytes over a ring or a tree, its messages, and nothing among one; or the fastest of protocols."""

from __future__ import annotations

from dataclasses import replace

import pytest

from partitioner import Cluster
from partitioner.hardware.link import Link, Protocols, Route
from partitioner.kernel_seconds.collective import collective_seconds

# ranks, nodes, bytes a second in the ring, bytes a second out of a node, seconds of a message inside and between
TWO_NODES = Route(8, 2, 10.0, 5.0, 1.0, 100.0)
MANY_NODES = Route(16, 16, 10.0, 5.0, 1.0, 100.0)
ONE_NODE = Route(4, 1, 10.0, 5.0, 1.0, 100.0)


@pytest.mark.parametrize(
    ("kind", "route", "seconds"),
    [
        # 3/4 of 80 bytes at 10 a second, and 3 messages; twice
        ("all_gather", ONE_NODE, 6 + 3),
        ("reduce_scatter", ONE_NODE, 6 + 3),
        ("all_reduce", ONE_NODE, 2 * (6 + 3)),
        ("all_to_all", ONE_NODE, 6 + 3),
        # 7/8 of 80 bytes, 3 messages within nodes of 4 and one between them
        ("all_gather", TWO_NODES, 7 + 3 + 100),
        ("reduce_scatter", TWO_NODES, 7 + 3 + 100),
        ("all_reduce", TWO_NODES, 2 * (7 + 3 + 100)),
        # half of the 80 go to the other node at 5 a second, which takes longer than 7/8 of them at 10
        ("all_to_all", TWO_NODES, 8 + 3 + 100),
        # 15/16 of 80; a ring passes 15 nodes, a tree of 4 levels 8
        ("all_gather", MANY_NODES, 7.5 + 15 * 100),
        ("all_reduce", MANY_NODES, 2 * (7.5 + 8 * 100)),
    ],
)
def test_eighty_bytes(kind: str, route: Route, seconds: float) -> None:
    assert collective_seconds(kind, 80.0, route) == pytest.approx(seconds)


def test_a_fast_way_out_of_a_node_leaves_the_ring() -> None:
    assert collective_seconds("all_to_all", 80.0, Route(8, 2, 10.0, 100.0, 1.0, 100.0)) == 7 + 3 + 100


@pytest.mark.parametrize("kind", ["all_reduce", "all_gather", "reduce_scatter", "all_to_all"])
def test_nothing_and_nobody_take_no_time(kind: str) -> None:
    assert collective_seconds(kind, 0.0, TWO_NODES) == 0
    assert collective_seconds(kind, 80.0, Route(1, 1, 10.0, 5.0, 1.0, 100.0)) == 0


LINES = Protocols((1.0, 10.0), (2.0, 3.0), (1.0, 10.0), {"2": 0.5, "8": 1.0}, {"all_reduce": 2.0})


def test_the_fastest_protocol_is_taken_inside_a_node() -> None:
    route = replace(ONE_NODE, ring=LINES, direct=LINES)
    share = 0.75  # of 4 members, half way between 2 and 8 by logarithms
    for payload in (4.0, 400.0):
        moved = payload * 3 / 4
        lines = [1 + 2 * 3 + moved / share, 10 + 3 * 3 + moved / (10 * share)]
        assert collective_seconds("all_gather", payload, route) == pytest.approx(min(lines))
        assert collective_seconds("all_to_all", payload, route) == pytest.approx(min(lines))
        twice = [1 + 2 * 6 + moved / share, 10 + 3 * 6 + moved / (10 * share)]  # two phases, at twice the speed
        assert collective_seconds("all_reduce", payload, route) == pytest.approx(min(twice))
    assert collective_seconds("all_gather", 80.0, replace(TWO_NODES, ring=LINES)) == 7 + 3 + 100


def test_a_link_that_is_scaled_is_scaled_in_all_that_was_measured_of_it() -> None:
    link = Link(1e9, 0.5, 1e-6, ring=LINES, direct=LINES)
    fast = link.scaled(4.0, 0.5)
    for found in (fast.ring, fast.direct):
        assert found is not None
        assert (found.bytes_per_second, found.latency_seconds, found.hop_seconds) == ((4, 40), (0.5, 5), (1, 1.5))
    assert (fast.speed, fast.latency_seconds) == (2e9, 5e-7)


@pytest.mark.parametrize(("ranks", "share"), [(2, 0.5), (4, 0.75), (8, 1.0), (72, 1.0)])
def test_a_group_reaches_its_share(ranks: int, share: float) -> None:
    assert LINES.share_of(ranks) == pytest.approx(share)
    assert Protocols((1.0,), (1.0,), (1.0,)).share_of(ranks) == 1.0


A100, EFA = Cluster.load("dgx-a100", nodes=16), Cluster.load("p5-h100", nodes=64)
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
