"""AdamW's state by the size of a weight, divided by ZeRO's stages, and what its update streams; counted by hand."""

from __future__ import annotations

import pytest
from hand_counted import cluster

from partitioner.cluster import Software
from partitioner.cost.state_bytes import State, held_state, optimizer_seconds, state, state_bytes

GIVEN = Software(weight_bytes=2.0, gradient_bytes=3.0, optimizer_bytes=5.0)


@pytest.mark.parametrize(
    ("size", "bytes_"),
    [
        (8, (8, 8, 16)),
        (4, (4, 4, 8)),
        (2, (2, 2, 12)),  # moments and a master copy in float32
        (1, (1, 1, 12)),
    ],
)
def test_of_one_parameter(size: int, bytes_: tuple[int, int, int]) -> None:
    assert state(size, Software()) == State(*bytes_)
    assert state(size, GIVEN) == State(2, 3, 5)


@pytest.mark.parametrize(
    ("zero", "divided"),
    [(0, (4000, 4000, 8000)), (1, (4000, 4000, 800)), (2, (4000, 400, 800)), (3, (400, 400, 800))],
)
def test_zero_divides_over_ten_ranks(zero: int, divided: tuple[int, int, int]) -> None:
    assert held_state(1000, 4, Software(), zero, 10) == State(*divided)
    assert state_bytes(1000, 4, Software(), zero, 10) == sum(divided)
    assert held_state(1000, 4, Software(), zero, 1) == State(4000, 4000, 8000)


def test_the_update_reads_and_writes_all_of_it() -> None:
    assert optimizer_seconds(1000, 4, cluster(memory=1.0)) == 2 * 16 * 1000
    assert optimizer_seconds(1000, 2, cluster(memory=10.0)) == 2 * 16 * 100
    assert optimizer_seconds(1000, 4, cluster(memory=1.0, software=Software(efficiency=0.5))) == 2 * 2 * 16 * 1000
    assert optimizer_seconds(1000, 4, cluster(memory=1.0, software=GIVEN)) == 2 * 10 * 1000
