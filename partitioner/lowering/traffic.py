"""What each rank sends in one step, predicted from the Program alone.

calls on meta tensors --> rows of one forward, one backward, one recompute --> times the rank's actions
                          + sends between stages + gradient sync + control scalars
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator

from partitioner.graph.nodes import buffer_name
from partitioner.lowering.program import Call, Coordinates, Program, Stage, Value, coordinates
from partitioner.lowering.sent_by_call import CallReader, MetaTensor, Ran, Sending
from partitioner.lowering.shard_groups import (
    gathered_bytes,
    held_shape,
    rank_shape,
    reduced_bytes,
    scattered,
    shard_groups,
)
from partitioner.ops.collective_kinds import ALL_GATHER, ALL_REDUCE, REDUCE_SCATTER
from partitioner.schedule.tables import KINDS, Action, reader
from partitioner.sharding.layout import partial_axes
from partitioner.sharding.mesh_axes import DP, PP, SHARD

SCALAR = 8  # bytes of a float64


Named = dict[str, MetaTensor]


def traffic(program: Program, rank: int = 0, clipped: bool = True) -> list[Sending]:
    """Everything that ``rank`` communicates in one step; of the gradient sync one row for all tensors of an axis.

    ``clipped``: whether the step measures the gradient norm.
    """
    here = coordinates(program)[rank]
    trip = _Trip(program, here)
    rows = [row for action in program.actions[here[PP]] for row in trip.rows(action)]
    return [*rows, *_sync(program, here), *_sharded_once(program, here), *_control(program, clipped)]


def tally(rows: Iterable[Sending]) -> Counter[tuple[str, str, str, int]]:
    """How often each row stands there; the rows of the gradient sync, which goes in buckets, added up."""
    found: Counter[tuple[str, str, str, int]] = Counter()
    total: Counter[tuple[str, str, str]] = Counter()
    for row in rows:
        if row.phase == "sync":
            total[row.axis, row.kind, row.phase] += row.bytes
        else:
            found[row.axis, row.kind, row.phase, row.bytes] += 1
    return found + Counter({(*key, size): 1 for key, size in total.items()})


class _Trip:
    """One micro-batch through each stage of a pipeline rank."""

    def __init__(self, program: Program, here: Coordinates) -> None:
        self.program, self.here = program, here
        self.axes = program.sizes
        self.known = _fixed(program, here)
        self.made: dict[object, Ran] = {}
        self.stages = [self.stage(stage) for stage in program.stages]

    def rows(self, action: Action) -> Iterator[Sending]:
        """What one action communicates."""
        yield from self.stages[action.stage].get(KINDS[action.kind].collectives, [])
        stage, waiting = self.program.stages[action.stage], reader(action, len(self.program.stages))
        if waiting and self.program.stages[waiting.stage].rank != stage.rank:
            for value in self.sent(stage, action.kind):
                yield Sending(PP, "send", "send", math.prod(value.shape) * value.dtype.itemsize)

    def sent(self, stage: Stage, kind: str) -> Iterable[Value]:
        """Values forward; backward the gradients of those received that have one."""
        return stage.sends if KINDS[kind].is_forward else [v for v in stage.receives if v.differentiable]

    def stage(self, stage: Stage) -> dict[str, list[Sending]]:
        """The rows of a stage's forward and of its backward."""
        values = dict(self.known)
        for v in stage.receives:
            values[v.name] = MetaTensor(v.shape, v.dtype, v.differentiable)
        for call in (stage.constants, stage.prelude):
            if call is not None:
                values |= _without_gradient(call)
        ran: list[Ran] = []
        for call in stage.calls:
            ran.append(self.run(call, values))
            values |= _named(call, ran[-1])
        reached, backward = _backward(stage, ran)
        gathered, reduced = _sharded_often(self.program, self.here, stage, reached)
        return {"forward": [row for r in ran for row in r.forward] + gathered, "backward": backward + reduced}

    def run(self, call: Call, values: Named) -> Ran:
        """A call on meta, once for each kind of arguments."""
        arguments = tuple(values[name] for name in call.arguments)
        key = (id(call.module), arguments, id(call.recompute))
        if key not in self.made:
            self.made[key] = CallReader(call, self.axes, self.here).read(arguments)
        return self.made[key]


def _backward(stage: Stage, ran: list[Ran]) -> tuple[set[int], list[Sending]]:
    """The calls to which a gradient comes, from what is sent and from the loss, and their rows."""
    alive = {v.name for v in stage.sends if v.differentiable} | {stage.loss}
    rows: list[Sending] = []
    reached = set[int]()
    for number, call, r in reversed([*zip(range(len(ran)), stage.calls, ran, strict=True)]):
        slots = [n for n, name in enumerate(call.results) if name in alive and r.results[n].differentiable]
        rows = r.rows(slots) + rows
        reached |= {number} if slots else set()
        alive |= {call.arguments[n] for slot in slots for n in r.read[slot]}
    return reached, rows


