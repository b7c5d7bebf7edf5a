"""One rank of regret.py: builds every plan's engine once, then times their steps in turn, round after round."""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from partitioner import Plan, lower, trace
from partitioner.sharding.mesh_axes import DP
from runtime.measure.step_timing import timed
from runtime.ranks.limits import Limits
from runtime.ranks.process_group import everywhere, finish_ranks, is_first, start_ranks
from runtime.train.engine import Engine
from runtime.train.parallelize import engine
from tools.models.load import load


@dataclass(frozen=True)
class Job:
    """Plans of one model, and how often each is stepped."""

    plans: list[str]
    rounds: int
    steps: int
    clip: float


def main(job: Job) -> None:
    """A line of JSON for each plan that is ready and each round of one."""
    torch.set_num_threads(1)
    first = Plan.load(job.plans[0])
    source = load(first.model["entry"], first.model["settings"], meta=True)
    graph = trace(source.module, source.batch, compare=False, precision=first.decisions.precision)
    start_ranks()
    steps: list[Callable[[int], object]] = []
    for n, path in enumerate(job.plans):
        plan = Plan.load(path)
        rate = {"lr": 1e-4}
        trainer = engine(
            lower(graph, plan), source.module, None, torch.optim.AdamW, job.clip, None,
            Limits(plan.cost.step_seconds), rate,
        )  # fmt: skip
        steps.append(_stepping(trainer, plan, source.batch))
        steps[-1](0)
        _say({"ready": n})
    order = list(range(len(steps)))
    draw = random.Random(0)
    for _ in range(job.rounds):
        draw.shuffle(order)
        for n in order:
            timed(steps[n], 1)
            began = time.process_time()
            found = timed(steps[n], job.steps)
            busy = statistics.fmean(everywhere(time.process_time() - began)) / job.steps
            _say({"plan": n, "seconds": found, "busy": busy})
    finish_ranks()


def _stepping(trainer: Engine, plan: Plan, example: dict[str, torch.Tensor]) -> Callable[[int], object]:
    samples = plan.parallelism.micro_batch * plan.parallelism.micro_batches
    generator = torch.Generator().manual_seed(trainer.groups.coordinates[DP])
    batch = {n: torch.randint(2, (samples, *t.shape[1:]), generator=generator) for n, t in example.items()}
    return lambda _: trainer.step(batch)


def _say(event: dict[str, Any]) -> None:
    if is_first():
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Job(**json.loads(sys.argv[1])))
