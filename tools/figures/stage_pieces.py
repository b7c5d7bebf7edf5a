"""What happens inside a stage's forward and backward, piece by piece: ops and collectives in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from partitioner import Plan
from partitioner.plan.derived_rows import BlockRow, CollectiveRow, OpRow
from partitioner.plan.sent_by_plan import leaving
from tools.figures.outline import kind, place


@dataclass(frozen=True)
class Piece:
    """Something that takes time: its name, "compute" or "collective", its seconds, and what else is known of it."""

    name: str
    kind: str
    seconds: float
    facts: dict[str, Any] = field(default_factory=dict)


def forward_pieces(plan: Plan, stage: int) -> list[Piece]:
    """Of one micro-batch, blocks one after the other."""
    rows = _rows(plan)
    return [piece for name in plan.decisions.stages[stage] for piece in _forward(plan, name, rows[name])]


def backward_pieces(plan: Plan, stage: int) -> list[Piece]:
    """The same backwards; a block that is recomputed first runs again what of its forward the plan says."""
    d, rows, found = plan.decisions, _rows(plan), list[Piece]()
    left = d.recomputed[stage]
    for name in d.stages[stage]:
        again = rows[name].is_block and left > 0
        left -= again
        forward = _again(name, rows[name]) if again else []
        found = [*forward, *_backward(plan, name, rows[name]), *found]
    return found


def summed(pieces: list[Piece]) -> list[Piece]:
    """Compute in one piece, collectives by what they are called."""
    found: dict[tuple[str, str], float] = {}
    for piece in pieces:
        name = "compute" if piece.kind == "compute" else piece.name.split(":")[0]
        found[name, piece.kind] = found.get((name, piece.kind), 0.0) + piece.seconds
    return [Piece(name, kind, seconds) for (name, kind), seconds in found.items()]


def _rows(plan: Plan) -> dict[str, BlockRow]:
    return {name: row for row in plan.blocks for name in row.units}


def _forward(plan: Plan, unit: str, row: BlockRow) -> Iterator[Piece]:
    for op in row.ops:
        yield from (_sent(move, move.forward, move.forward_bytes, move.forward_seconds) for move in op.collectives)
        yield _computed(unit, op, row, op.forward_seconds)
    for move in leaving(plan, unit):
        yield _sent(move, move.forward, move.forward_bytes, move.forward_seconds)


def _again(unit: str, row: BlockRow) -> Iterator[Piece]:
    for op in row.ops:
        for move in (m for m in op.collectives if m.again):
            piece = _sent(move, move.forward, move.forward_bytes, move.forward_seconds)
            yield Piece(f"{piece.name} again", piece.kind, piece.seconds, piece.facts)
        if op.again:
            piece = _computed(unit, op, row, op.forward_seconds)
            yield Piece(f"{piece.name} again", piece.kind, piece.seconds, piece.facts)


def _backward(plan: Plan, unit: str, row: BlockRow) -> Iterator[Piece]:
    for move in leaving(plan, unit):
        yield _sent(move, move.backward, move.backward_bytes, move.backward_seconds)
    for op in reversed(row.ops):
        yield _computed(unit, op, row, op.backward_seconds)
        yield from (_sent(move, move.backward, move.backward_bytes, move.backward_seconds) for move in op.collectives)


def _computed(unit: str, op: OpRow, row: BlockRow, seconds: float) -> Piece:
    return Piece(f"{unit} {place(op, row)}: {kind(op)}", "compute", seconds)


def _sent(move: CollectiveRow, kind: str, size: float, seconds: float) -> Piece:
    facts = {"bytes": size, "from": move.source, "to": move.target}
    return Piece(f"{move.axis} {kind}: {move.value}", "collective", seconds, facts)
