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
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cutlass_ops.dispatch import RAN
from partitioner import Plan
from partitioner.errors import InputError
from partitioner.plan import Asked
from runtime import launch
from tools import run_rank
from tools.report import MEASURED_MEMORY, Report
from tools.run_rank import Job
from tools.screen import errors, output, seconds, size, table

LIMIT_SECONDS = 7 * 24 * 3600.0


def declare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    run = commands.add_parser(
        "run", help="train a plan", epilog="example: partitioner run plan.json --steps 40 --data corpus.txt"
    )
    run.add_argument("plan", metavar="PLAN")
    run.add_argument("--steps", type=int, required=True, metavar="N")
    run.add_argument("--data", metavar="PATH", help="a text file or folder; default: Python's standard library")
    run.add_argument("--lr", type=float, default=3e-4)
    run.add_argument("--optimizer", choices=("adamw", "sgd"), default="adamw")
    run.add_argument("--clip", type=float, default=1.0, help="largest gradient norm")
    run.add_argument("--warmup", type=int, default=0, metavar="N", help="steps of linear warm-up before a cosine")
    run.add_argument("--weights", metavar="DIR", help="initial weights, Hugging Face safetensors")
    run.add_argument("--checkpoint", metavar="DIR", help="save there when done, go on from there when it holds one")
    run.add_argument("--report", metavar="FILE", help="write report.json")
    run.set_defaults(action=run_command)


def run_command(options: argparse.Namespace) -> int:
    """Start the ranks (unless this is one), draw the bar, write and print the report."""
    if options.steps < 1:
        raise InputError(f"--steps must be positive, not {options.steps}")
    plan = Plan.load(options.plan)
    if not plan.model.get("entry"):
        raise InputError("the plan names no model to load: make it with partitioner plan MODEL")
    job = Job(
        str(Path(options.plan).resolve()), options.steps, options.data, options.lr, options.optimizer, options.clip,
        options.warmup, options.weights, options.checkpoint,
    )  # fmt: skip
    if "RANK" in os.environ:
        run_rank.main(job)
        return 0
    sys.stderr.write(f"importing {plan.model['entry']}\n")
    events: list[dict[str, Any]] = []
    status = _train(job, plan, events)
    if status:
        return status
    report = _report(plan, events)
    if options.report:
        report.save(options.report)
    output().print(_table(report))
    return 0


def _train(job: Job, plan: Plan, events: list[dict[str, Any]]) -> int:
    command = [sys.executable, "-m", "tools.run_rank", json.dumps(asdict(job))]
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = errors()
    ahead = f" (predicted {seconds(plan.cost.step_seconds)})"
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting ranks", total=job.steps)

        def write(line: str) -> None:
            _event(line, events, lambda text, done: bar.update(task, description=text + ahead, completed=done))

        result = launch.local(command, plan.world, LIMIT_SECONDS, {"PYTHONPATH": path}, write)
    return 0 if result.failure is None else 2 if result.statuses[result.failure.rank or 0] == 2 else 1


def _event(line: str, events: list[dict[str, Any]], show: Callable[[str, int], None]) -> None:
    if not line.startswith("{"):
        sys.stdout.write(line)
        return
    event = json.loads(line)
    events.append(event)
    if "step" in event:
        show(f"loss {event['loss']:.4f}, {seconds(event['seconds'])} a step", event["step"])


def _report(plan: Plan, events: list[dict[str, Any]]) -> Report:
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
