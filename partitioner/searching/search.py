"""``search``: the mesh, stages, schedule, micro-batch, recompute and layouts of the shortest step that fits.

candidates                   with a bound that no schedule of their stages can beat, and exact peak bytes
where none of them fits      other stages of them, then candidates of layouts that hold fewer bytes
of those that fit            by rising bound, the Action table walked, until the next bound is above the RANKED-th best
where others might beat it   but do not fit: of them, layouts that hold fewer bytes, and other stages; walked as well
least step time; equal times: fewer bytes, then the plainer mesh
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from partitioner.cluster import Cluster
from partitioner.errors import DoesNotFit, InputError
from partitioner.gc_pause import uncollected
from partitioner.graph.graph import Graph
from partitioner.plan.derived_rows import Cost
from partitioner.plan.executed import space_of
from partitioner.plan.plan import Plan
from partitioner.plan.recompute_ways import NO_RECOMPUTE
from partitioner.searching.candidates import Progress, candidates
from partitioner.searching.pin_conflicts import conflict
from partitioner.searching.pins import read_pins
from partitioner.searching.splits import Tried
from partitioner.searching.where_memory_binds import Asked, recut, setup_of, where_memory_binds
from partitioner.searching.write_plan import ALONE, Ranking, plan_of
from partitioner.step.step_seconds import price

MOST_SAMPLES = 2**32  # of a step; all its divisors are looked at
RANKED = 10
SCARCITIES = (1.0, 16.0, 256.0, 4096.0)  # passes of memory that a byte costs; the next where memory binds
FRONT_STEP = 0.01  # share of time that a plan of more memory must save to stand on the front


@uncollected()
def search(
    graph: Graph,
    cluster: Cluster,
    global_batch: int,
    pins: Mapping[str, str | int] | None = None,
    model: Mapping[str, object] | None = None,
    progress: Progress = lambda text: None,
    plan_only: bool = False,
    keep: int = RANKED,
) -> Plan:
    """The plan with the shortest predicted step of ``global_batch`` samples on all of ``cluster``'s devices.

    ``pins`` fix decisions (tp, pp, dp, tp_kv, tp_repeat, micro_batch, schedule, virtual, stages, recompute, recomputed,
    zero, zero_group, boundary) or, by a pattern of parameter names, layouts ("replicate", "shard", "shard:DIM");
    ``recomputed`` is so many blocks of each stage, all of one that has fewer. ``model`` is written into the plan.
    ``plan_only`` also proposes what the runtime can't execute yet (cp, zero-bubble schedules); such a plan says so.
    ``keep``: the best so many are priced exactly; the plan lists all that were, beside the front of those that no
    other beats in both time and memory.
    Raises InputError for pins or sizes that no plan can have, DoesNotFit when none fits in memory at any of SCARCITIES.
    """
    found = _Found(cluster.device.room)
    asked = _asked(graph, cluster, global_batch, pins or {}, progress, plan_only, found)
    higher = _until_one_fits(found, asked)
    if not found.fitting:
        raise DoesNotFit(too_large(found.tightest, cluster.device.room))
    progress(f"{len(found.fitting)} of {len(found.all)} plans fit")
    prices = _Prices()
    _walk_best(found.fitting, keep, prices)
    best = prices.ranking()[0][1].step_seconds
    found.add(where_memory_binds([*found.all.values()], best, asked, higher[0] if higher else None))
    _walk_best(found.fitting, keep, prices)
    front = _front(found.fitting, prices)
    ranking = prices.ranking()
    searched = {
        "candidates": len(found.all), "over_memory": len(found.all) - len(found.fitting), "walked": len(ranking),
        "beaten_by_bound": len(found.fitting) - len(ranking),
    }  # fmt: skip
    return plan_of(ranking, front, searched, global_batch, pins or {}, model or {})


@uncollected()
def tightest(
    graph: Graph,
    cluster: Cluster,
    global_batch: int,
    pins: Mapping[str, str | int] | None = None,
    model: Mapping[str, object] | None = None,
    progress: Progress = lambda text: None,
    plan_only: bool = False,
) -> Plan:
    """The plan that needs the fewest bytes a device, whether ``cluster`` has them or not; asked as ``search`` is.

    Looked at is all that ``search`` looks at, so that this plan fits where ``search`` finds one and only there; and
    where one fits, what it passes over because nothing needs it, as if devices had no room at all: of the smallest
    micro-batch, which keeps least, at the SCARCITIES that ``search`` did not need. Raises InputError as it does.
    """
    found = _Found(cluster.device.room)
    asked = _asked(graph, cluster, global_batch, pins or {}, progress, plan_only, found)
    higher = _until_one_fits(found, asked)
    if found.fitting:
        setups = {setup_of(tried) for tried in found.all.values()}
        least = min(setup.micro_batch for setup in setups)
        smallest, none = {setup for setup in setups if setup.micro_batch == least}, cluster.leaving(1.0)
        for scarcity in higher or SCARCITIES[-1:]:
            found.add(candidates(graph, none, *asked[2:], scarcity, smallest))
    best = found.tightest
    plan = plan_of([(best, price(best.priced, best.split))], [], dict(ALONE), global_batch, pins or {}, model or {})
    return replace(plan, cluster=cluster.as_dict()).stamped()


def _asked(
    graph: Graph, cluster: Cluster, global_batch: int, pins: Mapping[str, str | int], progress: Progress,
    plan_only: bool, found: _Found,
) -> Asked:  # fmt: skip
    """What candidates are asked for; raises InputError."""
    if not 1 <= global_batch <= MOST_SAMPLES:
        raise InputError(f"global_batch of {global_batch} samples: take 1 to {MOST_SAMPLES:,}")
    fixed = read_pins(pins, graph)
    if graph.inseparable:
        fixed = fixed.with_whole_batch(global_batch, graph.inseparable)

    def say(text: str) -> None:
        least = f", the best takes at least {found.least:.3g} s" if found.fitting else ""
        progress(f"{text}; {len(found.all)} candidates{least}")

    if graph.precision.products and cluster.software.is_executed and not plan_only:
        raise InputError(
            f"products in {graph.precision.products} can't be executed yet: add --plan-only to look at such plans, or "
            "plan for another framework"
        )
    return graph, cluster, global_batch, fixed, space_of(cluster.software, plan_only), say


def _until_one_fits(found: _Found, asked: Asked) -> list[float]:
    """Candidates, where none fits also those of fewer bytes; returns the SCARCITIES that were not needed."""
    graph, cluster, global_batch, fixed, space, say = asked
    higher = list(SCARCITIES)
    while higher and not found.fitting:
        scarcity = higher.pop(0)
        new = found.add(candidates(*asked, scarcity))
        if not found.all:
            raise InputError(conflict(graph, cluster, global_batch, fixed, space))
        if not found.fitting:
            say(f"nothing fits where a byte costs {scarcity:g} passes of memory: other stages")
            found.add(recut(new, math.inf, asked))
    return higher


class _Found:
    """Candidates, each step once; ``least``: seconds that those that fit take at least."""

    def __init__(self, room: float) -> None:
        self.room, self.all, self.fitting = room, dict[tuple[object, ...], Tried](), list[Tried]()
        self.least = math.inf

    @property
    def tightest(self) -> Tried:
        """Of fewest bytes; of equal ones the fastest."""
        least = min(tried.peak_bytes for tried in self.all.values())
        alike = (tried for tried in self.all.values() if tried.peak_bytes == least)
        return min(alike, key=lambda t: (t.least_seconds, t.plainness))

    def add(self, rows: Iterable[Tried]) -> list[Tried]:
        """Those that are new."""
        new = list[Tried]()
        for tried in rows:
            if self.all.setdefault(tried.identity, tried) is tried:
                new.append(tried)
                if tried.peak_bytes <= self.room:
                    self.fitting.append(tried)
                    self.least = min(self.least, tried.floor_seconds)
        return new


class _Prices:
    """Exact prices, each table walked once."""

    def __init__(self) -> None:
        self.walked: dict[int, tuple[Tried, Cost]] = {}

    def exact(self, tried: Tried) -> Cost:
        if id(tried) not in self.walked:
            self.walked[id(tried)] = tried, price(tried.priced, tried.split)
        return self.walked[id(tried)][1]

    def ranking(self) -> Ranking:
        """All that were priced, best first."""
        return sorted(self.walked.values(), key=lambda row: (round(row[1].step_seconds, 9), *row[0].plainness))


def _walk_best(fitting: list[Tried], keep: int, prices: _Prices) -> None:
    """Price candidates by rising bound, until ``keep`` of them can't be beaten any more."""
    times: list[float] = []
    for tried in _rising(fitting):
        if len(times) >= keep and tried.least_seconds > times[keep - 1]:
            break
        bisect.insort(times, prices.exact(tried).step_seconds)


