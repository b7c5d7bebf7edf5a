"""``partitioner run``: train a plan on real text, on local ranks or inside torchrun, with progress and a report."""

from __future__ import annotations

import argparse
import json
import math
import signal
import statistics
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from cutlass_ops.linear.dispatch import RAN
from partitioner import Plan
from partitioner.errors import InputError
from partitioner.plan.check import check_trains
from runtime.ranks import launch
from runtime.ranks.error_file import left_errors
from runtime.ranks.limits import Limits
from runtime.ranks.process_group import announced_rank
from runtime.report import MEASURED_MEMORY, Report
from tools.figures.card import check_readable
from tools.run import going_on, rank
from tools.run.rank import Job
from tools.run.slurm_script import slurm_script
from tools.screen import output, seconds, size, table, written
from tools.watch.calibration_advice import calibration_advice
from tools.watch.log_file import LogFile
from tools.watch.metrics import Event, finite
from tools.watch.step_trace import traced_steps
from tools.watch.telling import Listener, Telling
from tools.watch.tensorboard_log import TensorboardLog
from tools.watch.terminal import Terminal


def run_command(options: argparse.Namespace) -> int:
    """Start the ranks (unless this is one), draw the bar, write and print the report."""
    plan, own = Plan.load(options.plan), announced_rank()
    check_trains(plan)
    job = _job(options, plan, own)
    if options.slurm:
        output().print(f"written to {written(options.slurm, slurm_script(plan, options.words))}: sbatch takes it")
        return 0
    ranks = options.ranks or plan.world
    if options.ranks and (own is not None or options.ranks < 1):
        raise InputError("--ranks N starts so many ranks on this machine: torchrun and srun start theirs themselves")
    if ranks != plan.world and not options.elastic:
        raise InputError(f"the plan is for {plan.world} ranks, not {ranks}: --elastic plans anew for them")
    if own is None:
        _check_here(plan, ranks)
    terminal = Terminal(job.steps)
    with Telling(plan, [terminal, *([] if own else _files(options))]) as telling:
        telling.note({"plan": job.plan, "ranks": ranks, "steps": job.steps, "settings": job.settings})
        with terminal:
            status, asked = _train(job, plan, ranks, telling, own is None)
        telling.status = status = _told(options, job, plan, telling.events, status, asked)
    return status


def _files(options: argparse.Namespace) -> list[Listener]:
    """What else is written while it trains."""
    kinds = ((LogFile, options.log), (TensorboardLog, options.tensorboard))
    return [kind(place) for kind, place in kinds if place is not None]


def _told(
    options: argparse.Namespace, job: Job, plan: Plan, events: list[Event], status: int, asked: int | None
) -> int:
    """The exit status, with the report written and printed where there is one."""
    if status or (not events and asked is None):  # failed, or a rank that tells nothing
        return status
    if (ended := _ended(events, job, asked)) is not None:
        return ended
    planned = next((e["planned"] for e in events if "planned" in e), None)
    report = _report(Plan.from_json(planned) if planned else plan, events)
    if options.report:
        report.save(options.report)
    if options.json:
        options.document(report.to_json())
    else:
        output().print(_table(report))
    if (advice := calibration_advice(report, options.report)) is not None:
        sys.stderr.write(f"{advice}\n")
    return 0


