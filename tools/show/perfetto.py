"""A plan's step as a timeline that Perfetto and chrome://tracing open: the Trace Event Format's JSON, microseconds.

a process for each rank          or, of many, for each pipeline rank: the others do the same
    actions                      forward, backward, what was put off; inside them ops and collectives, or their sums
                                 bubbles, gradient sync, the update
    sends                        between pipeline ranks, with arrows to what waits for them
    memory                       a counter, by kind
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

from partitioner import Plan
from partitioner.plan.timeline import Span, holdings, timeline
from partitioner.schedule.tables import KINDS, SENDING, reader
from partitioner.sharding.mesh_axes import PP
from tools.figures import figures
from tools.figures.stage_pieces import Piece, backward_pieces, forward_pieces, summed

MOST_RANKS = 16  # beyond, one row for each pipeline rank
MOST_PIECES = 30_000  # beyond, an action's pieces are added up by kind
Event = dict[str, Any]


def trace_json(plan: Plan) -> str:
    """The document."""
    events = list(trace_events(plan))
    other = {"mesh": figures.mesh_words(plan.parallelism), "step_seconds": plan.cost.step_seconds, "predicted": True}
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms", "otherData": other}) + "\n"


def trace_events(plan: Plan) -> Iterator[Event]:
    """Those of the document."""
    rows = timeline(plan)
    pieces = _Pieces(plan, sum(map(len, rows)))
    for pid, (name, p) in enumerate(_rows(plan)):
        yield {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": name}}
        yield {"ph": "M", "pid": pid, "name": "process_sort_index", "args": {"sort_index": pid}}
        yield {"ph": "M", "pid": pid, "tid": 0, "name": "thread_name", "args": {"name": "actions"}}
        yield from _actions(plan, rows, p, pid, pieces)
        yield from _memory(plan, rows[p], p, pid)
    if plan.parallelism.mesh[PP] > 1:
        yield from _sends(plan, rows)


def _rows(plan: Plan) -> Iterator[tuple[str, int]]:
    """A name and a pipeline rank for each process."""
    sizes = {axis: plan.parallelism.mesh[axis] for axis in plan.parallelism.order}
    if plan.world <= MOST_RANKS:
        for rank, place in enumerate(itertools.product(*(range(size) for size in sizes.values()))):
            here = dict(zip(sizes, place, strict=True))
            yield f"rank {rank} ({', '.join(f'{axis} {n}' for axis, n in here.items() if sizes[axis] > 1)})", here[PP]
    else:
        for p in range(sizes[PP]):
            yield f"pipeline rank {p} ({plan.world // sizes[PP]:,} ranks)", p


class _Pieces:
    """What lies inside each kind of action of each stage, in shares of its time."""

    def __init__(self, plan: Plan, actions: int) -> None:
        self.plan, self.known = plan, dict[tuple[int, str], list[tuple[Piece, float]]]()
        every = max(len(forward_pieces(plan, n)) for n in range(len(plan.decisions.stages)))
        self.whole = actions * every <= MOST_PIECES

    def of(self, stage: int, kind: str) -> list[tuple[Piece, float]]:
        if (stage, kind) not in self.known:
            found = forward_pieces(self.plan, stage) if KINDS[kind].is_forward else backward_pieces(self.plan, stage)
            found = found if self.whole else summed(found)
            whole = sum(piece.seconds for piece in found)
            self.known[stage, kind] = [(piece, piece.seconds / whole) for piece in found if piece.seconds]
        return self.known[stage, kind]


def _actions(plan: Plan, rows: tuple[tuple[Span, ...], ...], p: int, pid: int, pieces: _Pieces) -> Iterator[Event]:
    now, end = 0.0, max(row[-1].end for row in rows)
    for action, start, stop in rows[p]:
        if start > now * (1 + 1e-9):
            yield _slice(pid, "bubble", "bubble", now, start)
        args = {"stage": action.stage, "micro_batch": action.micro_batch}
        yield _slice(pid, str(action), KINDS[action.kind].name, start, stop, args)
        if action.kind in SENDING:
            at = start
            for piece, share in pieces.of(action.stage, action.kind):
                yield _slice(pid, piece.name, piece.kind, at, at + share * (stop - start), piece.facts)
                at += share * (stop - start)
        now = stop
    if now < end * (1 - 1e-9):
        yield _slice(pid, "bubble", "bubble", now, end)
    synced = end + plan.cost.sync_seconds
    if plan.cost.sync_seconds:
        yield _slice(pid, "gradient sync", "collective", end, synced)
    yield _slice(pid, "optimizer", "optimizer", synced, synced + plan.cost.optimizer_seconds)


def _slice(pid: int, name: str, kind: str, start: float, stop: float, args: Event | None = None, tid: int = 0) -> Event:
    """Both ends are rounded, so that a piece ends no later than the next begins."""
    ts = _us(start)
    found = {"ph": "X", "pid": pid, "tid": tid, "name": name, "cat": kind, "ts": ts, "dur": round(_us(stop) - ts, 3)}
    return found | ({"args": args} if args else {})


def _us(second: float) -> float:
    return round(second * 1e6, 3)


def _sends(plan: Plan, rows: tuple[tuple[Span, ...], ...]) -> Iterator[Event]:
    """From the end of each action to the one on another pipeline rank that waits for it."""
    own = plan.parallelism
    processes: dict[int, list[int]] = {}
    for pid, (_, p) in enumerate(_rows(plan)):
        processes.setdefault(p, []).append(pid)
    starts = {span.action: span.start for row in rows for span in row}
    number = itertools.count()
    for p, row in enumerate(rows):
        for pid in processes[p]:
            yield {"ph": "M", "pid": pid, "tid": 1, "name": "thread_name", "args": {"name": "sends"}}
        for action, _, stop in row:
            stage, kind, micro_batch = action
            waiting = reader(action, own.stage_count)
            to = p if waiting is None else own.pipeline_rank(waiting.stage)
            if waiting is None or to == p:
                continue
            name = f"{KINDS[kind].sends} of micro-batch {micro_batch} to stage {waiting.stage}"
            sender = plan.cost.stages[stage]
            facts = {"bytes": sender.sent_bytes if KINDS[kind].is_forward else sender.sent_back_bytes}
            for here, there in zip(processes[p], processes[to], strict=True):
                arrived = stop + plan.cost.send_seconds
                yield _slice(here, name, "send", stop, arrived, facts, tid=1)
                flow = {"name": "send", "cat": "send", "id": next(number)}
                yield {**flow, "ph": "s", "pid": here, "tid": 1, "ts": _us(stop)}
                yield {**flow, "ph": "f", "bp": "e", "pid": there, "tid": 0, "ts": _us(starts[waiting])}


def _memory(plan: Plan, row: tuple[Span, ...], p: int, pid: int) -> Iterator[Event]:
    for held in holdings(plan, row, p):
        args = {kind: round(getattr(held, kind)) for kind in figures.MEMORY}
        yield {"ph": "C", "pid": pid, "name": "memory (bytes)", "ts": _us(held.second), "args": args}
