"""What a Program is compared with: the plain model in float64, or a plain loop in the data types of the recipe.

    exact    float64 throughout, three AdamW steps    every sum and collective shows, casts do not
    real     one step, part by part                   casts show; ops are not divided, so only float32's sums differ
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from partitioner import Graph, trace
from partitioner.comparing.graph_float64 import promote
from partitioner.lowering.program import Program
from partitioner.precision import preset
from runtime.train.engine import Engine
from runtime.verify.parity import CLIP, LR, STEPS, difference, steps_under
from runtime.verify.plain_steps import Steps, train
from runtime.verify.recipe_steps import HALVED, Step, apart, plain_step, step_under
from tools.models.load import load
from tools.planted_faults.cast_faults import casts
from tools.planted_faults.mutant import Mutant
from tools.planted_faults.program_faults import mutants

Prepare = Callable[[Engine], object]


@dataclass(frozen=True)
class Case(ABC):
    """A model's graph, where it starts and a batch. ``limit``: of the relative error of a Program that is right."""

    graph: Graph
    start: dict[str, torch.Tensor]
    batch: dict[str, torch.Tensor]
    limit: float

    @abstractmethod
    def error(self, program: Program, prepare: Prepare) -> float:
        """The largest relative one, on rank 0; 0 elsewhere."""

    @abstractmethod
    def mutants(self, program: Program) -> Iterator[Mutant]:
        """The faults that this comparison is for."""


@dataclass(frozen=True)
class Exact(Case):
    """In float64; samples count unequally. ``wanted``: one process's steps."""

    wanted: Steps

    def error(self, program: Program, prepare: Prepare) -> float:
        found = steps_under(program, self.start, self.batch, prepare)
        return difference(found, self.wanted).largest if found.gradients else 0.0

    def mutants(self, program: Program) -> Iterator[Mutant]:
        return mutants(program)


@dataclass(frozen=True)
class Real(Case):
    """In its own types; samples count the same. ``wanted``: one process's step, a sample at a time."""

    wanted: Step

    def error(self, program: Program, prepare: Prepare) -> float:
        found = step_under(program, self.start, self.batch, prepare)
        if not found.gradients:
            return 0.0
        wanted = replace(self.wanted, loss=found.loss)  # of which torch rounds a mean to the type of its operand
        gradients = apart(replace(found, moved={}), replace(wanted, moved={}))[0]
        return gradients if apart(found, wanted)[0] < HALVED else math.inf  # updates are rounded beside parameters

    def mutants(self, program: Program) -> Iterator[Mutant]:
        return casts(program)


EXACT_LIMIT, REAL_LIMIT = 1e-9, 1e-4  # one rounding to float16 is 5e-4, to bfloat16 4e-3


def case(
    spec: str, settings: dict[str, object], samples: int, precision: str, float32: Sequence[str], is_real: bool
) -> Case:
    """The model shrunk as ``verify`` shrinks it, in a preset with patterns of what stays in float32."""
    torch.manual_seed(0)
    source = load(spec, settings, seq=None, batch=samples, shrink=spec.startswith("hf:"))
    graph = trace(source.module, source.batch, compare=False, precision=preset(precision, float32))
    own = dict(source.module.named_parameters(remove_duplicate=False))
    batch = dict(source.batch)
    if is_real:
        batch["labels"] = batch["labels"].clamp(min=0)
        start = {n: own[n].detach() for n in graph.parameters}
        return Real(graph, start, batch, REAL_LIMIT, plain_step(source.module, graph, batch, parts=samples))
    graph = promote(graph)
    start = {n: own[n].detach().to(graph.parameters[n].dtype) for n in graph.parameters}
    batch["labels"] = batch["labels"].clone()
    for n in range(samples):
        batch["labels"][n, : n + 1] = -100
    return Exact(graph, start, batch, EXACT_LIMIT, train(graph, start, batch, STEPS, CLIP, LR))
