"""Bytes that training holds of parameters, and what updating them takes."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from partitioner.cluster import Cluster
from partitioner.cost.op_seconds import dtype_name
from partitioner.graph.graph import Graph
from partitioner.precision import Precision


class State(NamedTuple):
    """Bytes that training holds of parameters: as ops read them, of gradients, of what the optimizer alone needs."""

    weight: float
    gradient: float
    optimizer: float


@functools.lru_cache(maxsize=256)
def state(dtype: torch.dtype, precision: Precision) -> State:
    """AdamW's, of one parameter that computes in ``dtype``: two moments and, where ``precision`` casts it, a copy."""
    name = dtype_name(dtype)
    copy, gradient = precision.state_of(name), precision.gradient_of(name)
    own = dtype.itemsize if copy is None else 3 * _itemsize(copy) / 2
    return State(dtype.itemsize, dtype.itemsize if gradient == name else _itemsize(gradient), 2 * own)


def is_cast(dtype: torch.dtype, precision: Precision) -> bool:
    """Whether gradients of such a parameter are added up in another type than its own."""
    return precision.gradient_of(dtype_name(dtype)) != dtype_name(dtype)


def _itemsize(name: str) -> int:
    return getattr(torch, name).itemsize


def held_state(elements: float, dtype: torch.dtype, precision: Precision, zero: int = 0, ranks: int = 1) -> State:
    """Of ``elements`` parameters: ZeRO 1 divides the optimizer's over ``ranks``, 2 gradients too, 3 weights too, of
    which it keeps the optimizer's copy alone (Rajbhandari et al., 2020)."""
    own, has_copy = state(dtype, precision), precision.state_of(dtype_name(dtype)) is not None
    pairs = zip(own, (3, 2, 1), strict=True)
    found = State(*(elements * size / (ranks if zero >= stage else 1) for size, stage in pairs))
    if not zero or ranks == 1 or (zero < 3 and has_copy):
        return found
    part = 0.0 if has_copy else elements * dtype.itemsize / ranks  # what is updated, beside what is gathered
    return found._replace(weight=part if zero == 3 else found.weight + part)


def state_bytes(elements: float, dtype: torch.dtype, precision: Precision, zero: int = 0, ranks: int = 1) -> float:
    """All of ``held_state``."""
    return sum(held_state(elements, dtype, precision, zero, ranks))


def least_state_bytes(graph: Graph) -> float:
    """Of all ranks together, however they divide state: each parameter is held once, as ZeRO 3 holds it."""
    trained, frozen = ({n.meta["source"]: n.meta["val"] for nodes in found.values() for n in nodes}
                       for found in (graph.trained, graph.frozen))  # fmt: skip
    state = sum(2 * state_bytes(v.numel(), v.dtype, graph.precision, zero=3, ranks=2) for v in trained.values())
    return state + sum(v.numel() * v.element_size() for v in frozen.values())


def optimizer_seconds(elements: float, dtype: torch.dtype, precision: Precision, cluster: Cluster) -> float:
    """The update reads and writes all state once."""
    moved = 2 * elements * sum(state(dtype, precision))
    return moved / cluster.device.streaming / cluster.software.efficiency
