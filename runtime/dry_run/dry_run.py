"""A step of every rank of a Program, one after the other in this process, on meta tensors and process groups of tape.

    alike(program)     ranks that differ in dp, or in tp without a difference of shapes, run once
    run_ranks(...)      runs them, holds each to what is predicted of it, and lets their tapes meet

The same engine, worker, transport and gradient sync run as on real ranks.
"""

from __future__ import annotations

import linecache
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from partitioner.errors import InputError
from partitioner.lowering.program import Call, Coordinates, Parameter, Program, coordinates
from partitioner.lowering.sent_by_call import Sending
from partitioner.lowering.shard_groups import held_shape
from partitioner.lowering.traffic import tally, traffic
from partitioner.schedule.tables import KINDS
from partitioner.sharding.mesh_axes import DP, PP, SHARD
from partitioner.user_code.batches import flat
from runtime.dry_run.match_tapes import unmatched
from runtime.dry_run.recording_group import Tape, own_group, world_of
from runtime.dry_run.replay_worker import ReplayWorker
from runtime.dry_run.valueless_engine import ValuelessEngine
from runtime.execute.worker import BoundCall
from runtime.mesh.groups import Groups
from runtime.mesh.make_groups import NCCL
from runtime.state.optimizer import factory
from runtime.state.parameters import materialize
from runtime.state.shard_pieces import Part, rank_parameters
from runtime.train.engine import Engine

CPU, META = torch.device("cpu"), torch.device("meta")
Batch = Mapping[str, Any]
Bytes = Mapping[str, int]
PROBLEMS = 4  # of one rank that are kept


@dataclass
class Rank:
    """One rank's step: what it did, and ``problems``, none when it did what was predicted.

    ``stands_for``: all ranks that are like it. ``ops``: of forwards, recomputed ones too. ``parameters``: local bytes.
    ``finished``: whether its step came to an end; ``matched``: whether its tape was walked with the others'.
    """

    rank: int
    place: Coordinates
    stands_for: tuple[int, ...]
    seconds: float = 0.0
    ops: int = 0
    parameters: dict[str, int] = field(default_factory=dict)
    tape: Tape = field(default_factory=Tape)
    problems: list[str] = field(default_factory=list)
    finished: bool = False
    matched: bool = False

    @property
    def parameter_bytes(self) -> int:
        """Of all parameters together."""
        return sum(self.parameters.values())

    @property
    def sent_bytes(self) -> int:
        """Payload of all collectives and sends."""
        return sum(row.bytes for row in self.sent)

    @property
    def sent(self) -> list[Sending]:
        """What it sent in its step."""
        return [row for row in self.tape.log.rows if row.phase != "start"]

    def traffic(self) -> dict[str, int]:
        """Payload bytes by axis, kind and phase."""
        found: dict[str, int] = {}
        for axis, kind, phase, size in self.sent:
            key = f"{axis} {kind} {phase}"
            found[key] = found.get(key, 0) + size
        return found

    def count(self, *kinds: str) -> int:
        """Communications of these kinds; of no kind: collectives."""
        ops = [op for op in self.tape.ops if op.phase != "start"]
        return sum(op.kind in kinds if kinds else op.peer < 0 for op in ops)


def alike(program: Program, merge: bool = True) -> dict[int, tuple[int, ...]]:
    """By the first of them: ranks that do the same with tensors of the same shapes.

    dp ranks differ in samples, and in how many rows of the state they hold where it is divided. Ranks along which ops
    lie are told apart by the local shapes of all parameters, everywhere alike, and the first of an axis from the
    others, since it alone adds what is whole to partial sums and counts it in the norm.
    """
    rows: dict[object, list[int]] = {}
    places, names = coordinates(program), [axis for axis, _ in program.axes]
    kinds: dict[tuple[int, ...], object] = {}
    for place in places:
        cell = tuple(place[axis] for axis in names)
        key = (*cell, place[SHARD])
        if key not in kinds:
            kinds[key] = (tuple(n == 0 for n in cell), _shapes(program, place)) if merge else cell
    for rank, place in enumerate(places):
        kind = kinds[*(place[axis] for axis in names), place[SHARD]]
        rows.setdefault((place[PP], kind, place[DP] if not merge else 0), []).append(rank)
    return {ranks[0]: tuple(ranks) for ranks in rows.values()}


def _shapes(program: Program, place: Coordinates) -> tuple[tuple[int, ...], ...]:
    return tuple(held_shape(program, p, place, place[SHARD]) for p in program.parameters.values())


def run_ranks(
    program: Program,
    batch: Batch,
    predicted: Callable[[Coordinates], Bytes] | None = None,
    backend: str = NCCL,
    merge: bool = True,
    every: bool = False,
    prepare: Callable[[Engine], object] = lambda engine: None,
    say: Callable[[str], object] = lambda words: None,
) -> list[Rank]:
    """Every distinct rank's step, with what is wrong in it.

    ``batch`` is an example: only shapes and dtypes count. ``predicted`` gives local bytes by parameter at a place, by
    default what the Program says. ``backend`` is the one whose ways the ranks follow. ``merge`` runs ranks that are
    alike once, ``every`` micro-batch is executed or only the first and the last. ``prepare`` sees each engine before
    its step.
    """
    places = coordinates(program)
    rows = [Rank(rank, places[rank], ranks) for rank, ranks in alike(program, merge).items()]
    for n, row in enumerate(rows):
        say(f"rank {row.rank} of {len(places)}, {n} of {len(rows)} done")
        _step(program, row, batch, backend, every, prepare)
        if row.finished:
            _hold(program, row, predicted(row.place) if predicted else _bytes(program, row.place))
    if all(row.finished for row in rows):  # one that stopped leaves others waiting, which says nothing about them
        say("letting all ranks meet")
        _meet(rows, is_lazy=backend == NCCL)
    return rows


