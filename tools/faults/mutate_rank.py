"""One rank of ``tools.faults.mutate``: every mutant of every plan of a folder, compared on rank 0 with one process."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from partitioner import Graph, Plan, lower, trace
from partitioner.comparing.graph_float64 import promote
from partitioner.precision import PRESETS
from runtime.ranks.process_group import finish_ranks, is_first, start_ranks
from runtime.verify.parity import CLIP, LR, STEPS, difference, steps_under
from runtime.verify.plain_steps import Steps, train
from tools.faults.program_faults import Mutant, mutants
from tools.faults.rule_faults import forgetting
from tools.models.load import load

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Result:
    """What a mutant did: its largest relative error, or what it raised. ``planted`` is False for the plan as it is."""

    plan: str
    mutant: str
    planted: bool
    error: float
    raised: str
    seconds: float


@dataclass(frozen=True)
class Case:
    """A model in float64, where it starts, a batch whose samples count unequally, and one process's steps."""

    graph: Graph
    start: dict[str, torch.Tensor]
    batch: dict[str, torch.Tensor]
    wanted: Steps

    @staticmethod
    def of(spec: str, settings: dict[str, object], samples: int, precision: str = "own") -> Case:
        """The model shrunk as ``verify`` shrinks it."""
        torch.manual_seed(0)
        source = load(spec, settings, seq=None, batch=samples, shrink=spec.startswith("hf:"))
        graph = promote(trace(source.module, source.batch, compare=False, precision=PRESETS[precision]))
        own = dict(source.module.named_parameters(remove_duplicate=False))
        start = {n: own[n].detach().to(graph.parameters[n].dtype) for n in graph.parameters}
        batch = dict(source.batch) | {"labels": source.batch["labels"].clone()}
        for n in range(samples):
            batch["labels"][n, : n + 1] = -100
        return Case(graph, start, batch, train(graph, start, batch, STEPS, CLIP, LR))


def main(folder: Path) -> None:
    """Write ``result`` from rank 0."""
    torch.set_num_threads(1)
    start_ranks()
    results: list[Result] = []
    for job in json.loads((folder / "jobs").read_text()):
        case = Case.of(job["spec"], job["settings"], job["samples"], job["precision"])
        for name, (most, rule) in job["plans"].items():
            with forgetting(rule):  # a wrong rule is as wrong where its plan is lowered
                results += _plan(name, Plan.load(folder / f"{name}.json"), case, most, bool(rule))
    if is_first():
        (folder / "result").write_text(json.dumps([asdict(row) for row in results]))
    finish_ranks()


def _plan(name: str, plan: Plan, case: Case, most: int, is_wrong: bool) -> Iterator[Result]:
    """The plan as it is; where it is not wrong already, also with faults in its Program, at most so many, evenly
    picked, and with all of its engine's."""
    program = lower(case.graph, plan)
    yield _run(name, Mutant("none", program), case, planted=False)
    every = [] if is_wrong else list(mutants(program))
    inside = [mutant for mutant in every if mutant.program is not program]
    picked = inside[:: max(1, -(-len(inside) // most))] if most else []
    for mutant in (*picked, *(mutant for mutant in every if mutant.program is program)):
        yield _run(name, mutant, case, planted=True)


def _run(name: str, mutant: Mutant, case: Case, planted: bool) -> Result:
    began = time.perf_counter()
    error, raised = 0.0, ""
    try:
        found = steps_under(mutant.program, case.start, case.batch, mutant.prepare)
        error = difference(found, case.wanted).largest if found.gradients else 0.0
    except Exception as reason:  # a mutant may break anything; what it broke is its result
        raised = f"{type(reason).__name__}: {reason}".splitlines()[0]
    return Result(name, mutant.name, planted, error, raised, time.perf_counter() - began)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
