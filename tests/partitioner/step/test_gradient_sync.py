"""What a step sends once, for gradients and updated weights, and what ZeRO moves each micro-batch; counted by hand.

A stage of 2 blocks holds 1,000 float32 parameters: 4,000 bytes of gradients and of weights. Links carry a byte a
second: of 4 replicas a gather or a scatter takes 3/4 of 4,000, an all_reduce twice that.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from hand_counted import chain, cluster, priced, split, stage

from partitioner.cluster import Cluster
from partitioner.cost.op_seconds import Seconds
from partitioner.cost.unit_cost import Held, Priced
from partitioner.plan.derived_rows import Cost
from partitioner.software import Software
from partitioner.step.step_seconds import bound, price

BARE = Software(overlap_gradients=False, overlap_parameters=False, overlap_sends=False)
STAGE = stage(
    parameters=(Held(1000.0, torch.float32, ()),), weight_bytes=4000.0, gradient_bytes=4000.0, blocks=2,
    seconds=Seconds(100.0, 200.0),
)
ORDER = ("pp", "dp", "tp")


@functools.cache
def plain() -> Priced:
    return priced(chain(1), cluster())


def cost(on: Cluster, dp: int = 4, pp: int = 1, sums: Any = STAGE, **decisions: Any) -> Cost:
    """Of 3 micro-batches."""
    found = replace(plain(), cluster=on)
    decided = split((sums,) * pp, pp=pp, dp=dp, many=3, **decisions)
    row = price(found, decided)
    assert bound(found, decided) <= row.step_seconds * (1 + 1e-9)
    assert row.communication_seconds + row.sync_seconds == pytest.approx(sum(row.exposed_seconds.values()))
    return row


def sync(on: Cluster, **given: Any) -> float:
    return cost(on, **given).sync_seconds


NEAR = cluster(4, near=1.0, software=BARE)


@pytest.mark.parametrize(
    ("zero", "once", "each"),
    [
        (0, 2 * 3000, 0),
        (1, 3000 + 3000, 0),  # gradients scattered, weights gathered
        (2, 3000, 3000),  # weights gathered; gradients scattered behind each backward
        (3, 0, 3000 + 2 * 3000),  # and weights gathered for each forward and each backward
    ],
)
def test_zero_over_four_replicas(zero: int, once: int, each: int) -> None:
    row = cost(NEAR, zero=zero)
    assert row.sync_seconds == once
    assert row.communication_seconds == 3 * each
    assert row.exposed_seconds["dp"] == once + 3 * each
    assert row.step_seconds == 3 * 300 + 3 * each + once
    (of_stage,) = row.stages
    assert of_stage.forward_seconds == 100 + (3000 if zero == 3 else 0)
    assert of_stage.backward_seconds == 200 + each - (3000 if zero == 3 else 0)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_one_replica_sums_nothing(zero: int) -> None:
    assert cost(NEAR, dp=1, zero=zero).step_seconds == 900


def test_zero_over_two_of_four_replicas() -> None:
    """Half scattered and gathered among two; each rank's half summed with the other two's: 1,000 of 2,000, twice."""
    assert sync(NEAR, zero=1, zero_group=2) == 2000 + 2 * 1000 + 2000
    assert sync(NEAR, zero=2, zero_group=2) == 2 * 1000 + 2000
    assert sync(NEAR, zero=3, zero_group=2) == 2 * 1000
    assert sync(NEAR, zero=1, zero_group=8) == 3000 + 3000


def test_gradients_hide_behind_one_backward() -> None:
    """All but the last block's piece, and what is longer than the backward's 200."""
    hides = replace(NEAR, software=replace(BARE, overlap_gradients=True))
    assert sync(hides) == 6000 - 200
    long = replace(STAGE, seconds=Seconds(100.0, 1e5))
    assert sync(hides, sums=long) == 6000 / 2
    assert sync(hides, sums=long, zero=1) == 3000 / 2 + 3000


def test_what_zero_moves_hides_behind_compute() -> None:
    """Weights hide behind a forward of 100, all but a block's piece; the rest of 3,000 stays."""
    hides = replace(NEAR, software=replace(BARE, overlap_parameters=True))
    assert sync(hides, zero=1) == 3000 + (3000 - 100)
    row = cost(hides, zero=3)
    assert row.stages[0].forward_seconds == 100 + 3000 - 100
    assert row.stages[0].backward_seconds == 200 + 6000 - 200
    long = replace(STAGE, seconds=Seconds(1e5, 1e5))
    assert cost(hides, zero=3, sums=long).stages[0].forward_seconds == 1e5 + 1500
    slowed = replace(hides, node=replace(hides.node, contention=0.1))
    assert cost(slowed, zero=3, sums=long).stages[0].forward_seconds == 1e5 + 1500 + 0.1 * 1500


