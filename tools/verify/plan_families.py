"""The families of plans that ``verify`` tries: pins for each, planned on a cluster where dividing always pays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from partitioner.cluster import Cluster
from partitioner.errors import InputError
from partitioner.graph.graph import Graph
from partitioner.hardware.device import Attention, Device, one_row
from partitioner.hardware.link import Link
from partitioner.plan.recompute_ways import FULL_RECOMPUTE, MLP, OPERATORS, SELECTIVE
from partitioner.precision import OWN, PRESETS, Precision
from partitioner.schedule.tables import PLAIN, SCHEDULES
from partitioner.sharding.mesh_axes import AXES, DP, PP, TP

CAST = ("bf16", "fp16")  # presets of which each has a family

_LINK = Link(bytes_per_second=1e12, efficiency=1.0, latency_seconds=1e-9)
_PEAKS: dict[str, float] = dict.fromkeys(("float64", "float32", "bfloat16", "float16"), 1e12)
_DEVICE = Device("verify", 1e15, 1e9, 0.0, 1.0, 1, 0.0, _PEAKS, one_row(_PEAKS, 1.0), Attention(1.0))


def cluster(ranks: int) -> Cluster:
    """Ranks with fast links and slow memory, so that whatever can be divided is."""
    return Cluster("verify", "math", _DEVICE, _LINK, ranks, _LINK)


@dataclass(frozen=True)
class Family:
    """A name, the pins that make it, and in which precision."""

    name: str
    pins: dict[str, str | int]
    precision: Precision = OWN


def families(graph: Graph, ranks: int, global_batch: int) -> Iterator[Family]:
    """dp, tp, tp with sequence parallel, pp under each schedule that runs, and their mixes, as ranks and blocks allow.

    Where samples can't be separated: those without dp, one micro-batch each.
    """
    if graph.inseparable is not None:
        yield from _whole_batch(len(graph.blocks), ranks, global_batch)
        return
    blocks = len(graph.blocks)
    yield _family(DP, ranks, global_batch, dp=ranks)
    yield _family(TP, ranks, global_batch, tp=ranks, boundary="whole")
    yield _family("tp + sequence parallel", ranks, global_batch, tp=ranks, boundary="sharded")
    deep = max((n for n in range(2, ranks + 1) if ranks % n == 0 and n <= blocks), default=0)
    if deep:
        for row in (s for s in SCHEDULES.values() if s.executed and s.fewest_stages == 1):
            yield _family(f"{PP} {row.name}", ranks, global_batch, pp=deep, dp=ranks // deep, schedule=row.name)
    for row in (s for s in SCHEDULES.values() if s.executed and s.fewest_stages > 1):
        if blocks >= 2 * row.fewest_stages and ranks % 2 == 0:
            pins = {PP: 2, DP: ranks // 2, "schedule": row.name, "virtual": row.fewest_stages}
            yield _family(f"{PP} {row.name}", ranks, global_batch, **pins)
    if ranks % 4 == 0:
        half = ranks // 2
        if blocks >= 2:
            yield _family("tp x pp", ranks, global_batch, tp=2, pp=half if half <= blocks else 2, recompute="on")
            if ranks > 4 or half != deep:
                yield _family("pp x dp", ranks, global_batch, pp=2, dp=half, recompute="on")
        yield _family("tp x dp", ranks, global_batch, tp=2, dp=half)
        yield _family(f"{TP} by its parts", ranks, global_batch, **{TP: ranks, AXES[TP].parts[0]: 2})
        beside: dict[str, str | int] = {"boundary": "sharded", "recompute": OPERATORS}
        yield _family(f"{TP} by its parts, sharded", ranks, global_batch, **{TP: ranks, AXES[TP].parts[0]: 2}, **beside)
    if ranks % 8 == 0 and blocks >= 2:
        yield _family("tp x pp x dp", ranks, global_batch, tp=2, pp=2, dp=ranks // 4)
    yield from _with_state_divided(blocks, ranks, global_batch)
    yield from _recomputed(ranks, global_batch)
    for name in CAST:
        yield replace(_family(f"{DP}, {name}", ranks, global_batch, dp=ranks), precision=PRESETS[name])


def _with_state_divided(blocks: int, ranks: int, global_batch: int) -> Iterator[Family]:
    """Each stage of ZeRO, the last also inside groups; the least and the most of it beside tp and pp."""
    for zero in (1, 2, 3):
        yield _family(f"ZeRO {zero}", ranks, global_batch, dp=ranks, zero=zero)
    if ranks % 4 == 0:
        yield _family("ZeRO 3 over 2 (HSDP)", ranks, global_batch, dp=ranks, zero=3, zero_group=2)
        yield _family("tp x ZeRO 3", ranks, global_batch, tp=2, dp=ranks // 2, zero=3, recompute=OPERATORS)
        selective: dict[str, str | int] = {"zero": 2, "recompute": SELECTIVE}
        found = _family("tp x ZeRO 2, selective, bf16", ranks, global_batch, tp=2, dp=ranks // 2, **selective)
        yield replace(found, precision=PRESETS["bf16"])
        if blocks >= 2:
            yield _family("pp x ZeRO 1", ranks, global_batch, pp=2, dp=ranks // 2, zero=1)
            operators: dict[str, str | int] = {"zero": 3, "recompute": OPERATORS}
            found = _family("pp x ZeRO 3, operators, fp16", ranks, global_batch, pp=2, dp=ranks // 2, **operators)
            yield replace(found, precision=PRESETS["fp16"])
    if ranks % 8 == 0 and blocks >= 2:
        for zero in (1, 3):
            yield _family(f"tp x pp x ZeRO {zero}", ranks, global_batch, tp=2, pp=2, dp=ranks // 4, zero=zero)
        yield _family("tp x ZeRO 3 over 2 (HSDP)", ranks, global_batch, tp=2, dp=ranks // 2, zero=3, zero_group=2)
        parts: dict[str, str | int] = {TP: ranks // 2, AXES[TP].parts[0]: 2}
        yield _family(f"{TP} by its parts x ZeRO 3", ranks, global_batch, dp=2, zero=3, **parts)


def _recomputed(ranks: int, global_batch: int) -> Iterator[Family]:
    """Each way of recomputing, beside what it has to do with: collectives, samples, weights that are gathered."""
    beside: dict[str, dict[str, str | int]] = {
        OPERATORS: {TP: ranks, "boundary": "sharded"}, SELECTIVE: {DP: ranks}, FULL_RECOMPUTE: {DP: ranks, "zero": 3},
        MLP: {TP: ranks, "boundary": "whole"},
    }  # fmt: skip
    for way, pins in beside.items():
        yield _family(f"recompute {way}", ranks, global_batch, recompute=way, **pins)


def possible(
    tried: Iterable[Family], graph_in: Callable[[Precision], Graph], global_batch: int
) -> tuple[list[tuple[Family, Graph]], list[str]]:
    """Families with the graph in their precision, and which are left out: code that looks for what overflows in float16
    mixes samples, or branches on values, there alone."""
    found, said = list[tuple[Family, Graph]](), list[str]()
    for family in tried:
        try:
            graph, pins = graph_in(family.precision), family.pins
        except InputError as error:
            if family.precision == OWN:
                raise
            said.append(f"left out: {family.name}: {error}")
            continue
        if graph.inseparable is None or (pins[DP], pins["micro_batch"]) == (1, global_batch):
            found.append((family, graph))
        else:
            said.append(f"left out: {family.name}, as samples can't be separated: {graph.inseparable}")
    return found, said


def left_out(graph: Graph) -> str:
    """Which families are not tried and why, "" for none."""
    if graph.inseparable is None:
        return ""
    return f"left out: dp and more than one micro-batch, as samples can't be separated: {graph.inseparable}"


def _whole_batch(blocks: int, ranks: int, global_batch: int) -> Iterator[Family]:
    one: dict[str, str | int] = {"micro_batch": global_batch}
    yield _family(TP, ranks, global_batch, tp=ranks, boundary="whole", **one)
    yield _family("tp + sequence parallel", ranks, global_batch, tp=ranks, boundary="sharded", **one)
    if ranks <= blocks:
        yield _family(PP, ranks, global_batch, pp=ranks, **one)
    if ranks % 4 == 0 and ranks // 2 <= blocks:
        yield _family("tp x pp", ranks, global_batch, tp=2, pp=ranks // 2, recompute="on", **one)


def _family(name: str, ranks: int, global_batch: int, **pins: str | int) -> Family:
    degrees = {axis: int(pins.get(axis, 1)) for axis in (TP, PP, DP)}
    many = 2 * degrees[PP] if degrees[PP] > 1 else 2
    micro_batch = max(1, global_batch // (degrees[DP] * many))
    defaults: dict[str, str | int] = {"schedule": PLAIN, "recompute": "off", "micro_batch": micro_batch, "zero": 0}
    return Family(name, {**defaults, **pins, **degrees})
