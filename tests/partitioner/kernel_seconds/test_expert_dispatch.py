"""Tokens to their experts and back: counted by hand, by trying all choices, and against DeepEP's own figures."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from partitioner import Cluster
from partitioner.hardware.link import TokenExchange
from partitioner.kernel_seconds.expert_dispatch import ranks_of_a_token, seconds

ROW = TokenExchange(fixed_seconds=100.0, token_seconds=2.0, bytes_per_second=10.0, own_bytes_per_second=5.0)


def numbers(*values: float) -> list[np.ndarray]:
    return [np.array([value], float) for value in values]


@pytest.mark.parametrize(
    ("experts", "choices", "groups"), [(4, 2, 2), (8, 3, 4), (6, 6, 3), (8, 1, 8), (12, 5, 4), (4, 3, 2)]
)
def test_every_choice_of_experts(experts: int, choices: int, groups: int) -> None:
    """The mean over all sets of experts of how many groups they lie in."""
    each = experts // groups
    chosen = list(itertools.combinations(range(experts), choices))
    mean = sum(len({expert // each for expert in experts_of}) for experts_of in chosen) / len(chosen)
    assert ranks_of_a_token(*numbers(experts, choices, groups))[0] == pytest.approx(mean)


def test_more_ranks_than_experts() -> None:
    assert ranks_of_a_token(*numbers(4, 2, 8))[0] == pytest.approx(2)
    assert ranks_of_a_token(*numbers(1, 1, 8))[0] == pytest.approx(1)
    assert ranks_of_a_token(*numbers(4, 9, 8))[0] == pytest.approx(4)


def test_three_tokens_by_hand() -> None:
    """One expert a rank, all four chosen: four copies of 50 bytes at 10 a second, and 50 once at 5; 2 for a token."""
    inside = seconds(*numbers(3, 50, 4, 4, 4, 1), ROW, 1.0)
    assert inside[0] == pytest.approx(100 + 3 * (2 + 4 * 50 / 10 + 50 / 5))
    far = seconds(*numbers(3, 50, 4, 4, 4, 2), ROW, 1.0)  # one copy to the other node, at 1 byte a second
    assert far[0] == pytest.approx(100 + 3 * (2 + 50))
    assert seconds(*numbers(3, 50, 4, 4, 4, 2), ROW, 1e9)[0] == pytest.approx(inside[0])


def test_a_slower_link_takes_longer() -> None:
    row = ROW.scaled(speed=0.5, latency=3.0)
    assert row == TokenExchange(300.0, 4.0, 5.0, 2.5)


def test_between_nodes_as_deepep_measured() -> None:
    """GB/s of its README (version 2, Hopper, 400 Gb/s ports): 8,192 tokens of 7,168 numbers a rank, 8 experts a token,
    fp8 there and bfloat16 back, a rank's own node counted as sent to."""
    cluster = Cluster.load("dgx-h100")
    assert cluster.node.dispatch
    assert cluster.node.combine
    measured = [(2, 90e9, 81e9), (4, 61e9, 61e9)]
    for nodes, *speeds in measured:
        copies = ranks_of_a_token(*numbers(256, 8, nodes))[0]
        for size, row, speed in zip((1, 2), (cluster.node.dispatch, cluster.node.combine), speeds, strict=True):
            price = seconds(*numbers(8192, 7168 * size, 256, 8, 8 * nodes, nodes), row, cluster.network.speed)
            assert price[0] == pytest.approx(8192 * 7168 * size * copies / speed, rel=0.15)
