"""``answering``: a model that answers on all ranks, of weights or a checkpoint, under a plan of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from partitioner import Plan
from partitioner.errors import InputError
from partitioner.graph.step_inputs import is_kept
from partitioner.lowering.program import Program
from runtime.checkpoint.load import load
from runtime.execute.keep_heap import keep_freed_memory
from runtime.execute.worker import Worker
from runtime.mesh.groups import Groups
from runtime.ranks.limits import START_SECONDS, Limits
from runtime.ranks.process_group import start_ranks
from runtime.ranks.watchdog import Watchdog
from runtime.state.parameters import materialize
from runtime.train.answer_programs import AnswerMaker, AnswerPrograms, AnswerSizes


class Answers(Protocol):
    """What answers are made by: an Engine that trains, or an Answering."""

    @property
    def groups(self) -> Groups:
        """This rank's."""
        ...

    @property
    def limits(self) -> Limits | None:
        """After how long a call counts as hung; None: never."""
        ...

    @property
    def answers(self) -> AnswerMaker | None:
        """Makes Programs that answer, where the model is at hand."""
        ...

    def worker_of(self, program: Program) -> Worker:
        """What runs a Program, on the rank's parameters."""
        ...

    def forget_gathered(self) -> None:
        """Let go what is held for a call alone."""
        ...


@dataclass(eq=False)
class Answering:
    """The parameters of one rank, in the types in which ops read them."""

    groups: Groups
    answers: AnswerMaker
    limits: Limits
    _parameters: dict[str, nn.Parameter]

    def worker_of(self, program: Program) -> Worker:
        """What runs a Program, on the rank's parameters."""
        return Worker(program, self.groups, self._parameters)

    def forget_gathered(self) -> None:
        """Nothing is held for a call alone."""


def answering(
    model: nn.Module,
    batch: Mapping[str, Any],
    plan: Plan | Path | str,
    *,
    weights: Path | str | None = None,
    checkpoint: Path | str | None = None,
    sizes: AnswerSizes | None = None,
    cache: bool = True,
    patience: float = 1.0,
) -> Answering:
    """``model`` as it answers under ``plan`` on all ranks; ``batch`` is an example of those that it trains on.

    ``plan`` is one that it was trained under, or another for the model, whose mesh, stages and layouts of parameters
    hold; ZeRO does not: nothing trains. The parameters are those of ``weights``, a folder of safetensors, or of
    ``checkpoint``, a folder that training under any plan has written, or else the module's own. ``sizes``: of the texts
    that are looked for first; without a ``cache`` none is derived (``generate``). Raises InputError for a plan of
    another model or world, and for weights of another model.
    """
    if weights is not None and checkpoint is not None:
        raise InputError("weights and a checkpoint were given: leave out one of them")
    start_ranks(START_SECONDS * patience)
    found = _without_zero(plan if isinstance(plan, Plan) else Plan.load(plan))
    maker = AnswerMaker(model, batch, found, {})
    with Watchdog(START_SECONDS * patience, "tracing the model for answers"):
        asked = sizes or AnswerSizes(64, 1, 8)
        program = _of_both(maker(asked)) if cache else maker.whole(asked.length)
    groups = Groups(program)
    if groups.device.type == "cpu":
        keep_freed_memory()
    source = model if weights is None else Path(weights)
    parameters = materialize(program, groups.coordinates, source if checkpoint is None else _empty, groups.device)
    if checkpoint is not None:
        load(checkpoint, program, groups, parameters, None)
    return Answering(groups, maker, Limits(found.cost.step_seconds, patience), parameters)


def _without_zero(plan: Plan) -> Plan:
    """The same mesh and layouts, each data rank with all of its parameters."""
    own = replace(plan.parallelism, zero=0, zero_group=0)
    return replace(plan, decisions=replace(plan.decisions, parallelism=own)).stamped()


def _of_both(programs: AnswerPrograms) -> Program:
    """The Program of answers, with the parameters that sources read as well, and none of what is kept."""
    found = dict(programs.one.parameters)
    for name, other in (programs.source.parameters if programs.source else {}).items():
        stages = tuple(sorted({*other.stages, *(found[name].stages if name in found else ())}))
        found[name] = replace(other, stages=stages)
    return replace(programs.one, parameters={n: p for n, p in found.items() if not is_kept(n)})


def _empty(parameter: Any, part: Any) -> torch.Tensor:
    """To be filled by a checkpoint."""
    return torch.empty(part.shape, dtype=parameter.dtype)
