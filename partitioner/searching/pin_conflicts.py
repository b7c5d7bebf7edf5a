"""Why no plan has the pinned decisions: the pin that nothing allows, or the fewest that exclude each other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping

from partitioner.cluster import Cluster
from partitioner.graph.graph import Graph
from partitioner.plan.executed import EXECUTED, Space
from partitioner.plan.recompute_ways import NO_RECOMPUTE, WAYS
from partitioner.schedule.tables import PLAIN, SCHEDULES, Schedule
from partitioner.searching.candidates import admits_micro_batch, divisors, inner_degrees
from partitioner.searching.pins import Pins
from partitioner.searching.splits import schedules
from partitioner.sharding.mesh_axes import AXES, DP, PP, named
from partitioner.software import OWN


def conflict(graph: Graph, cluster: Cluster, global_batch: int, fixed: Pins, space: Space) -> str:
    """One line that names the pins and the mend."""
    found = next(_reasons(graph, cluster, global_batch, fixed, space), None)
    if found:
        return found
    return _together(graph, cluster, global_batch, fixed, space)


def _reasons(graph: Graph, cluster: Cluster, global_batch: int, fixed: Pins, space: Space) -> Iterator[str]:
    blocks, devices = max(1, len(graph.blocks)), cluster.devices
    pinned = {axis: n for axis in named() if (n := fixed.number(axis)) is not None}
    yield from _unexecuted(fixed, space)
    if graph.inseparable:
        yield (
            f"{devices} devices must divide over tp and pp alone, since {graph.inseparable}: "
            f"no tp inside a node and pp of at most {blocks} blocks do"
        )
    for axis, n in pinned.items():
        if devices % n:
            yield f"pin {axis}={n} does not divide {devices} devices: pin a divisor of it"
    if pinned.get(PP, 1) > (most := space.most_stages(blocks)):
        ends = " and two ends" if most > blocks else ""
        yield f"pp {pinned[PP]} asks for more stages than the model's {blocks} blocks{ends}: pin pp to at most {most}"
    yield from _stages(fixed, pinned.get(PP), blocks, space)
    yield from _recomputed(fixed, blocks, space)
    if fixed.stages is not None:
        yield from _cut(graph, fixed.stages, pinned.get(PP))
    yield from _product(pinned, devices, space)
    dp, micro_batch = pinned.get(DP, 1), fixed.number("micro_batch") or 1
    for name, n in ((DP, dp), ("micro_batch", micro_batch)):
        if global_batch % n:
            yield f"pin {name}={n} does not divide the global batch of {global_batch}: pin a divisor of it"
    if global_batch % (dp * micro_batch):
        yield (
            f"pins dp={dp} and micro_batch={micro_batch} conflict: their product {dp * micro_batch} does not divide "
            f"the global batch of {global_batch}; drop one"
        )


def _recomputed(fixed: Pins, blocks: int, space: Space) -> Iterator[str]:
    many = fixed.number("recomputed") or 0
    if many and fixed.decided.get("recompute") == NO_RECOMPUTE:
        yield f"pins recompute={NO_RECOMPUTE} and recomputed={many} conflict: drop one"
    way = WAYS.get(str(fixed.decided.get("recompute")))
    if 0 < many < blocks and way and way.modules and space.same_recompute:
        yield f"pin recomputed={many} asks for modules of some blocks, {space.name} is told of all: drop it"
    if many > blocks:
        yield f"pin recomputed={many} asks for more blocks of a stage than the model's {blocks}: pin at most {blocks}"


def _product(pinned: Mapping[str, int], devices: int, space: Space) -> Iterator[str]:
    """The fewest degrees that leave no whole number for the others; all of them, where they are not the devices."""
    for many in range(2, len(pinned) + 1):
        for rows in itertools.combinations(pinned.items(), many):
            if devices % (ranks := math.prod(n for _, n in rows)):
                yield f"pins {_listed(rows)} make {ranks} ranks, which do not divide {devices} devices: drop one"
    free = {axis for axis in AXES if space.admits(axis, 2)}
    if free <= set(pinned) and (ranks := math.prod(pinned.values())) != devices:
        yield f"pins {_listed(pinned.items())} make {ranks} ranks, and there are {devices} devices: drop one"


def _listed(rows: Iterable[tuple[str, object]]) -> str:
    words = [f"{name}={value}" for name, value in rows]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _together(graph: Graph, cluster: Cluster, global_batch: int, fixed: Pins, space: Space) -> str:
    """The fewest pins that no cut of a step has together, and what they are measured by."""
    left = dict(fixed.decided)
    for name in fixed.decided:
        fewer = {key: value for key, value in left.items() if key != name}
        if not _possible(graph, cluster, global_batch, Pins(fewer, fixed.layouts), space):
            left = fewer
    devices, blocks = f"{cluster.devices} devices", f"{max(1, len(graph.blocks))} blocks"
    if not left:
        return f"no mesh of {devices} divides a global batch of {global_batch}: change the batch"
    words = {name: ",".join(map(str, n)) if isinstance(n, tuple) else n for name, n in left.items()}
    mend = "drop one" if len(left) > 1 else "drop it"
    return (
        f"no plan of {devices} for a global batch of {global_batch} and {blocks} has "
        f"{_listed(words.items())}: {mend}, or change the batch"
    )


def _possible(graph: Graph, cluster: Cluster, global_batch: int, fixed: Pins, space: Space) -> bool:
    """Whether some mesh, micro-batch, schedule and cut have the pins, by their numbers alone."""
    most, devices = space.most_stages(max(1, len(graph.blocks))), cluster.devices
    for degrees, pp in itertools.product(inner_degrees(cluster, fixed, space), divisors(devices)):
        dp, rest = divmod(devices, math.prod(n for _, n in degrees) * pp)
        if rest or pp > most or not all(one.admits(PP, pp) and one.admits(DP, dp) for one in (fixed, space)):
            continue
        if _cuts(graph, global_batch, dp, pp, fixed, space):
            return True
    return False


def _cuts(graph: Graph, global_batch: int, dp: int, pp: int, fixed: Pins, space: Space) -> bool:
    """Whether a micro-batch and a schedule fit into this mesh."""
    for micro_batch in divisors(global_batch):
        if admits_micro_batch(micro_batch, global_batch, dp, fixed) and global_batch % (dp * micro_batch) == 0:
            many = global_batch // (dp * micro_batch)
            for kind, virtual in schedules(pp, space.most_stages(max(1, len(graph.blocks))), many, space):
                admitted = fixed.admits("schedule", kind) and fixed.admits("virtual", virtual)
                if admitted and (fixed.stages is None or _fits(graph, fixed.stages, pp * virtual, space)):
                    return True
    return False


def _fits(graph: Graph, counts: tuple[int, ...], stages: int, space: Space) -> bool:
    """Whether units so many a stage are all of them, with a block in each but ends that have slots."""
    ends = [0, *itertools.accumulate(counts)]
    runs = [graph.units[a:b] for a, b in itertools.pairwise(ends)]
    inner = runs[1:-1] if space.end_slots else runs
    return len(counts) == stages and ends[-1] == len(graph.units) and all(any(u.is_block for u in r) for r in inner)


def _cut(graph: Graph, counts: tuple[int, ...], pp: int | None) -> Iterator[str]:
    word = ",".join(map(str, counts))
    if sum(counts) != len(graph.units):
        yield f"pin stages={word} cuts {sum(counts)} units, the model has {len(graph.units)}: give numbers that add up"
    if pp is not None and len(counts) % pp:
        yield f"pins stages={word} and pp={pp} conflict: {len(counts)} stages do not divide over {pp} ranks; drop one"


def _unexecuted(fixed: Pins, space: Space) -> Iterator[str]:
    pinned = [(name, fixed.decided[name]) for name in {**EXECUTED, **space.values} if name in fixed.decided]
    wanted = [f"{name}={value}" for name, value in pinned if not space.admits(name, value)]
    if wanted and space.name == OWN:
        yield f"pin {wanted[0]} asks for what can't be executed yet: add --plan-only to look at such plans"
    elif wanted:
        yield f"pin {wanted[0]} asks for what {space.name} can't be told: drop it, or plan for another framework"


def _stages(fixed: Pins, pp: int | None, blocks: int, space: Space) -> Iterator[str]:
    kind, virtual = str(fixed.decided.get("schedule", "")), fixed.number("virtual")
    row = SCHEDULES.get(kind)
    own = row.most_stages if row else None
    if virtual and row and not row.takes(virtual):
        yield f"pins schedule={kind} and virtual={virtual} conflict: {_has(row)} a rank"
    if pp == 1 and (kind not in ("", PLAIN) or (virtual or 1) > 1):
        what = f"schedule={kind}" if kind not in ("", PLAIN) else f"virtual={virtual}"
        yield f"pins pp=1 and {what} conflict: one stage needs no schedule; pin pp to at least 2"
    if pp and virtual and pp * virtual > space.most_stages(blocks):
        yield f"pins pp={pp} and virtual={virtual} conflict: {pp * virtual} stages, the model has {blocks} blocks"
    elif pp and own and pp * own > space.most_stages(blocks):
        yield f"pins pp={pp} and schedule={kind} conflict: {pp * own} stages, the model has {blocks} blocks"


def _has(row: Schedule) -> str:
    """How many stages."""
    if row.most_stages == 1:
        return f"only {' and '.join(s.name for s in SCHEDULES.values() if s.most_stages != 1)} have more than 1 stage"
    return f"{row.name} has {'at least ' if row.most_stages is None else ''}{row.fewest_stages} stages"
