"""A collective is its bytes over a ring or a tree, its messages, and nothing among one; counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hand_counted import chain, cluster
from torch import fx

from partitioner.cluster import Route
from partitioner.cost.collective_seconds import collective_seconds, convert_seconds, sent_inside
from partitioner.cost.op_seconds import Seconds
from partitioner.cost.op_work import Setting
from partitioner.graph.tied_blocks import fold
from partitioner.ops.payloads import RANK_OPS
from partitioner.sharding.equations import Strategies, Strategy
from partitioner.sharding.layout import PARTIAL, REPLICATE, WHOLE, Placement, shard_whole

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


HALVES = shard_whole(2, 4, 2)


@pytest.mark.parametrize(
    ("source", "target", "seconds"),
    [
        (WHOLE, WHOLE, (0, 0)),
        (WHOLE, HALVES, (0, 48)),  # cut, of which the gradient is gathered
        (HALVES, WHOLE, (48, 0)),
        (HALVES, REPLICATE, (48, 48)),  # gradients differ by rank: summed and scattered
        (PARTIAL, WHOLE, (96, 0)),
        (PARTIAL, REPLICATE, (96, 96)),
        (PARTIAL, HALVES, (48, 48)),
        (WHOLE, REPLICATE, (0, 96)),
        (WHOLE, PARTIAL, (0, 0)),  # one rank's, zeros on the other
    ],
)
def test_ninety_six_bytes_turned_over_by_two(source: Placement, target: Placement, seconds: tuple[int, int]) -> None:
    on = cluster(near=1.0)
    setting = Setting.of(fold(chain()), on, {"tp": 2})
    found = convert_seconds(setting, value(setting, "tanh"), (source,), (target,), {"tp": on.route(2)})
    assert found == Seconds(*seconds)


def value(setting: Setting, op: str) -> fx.Node:
    return next(n for n in setting.folded.node.values() if op in str(n.target))


def test_what_no_collective_turns_over_has_no_price() -> None:
    on = cluster(near=1.0)
    setting = Setting.of(fold(chain()), on, {"tp": 2})
    assert convert_seconds(setting, value(setting, "tanh"), (HALVES,), (PARTIAL,), {"tp": on.route(2)}) is None


def test_an_op_of_ours_is_priced_by_what_its_row_sends_each_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six tokens of 4 bytes: their largest logits, then two sums; nothing backward, until its row says so."""
    setting, name = Setting.of(fold(chain()), cluster(), {"tp": 2}), "partitioner.vocab_parallel_cross_entropy.default"
    loss, by_class = value(setting, "cross_entropy"), Strategies((Strategy((shard_whole(1, 16, 2), REPLICATE), WHOLE),))
    sums = [("all_reduce", 24.0), ("all_reduce", 48.0)]
    assert [*sent_inside(setting, loss, by_class)] == [("tp", sums, [])]
    gathering = replace(RANK_OPS[name], backward=lambda whole, logits, *_: [("all_gather", 7.0)])
    monkeypatch.setitem(RANK_OPS, name, gathering)
    assert [*sent_inside(setting, loss, by_class)] == [("tp", sums, [("all_gather", 7.0)])]
    assert not [*sent_inside(setting, loss, Strategies((Strategy((WHOLE, WHOLE), WHOLE),)))]
