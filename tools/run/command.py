"""``partitioner run``: train a plan on real text, on local ranks or inside torchrun, with progress and a report."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cutlass_ops.linear.dispatch import RAN
from partitioner import Plan
from partitioner.errors import InputError
from partitioner.plan.plan import Asked
from runtime.ranks import launch
from runtime.report import MEASURED_MEMORY, Report
from tools.run import going_on, rank
from tools.run.rank import MARK, Event, Job
from tools.screen import errors, output, seconds, size, table

LIMIT_SECONDS = 7 * 24 * 3600.0


def run_command(options: argparse.Namespace) -> int:
    """Start the ranks (unless this is one), draw the bar, write and print the report."""
    plan = Plan.load(options.plan)
    job = _job(options, plan)
    events: list[Event] = []
    if "RANK" in os.environ:
        rank.main(job, lambda event: _tell(event, events))
        status = 0
    else:
        sys.stderr.write(f"importing {plan.model['entry']}\n")
        status = _train(job, plan, events)
    if status or not events:
        return status
    if "nothing left" in events[-1]:
        done = events[-1]["nothing left"]
        sys.stderr.write(f"nothing to train: {job.checkpoint} holds step {done}, --steps asks for {job.steps} in all\n")
        return 0
    report = _report(plan, events)
    if options.report:
        report.save(options.report)
    if options.json:
        options.document(report.to_json())
    else:
        output().print(_table(report))
    return 0


def _job(options: argparse.Namespace, plan: Plan) -> Job:
    """What the ranks are to do; says what of it is other than in the run that saved the checkpoint."""
    for name in ("steps", "save_every"):
        if (many := getattr(options, name)) is not None and many < 1:
            raise InputError(f"--{name.replace('_', '-')} must be positive, not {many}")
    if options.save_every and not options.checkpoint:
        raise InputError("--save-every needs --checkpoint DIR, to save there")
    if not plan.model.get("entry"):
        raise InputError("the plan names no model to load: make it with partitioner plan MODEL")
    before = going_on.before(options.checkpoint)
    chosen = going_on.settings(vars(options), before)
    now = chosen | {"steps": options.steps, "global_batch": plan.global_batch, "seq": plan.model.get("seq")}
    if before is not None and (others := ", ".join(going_on.changes(before, now))):
        sys.stderr.write(f"other than in the run that {options.checkpoint} goes on: {others}\n")
    return Job(
        plan=str(Path(options.plan).resolve()), steps=options.steps, settings=now, weights=options.weights,
        checkpoint=options.checkpoint, save_every=options.save_every,
    )  # fmt: skip


def _train(job: Job, plan: Plan, events: list[Event]) -> int:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = errors()
    ahead = f" (predicted {seconds(plan.cost.step_seconds)})"
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting ranks", total=job.steps)

        def write(line: str) -> None:
            _event(line, events, lambda text, done: bar.update(task, description=text + ahead, completed=done))

        result = launch.local_module("tools.run.rank", [json.dumps(asdict(job))], plan.world, LIMIT_SECONDS, write)
    return 0 if result.failure is None else 2 if result.statuses[result.failure.rank or 0] == 2 else 1


def _event(line: str, events: list[Event], show: Callable[[str, int], None]) -> None:
    """An event of rank 0, or what the user's code printed there, perhaps without an end of its line."""
    printed, marked, text = line.partition(MARK)
    sys.stdout.write(printed)
    if not marked:
        return
    events.append(json.loads(text))
    if "step" in events[-1]:
        show(_words(events[-1]), events[-1]["step"])


def _tell(event: Event, events: list[Event]) -> None:
    """Where this process is itself rank 0."""
    events.append(event)
    if "step" in event:
        sys.stderr.write(f"step {event['step']}: {_words(event)}\n")


def _words(event: Event) -> str:
    skipped = f", {event['skipped']:,} skipped" if event.get("skipped") else ""
    return f"loss {event['loss']:.4f}, {seconds(event['seconds'])} a step{skipped}"


def _report(plan: Plan, events: list[Event]) -> Report:
    steps = [e for e in events if "step" in e]
    end = events[-1]
    times = [e["seconds"] for e in steps]
    return Report(
        Asked(plan.model, plan.cluster, plan.global_batch, plan.pins), plan.decisions, plan.cost, plan.world,
        len(steps), tuple(e["loss"] for e in steps), end["validation_loss"], statistics.median(times[1:] or times),
        end["peak_bytes"], end["parts"], tuple(times), end["device"], end["data"], end["products"],
    )  # fmt: skip


def _table(report: Report) -> object:
    ratio = report.step_seconds / report.predicted.step_seconds
    held = "" if report.validation_loss is None else f"{report.validation_loss:.4f}"
    rows = [
        ["loss, first and last step", f"{report.losses[0]:.4f}", f"{report.losses[-1]:.4f}", ""],
        ["validation loss", "", held, ""],
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
