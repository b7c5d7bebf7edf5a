"""One rank of ``planted_faults.mutate``: each mutant of every plan of a folder, compared on rank 0 with one process."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from partitioner import Plan, lower
from runtime.ranks.process_group import finish_ranks, is_first, start_ranks
from tools.planted_faults.cases import Case, case
from tools.planted_faults.mutant import Mutant
from tools.planted_faults.rule_faults import forgetting

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Result:
    """What a mutant did: its largest relative error, of which a right one stays below ``limit``, or what it raised.

    ``planted`` is False for the plan as it is.
    """

    plan: str
    mutant: str
    planted: bool
    error: float
    limit: float
    raised: str
    seconds: float


def main(folder: Path) -> None:
    """Write ``result`` from rank 0."""
    torch.set_num_threads(1)
    start_ranks()
    results: list[Result] = []
    for job in json.loads((folder / "jobs").read_text()):
        made = case(**job["case"])
        for name, (most, rule) in job["plans"].items():
            with forgetting(rule):  # a wrong rule is as wrong where its plan is lowered
                results += _plan(name, Plan.load(folder / f"{name}.json"), made, most, bool(rule))
    if is_first():
        (folder / "result").write_text(json.dumps([asdict(row) for row in results]))
    finish_ranks()


def _plan(name: str, plan: Plan, case: Case, most: int, is_wrong: bool) -> Iterator[Result]:
    """The plan as it is; where it is not wrong already, also with faults in its Program, at most so many, evenly
    picked, and with all of its engine's."""
    program = lower(case.graph, plan)
    yield _run(name, Mutant("none", program), case, planted=False)
    every = [] if is_wrong else list(case.mutants(program))
    inside = [mutant for mutant in every if mutant.program is not program]
    picked = inside[:: max(1, -(-len(inside) // most))] if most else []
    for mutant in (*picked, *(mutant for mutant in every if mutant.program is program)):
        yield _run(name, mutant, case, planted=True)


def _run(name: str, mutant: Mutant, case: Case, planted: bool) -> Result:
    began = time.perf_counter()
    error, raised = 0.0, ""
    try:
        error = case.error(mutant.program, mutant.prepare)
    except Exception as reason:  # a mutant may break anything; what it broke is its result
        raised = f"{type(reason).__name__}: {reason}".splitlines()[0]
    return Result(name, mutant.name, planted, error, case.limit, raised, time.perf_counter() - began)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
