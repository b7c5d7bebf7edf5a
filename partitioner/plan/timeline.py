"""A plan's step in time, from its file alone: when each pipeline rank does what, and what it holds meanwhile."""

from __future__ import annotations

from typing import NamedTuple

from partitioner.errors import InputError
from partitioner.plan.plan import Plan
from partitioner.schedule.fullest_moments import moment_of
from partitioner.schedule.simulate import ends, simulate
from partitioner.schedule.tables import KINDS, Action, releasing_kind
from partitioner.sharding.mesh_axes import PP

MOST_ACTIONS = 2_000_000


class Span(NamedTuple):
    """An action of a pipeline rank, seconds from the step's start."""

    action: Action
    start: float
    end: float


class Holding(NamedTuple):
    """Bytes that a pipeline rank holds from ``second`` on."""

    second: float
    weights: float
    gradients: float
    optimizer: float
    activations: float
    transient: float

    @property
    def total(self) -> float:
        """All of them."""
        return sum(self[1:])


def timeline(plan: Plan) -> tuple[tuple[Span, ...], ...]:
    """The actions of each pipeline rank, in order; gradient sync and the update follow the last of them all."""
    own, stages = plan.parallelism, plan.cost.stages
    if 2 * len(stages) * own.micro_batches > MOST_ACTIONS:
        raise InputError(f"{len(stages)} stages of {own.micro_batches:,} micro-batches are too many to walk in time")
    table = own.actions
    forward = [s.forward_seconds for s in stages]
    backward = [s.backward_seconds - s.put_off_seconds for s in stages]
    weight = [s.put_off_seconds for s in stages]
    walked = simulate(table, own.mesh[PP], forward, backward, plan.cost.send_seconds, weight)
    taken = dict(zip(KINDS, (forward, backward, weight), strict=True))
    return tuple(
        tuple(Span(a, end - taken[a.kind][a.stage], end) for a, end in zip(row, ended, strict=True))
        for row, ended in zip(table, ends(walked, table, len(stages)), strict=True)
    )


def holdings(plan: Plan, spans: tuple[Span, ...], rank: int) -> list[Holding]:
    """What pipeline rank ``rank`` holds as it walks its ``spans``: a moment for each start and each end of an action.

    As the memory model counts: during forward what lies there before it and all that it makes; during backward what
    its micro-batch kept as well. What was put off is held until it is done.
    """
    own = plan.parallelism.rank_stages[rank]
    flying, grown = dict.fromkeys(own, 0), dict.fromkeys(own, False)
    last = releasing_kind(span.action for span in spans)
    found: list[Holding] = []
    for (stage, kind, _), start, end in spans:
        row = plan.cost.stages[stage]
        found.append(_holding(plan, start, flying, grown, row.acting_bytes[moment_of(kind, grown[stage])]))
        flying[stage] += KINDS[kind].is_forward - (kind == last)
        grown[stage] = grown[stage] or not KINDS[kind].is_forward
        found.append(_holding(plan, end, flying, grown, 0.0))
    return found


def _holding(plan: Plan, second: float, flying: dict[int, int], grown: dict[int, bool], transient: float) -> Holding:
    rows = [(plan.cost.stages[n], flying[n], grown[n]) for n in flying]
    activations = sum(row.kept_bytes * many for row, many, _ in rows) + plan.cost.input_bytes
    gradients = sum(row.grown_bytes - row.new_bytes * (not there) for row, _, there in rows)
    return Holding(
        second, sum(row.weight_bytes for row, _, _ in rows), gradients, sum(row.optimizer_bytes for row, _, _ in rows),
        activations, transient,
    )  # fmt: skip
