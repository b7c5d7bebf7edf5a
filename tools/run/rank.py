"""One rank of ``partitioner run``: loads the model on meta, trains, and tells each step, on rank 0."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from partitioner import Graph, Plan, lower, trace
from partitioner.errors import InputError
from partitioner.graph.targets import classes
from partitioner.lowering.program import Program
from partitioner.plan.derived_rows import PIPELINE
from partitioner.sharding.mesh_axes import DP
from runtime.checkpoint import step_folders
from runtime.data import Batches, fill, open_corpus
from runtime.mesh.try_groups import misplaced, try_groups
from runtime.ranks.limits import Limits
from runtime.ranks.process_group import everywhere, finish_ranks, is_first, largest, start_ranks
from runtime.ranks.watchdog import Watchdog, answer_stack_signal
from runtime.state.learning_rates import warmup_cosine
from runtime.train.engine import Engine
from runtime.train.parallelize import engine
from tools.models.load import Source, load
from tools.models.traced import with_values
from tools.run.going_on import Settings
from tools.run.optimizers import optimizer_of
from tools.run.training_loop import Saving, run_steps
from tools.screen import error_line
from tools.watch.metrics import Event, Tell, peak_bytes
from tools.watch.step_trace import Chosen, StepTrace
from tools.watch.telling import MARK

VALIDATION_STEPS = 2


@dataclass(frozen=True)
class Job:
    """What a rank needs to know. ``steps`` counts those of the checkpoint too; ``settings``: lr, optimizer, clip,
    warmup, data, and what else is kept beside a checkpoint (``tools.run.going_on``). ``keep``: how many checkpoints
    stay, None for all. ``patience``: a factor of ``runtime.ranks.limits``."""

    plan: str
    steps: int
    settings: Settings
    weights: str | None
    checkpoint: str | None
    save_every: int | None
    keep: int | None
    patience: float
    skip_nonfinite: bool
    traced: Chosen | None = None


def main(job: Job, tell: Tell) -> None:
    """Train until ``job.steps`` are done and tell of each, on rank 0, or that there is nothing left to do."""
    answer_stack_signal()
    plan = Plan.load(job.plan)
    limits = Limits(plan.cost.step_seconds, job.patience)

    def say(event: Event) -> None:
        if is_first():
            tell(event)

    with Watchdog(limits.start, "the start"):
        source = load(plan.model["entry"], plan.model["settings"], seq=plan.model.get("seq"), meta=True)
        start_ranks(limits.start)
        compared = with_values(source) if is_first() else source
        many, precision = plan.global_batch, plan.decisions.precision
        graph = trace(compared.module, compared.batch, global_batch=many, precision=precision)
        program = lower(graph, plan)
    trainer = _trainer(job, limits, program, source.module, say)
    with Watchdog(limits.start, "finding where ranks are"):
        misplaced(int(plan.cluster["node_devices"]), lambda text: say({"warning": text}))
        try_groups(trainer.groups, limits.start, lambda text: say({"warning": text}))
    if trainer.steps_done < job.steps:
        _train(job, plan, graph, source, trainer, limits, say)
    else:
        say({"nothing left": trainer.steps_done})
    with Watchdog(limits.start, "the end"):
        finish_ranks()


def _train(job: Job, plan: Plan, graph: Graph, source: Source, trainer: Engine, limits: Limits, say: Tell) -> None:
    """The steps that are left, and what is told of them all."""
    batches = (fill(source.batch, found) for found in _batches(job, plan, graph, trainer, source.batch))
    saving = Saving(job.checkpoint, job.save_every, job.keep, job.settings)
    ran = run_steps(trainer, job.steps, batches, saving, limits, say, StepTrace(job.traced, plan, trainer.groups, say))
    if ran.asked:
        say({"left": trainer.steps_done, "asked": ran.asked})
        return
    held = _batches(job, plan, graph, trainer, source.batch, "validation")
    with Watchdog(VALIDATION_STEPS * limits.step, "validation"):
        losses = [float(trainer.gradients(fill(source.batch, next(held)))) for _ in range(VALIDATION_STEPS)]
        peak = largest(float(peak_bytes()))
    say(
        {
            "validation_loss": sum(losses) / len(losses),
            "peak_bytes": peak,
            "parts": min(ran.parts, key=lambda found: found.get(PIPELINE, 0.0)),
            "device": trainer.groups.device.type,
            "data": str(open_corpus(job.settings["data"])),
            "products": dict(trainer.groups.kernels.most_common()),
        }
    )


def _trainer(job: Job, limits: Limits, program: Program, model: nn.Module, say: Tell) -> Engine:
    """As the job asks, gone on from its checkpoint where there is one."""
    asked = job.settings
    rate = warmup_cosine(asked["warmup"], job.steps) if asked["warmup"] else None
    optimizer = optimizer_of(asked, [name for name, p in program.parameters.items() if p.requires_grad])
    made = engine(program, model, job.weights, optimizer, asked["clip"], rate, limits, {}, job.skip_nonfinite)
    if job.checkpoint and everywhere(bool(step_folders.found(Path(job.checkpoint))))[0]:  # as rank 0 sees it
        grouped = asked["weight_decay"] is not None or asked["rates"]
        own = ("weight_decay", "lr_factor") if grouped else ()
        made.load(job.checkpoint, asked["lr"], own, lambda text: say({"warning": text}))
    return made


def _batches(
    job: Job, plan: Plan, graph: Graph, trainer: Engine, example: dict[str, torch.Tensor], part: str = "training"
) -> Batches:
    seq = next(t.shape[1] for t in example.values() if t.dim() == 2)
    place = trainer.groups.coordinates[DP], trainer.groups.size(DP)
    start = trainer.samples_read if part == "training" else 0
    corpus, seed = open_corpus(job.settings["data"]), plan.decisions.seed
    known = classes(graph.module.graph)
    return Batches(corpus, seq, plan.global_batch, *place, seed, known, part, start)  # type: ignore[arg-type]


def _write(event: Event) -> None:
    """To the process that started this one."""
    sys.stdout.write(MARK + json.dumps(event) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        main(Job(**json.loads(sys.argv[1])), _write)
    except InputError as error:
        error_line(str(error))
        sys.exit(2)