def _meet(rows: list[Rank], is_lazy: bool) -> None:
    stand_in = {rank: row.rank for row in rows for rank in row.stands_for}
    by_rank = {row.rank: row for row in rows}
    for problem in unmatched({row.rank: row.tape for row in rows}, stand_in, is_lazy):
        by_rank[problem.rank].problems.append(problem.words)
    for row in rows:
        row.matched = True


def _step(
    program: Program, row: Rank, batch: Batch, backend: str, every: bool, prepare: Callable[[Engine], object]
) -> None:
    began = time.perf_counter()
    is_sharded = program.shards > 1  # FSDP2 runs on no meta tensors: fake ones of the CPU then, which have no storage
    device, mode = (CPU, FakeTensorMode(allow_non_fake_inputs=True)) if is_sharded else (META, nullcontext())
    with world_of(row.rank, math.prod(program.mesh.values())) as tape:
        row.tape = tape
        try:
            tape.log.keep = True
            groups = Groups(program, device, backend, own_group, tape.log)
            with mode:
                engine = _engine(program, groups, tape, every)
                tape.now = lambda: engine.worker.now
                row.parameters = {n: p.numel() * p.element_size() for n, p in engine.parameters.items()}
                prepare(engine)
                engine.step(_samples(program, batch, device))
            row.ops, row.finished = _ops(engine), True
        except InputError:
            raise
        except Exception as error:  # whatever the rank would have died of
            row.problems.append(_where(error, tape.now()))
        tape.now = lambda: None
    row.seconds = time.perf_counter() - began


def _engine(program: Program, groups: Groups, tape: Tape, every: bool) -> Engine:
    parameters = materialize(program, groups.coordinates, partial(_without_storage, groups.device), groups.device)
    worker = partial(ReplayWorker, tape=tape, every=every)
    optimizer = factory(torch.optim.AdamW, lr=1e-3)
    return ValuelessEngine(program, groups, parameters, optimizer, clip=1.0, worker=worker)


def _without_storage(device: torch.device, parameter: Parameter, part: Part) -> torch.Tensor:
    return torch.empty(part.shape, dtype=parameter.held_dtype, device=device)


def _samples(program: Program, batch: Batch, device: torch.device) -> dict[str, Any]:
    """One data rank's part of a step."""
    many, given = program.micro_batch * program.micro_batches, flat(batch)
    shapes = {n: (many, *t.shape[1:]) if n in program.batched else t.shape for n, t in given.tensors.items()}
    made = {n: torch.empty(s, dtype=given.tensors[n].dtype, device=device) for n, s in shapes.items()}
    return given.together(made)


def _ops(engine: Engine) -> int:
    counts: dict[int, int] = {}
    for index, stage in engine.worker.stages.items():
        calls = [c for c in (stage.prelude, *stage.calls) if c]
        counts[index] = sum(_nodes(c.call.module) + _again(c.call) for c in calls)
    return sum(counts[a.stage] for a in engine.worker.actions if KINDS[a.kind].is_forward)


def _nodes(module: torch.fx.GraphModule) -> int:
    return sum(n.op == "call_function" for n in module.graph.nodes)


def _again(call: Call) -> int:
    again = call.recompute
    return sum(n.op == "call_function" and again.runs_again(n.name) for n in call.module.graph.nodes) if again else 0


def _hold(program: Program, row: Rank, wanted: Bytes) -> None:
    """Compare a rank's parameters and what it sent with what is predicted."""
    for name in {**wanted, **row.parameters}:
        here, there = row.parameters.get(name), wanted.get(name)
        if here != there:
            row.problems.append(f"{name} has {_amount(here)} here, predicted are {_amount(there)}: plan again")
    predicted, sent = tally(traffic(program, row.rank)), tally(row.sent)
    for key in [*(sent - predicted), *(predicted - sent)]:
        words = " ".join(map(str, key[:3]))
        row.problems.append(f"{words} of {key[3]} bytes: sent {sent[key]} times, predicted {predicted[key]} times")
    del row.problems[PROBLEMS:]


def _amount(size: int | None) -> str:
    return "nothing" if size is None else f"{size} bytes"


def _bytes(program: Program, place: Coordinates) -> dict[str, int]:
    own = rank_parameters(program, place[PP])
    shapes = {p.name: held_shape(program, p, place, place[SHARD]) for p in own}
    return {p.name: math.prod(shapes[p.name]) * p.held_dtype.itemsize for p in own}


def _where(error: Exception, action: object) -> str:
    """The action, the block and the line of the Program that raised, and what it said."""
    call: Call | None = None
    line = ""
    frame = error.__traceback__
    while frame:
        code, here = frame.tb_frame.f_code, frame.tb_frame.f_locals.get("self")
        if isinstance(here, BoundCall):
            call = here.call
        if code.co_filename.startswith("<eval_with_key>"):
            line = linecache.getline(code.co_filename, frame.tb_lineno).partition(";")[0].strip()
        frame = frame.tb_next
    rows = (str(action or ""), call.block if call else "", line, f"{type(error).__name__}: {error}")
    return " ".join(": ".join(filter(None, rows)).split())[:400]