def _sharded_often(
    program: Program, here: Coordinates, stage: Stage, reached: set[int]
) -> tuple[list[Sending], list[Sending]]:
    """What ZeRO moves with each forward of a stage, and with each backward, of which ``reached`` calls are part."""
    groups = shard_groups(program, stage)
    own = [group for group in groups if group.call is not None] if program.zero == 3 else []
    gathered = [(g, Sending(DP, ALL_GATHER, "state", gathered_bytes(program, here, g))) for g in own]
    reduced = scattered(program, groups) if program.zero > 1 else iter(())
    back = [row for g, row in gathered if g.call in reached]
    back += [Sending(DP, REDUCE_SCATTER, "state", reduced_bytes(program, here, g)) for g in reduced]
    return [row for _, row in gathered], back


def _sharded_once(program: Program, here: Coordinates) -> Iterator[Sending]:
    """What ZeRO moves once a step: weights that stay gathered, gradients added up before, sums over replicas."""
    groups = [g for s in program.stages if s.rank == here[PP] for g in shard_groups(program, s)]
    kept = [g for g in groups if program.zero < 3 or g.call is None]
    trained = [*scattered(program, groups)]
    size = sum(gathered_bytes(program, here, g) for g in kept)
    reduced = sum(reduced_bytes(program, here, g) for g in trained)
    rows = [(ALL_GATHER, size), (REDUCE_SCATTER, reduced if program.zero == 1 else 0)]
    rows += [(ALL_REDUCE, reduced // program.shards if program.shards < program.mesh[DP] else 0)]
    return (Sending(DP, kind, "sync", size) for kind, size in rows if size)


def _named(call: Call, ran: Ran) -> Named:
    return dict(zip(call.results, ran.results, strict=True))


def _without_gradient(call: Call) -> Named:
    """What a constant or prelude makes: whole, as it was traced, and never sent."""
    output = next(n for n in call.module.graph.nodes if n.op == "output")
    values = [n.meta["val"] for n in output.args[0]]
    return {n: MetaTensor(tuple(v.shape), v.dtype, False) for n, v in zip(call.results, values, strict=True)}


def _fixed(program: Program, here: Coordinates) -> Named:
    """Parameters, buffers and batch inputs; the inputs as the modules' placeholders saw them."""
    found = {buffer_name(n): MetaTensor(tuple(b.shape), b.dtype, False) for n, b in program.buffers.items()}
    for call in (c for s in program.stages for c in (s.constants, s.prelude, *s.calls) if c is not None):
        nodes = (n for n in call.module.graph.nodes if n.op == "placeholder")
        for name, node in zip(call.arguments, nodes, strict=True):
            if name in program.step_inputs:
                found[name] = MetaTensor(tuple(node.meta["val"].shape), node.meta["val"].dtype, False)
    for name, parameter in program.parameters.items():
        found[name] = MetaTensor(rank_shape(program, parameter, here), parameter.dtype, parameter.requires_grad)
    return found


def _sync(program: Program, here: Coordinates) -> Iterator[Sending]:
    """Partial gradients over their axes, those of tied weights over their stages, all of them over dp."""
    sizes: dict[str, int] = {}
    for parameter in program.parameters.values():
        owners = program.ranks_of(parameter.stages)
        if not parameter.requires_grad or here[PP] not in owners:
            continue
        axes = list(partial_axes(parameter.layout, program.axes))
        axes += [PP] if len(owners) > 1 else []
        is_sharded = program.is_sharded(parameter)
        axes += [DP] if program.mesh[DP] > 1 and not is_sharded else []
        kind = parameter.held_dtype if is_sharded else parameter.gradient_dtype
        size = math.prod(held_shape(program, parameter, here, here[SHARD])) * kind.itemsize
        for axis in axes:
            sizes[axis] = sizes.get(axis, 0) + size
    return (Sending(axis, ALL_REDUCE, "sync", size) for axis, size in sizes.items())


def _control(program: Program, clipped: bool) -> Iterator[Sending]:
    """Fingerprints of what carries no samples, the counts, the loss, the squared gradient norm."""
    shared = len(program.inputs) - len(program.batched)
    sizes = [(DP, 2 * SCALAR * shared)] if shared else []
    sizes += [(DP, SCALAR * numbers) for numbers in program.counted]
    sizes += [(DP, SCALAR), (PP, SCALAR)]
    wide = program.sizes
    sizes += [(axis, SCALAR) for axis in (PP, *(axis for axis, _ in program.axes), SHARD) if clipped]
    return (Sending(axis, ALL_REDUCE, "control", size) for axis, size in sizes if wide[axis] > 1)


