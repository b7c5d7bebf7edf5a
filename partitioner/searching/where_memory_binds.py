"""Candidates beside those that were tried first, where plans that might be the fastest do not fit.

layouts     solved again, a byte costing more passes of memory, where not much is missing
stages      cut so that each fits
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from partitioner.cluster import Cluster
from partitioner.graph.graph import Graph
from partitioner.plan.executed import Space
from partitioner.plan.recompute_ways import NO_RECOMPUTE
from partitioner.searching.candidates import Progress, candidates
from partitioner.searching.pins import Pins
from partitioner.searching.splits import Setup, Splits, Tried
from partitioner.sharding.mesh_axes import PP, inner

NEAR = 1.25  # of the room: what needs more is not brought into it by layouts

Asked = tuple[Graph, Cluster, int, Pins, Space, Progress]


def where_memory_binds(found: Sequence[Tried], best: float, asked: Asked, scarcity: float | None) -> Iterator[Tried]:
    """``found``: all that were tried; ``best``: seconds of the best that fits; ``asked``: as of ``candidates``;
    ``scarcity``: passes of memory that a byte costs then, None where there is no higher price."""
    graph, cluster, global_batch, fixed, space, say = asked
    near = {
        setup_of(t) for t in found
        if cluster.device.room < t.peak_bytes <= NEAR * cluster.device.room and t.may_take_less(best)
    }  # fmt: skip
    known, scarce = {t.identity for t in found}, list[Tried]()
    if near and scarcity is not None:
        again = candidates(graph, cluster, global_batch, fixed, space, say, scarcity, near)
        scarce += [t for t in again if t.identity not in known]
    yield from scarce
    yield from recut((*found, *scarce), best, asked)


def _has_cuts(tried: Tried) -> bool:
    own = tried.split.parallelism
    return own.mesh[PP] > 1 and own.virtual == 1


def setup_of(tried: Tried) -> Setup:
    """What its layouts were chosen for."""
    own = tried.split.parallelism
    return Setup(tuple((axis, own.degree(axis)) for axis in inner()), own.micro_batch, tuple(own.refined.items()))


def recut(found: Sequence[Tried], best: float, asked: Asked) -> Iterator[Tried]:
    """Other stages of what does not fit and might take less than ``best`` seconds; each step once, in whatever order
    its axes lie."""
    _, cluster, global_batch, fixed, space, _ = asked
    if not cluster.software.balanced:
        return
    splits, seen = dict[int, Splits](), set[tuple[object, ...]]()
    for tried in [t for t in found if t.peak_bytes > cluster.device.room and _has_cuts(t) and t.may_take_less(best)]:
        plain = tried.split.recomputing(NO_RECOMPUTE, (0,) * len(tried.split.stages))
        own, key = plain.parallelism, id(tried.priced)
        if key not in splits:
            splits[key] = Splits(tried.priced, setup_of(tried), global_batch, fixed, space)
        step = (key, *own.mesh.values(), own.schedule, own.virtual, own.zero, own.zero_group)
        if step not in seen:
            seen.add(step)
            yield from splits[key].recut(plain, best)
