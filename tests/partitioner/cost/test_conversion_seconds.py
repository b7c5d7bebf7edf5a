"""What turning one layout into another takes, and what ops of ours send; counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hand_counted import chain, cluster
from torch import fx

from partitioner.cost.conversion_seconds import convert_seconds, sent_inside
from partitioner.cost.op_seconds import Seconds
from partitioner.cost.op_work import Setting
from partitioner.graph.tied_blocks import fold
from partitioner.ops.payloads import RANK_OPS
from partitioner.sharding.equations import Strategies, Strategy
from partitioner.sharding.layout import PARTIAL, REPLICATE, WHOLE, Placement, shard_whole

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