def _rising(fitting: list[Tried]) -> Iterator[Tried]:
    """By rising bound, the plainest of equal ones first; bounds are found of those alone whose floor is not above."""
    left: list[tuple[float, bool, tuple[object, ...], int]] = [
        (tried.floor_seconds, False, (), n) for n, tried in enumerate(fitting)
    ]
    heapq.heapify(left)
    while left:
        _, is_bound, _, n = heapq.heappop(left)
        if is_bound:
            yield fitting[n]
        else:
            heapq.heappush(left, (fitting[n].least_seconds, True, fitting[n].plainness, n))


def _front(fitting: list[Tried], prices: _Prices) -> Ranking:
    """The candidates that no other beats in both time and memory, least memory first.

    A candidate whose bound is no better than the best so far can't be on it.
    """
    found: Ranking = []
    best = math.inf
    for _, alike in itertools.groupby(sorted(fitting, key=lambda t: t.peak_bytes), key=lambda t: t.peak_bytes):
        better = [tried for tried in alike if tried.may_take_less(best * (1 - FRONT_STEP))]
        for tried in sorted(better, key=lambda t: (t.least_seconds, t.plainness)):
            if tried.least_seconds < best * (1 - FRONT_STEP):
                cost = prices.exact(tried)
                if cost.step_seconds < best * (1 - FRONT_STEP):
                    best = cost.step_seconds
                    found.append((tried, cost))
    return found


