"""How well predictions rank plans: every plan of a small model is run, and what search picked is held against the best.

    python -m tools.validate.regret --ranks 2 --cluster FILE [--model examples/gpt.py:model] [--set layers=4] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from partitioner import Cluster, Plan, lower, trace
from partitioner.errors import DoesNotFit, InputError
from partitioner.plan.executed import space_of
from partitioner.searching.candidates import candidates
from partitioner.searching.pins import read_pins
from partitioner.searching.search import too_large
from partitioner.searching.write_plan import ALONE, plan_of
from partitioner.sharding.mesh_axes import PP
from partitioner.step.step_seconds import price
from runtime.ranks import launch
from tools.models.entry_point import parse_settings
from tools.models.load import load
from tools.plan.edits_as_pins import read_pins as read_words
from tools.screen import error_line, output, seconds, status, table
from tools.streams import Print, document_alone
from tools.validate.command import spearman
from tools.validate.regret_rank import Job

LIMIT_SECONDS = 3600.0
SETTINGS = ("layers=4", "hidden=128", "heads=4", "seq=128", "vocab=256")


@dataclass(frozen=True)
class Run:
    """One plan: its name, predicted step and parts of it, the median of its measured steps and their quartiles.

    ``busy_seconds``: processor time of a step, the ranks' mean, which other work on the machine does not lengthen.
    """

    name: str
    predicted_seconds: float
    parts: dict[str, float]
    measured_seconds: float
    low_seconds: float
    high_seconds: float
    busy_seconds: float


@dataclass(frozen=True)
class Regret:
    """``rank``: Spearman's correlation of all plans; ``regret``: how much slower than the best measured the plan
    predicted fastest is; ``bias``: the median of predicted over measured."""

    plans: int
    rank: float
    regret: float
    bias: float
    picked: str
    best: str


def regret_of(runs: Sequence[Run]) -> Regret:
    """Of plans in the order in which search would take them: among equal predictions the first."""
    picked, best = min(runs, key=lambda r: r.predicted_seconds), min(runs, key=lambda r: r.measured_seconds)
    predicted, measured = [r.predicted_seconds for r in runs], [r.measured_seconds for r in runs]
    bias = statistics.median(p / m for p, m in zip(predicted, measured, strict=True))
    slower = picked.measured_seconds / best.measured_seconds - 1
    return Regret(len(runs), spearman(predicted, measured), slower, bias, picked.name, best.name)


def plans_of(
    entry: str, settings: dict[str, Any], cluster: Cluster, batch: int, pins: dict[str, str | int]
) -> list[Plan]:
    """Every feasible plan that is another program than those before, the fastest predicted first."""
    source = load(entry, settings, meta=True)
    graph = trace(source.module, source.batch)
    model = {"entry": entry, "settings": source.settings, "seq": source.seq}
    found = list(candidates(graph, cluster, batch, read_pins(pins, graph), space_of(cluster.software), lambda _: None))
    fitting = [t for t in found if t.peak_bytes <= cluster.device.room]
    if not found:
        raise InputError(f"no plan divides {batch} samples over {cluster.devices} ranks with these pins")
    if not fitting:
        raise DoesNotFit(too_large(min(found, key=lambda t: t.peak_bytes), cluster.device.room))
    priced = [(t, price(t.priced, t.split)) for t in fitting]
    ranked = sorted(priced, key=lambda row: (round(row[1].step_seconds, 9), *row[0].plainness))
    made: dict[str, Plan] = {}
    for row in ranked:
        plan = plan_of([row], [], ALONE, batch, pins, model)
        made.setdefault(str(lower(graph, plan)), plan)
    return list(made.values())


def measure(plans: Sequence[Plan], ranks: int, rounds: int, steps: int, say: Callable[[str], object]) -> list[Run]:
    """Run them all on one set of local ranks. Raises InputError naming the rank that failed."""
    rows: dict[int, list[float]] = {}
    busy: dict[int, list[float]] = {}

    def write(line: str) -> None:
        event = json.loads(line) if line.startswith("{") else {}
        if "plan" in event:
            rows.setdefault(event["plan"], []).extend(event["seconds"])
            busy.setdefault(event["plan"], []).append(event["busy"])
        say(f"running: {event}")

    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / f"{n}.json") for n in range(len(plans))]
        for plan, path in zip(plans, paths, strict=True):
            plan.save(path)
        job = Job(paths, rounds, steps, 1.0)
        words = [json.dumps(asdict(job))]
        result = launch.local_module("tools.validate.regret_rank", words, ranks, LIMIT_SECONDS, write)
    if result.failure is not None:
        raise InputError(f"the plans stopped: {result.failure}")
    return [_run(plan, rows[n], statistics.median(busy[n])) for n, plan in enumerate(plans)]


def _run(plan: Plan, times: list[float], busy: float) -> Run:
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    parts = ("compute", "communication", "bubble", "sync", "optimizer")
    shares = {part: getattr(plan.cost, f"{part}_seconds") for part in parts}
    return Run(name_of(plan), plan.cost.step_seconds, shares, middle, low, high, busy)


def name_of(plan: Plan) -> str:
    """Its mesh where it is not 1, micro-batch and schedule."""
    chosen = plan.parallelism
    mesh = [f"{axis}{chosen.mesh[axis]}" for axis in chosen.order if chosen.mesh[axis] > 1]
    way = [chosen.schedule + (f"x{chosen.virtual}" if chosen.virtual > 1 else "")] if chosen.mesh[PP] > 1 else []
    recompute = ["recompute"] if any(plan.decisions.recomputed) else []
    return " ".join([*mesh, f"mb{chosen.micro_batch}", *way, *recompute])


def main(arguments: Sequence[str] | None = None) -> int:
    """Plan, run, print."""
    parser = argparse.ArgumentParser(prog="python -m tools.validate.regret", description=__doc__)
    parser.add_argument("--cluster", required=True, metavar="FILE")
    parser.add_argument("--ranks", type=int, default=2, metavar="N")
    parser.add_argument("--model", default="examples/gpt.py:model", metavar="MODEL")
    parser.add_argument("--set", nargs="+", default=list(SETTINGS), metavar="k=v")
    parser.add_argument("--global-batch", type=int, default=16, metavar="B")
    parser.add_argument("--pin", action="append", default=[], metavar="tp=2")
    for name, default in (("rounds", 5), ("steps", 2)):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    try:
        with document_alone(options.json, restore=arguments is not None) as document:
            return _report(options, document)
    except (InputError, DoesNotFit) as error:
        error_line(str(error))
        return 2


def _report(options: argparse.Namespace, document: Print) -> int:
    if min(options.ranks, options.global_batch, options.rounds, options.steps) < 1:
        raise InputError("--ranks, --global-batch, --rounds and --steps must be positive")
    cluster = Cluster.load(options.cluster, devices=options.ranks)
    with status("planning") as say:
        settings, pins = parse_settings(options.set), read_words(options.pin)
        plans = plans_of(options.model, settings, cluster, options.global_batch, pins)
        runs = measure(plans, options.ranks, options.rounds, options.steps, say)
    found = regret_of(runs)
    if options.json:
        document(json.dumps({**asdict(found), "runs": [asdict(r) for r in runs]}, indent=1) + "\n")
        return 0
    columns = ("plan", "predicted", "measured", "quartiles", "ratio", "busy", *runs[0].parts)
    output().print(table(f"{found.plans} plans on {options.ranks} ranks", columns, [_cells(r) for r in runs]))
    output().print(
        f"Spearman {found.rank:.3f}; search picks {found.picked}, {100 * found.regret:.1f} % slower than the best "
        f"measured ({found.best}); predictions are {found.bias:.2f} of what was measured"
    )
    return 0


def _cells(run: Run) -> list[str]:
    return [
        run.name, seconds(run.predicted_seconds), seconds(run.measured_seconds),
        f"{seconds(run.low_seconds)} to {seconds(run.high_seconds)}",
        f"{run.predicted_seconds / run.measured_seconds:.2f}", seconds(run.busy_seconds),
        *(seconds(value) for value in run.parts.values()),
    ]  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
