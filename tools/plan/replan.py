"""The model of a plan file traced again, and plans for it under other pins; says which entry point it imports."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping

from partitioner import Graph, Plan, search, trace
from partitioner.errors import DoesNotFit, InputError
from partitioner.precision import Precision
from tools.figures.columns import Column, infeasible, of_plan
from tools.models.load_planned import load_model
from tools.screen import status

ASKED = ("entry", "settings", "seq")  # what a plan says of how to load its model


def graph_of(plan: Plan) -> Graph:
    """Traced once for all plans of a model."""
    asked = json.dumps({key: plan.model.get(key) for key in ASKED}, sort_keys=True)
    return _traced(asked, plan.decisions.precision)


@functools.cache
def _traced(model: str, precision: Precision) -> Graph:
    with status("loading") as say:
        source = load_model(json.loads(model), meta=True)
        return trace(source.module, source.batch, say, precision=precision)


def planned(plan: Plan, pins: Mapping[str, str | int], plan_only: bool = False) -> Plan:
    """The best plan under ``pins`` for the model, cluster and batch of ``plan``; raises InputError or DoesNotFit."""
    graph, cluster = graph_of(plan), plan.machine
    model = {key: plan.model[key] for key in ASKED if key in plan.model}
    with status("searching") as say:
        return search(graph, cluster, plan.global_batch, pins, model, say, plan_only=plan_only)


def attempted(name: str, plan: Plan, pins: Mapping[str, str | int], plan_only: bool = False) -> Column:
    """``planned`` as a column; where there is none, why."""
    try:
        return of_plan(name, planned(plan, pins, plan_only))
    except (InputError, DoesNotFit) as error:
        return infeasible(name, str(error))


def source_plan(column: Column) -> Plan:
    """The plan of a column; raises InputError where it is a run."""
    if column.plan is None:
        raise InputError(f"{column.name} is a run: name a plan first, of which others can be made")
    return column.plan