def _check_here(plan: Plan, ranks: int) -> None:
    """Whether this machine alone can run so many ranks; raises InputError, with how to start them elsewhere."""
    each, have = int(plan.cluster["node_devices"]), torch.accelerator.device_count()
    if ranks == plan.world and (nodes := -(-plan.world // each)) > 1:
        raise InputError(
            f"the plan is for {plan.world} ranks on {nodes} nodes of {each}, and this is one machine: start the same "
            f"command on every node, by torchrun --nnodes {nodes} --nproc-per-node {each} or by srun (--slurm FILE)"
        )
    if 0 < have < ranks:
        raise InputError(
            f"there are to be {ranks} ranks, this machine has {have} devices: plan with --devices {have}, or run with "
            f"--elastic --ranks {have}"
        )


def _job(options: argparse.Namespace, plan: Plan, own: int | None) -> Job:
    """What the ranks are to do; says what of it is other than in the run that saved the checkpoint."""
    for name in ("steps", "save_every", "keep", "eval_every"):
        if (many := getattr(options, name)) is not None and many < 1:
            raise InputError(f"--{name.replace('_', '-')} must be positive, not {many}")
    if not 0 < options.patience < math.inf:
        raise InputError(f"--patience must be positive, not {options.patience}")
    for name in ("save_every", "keep"):
        if getattr(options, name) and not options.checkpoint:
            raise InputError(f"--{name.replace('_', '-')} needs --checkpoint DIR, to save there")
    if not plan.model.get("entry"):
        raise InputError("the plan names no model to load: make it with partitioner plan MODEL")
    if options.trace:
        check_readable(plan)
    before = going_on.before(options.checkpoint)
    chosen = going_on.settings(vars(options), before)
    now = chosen | {"steps": options.steps, "global_batch": plan.global_batch, "seq": plan.model.get("seq")}
    if not own and before is not None and (others := ", ".join(going_on.changes(before, now))):
        sys.stderr.write(f"other than in the run that {options.checkpoint} goes on: {others}\n")
    return Job(
        plan=str(Path(options.plan).resolve()), steps=options.steps, settings=now, weights=options.weights,
        checkpoint=options.checkpoint, save_every=options.save_every, keep=options.keep,
        patience=options.patience, skip_nonfinite=options.skip_nonfinite,
        eval_every=options.eval_every, elastic=options.elastic,
        traced=traced_steps(options.trace, options.trace_steps, options.steps),
    )  # fmt: skip


def _train(job: Job, plan: Plan, ranks: int, telling: Telling, starts: bool) -> tuple[int, int | None]:
    """The exit status of all ranks together, and the signal that they were asked to leave by.

    ``starts``: whether this process starts them, or is one.
    """
    if not starts:
        with left_errors():
            rank.main(job, telling.tell)
        return 0, None
    sys.stderr.write(f"importing {plan.model['entry']}\n")
    limits = Limits(plan.cost.step_seconds, job.patience)
    words, leave = [json.dumps(asdict(job))], limits.first_step + limits.state(plan.cost.peak_bytes)
    result = launch.local_module("tools.run.rank", words, ranks, math.inf, telling.read, leave, limits.start)
    if (failed := result.failure) is not None:
        telling.note({"failed": str(failed)})
    return 0 if failed is None else 2 if result.statuses[failed.rank or 0] == 2 else 1, result.asked


def _ended(events: list[Event], job: Job, asked: int | None) -> int | None:
    """The exit status of a run that has nothing to report, said in a line; None of one that has."""
    end = events[-1] if events else {}
    if "nothing left" in end:
        done = end["nothing left"]
        sys.stderr.write(f"nothing to train: {job.checkpoint} holds step {done}, --steps asks for {job.steps} in all\n")
        return 0
    if "left" in end or (asked is not None and "peak_bytes" not in end):
        number, done = asked or end["asked"], end.get("left")
        saved = f"step {done} is saved in {job.checkpoint}: the same command goes on from there"
        kept = saved if job.checkpoint and done else "nothing is saved"
        sys.stderr.write(f"stopped by {signal.Signals(number).name} as asked; {kept}\n")
        return 128 + number
    return None


def _report(plan: Plan, events: list[Event]) -> Report:
    steps = [e for e in events if "step" in e]
    end = events[-1]
    times = [e["seconds"] for e in steps]
    return Report(
        plan.asked, plan.decisions, plan.cost, plan.world,
        len(steps), tuple(e["loss"] for e in steps), finite(end["validation_loss"]),
        statistics.median(times[1:] or times), end["peak_bytes"], end["parts"], tuple(times), end["device"],
        end["data"], end["products"],
    )  # fmt: skip


def _table(report: Report) -> object:
    ratio = report.step_seconds / report.predicted.step_seconds
    rows = [
        ["loss, first and last step", _loss(report.losses[0]), _loss(report.losses[-1]), ""],
        ["validation loss", "", _loss(report.validation_loss), ""],
        ["step", seconds(report.predicted.step_seconds), seconds(report.step_seconds), f"{ratio:.2f}x"],
        *([f"  {name}", seconds(was), seconds(now), ""] for name, was, now in report.parts()),
        ["memory", size(report.predicted.peak_bytes), size(report.peak_bytes), MEASURED_MEMORY[report.device]],
    ]
    ran, every = report.products.get(RAN, 0), sum(report.products.values())
    if every:
        why = next((reason for reason in report.products if reason != RAN), "")
        rows.append(["products on their kernels", f"{every:,}", f"{ran:,}", why])
    title = f"{report.steps} steps on {report.ranks} ranks: {report.data}"
    return table(title, ("", "predicted", "measured", ""), rows)


def _loss(value: float | None) -> str:
    return "no number" if value is None else f"{value:.4f}"
