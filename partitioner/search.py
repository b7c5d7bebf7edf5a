"""``search``: the mesh, stages, schedule, micro-batch, recompute and layouts of the shortest step that fits.

for each tp, micro-batch     resize, fold, enumerate, solve      (the layouts: one integer program)
for each pp, dp, schedule    cut stages, price the Action table  (thousands a second)
least step time among those that fit; equal times: fewer bytes, then the plainer mesh
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import fx

from partitioner.batch import resize
from partitioner.choices import Prices
from partitioner.cluster import Cluster
from partitioner.cost import Priced, Split, price, price_units
from partitioner.errors import DoesNotFit, InputError
from partitioner.fold import Folded, fold
from partitioner.graph import Graph, Unit
from partitioner.layout import placement_json
from partitioner.lower import unit_names
from partitioner.pins import Pins, read_pins
from partitioner.plan import BlockRow, Candidate, Cost, Decisions, Plan
from partitioner.price import op_seconds
from partitioner.recall import by_pattern, graph_digest, op_rows
from partitioner.rules import rule_of
from partitioner.solve import solve
from partitioner.stages import cut
from partitioner.strategies import space

MOST_MICRO_BATCH = 16
KEPT = 50
Progress = Callable[[str], None]


@dataclass(frozen=True)
class _Tried:
    priced: Priced
    split: Split
    micro_batch: int
    cost: Cost

    @property
    def rank(self) -> tuple[object, ...]:
        """Least time first (to a tenth of a percent), then fewest bytes, then the plainest mesh."""
        split = self.split
        return (
            round(self.cost.step_seconds, 9),
            self.cost.peak_bytes,
            split.pp,
            self.priced.ranks,
            split.dp,
            split.virtual,
            split.recompute,
            split.schedule,
        )


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
    found: list[_Tried] = []
    degrees = [n for n in _divisors(cluster.devices) if _admits_tp(n, cluster, fixed)]
    for micro_batch in _divisors(global_batch):
        able = [tp for tp in degrees if _admits_micro_batch(micro_batch, global_batch, cluster.devices // tp, fixed)]
        folded = fold(resize(graph, micro_batch)) if able else None
        for tp in able:
            progress(f"layouts at tp {tp}, micro-batch {micro_batch}; {len(found)} plans priced")
            assert folded is not None
            priced = _layouts(folded, cluster, tp, micro_batch, global_batch, fixed)
            found += _splits(priced, micro_batch, global_batch, cluster, fixed)
    if not found:
        raise InputError(_nothing(graph, cluster, global_batch, fixed))
    room = cluster.device.memory_bytes
    found.sort(key=lambda t: (t.cost.peak_bytes > room, t.rank))
    best = found[0]
    if best.cost.peak_bytes > room:
        tightest = min(found, key=lambda t: t.cost.peak_bytes)
        missing = tightest.cost.peak_bytes - room
        raise DoesNotFit(f"no plan fits: the tightest ({describe(tightest.split, tightest.priced.ranks)}, micro-batch "
                         f"{tightest.micro_batch}) misses {missing:,.0f} bytes a device")  # fmt: skip
    return _plan(best, found, global_batch, pins or {}, model or {}, cluster)


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
    blocks = sum(u.is_block for u in priced.folded.graph.units)
    for pp in [n for n in _divisors(rest) if n <= max(1, blocks)]:
        dp = rest // pp
        if not (fixed.admits("pp", pp) and fixed.admits("dp", dp)) or global_batch % (dp * micro_batch):
            continue
        micro_batches = global_batch // (dp * micro_batch)
        for kind, virtual in _schedules(pp, blocks, micro_batches):
            if fixed.admits("schedule", kind) and fixed.admits("virtual", virtual):
                stages = cut(priced, pp * virtual)
                for recompute in (False, True):
                    if stages and fixed.admits("recompute", recompute):
                        split = Split(stages, pp, dp, micro_batches, kind, virtual, recompute)
                        yield _Tried(priced, split, micro_batch, price(priced, split))


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
    best: _Tried, found: list[_Tried], global_batch: int, pins: Mapping[str, str | int], model: Mapping[str, object],
    cluster: Cluster,
) -> Plan:  # fmt: skip
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
        stages=tuple(tuple(names[u] for u in stage) for stage in split.stages), recompute=split.recompute,
        parameters=by_pattern(layouts), boundaries=boundaries,
    )  # fmt: skip
    return Plan(
        model={**model, "digest": graph_digest(folded), "blocks": len(folded.graph.blocks),
               "parameters": sum(n.meta["val"].numel() for n in folded.parameter)},
        cluster=cluster.as_dict(), global_batch=global_batch, pins={k: str(v) for k, v in pins.items()},
        decisions=decisions, blocks=tuple(_blocks(priced, names)), parameters=dict(sorted(layouts.items())),
        cost=best.cost,
        notes=tuple(_notes(priced)), candidates=tuple(_candidate(t) for t in found[:KEPT]), digest=decisions.digest(),
    )  # fmt: skip


def _candidate(tried: _Tried) -> Candidate:
    split = tried.split
    mesh = {"pp": split.pp, "dp": split.dp, "tp": tried.priced.ranks}
    return Candidate(
        mesh, tried.micro_batch, split.schedule, split.virtual, split.recompute, tried.cost.step_seconds,
        tried.cost.peak_bytes,
    )  # fmt: skip


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