def too_large(tightest: Tried, room: float) -> str:
    """Which part of memory overflows on which stage of the plan that needs least, and what would make it fit."""
    own, cost = tightest.split.parallelism, price(tightest.priced, tightest.split)
    worst = max(range(len(cost.stages)), key=lambda n: cost.stages[n].peak_bytes)
    stage = cost.stages[worst]
    parts = {
        "weights, gradients and optimizer state": stage.state_bytes, "activations": stage.activation_bytes,
        "what comes and goes": stage.transient_bytes,
    }  # fmt: skip
    words = ", ".join(f"{name} {size / 1e9:,.3g} GB" for name, size in parts.items())
    largest = max(parts, key=lambda name: parts[name])
    mends = ["more devices"]
    if largest.startswith("weights"):
        mends += ["ZeRO (drop the pin)"] if own.zero < 3 and own.replicas > 1 else []
    else:
        mends += ["a smaller micro-batch"] if own.micro_batch > 1 else []
        mends += ["recompute"] if own.recompute == NO_RECOMPUTE else []
    mesh = ", ".join(f"{axis} {own.mesh[axis]}" for axis in own.order)
    return (
        f"no plan fits: the tightest ({mesh}, micro-batch {own.micro_batch}, recompute "
        f"{own.recompute}) misses {tightest.peak_bytes - room:,.0f} bytes a device; stage {worst} of "
        f"{len(cost.stages)} holds {words}; what would help: {', '.join(mends)}"
    )
