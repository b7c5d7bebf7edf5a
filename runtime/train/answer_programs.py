"""Programs that answer, of the model that an engine trains: its parameters stay where its plan has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from partitioner import Graph, Plan, lower, trace
from partitioner.errors import InputError
from partitioner.generating.derive import sample_dimensions, whole_text
from partitioner.generating.lengths import Lengths, answering, lengths, of_length, optional_inputs
from partitioner.graph.graph import placeholders
from partitioner.graph.resize_batch import resize
from partitioner.graph.step_inputs import is_kept
from partitioner.graph.units_by_stage import divided
from partitioner.lowering.program import Program
from partitioner.searching.same_state import with_state_of


@dataclass(frozen=True)
class AnswerSizes:
    """Texts of up to ``length`` positions, ``rows`` of them at once on a data rank; prompts are read ``chunk``
    positions a call. ``source``: positions of the sources, None where there are none, or they have one length."""

    length: int
    rows: int
    chunk: int
    source: int | None = None


@dataclass(frozen=True)
class AnswerPrograms:
    """``many`` positions a call, and ``one``, on the same caches. ``source`` reads the sources of texts, None where
    there are none; ``given``: one text's, on meta, by the name of the input. ``samples``: of each cache, by name, the
    dimension that carries texts.
    ``begins``: tokens with which the model begins every text; ``vocabulary``: how many tokens it knows."""

    sizes: AnswerSizes
    many: Program
    one: Program
    source: Program | None
    given: Mapping[str, torch.Tensor]
    samples: Mapping[str, int]
    begins: tuple[int, ...]
    vocabulary: int


@dataclass
class AnswerMaker:
    """Makes them of ``model``, traced on batches like ``batch``; ``stages`` read each parameter under ``plan``."""

    model: nn.Module
    batch: Mapping[str, Any]
    plan: Plan
    stages: Mapping[str, Sequence[int]]
    _traced: dict[int, Lengths] = field(default_factory=dict[int, Lengths])

    def __call__(self, sizes: AnswerSizes) -> AnswerPrograms:
        """Raises NotDerived, naming the op, for a model whose answers can't be made position by position."""
        found = self._lengths(sizes.length)
        derivation = found.derivation(sizes.rows, sizes.source)
        many, one = (divided(derivation.answering(n, sizes.chunk), self.stages) for n in (sizes.chunk, 1))
        plan = with_state_of(self.plan, one, self.stages, sizes.rows, trains=False, micro_batches=1)
        program = lower(one, plan)
        reads, given = None, dict[str, torch.Tensor]()
        if derivation.sources:
            source = divided(derivation.source(), self.stages)
            reads = lower(source, self._beside(plan, program, source))
            _check_stored(reads, program)
            inputs = placeholders(source.module.graph, "input")
            given = {name: inputs[name].meta["val"][0] for name in derivation.sources}
        chunks = lower(many, self._beside(plan, program, many))
        known = sample_dimensions(one), found.begins, found.vocabulary
        return AnswerPrograms(sizes, chunks, program, reads, given, *known)

    def whole(self, length: int) -> Program:
        """All of a text of ``length`` positions, nothing of which is kept."""
        with answering(self.model):
            graph = of_length(self.batch, length, self._trace, optional_inputs(self.model))
        found = divided(whole_text(resize(graph, 1)), self.stages)
        return lower(found, with_state_of(self.plan, found, self.stages, 1, trains=False, micro_batches=1))

    def begins(self, length: int) -> tuple[int, ...]:
        """The tokens with which the model begins every text."""
        return self._lengths(length).begins

    def sources(self, length: int) -> tuple[str, ...]:
        """What the model is given beside tokens."""
        return self._lengths(length).derivation(1).sources

    def _lengths(self, length: int) -> Lengths:
        if length not in self._traced:
            with answering(self.model):
                self._traced[length] = lengths(self.batch, length, self._trace, optional_inputs(self.model))
        return self._traced[length]

    def _trace(self, batch: Mapping[str, Any]) -> Graph:
        return trace(self.model, batch, compare=False, precision=self.plan.decisions.precision)

    def _beside(self, plan: Plan, program: Program, graph: Graph) -> Plan:
        """A Plan of another graph, whose parameters and what is kept lie as a Program has them, and ``plan`` says."""
        both = replace(self.plan, parameters=self.plan.parameters | plan.parameters)
        stages = dict(self.stages) | {name: p.stages for name, p in program.parameters.items() if is_kept(name)}
        return with_state_of(both, graph, stages, graph.batch, trains=False, micro_batches=1)


def _check_stored(source: Program, program: Program) -> None:
    """What a source leaves is stored in each stage that reads it."""
    for name, kept in source.parameters.items():
        if is_kept(name) and (missing := set(program.parameters[name].stages) - set(kept.stages)):
            words = f"stage {min(missing)} of the plan reads what sources leave elsewhere"
            raise InputError(f"{words}: take a plan with pp 1")
