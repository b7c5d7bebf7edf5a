"""One rank of ``partitioner run``: loads the model on meta, trains, and tells each step, on rank 0."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from partitioner import Graph, Plan, lower, trace
from partitioner.errors import InputError
from partitioner.graph.targets import classes
from partitioner.lowering.program import Program
from partitioner.plan.derived_rows import PIPELINE
from partitioner.sharding.mesh_axes import DP
from runtime.checkpoint import step_folders
from runtime.data.batches import Batches
from runtime.data.choices import DOCUMENTS
from runtime.data.filling import fill
from runtime.data.separation import check_boundaries, check_separate
from runtime.mesh.try_groups import misplaced, try_groups
from runtime.ranks.limits import Limits
from runtime.ranks.process_group import everywhere, finish_ranks, is_first, largest, start_ranks, world_size
from runtime.ranks.watchdog import Watchdog, answer_stack_signal
from runtime.state.learning_rates import warmup_cosine
from runtime.train.engine import Engine
from runtime.train.forms import Making
from runtime.train.parallelize import engine
from runtime.train.trace_forms import TraceForms
from tools.models.load import Source, load
from tools.models.traced import with_values
from tools.run.corpus import corpus_of
from tools.run.elastic import plan_of_ranks
from tools.run.going_on import Settings
from tools.run.optimizers import optimizer_of
from tools.run.training_loop import Evaluating, Saving, run_steps
from tools.screen import error_line
from tools.watch.metrics import Event, Tell, peak_bytes
from tools.watch.step_trace import Chosen, StepTrace
from tools.watch.telling import MARK

VALIDATION_STEPS = 2


@dataclass(frozen=True)
class Job:
    """What a rank needs to know. ``steps`` counts those of the checkpoint too; ``settings``: lr, optimizer, clip,
    warmup, data, and what else is kept beside a checkpoint (``tools.run.going_on``). ``keep``: how many checkpoints
    stay, None for all. ``patience``: a factor of ``runtime.ranks.limits``. ``eval_every``: steps between evaluations,
    None for one at the end alone. ``elastic``: whether other ranks than the plan's are planned for anew."""

    plan: str
    steps: int
    settings: Settings
    weights: str | None
    checkpoint: str | None
    save_every: int | None
    keep: int | None
    patience: float
    skip_nonfinite: bool
    eval_every: int | None
    elastic: bool
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
        source = load(plan.model["entry"], plan.model["settings"], seq=plan.model.get("seq"), meta=True,
                      begins=True, seed=plan.decisions.seed)  # fmt: skip
        start_ranks(limits.start)
        compared = with_values(source) if is_first() else source
        many, precision = plan.global_batch, plan.decisions.precision
        graph = trace(compared.module, compared.batch, global_batch=many, precision=precision)
        ranks = world_size()
        if job.elastic and ranks != plan.world:
            found = plan_of_ranks(plan, graph, ranks, lambda text: say({"warning": text})) if is_first() else None
            plan = Plan.from_json(everywhere(found.to_json() if found else "")[0])
            say({"planned": plan.to_json()})
        program = lower(graph, plan)
    limits = Limits(plan.cost.step_seconds, job.patience)
    trainer = _trainer(job, limits, plan, program, source, say)
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

    def held_out() -> Iterator[dict[str, torch.Tensor]]:
        found = _batches(job, plan, graph, trainer, source.batch, "validation")
        return (fill(source.batch, next(found)) for _ in range(VALIDATION_STEPS))

    evaluating, trace = Evaluating(job.eval_every, held_out), StepTrace(job.traced, plan, trainer.groups, say)
    ran = run_steps(trainer, job.steps, batches, saving, evaluating, limits, say, trace)
    if ran.asked:
        say({"left": trainer.steps_done, "asked": ran.asked})
        return
    with Watchdog(limits.step, "asking for the memory of all ranks"):
        peak = largest(float(peak_bytes()))
    say(
        {
            "peak_bytes": peak,
            "validation_loss": ran.validation_loss,
            "parts": min(ran.parts, key=lambda found: found.get(PIPELINE, 0.0)),
            "device": trainer.groups.device.type,
            "data": str(corpus_of(job.settings)),
            "products": dict(trainer.groups.kernels.most_common()),
        }
    )


def _trainer(job: Job, limits: Limits, plan: Plan, program: Program, source: Source, say: Tell) -> Engine:
    """As the job asks, gone on from its checkpoint where there is one."""
    asked = job.settings
    rate = warmup_cosine(asked["warmup"], job.steps) if asked["warmup"] else None
    optimizer = optimizer_of(asked, [name for name, p in program.parameters.items() if p.requires_grad])
    stages = {name: p.stages for name, p in program.parameters.items()}
    making = Making(TraceForms(source.module, source.batch, plan, stages).program)
    made = engine(
        program, source.module, job.weights, optimizer, asked["clip"], rate, limits, {}, job.skip_nonfinite, making
    )
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
    corpus, seed, pack = corpus_of(job.settings), plan.decisions.seed, job.settings["pack"]
    known = classes(graph.module.graph)
    if pack == DOCUMENTS and part == "training":
        check_boundaries(example)
        if is_first():  # where it is run, as it is compared when it is traced
            check_separate(graph, example)
    return Batches(corpus, seq, plan.global_batch, *place, seed, known, part, start, pack)  # type: ignore[arg-type]


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
