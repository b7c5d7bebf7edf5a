"""Published configurations against what search finds for the same program: is theirs a plan of that space, and is any
other faster by the same price?

    python -m tools.validate.experts RUNS.csv --group mlperf --group dgxc
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from partitioner import Cluster, Graph, Plan, search
from partitioner.errors import DoesNotFit, InputError
from partitioner.schedule.tables import plainest
from partitioner.sharding.mesh_axes import PP
from tools.compare.explain import costs_most
from tools.figures import figures
from tools.screen import error_line, output, seconds, status
from tools.validate.predict_run import Rerun, precision_of
from tools.validate.published_runs import Run, read
from tools.validate.published_sources import sources

WORTH_SAYING = 1.05  # times faster than the published plan


@dataclass(frozen=True)
class Expert:
    """A published configuration. ``plan``: search pinned to it; ``best``: what search finds in the space of its
    program, None where it was not asked; both None, with why in ``reason``, where theirs is no plan."""

    runs: tuple[Run, ...]
    plan: Plan | None
    best: Plan | None
    reason: str = ""

    @property
    def measured_seconds(self) -> float:
        """The median of its runs."""
        return statistics.median(run.step_seconds for run in self.runs)

    @property
    def error(self) -> float | None:
        """Of the published plan's price, as a share of what was measured."""
        return self.plan.cost.step_seconds / self.measured_seconds - 1 if self.plan else None

    @property
    def ratio(self) -> float | None:
        """How many times faster the best is, by price."""
        return self.plan.cost.step_seconds / self.best.cost.step_seconds if self.plan and self.best else None

    @property
    def why(self) -> str:
        """What makes most of the difference, where that is worth saying."""
        if self.plan is None or self.best is None or (self.ratio or 0.0) < WORTH_SAYING:
            return ""
        return costs_most(self.best, self.plan)


def asked(run: Run, rerun: Rerun) -> tuple[Graph, Cluster]:
    """What search is asked for."""
    cluster = rerun.cluster(run)
    precision = precision_of(run, cluster.software.gradients)
    return replace(rerun.traced(run.size, precision.compute), precision=precision), cluster


def pins_of(run: Run) -> dict[str, str | int]:
    """The decisions of a run that leaves nothing open, as pins."""
    found: dict[str, str | int] = {**run.degrees, "micro_batch": run.micro_batch}
    if run.degrees[PP] > 1:
        found |= {"virtual": run.virtual, "schedule": plainest(run.virtual)}
    if run.gpus > run.tp * run.pp:
        found["zero"] = run.zero or 0
    if run.tp > 1:
        found["boundary"] = "sharded" if run.sequence_parallel else "whole"
    return found | {"recompute": {"none": "off", "layers": "full"}.get(run.recompute, run.recompute)}


def configurations(runs: Sequence[Run]) -> Iterator[tuple[Run, ...]]:
    """Runs that are equal in all but what was measured, in the order of the first."""
    found: dict[object, list[Run]] = {}
    for run in runs:
        found.setdefault(run.configuration, []).append(run)
    return (tuple(rows) for rows in found.values())


def expert(runs: tuple[Run, ...], rerun: Rerun, searched: bool = True) -> Expert:
    """Pinned to what was published and, where ``searched``, free."""
    try:
        run = rerun.stated(runs[0])
        graph, cluster = asked(run, rerun)
        plan = search(graph, cluster, run.global_batch, pins_of(run))
    except (InputError, DoesNotFit) as error:
        return Expert(runs, None, None, str(error))
    return Expert(runs, plan, search(graph, cluster, run.global_batch) if searched else None)


def _cells(row: Expert) -> list[str]:
    run, pinned, best = row.runs[0], row.plan, row.best
    words = [f"{run.model} {run.gpus} {run.gpu}, {run.precision}, {run.global_batch} samples"]
    if pinned is None or best is None:
        return [*words, "", seconds(row.measured_seconds), "", row.reason, "", "", ""]
    return [
        *words, _plan(pinned), seconds(row.measured_seconds),
        f"{seconds(pinned.cost.step_seconds)} ({100 * (row.error or 0.0):+.1f} %)", _plan(best),
        seconds(best.cost.step_seconds), f"{row.ratio:.2f}x", row.why,
    ]  # fmt: skip


def _plan(plan: Plan) -> str:
    own = plan.parallelism
    words = [figures.mesh_words(own, " "), f"micro-batch {own.micro_batch}"]
    words += [f"{own.virtual} stages a rank"] if own.virtual > 1 else []
    return ", ".join([*words, figures.recompute_label(own)] if own.recompute != "none" else words)


COLUMNS = ("what", "published", "measured", "its price", "best found", "its price", "faster", "why")


def main(arguments: Sequence[str] | None = None) -> int:
    """A markdown table of all configurations of the files' groups; exit status 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m tools.validate.experts", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUNS.csv")
    parser.add_argument("--group", action="append", default=[], help="a source; default: all")
    options, rerun = parser.parse_args(arguments), Rerun(sources())
    try:
        rows = [run for path in options.runs for run in read(path) if not run.strange]
        groups = sorted({run.group for run in rows})
        for name in (n for n in options.group if n not in groups):
            raise InputError(f"no row of group {name} can be priced: there are {', '.join(groups)}")
    except InputError as error:
        error_line(str(error))
        return 2
    asked_for = [run for run in rows if not options.group or run.group in options.group]
    lines = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS)]
    for runs in configurations(asked_for):
        with status(f"{runs[0].model} on {runs[0].gpus}"):
            lines.append(" | ".join(_cells(expert(runs, rerun))))
    output().print("\n".join(f"| {line} |" for line in lines), markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
