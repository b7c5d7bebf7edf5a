"""``search``: the mesh, stages, schedule, micro-batch, recompute and layouts of the shortest step that fits.

for each tp, micro-batch     resize, fold, enumerate, solve      (the layouts)
for each pp, dp, schedule    cut stages, a bound that no schedule of these stages can beat, exact peak bytes
of those that fit            by rising bound, the Action table walked, until the next bound is above the KEPT-th best
least step time; equal times: fewer bytes, then the plainer mesh
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import fx

from partitioner.batch import at_batch, resize
from partitioner.choices import Prices
from partitioner.cluster import Cluster
from partitioner.cost import Priced, price_units
from partitioner.errors import DoesNotFit, InputError
from partitioner.fold import Folded, fold
from partitioner.graph import Graph, Unit
from partitioner.layout import placement_json
from partitioner.losses import targets_per_sample
from partitioner.lower import unit_names
from partitioner.pins import Pins, read_pins
from partitioner.plan import BlockRow, Candidate, Cost, Decisions, Plan
from partitioner.price import op_seconds
from partitioner.recall import by_pattern, graph_digest, op_rows
from partitioner.rules import rule_of
from partitioner.solve import solve
from partitioner.stages import Cuts
from partitioner.step import Split, StageSums, bound, price, stage_sums
from partitioner.strategies import space

MOST_MICRO_BATCH = 16
KEPT = 10
Progress = Callable[[str], None]


@dataclass(frozen=True)
class _Tried:
    """A candidate: no schedule of its stages takes less than ``least_seconds``."""

    priced: Priced
    split: Split
    micro_batch: int
    least_seconds: float
    peak_bytes: float

    @property
    def plainness(self) -> tuple[object, ...]:
        """Among equal times: fewest bytes, then the plainest mesh."""
        split = self.split
        mesh = (split.pp, self.priced.ranks, split.dp)
        return (self.peak_bytes, *mesh, split.virtual, split.recompute, split.schedule, self.micro_batch)


def search(
    graph: Graph,
    cluster: Cluster,
    global_batch: int,
    pins: Mapping[str, str | int] | None = None,
    model: Mapping[str, object] | None = None,
    progress: Progress = lambda text: None,
) -> Plan:
    """The plan with the shortest predicted step of ``global_batch`` samples on all of ``cluster``'s devices.

    ``pins`` fix decisions (tp, pp, dp, micro_batch, schedule, virtual, recompute) or, by a pattern of parameter names,
    layouts ("replicate", "whole", "shard:DIM"). ``model`` is written into the plan. Raises InputError for pins or sizes
    that no plan can have, DoesNotFit when none fits in memory.
    """
    fixed = read_pins(pins or {}, graph)
    check_separable(graph, global_batch)
    folded, found = fold(graph), list[_Tried]()
    degrees = [n for n in _divisors(cluster.devices) if _admits_tp(n, cluster, fixed)]
    for micro_batch in _divisors(global_batch):
        able = [tp for tp in degrees if _admits_micro_batch(micro_batch, global_batch, cluster.devices // tp, fixed)]
        sized = (at_batch(folded, micro_batch) or fold(resize(graph, micro_batch))) if able else None
        for tp in able:
            progress(f"layouts at tp {tp}, micro-batch {micro_batch}; {len(found)} plans priced")
            assert sized is not None
            priced = _layouts(sized, cluster, tp, micro_batch, global_batch, fixed)
            found += _splits(priced, micro_batch, global_batch, cluster, fixed)
    if not found:
        raise InputError(_nothing(graph, cluster, global_batch, fixed))
    room = cluster.device.memory_bytes
    fitting = [t for t in found if t.peak_bytes <= room]
    if not fitting:
        tightest = min(found, key=lambda t: t.peak_bytes)
        missing = tightest.peak_bytes - room
        raise DoesNotFit(f"no plan fits: the tightest ({describe(tightest.split, tightest.priced.ranks)}, micro-batch "
                         f"{tightest.micro_batch}) misses {missing:,.0f} bytes a device")  # fmt: skip
    progress(f"{len(fitting)} of {len(found)} plans fit")
    ranking, walked = _ranked(fitting)
    searched = {
        "candidates": len(found), "over_memory": len(found) - len(fitting), "walked": walked,
        "beaten_by_bound": len(fitting) - walked,
    }  # fmt: skip
    return _plan(ranking, searched, global_batch, pins or {}, model or {}, cluster)


def _ranked(fitting: list[_Tried]) -> tuple[list[tuple[_Tried, Cost]], int]:
    """The KEPT best with their exact prices, and how many tables were walked to know them."""
    walked: list[tuple[tuple[object, ...], _Tried, Cost]] = []
    times: list[float] = []
    for tried in sorted(fitting, key=lambda t: (t.least_seconds, t.plainness)):
        if len(times) >= KEPT and tried.least_seconds > times[KEPT - 1]:
            break
        cost = price(tried.priced, tried.split)
        walked.append(((round(cost.step_seconds, 9), *tried.plainness), tried, cost))
        bisect.insort(times, cost.step_seconds)
    walked.sort(key=lambda row: row[0])
    return [(tried, cost) for _, tried, cost in walked[:KEPT]], len(walked)


def check_separable(graph: Graph, global_batch: int) -> None:
    """Raise InputError when the loss mixes samples, so that neither dp nor micro-batches keep it."""
    if graph.inseparable and global_batch > 1:
        raise InputError(
            f"the loss does not separate over samples: {graph.inseparable}; dp and micro-batches are refused"
        )


def describe(split: Split, tp: int) -> str:
    """A mesh in words."""
    return f"pp {split.pp}, dp {split.dp}, tp {tp}"


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _admits_tp(tp: int, cluster: Cluster, fixed: Pins) -> bool:
    """Tensor parallelism stays inside a node unless it is pinned."""
    return fixed.admits("tp", tp) and (tp <= cluster.node_devices or fixed.number("tp") is not None)


def _admits_micro_batch(size: int, global_batch: int, ranks: int, fixed: Pins) -> bool:
    """Whether some dp of ``ranks`` divides the batch into micro-batches of this size."""
    small = size <= MOST_MICRO_BATCH or fixed.number("micro_batch") is not None
    return small and fixed.admits("micro_batch", size) and any(global_batch % (d * size) == 0 for d in _divisors(ranks))


def _layouts(folded: Folded, cluster: Cluster, tp: int, micro_batch: int, global_batch: int, fixed: Pins) -> Priced:
    steps = max(1, global_batch * tp // (cluster.devices * micro_batch))
    solution = solve(folded, space(folded, tp), Prices.of(cluster, tp, steps), fixed.allows(folded))
    return price_units(folded, solution, tp, cluster)


def _splits(priced: Priced, micro_batch: int, global_batch: int, cluster: Cluster, fixed: Pins) -> Iterator[_Tried]:
    rest = cluster.devices // priced.ranks
    cuts, sums = Cuts(priced), dict[int, tuple[StageSums, ...]]()
    blocks = sum(u.is_block for u in priced.folded.graph.units)
    for pp in [n for n in _divisors(rest) if n <= max(1, blocks)]:
        dp = rest // pp
        if not (fixed.admits("pp", pp) and fixed.admits("dp", dp)) or global_batch % (dp * micro_batch):
            continue
        micro_batches = global_batch // (dp * micro_batch)
        for kind, virtual in _schedules(pp, blocks, micro_batches):
            if not (fixed.admits("schedule", kind) and fixed.admits("virtual", virtual)):
                continue
            if pp * virtual not in sums:
                sums[pp * virtual] = tuple(stage_sums(priced, units) for units in cuts.into(pp * virtual))
            for recompute in (False, True):
                if sums[pp * virtual] and fixed.admits("recompute", recompute):
                    split = Split(sums[pp * virtual], pp, dp, micro_batches, kind, virtual, recompute)
                    yield _Tried(priced, split, micro_batch, *bound(priced, split))


def _schedules(pp: int, blocks: int, micro_batches: int) -> Iterator[tuple[str, int]]:
    yield "1f1b", 1
    if pp > 1:
        yield "gpipe", 1
        if micro_batches % pp == 0:
            for virtual in range(2, min(4, blocks // pp) + 1):
                yield "interleaved", virtual


def _nothing(graph: Graph, cluster: Cluster, global_batch: int, fixed: Pins) -> str:
    blocks = len(graph.blocks)
    pp, dp = fixed.number("pp"), fixed.number("dp")
    if pp and pp > max(1, blocks):
        return f"pp {pp} asks for more stages than the model's {blocks} blocks: pin pp to at most {max(1, blocks)}"
    product = (pp or 1) * (dp or 1) * (fixed.number("tp") or 1)
    if cluster.devices % product:
        return f"the pinned degrees multiply to {product}, which does not divide {cluster.devices} devices"
    near = [
        b for d in range(global_batch) for b in (global_batch - d, global_batch + d) if b and b % cluster.devices == 0
    ]
    mend = f"; the nearest that every mesh divides is {near[0]}" if near else ""
    return f"no mesh of {cluster.devices} devices divides a global batch of {global_batch} under these pins{mend}"


def _plan(
    ranking: list[tuple[_Tried, Cost]], searched: dict[str, int], global_batch: int, pins: Mapping[str, str | int],
    model: Mapping[str, object], cluster: Cluster,
) -> Plan:  # fmt: skip
    best, cost = ranking[0]
    priced, split, folded = best.priced, best.split, best.priced.folded
    names = {unit: name for name, unit in unit_names(folded.graph).items()}
    layouts = {n.meta["source"]: placement_json(priced.solution.parameters[r]) for n, r in folded.parameter.items()}
    boundaries = {
        names[units[0]]: [placement_json(priced.solution.ports[p]) for p in folded.sources if p.group == g]
        for g, units in enumerate(folded.groups)
    }
    decisions = Decisions(
        mesh={"pp": split.pp, "dp": split.dp, "tp": priced.ranks}, order=("pp", "dp", "tp"),
        micro_batch=best.micro_batch, micro_batches=split.micro_batches, schedule=split.schedule, virtual=split.virtual,
        stages=tuple(tuple(names[u] for u in stage.units) for stage in split.stages), recompute=split.recompute,
        parameters=by_pattern(layouts), boundaries=boundaries,
    )  # fmt: skip
    return Plan(
        model={**model, "digest": graph_digest(folded), "blocks": len(folded.graph.blocks),
               "targets": targets_per_sample(folded.graph.module.graph, folded.graph.batch),
               "parameters": sum(n.meta["val"].numel() for n in folded.parameter)},
        cluster=cluster.as_dict(), global_batch=global_batch, pins={k: str(v) for k, v in pins.items()},
        decisions=decisions, blocks=tuple(_blocks(priced, names)), parameters=dict(sorted(layouts.items())),
        cost=cost, searched=searched, notes=tuple(_notes(priced)),
        candidates=tuple(_candidate(tried, cost) for tried, cost in ranking), digest=decisions.digest(),
    )  # fmt: skip


def _candidate(tried: _Tried, cost: Cost) -> Candidate:
    split = tried.split
    mesh = {"pp": split.pp, "dp": split.dp, "tp": tried.priced.ranks}
    return Candidate(
        mesh, tried.micro_batch, split.schedule, split.virtual, split.recompute, cost.step_seconds, cost.peak_bytes
    )


def _blocks(priced: Priced, names: dict[Unit, str]) -> Iterator[BlockRow]:
    folded, solution = priced.folded, priced.solution
    for g, units in enumerate(folded.groups):
        seconds: dict[fx.Node, tuple[float, float]] = {}
        for node in folded.body(g):
            found = op_seconds(node, solution.strategies[node], priced.ranks, priced.cluster)
            seconds[node] = (found.forward, found.backward)
        ports = tuple(placement_json(solution.ports[p]) for p in sorted(
            (p for p in folded.sources if p.group == g), key=lambda p: p.index))  # fmt: skip
        cost = priced.groups[g]
        yield BlockRow(
            tuple(names[u] for u in units), units[0].is_block, ports, cost.seconds.forward, cost.seconds.backward,
            cost.saved_bytes, 0.0, op_rows(folded, solution, g, seconds),
        )  # fmt: skip


def _notes(priced: Priced) -> Iterator[str]:
    """What was replicated for want of a rule."""
    for g, units in enumerate(priced.folded.groups):
        for node in priced.folded.body(g):
            if rule_of(str(node.target)) is None:
                yield f"{node.target} in {units[0].name} has no rule: it stays replicated"
