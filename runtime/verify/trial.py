"""Plans tried against the eager module: the model in float64, one global batch, and what each plan makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from partitioner import Graph, Plan, lower
from partitioner.comparing.eager_float64 import float64_by_default, wide
from partitioner.comparing.graph_float64 import promote
from partitioner.user_code.batches import flat
from partitioner.user_code.compiled import written_parameters
from runtime.mesh.groups import Groups
from runtime.ranks.process_group import is_first
from runtime.train.engine import Engine
from runtime.verify.eager_steps import Reference, wanted
from runtime.verify.first_difference import explain
from runtime.verify.parity import CLIP, LR, STEPS, Difference, difference, steps_under, unforeseen
from runtime.verify.plain_steps import Steps, train
from runtime.verify.recipe_steps import HALVED, apart, plain_step, rounding, step_under


@dataclass(frozen=True)
class Trial:
    """``graph`` is promoted; ``start`` and ``batch`` are whole and in float64; rank 0 has the reference.

    ``real``: what is compared in its own data types as well, where parameters are cast.
    """

    graph: Graph
    start: Mapping[str, torch.Tensor]
    batch: Mapping[str, torch.Tensor]
    reference: Reference | None
    real: Real

    def traced_as(self, graph: Graph) -> Trial:
        """Of the same model, traced in another precision."""
        return replace(self, graph=promote(graph), real=replace(self.real, graph=graph))


@dataclass(frozen=True)
class Real:
    """A module, its graph and a batch, in the data types that they have."""

    module: nn.Module
    graph: Graph
    batch: Mapping[str, Any]

    def apart(self, plan: Plan) -> tuple[float, str]:
        """How far a step under ``plan`` is from a plain one, and whose tensor is; on rank 0, nothing elsewhere."""
        own = written_parameters(self.module)
        start = {n: own[n].detach() for n in self.graph.parameters}
        found = step_under(lower(self.graph, plan), start, flat(self.batch).tensors)
        if not is_first():
            return 0.0, ""
        plain = plain_step(self.module, self.graph, self.batch)
        return apart(found, plain, rounding(self.module, self.graph, self.batch, plain))


@dataclass(frozen=True)
class Outcome:
    """What a plan did: its errors, the first op that diverged, and what it sent beside the prediction ("" for none).

    ``real``: what is wrong in its own data types, "" for nothing; ``real_error``: how far it is off there, 0 where
    nothing is cast.
    """

    apart: Difference
    limit: float
    first: str
    unforeseen: str
    real: str = ""
    real_error: float = 0.0


def prepare(module: nn.Module, graph: Graph, batch: Mapping[str, Any]) -> Trial:
    """The trial of ``module``, traced as ``graph`` at any batch size, on a global ``batch``; called on all ranks."""
    with float64_by_default():
        promoted = promote(graph)
        own = written_parameters(module)
        start = {n: own[n].detach().to(p.dtype) for n, p in promoted.parameters.items()}
        given = {n: wide(t) for n, t in flat(batch).tensors.items()}
        reference = wanted(module, promoted, batch, STEPS, CLIP, LR) if is_first() else None
        return Trial(promoted, start, given, reference, Real(module, graph, batch))


def run_plan(trial: Trial, plan: Plan) -> Outcome | None:
    """Train under ``plan``, on all ranks together; rank 0 has the outcome. Raises InputError for a plan of no use."""
    with float64_by_default():
        program = lower(trial.graph, plan)
        places: list[Groups] = []

        def listen(engine: Engine) -> None:
            engine.groups.log.keep = True
            places.append(engine.groups)

        found = steps_under(program, trial.start, trial.batch, listen)
        strange = unforeseen(program, places[0])
        errors = difference(found, trial.reference.steps) if trial.reference else None
        captured = _captured(trial, trial.reference, found, errors) if trial.reference and errors else ""
        blamed = errors if trial.reference and errors and not errors.largest <= trial.reference.limit else None
        first = explain(program, trial.graph, trial.start, trial.batch, None if captured else blamed)
    error, whose = trial.real.apart(plan) if plan.decisions.precision.compute else (0.0, "")
    if trial.reference is None or errors is None:
        return None
    real = "" if error < HALVED else f"{whose} is {error:.2g} off in {plan.decisions.precision}"
    return Outcome(errors, trial.reference.limit, captured or str(first or ""), strange, real, error)


def _captured(trial: Trial, reference: Reference, found: Steps, apart: Difference) -> str:
    """Why no op of the plan is to blame: its graph, run by one process, differs from the eager module just as well."""
    if apart.largest <= reference.limit:
        return ""
    plain = train(trial.graph, trial.start, trial.batch, STEPS, CLIP, LR)
    itself = difference(plain, reference.steps)
    if itself.largest <= reference.limit or difference(found, plain).largest > reference.limit:
        return ""
    return f"what was traced, before any plan ({itself.worst})"
