"""Bytes that training holds of parameters, and what updating them takes."""

from __future__ import annotations

import functools
from typing import NamedTuple

from partitioner.cluster import Cluster, Software
from partitioner.cost.op_seconds import streaming


class State(NamedTuple):
    """Bytes that training holds of parameters."""

    weight: float
    gradient: float
    optimizer: float


@functools.lru_cache(maxsize=256)
def state(itemsize: int, software: Software) -> State:
    """AdamW's, of one: weight, gradient, two moments; below 4 bytes a weight, moments and a master copy are float32."""
    moments = 8 if itemsize == 4 else 12 if itemsize < 4 else 2 * itemsize
    pairs = (
        (software.weight_bytes, itemsize), (software.gradient_bytes, itemsize), (software.optimizer_bytes, moments)
    )  # fmt: skip
    return State(*(own if given is None else given for given, own in pairs))


def held_state(elements: float, itemsize: int, software: Software, zero: int = 0, ranks: int = 1) -> State:
    """Of ``elements`` parameters: ZeRO 1 divides the optimizer's over ``ranks``, 2 gradients too, 3 weights too
    (Rajbhandari et al., 2020)."""
    own = state(itemsize, software)
    pairs = zip(own, (3, 2, 1), strict=True)
    return State(*(elements * size / (ranks if zero >= stage else 1) for size, stage in pairs))


def state_bytes(elements: float, itemsize: int, software: Software, zero: int = 0, ranks: int = 1) -> float:
    """All of ``held_state``."""
    return sum(held_state(elements, itemsize, software, zero, ranks))


def optimizer_seconds(elements: float, itemsize: int, cluster: Cluster) -> float:
    """The update reads and writes all state once."""
    own = state(itemsize, cluster.software)
    moved = 2 * elements * (own.weight + own.gradient + own.optimizer)
    return moved / streaming(cluster.device) / cluster.software.efficiency
