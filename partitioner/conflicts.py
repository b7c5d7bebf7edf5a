"""Why no plan has the pinned decisions: the one pin that nothing allows, or the two that exclude each other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from partitioner.cluster import Cluster
from partitioner.graph import Graph
from partitioner.pins import Pins
from partitioner.schedule import SPLIT, STAGES

_DEGREES = ("tp", "cp", "pp", "dp")


def conflict(graph: Graph, cluster: Cluster, global_batch: int, fixed: Pins, plan_only: bool) -> str:
    """One line that names the pins and the mend."""
    found = next(_reasons(graph, cluster, global_batch, fixed, plan_only), None)
    if found:
        return found
    devices = cluster.devices
    sizes = (b for d in range(global_batch) for b in (global_batch - d, global_batch + d))
    near = next((b for b in sizes if b and b % devices == 0), None)
    mend = f"; the nearest that every mesh divides is {near}" if near else ""
    return f"no mesh of {devices} devices divides a global batch of {global_batch} under these pins{mend}"


def _reasons(graph: Graph, cluster: Cluster, global_batch: int, fixed: Pins, plan_only: bool) -> Iterator[str]:
    blocks, devices = max(1, len(graph.blocks)), cluster.devices
    pinned = {axis: n for axis in _DEGREES if (n := fixed.number(axis)) is not None}
    yield from _unexecuted(fixed, plan_only)
    if graph.inseparable:
        yield (
            f"{devices} devices must divide over tp and pp alone, since {graph.inseparable}: "
            f"no tp inside a node and pp of at most {blocks} blocks do"
        )
    for axis, n in pinned.items():
        if devices % n:
            yield f"pin {axis}={n} does not divide {devices} devices: pin a divisor of it"
    if pinned.get("pp", 1) > blocks:
        yield f"pp {pinned['pp']} asks for more stages than the model's {blocks} blocks: pin pp to at most {blocks}"
    yield from _stages(fixed, pinned.get("pp"), blocks)
    if fixed.stages is not None:
        yield from _cut(graph, fixed.stages, pinned.get("pp"))
    for (a, m), (b, n) in itertools.combinations(pinned.items(), 2):
        if devices % (m * n):
            yield f"pins {a}={m} and {b}={n} conflict: {m * n} ranks do not divide {devices} devices; drop one"
    product = 1
    for n in pinned.values():
        product *= n
    if devices % product:
        yield f"the pinned degrees multiply to {product}, which does not divide {devices} devices: drop one"
    dp, micro_batch = pinned.get("dp", 1), fixed.number("micro_batch") or 1
    if global_batch % micro_batch:
        yield f"pin micro_batch={micro_batch} does not divide the global batch of {global_batch}: pin a divisor of it"
    if global_batch % (dp * micro_batch):
        yield (
            f"pins dp={dp} and micro_batch={micro_batch} conflict: their product {dp * micro_batch} does not divide "
            f"the global batch of {global_batch}; drop one"
        )


def _cut(graph: Graph, counts: tuple[int, ...], pp: int | None) -> Iterator[str]:
    word = ",".join(map(str, counts))
    if sum(counts) != len(graph.units):
        yield f"pin stages={word} cuts {sum(counts)} units, the model has {len(graph.units)}: give numbers that add up"
    if pp is not None and len(counts) % pp:
        yield f"pins stages={word} and pp={pp} conflict: {len(counts)} stages do not divide over {pp} ranks; drop one"


def _unexecuted(fixed: Pins, plan_only: bool) -> Iterator[str]:
    wanted = [f"{axis}={n}" for axis, least in (("cp", 2), ("zero", 1)) if (n := fixed.number(axis) or 0) >= least]
    words = (("recompute", ("selective",)), ("schedule", SPLIT))
    wanted += [f"{name}={fixed.fixed[name]}" for name, looked_at in words if fixed.fixed.get(name) in looked_at]
    if wanted and not plan_only:
        yield f"pin {wanted[0]} asks for what can't be executed yet: add --plan-only to look at such plans"


def _stages(fixed: Pins, pp: int | None, blocks: int) -> Iterator[str]:
    kind, virtual = str(fixed.fixed.get("schedule", "")), fixed.number("virtual")
    own = STAGES.get(kind)
    if virtual and own and virtual != own:
        other = "only interleaved and zbv have more than 1 stage" if own == 1 else f"{kind} has {own} stages"
        yield f"pins schedule={kind} and virtual={virtual} conflict: {other} a rank"
    if kind == "interleaved" and virtual == 1:
        yield "pins schedule=interleaved and virtual=1 conflict: interleaved has at least 2 stages a rank"
    if pp == 1 and (kind not in ("", "1f1b") or (virtual or 1) > 1):
        what = f"schedule={kind}" if kind not in ("", "1f1b") else f"virtual={virtual}"
        yield f"pins pp=1 and {what} conflict: one stage needs no schedule; pin pp to at least 2"
    if pp and virtual and pp * virtual > blocks:
        yield f"pins pp={pp} and virtual={virtual} conflict: {pp * virtual} stages, the model has {blocks} blocks"
    elif pp and own and pp * own > blocks:
        yield f"pins pp={pp} and schedule={kind} conflict: {pp * own} stages, the model has {blocks} blocks"