def test_what_is_hidden_slows_the_compute_beside_it() -> None:
    """By a share of what is hidden: of a sum behind the last backward, of a gather behind a forward."""
    both = replace(BARE, overlap_gradients=True, overlap_parameters=True)
    node, network = replace(NEAR.node, contention=0.1), replace(NEAR.network, contention=0.4)
    slowed = replace(NEAR, software=both, node=node, network=network)
    assert sync(slowed) == 6000 - 200 + 0.1 * 200
    assert sync(slowed, zero=1) == 3000 - 200 + 0.1 * 200 + 3000 - 100 + 0.1 * 100
    long = replace(STAGE, seconds=Seconds(1e5, 1e5))
    assert sync(slowed, zero=1, sums=long) == 2 * (1500 + 0.1 * 1500)
    assert sync(slowed, zero=1, sums=replace(long, blocks=1)) == 2 * 3000
    far = replace(slowed, node_devices=1, nodes=4)  # its network carries a byte a second as well
    assert sync(far, zero=1, sums=long) == pytest.approx(2 * (1500 + 0.4 * 1500))
    pairs = replace(slowed, node_devices=2, nodes=2)  # scattered and gathered in a node, summed outside
    assert sync(pairs, zero=1, zero_group=2, sums=long) == pytest.approx(
        (4000 / 2 + (0.1 * 2000 + 0.4 * 2000) / 2) + (2000 / 2 + 0.1 * 1000)
    )
    assert sync(replace(slowed, software=BARE), zero=1) == 3000 + 3000
    assert sync(slowed, dp=1) == 0


def test_replicas_on_other_nodes_share_their_ports() -> None:
    """4 nodes of 2, tp 1: dp 8 in two to a node, whose ring has two ports; pp 2 outermost leaves dp 4 on 2 nodes."""
    far = cluster(2, nodes=4, far=1.0, software=BARE)
    assert sync(far, dp=8) == pytest.approx(2 * 4000 * 7 / 8 / 2)
    assert sync(far, dp=4, pp=2, order=ORDER) == pytest.approx(2 * 4000 * 3 / 4 / 2)
    assert sync(far, dp=4, pp=2, order=("dp", "pp", "tp")) == pytest.approx(2 * 4000 * 3 / 4)


def test_partial_gradients_are_summed_over_tp() -> None:
    """1,000 bytes of them by two ranks: 500, twice; only then over the replicas."""
    found = replace(plain(), cluster=NEAR, setting=replace(plain().setting, axes=(("tp", 2),)))
    decided = split((replace(STAGE, partial_bytes={"tp": 1000.0}),), dp=2, many=3, mesh={"pp": 1, "dp": 2, "tp": 2})
    row = price(found, decided)
    assert row.sync_seconds == 2 * 500 + 2 * 2000
    assert (row.exposed_seconds["tp"], row.exposed_seconds["dp"]) == (1000, 4000)


@pytest.mark.parametrize(("zero", "shared"), [(0, 1), (1, 4), (2, 4), (3, 4)])
def test_the_update_is_of_what_a_rank_updates(zero: int, shared: int) -> None:
    assert cost(cluster(4, memory=1.0, software=BARE), zero=zero).optimizer_seconds == 2 * 16 * 1000 / shared


def test_the_slowest_rank_counts() -> None:
    """Of two pipeline ranks the second has three times the parameters."""
    larger = replace(
        STAGE, parameters=(Held(3000.0, torch.float32, ()),), weight_bytes=12000.0, gradient_bytes=12000.0,
        seconds=Seconds(10.0, 20.0),
    )
    found = replace(plain(), cluster=cluster(4, near=1.0, memory=1.0, software=BARE))
    row = price(found, split((STAGE, larger), pp=2, dp=2, many=3))
    assert (row.sync_seconds, row.optimizer_seconds) == (2 * 6000, 2 * 16 * 3000)
