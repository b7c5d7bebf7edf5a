"""A plan's parameter layouts as transformers' tp_plan: by module pattern how its weight is divided."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from partitioner import Plan
from partitioner.errors import InputError
from partitioner.searching.pins import matches
from partitioner.sharding.layout import Shard, parse_layout
from partitioner.sharding.mesh_axes import AXES, TP, wholes

COLUMNS, ROWS, GATHERED, TABLE = "colwise", "rowwise", "colwise_gather_output", "embedding_rowwise"


def styles(plan: Plan) -> tuple[dict[str, str], list[str]]:
    """By module pattern transformers' word, and what it has no word for, one line each; raises InputError where the
    plan divides no weight."""
    ranks = plan.parallelism.degree(TP)
    if ranks == 1:
        raise InputError("the plan divides no weight over ranks, so that there is no tp_plan: plan with --pin tp=2")
    found, said = dict[str, str](), list[str]()
    for pattern, layout in plan.decisions.parameters.items():
        placement = _placement(pattern, layout, plan)
        module, _, kind = pattern.rpartition(".")
        if not isinstance(placement, Shard):
            continue
        if kind == "bias" and placement.dim == 0:
            continue  # follows its weight
        if kind != "weight" or placement.dim > 1:
            said.append(f"{pattern} is divided along dimension {placement.dim}: transformers keeps it whole")
        elif len(placement.segments) > 1:
            said.append(f"{pattern} is divided in {len(placement.segments)} parts (a fused product), which has no word")
        else:
            found[module] = _style(plan, pattern, placement)
    return found, [*said, *_beside(plan)]


def _placement(pattern: str, layout: Any, plan: Plan) -> object:
    """Along the tensor parallel axis."""
    try:
        placements = parse_layout(layout)
    except ValueError as error:
        raise InputError(f"decisions.parameters.{pattern}: {error}: mend it") from error
    places = dict(wholes(plan.parallelism.axes)).get(TP, (len(placements) - 1,))
    return next((placements[n] for n in places if isinstance(placements[n], Shard)), None)


def _style(plan: Plan, pattern: str, placement: Shard) -> str:
    """By what the weight is of: a product in a block or behind them, or a table."""
    module = pattern.rpartition(".")[0]
    for row in plan.blocks:
        for product in row.products:
            if matches(module, product.module):
                columns = placement.dim == (1 if product.transposed else 0)
                return (COLUMNS if row.is_block else GATHERED) if columns else ROWS
    return TABLE


def _beside(plan: Plan) -> Iterator[str]:
    """What tp_plan is not about."""
    own = plan.parallelism
    for axis in AXES:
        if axis != TP and own.degree(axis) > 1:
            yield f"{axis} {own.degree(axis)}: tp_plan is of tensor parallelism alone"
    yield f"global batch {plan.global_batch:,}, precision, recompute and the rest of the step"
