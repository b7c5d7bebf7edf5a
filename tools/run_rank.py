"""One rank of ``partitioner run``: loads the model on meta, trains, and says each step as a line of JSON on rank 0."""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from partitioner import Graph, Plan, lower, trace
from partitioner.derived import PIPELINE
from partitioner.errors import InputError
from partitioner.losses import classes
from runtime.clock import Clock
from runtime.data import Batches, fill, open_corpus
from runtime.engine import Engine
from runtime.optimizer import constant, warmup_cosine
from runtime.parallelize import engine
from runtime.world import everywhere, finish_ranks, is_first, largest, start_ranks
from tools.models import load
from tools.screen import error_line

VALIDATION_STEPS = 2
OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


@dataclass(frozen=True)
class Job:
    """What a rank needs to know, as given on the command line."""

    plan: str
    steps: int
    data: str | None
    lr: float
    optimizer: str
    clip: float
    warmup: int
    weights: str | None
    checkpoint: str | None


def main(job: Job) -> None:
    """Train ``job.steps`` steps and report."""
    plan = Plan.load(job.plan)
    source = load(plan.model["entry"], plan.model["settings"], seq=plan.model.get("seq"), meta=True)
    graph = trace(source.module, source.batch)
    start_ranks()
    program = lower(graph, plan)
    rate = warmup_cosine(job.warmup, job.steps) if job.warmup else constant
    kind = OPTIMIZERS[job.optimizer]
    trainer = engine(
        program, source.module, job.weights, kind, job.clip, rate, plan.cost.step_seconds, {"lr": job.lr}
    )
    if job.checkpoint and any(Path(job.checkpoint).glob("step-*")):
        trainer.load(job.checkpoint)
    batches, parts = _batches(job, plan, graph, trainer, source.batch), list[dict[str, float]]()
    clock = trainer.groups.log.clock = Clock(trainer.groups.device)
    for _ in range(job.steps):
        began = time.perf_counter()
        loss = float(trainer.step(fill(source.batch, next(batches))))
        seconds = time.perf_counter() - began
        _say({"step": trainer.steps_done, "loss": loss, "seconds": seconds})
        parts.append({"step": seconds, **clock.read()})
    trainer.groups.log.clock = None
    if job.checkpoint:
        trainer.save(job.checkpoint)
    held = _batches(job, plan, graph, trainer, source.batch, "validation")
    losses = [float(trainer.gradients(fill(source.batch, next(held)))) for _ in range(VALIDATION_STEPS)]
    peak = largest(float(_peak_bytes()))
    _say(
        {
            "validation_loss": sum(losses) / len(losses),
            "peak_bytes": peak,
            "parts": min(everywhere(_median(parts)), key=lambda found: found.get(PIPELINE, 0.0)),
            "device": trainer.groups.device.type,
            "data": str(open_corpus(job.data)),
            "products": dict(trainer.groups.kernels.most_common()),
        }
    )
    finish_ranks()


def _median(steps: list[dict[str, float]]) -> dict[str, float]:
    """Of each part over all steps but the first; what is left of a step is compute."""
    steps = steps[1:] or steps
    names = sorted({name for step in steps for name in step} - {"step"})
    found = {name: statistics.median(step.get(name, 0.0) for step in steps) for name in names}
    return {"compute": statistics.median(step["step"] for step in steps) - sum(found.values()), **found}


def _batches(
    job: Job, plan: Plan, graph: Graph, trainer: Engine, example: dict[str, torch.Tensor], part: str = "training"
) -> Batches:
    seq = next(t.shape[1] for t in example.values() if t.dim() == 2)
    place = trainer.groups.coordinates["dp"], trainer.groups.size("dp")
    start = trainer.samples_read if part == "training" else 0
    corpus, seed = open_corpus(job.data), plan.decisions.seed
    return Batches(corpus, seq, plan.global_batch, *place, seed, classes(graph.module.graph), part, start)  # type: ignore[arg-type]


def _peak_bytes() -> int:
    """The most memory that this process held: of the GPU where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _say(event: dict[str, object]) -> None:
    if is_first():
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    try:
        main(Job(**json.loads(sys.argv[1])))
    except InputError as error:
        error_line(str(error))
        sys.exit(2)
