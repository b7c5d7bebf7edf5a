"""Cluster numbers and program efficiencies fitted to published runs, and the errors on those kept aside.

    python -m tools.validate.fit_clusters RUNS.csv --hardware a100

One parameter after another, up or down by a step that shrinks, until the mean absolute logarithm of predicted over
measured gets no smaller; each group of runs counts the same. What kept_aside.py names is predicted, and not fitted.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from partitioner import Cluster
from tools.screen import output, status, table
from tools.validate.kept_aside import kept_aside
from tools.validate.predict_run import Rerun
from tools.validate.published_runs import Run, read
from tools.validate.published_sources import sources

STEP, SHRINK, TRIES = 0.12, 2.5, 3


@dataclass(frozen=True)
class Knob:
    """A number of a cluster file: its table, whose runs it acts on (GPU or program), its start and physical bounds."""

    table: str
    who: str
    field: str
    start: float
    least: float
    most: float

    @property
    def name(self) -> str:
        """``device A100 sustained``."""
        return f"{self.table} {self.who} {self.field}"

    def acts_on(self, run: Run) -> bool:
        """Whether a run's prediction depends on it."""
        text = {"software": run.framework, "network": run.interconnect}.get(self.table, run.gpu)
        return self.who in text if self.table == "network" else text.startswith(self.who)


def _device(who: str, sustained: float, memory: float, spread: float) -> tuple[Knob, ...]:
    return (
        Knob("device", who, "sustained", sustained, 0.6, 1.0),
        Knob("device", who, "memory_efficiency", memory, 0.4, 1.0),
        Knob("device", who, "spread", spread, 0.001, 0.02),
    )


def _efficiency(who: str, start: float) -> Knob:
    return Knob("software", who, "efficiency", start, 0.5, 1.0)


HARDWARE = {
    "a100": (
        ("sc21", "seqsel", "llmfoundry", "internevo", "vtrain_multi", "torchtitan"), "A100",
        (
            *_device("A100", 0.84, 0.98, 0.007), _efficiency("Megatron-LM", 0.96),
            _efficiency("Composer", 0.97), _efficiency("InternEvo", 0.89), _efficiency("Megatron-DeepSpeed", 0.99),
            _efficiency("torchtitan", 0.97),
            Knob("network", "4x100Gb RoCE", "latency_seconds", 7e-4, 1e-5, 2e-3),
            Knob("network", "4x100Gb RoCE", "efficiency", 0.78, 0.3, 1.0),
        ),
    ),
    "h100": (
        ("dgxc", "nanotron"), "H100-SXM-80GB",
        (
            *_device("H100-SXM-80GB", 0.86, 0.95, 0.015), _efficiency("NeMo", 1.0),
            _efficiency("nanotron", 0.85),
            Knob("software", "nanotron", "dispatch_seconds", 8e-5, 1e-6, 2e-4),
            Knob("software", "nanotron", "enqueue_seconds", 3e-4, 1e-5, 2e-3),
        ),
    ),
    "h100-fp8": (
        ("dgxc_fp8", "mbridge"), "H100-SXM-80GB", (Knob("device", "H100-SXM-80GB", "sustained", 0.86, 0.6, 1.0),),
    ),
    "h100-500w": (("torchtitan",), "H100-SXM-96GB", _device("H100-SXM-96GB", 0.65, 0.75, 0.015)),
}  # fmt: skip

Values = dict[Knob, float]


class Fit:
    """Runs, and the errors of their predictions under given numbers."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs, self.values = list(runs), Values()
        self.rerun = Rerun(sources(), self._changed)

    def _changed(self, run: Run, cluster: Cluster) -> Cluster:
        tables: dict[str, dict[str, float]] = {}
        for knob, value in self.values.items():
            if knob.acts_on(run):
                tables.setdefault(knob.table, {})[knob.field] = value
        return replace(cluster, **{name: replace(getattr(cluster, name), **new) for name, new in tables.items()})

    def errors(self, values: Values, runs: Iterable[Run]) -> np.ndarray:
        """Logarithms of predicted over measured."""
        self.values = values
        self.rerun.priced.clear()
        return np.array([np.log(self.rerun.predict(r).step_seconds / r.step_seconds) for r in runs])

    def loss(self, values: Values, runs: Sequence[Run]) -> float:
        """Each group's mean absolute error, added up."""
        found = np.abs(self.errors(values, runs))
        groups = np.array([r.group for r in runs])
        return float(sum(found[groups == g].mean() for g in dict.fromkeys(groups)))

    def fitted(self, knobs: Sequence[Knob], runs: Sequence[Run], rounds: int) -> Values:
        """The best numbers that this finds."""
        values = {k: k.start for k in knobs}
        best, steps = self.loss(values, runs), dict.fromkeys(knobs, STEP)
        for knob in [k for _ in range(rounds) for k in knobs]:
            for _ in range(TRIES):
                tried = [
                    {**values, knob: min(max(values[knob] * s, knob.least), knob.most)}
                    for s in (1 + steps[knob], 1 / (1 + steps[knob]))
                ]
                losses = [self.loss(v, runs) for v in tried]
                if min(losses) >= best - 1e-5:
                    steps[knob] /= SHRINK
                    break
                best, values = min(losses), tried[int(np.argmin(losses))]
        return values


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit, then predict what was kept aside, and the groups that were left out."""
    parser = argparse.ArgumentParser(prog="python -m tools.validate.fit_clusters", description=__doc__)
    parser.add_argument("runs", metavar="RUNS.csv")
    parser.add_argument("--hardware", choices=list(HARDWARE), required=True)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--without", action="append", default=[], metavar="GROUP", help="leave a group of runs out")
    options = parser.parse_args(arguments)
    groups, gpu, knobs = HARDWARE[options.hardware]
    runs = read(options.runs)
    wanted, aside = [r for r in runs if r.group in groups and r.gpu.startswith(gpu) and not r.strange], kept_aside(runs)
    runs = [r for r in wanted if r.group not in options.without and r.line not in aside]
    fit = Fit(runs)
    with status("fitting") as say:
        say(f"{len(runs)} runs")
        values = fit.fitted(knobs, runs, options.rounds)
    _print(fit, values, runs, [r for r in wanted if r not in runs])
    return 0


def _print(fit: Fit, values: Values, seen: Sequence[Run], others: Sequence[Run]) -> None:
    rows = [[k.name, f"{v:.4g}", f"{k.least:g} to {k.most:g}"] for k, v in values.items()]
    output().print(table("parameters", ("parameter", "fitted", "bounds"), rows))
    lines: list[list[str]] = []
    errors = [dict(zip(runs, fit.errors(values, runs), strict=True)) for runs in (seen, others)]
    for group in dict.fromkeys(r.group for r in (*seen, *others)):
        inside, outside = (np.expm1([e for r, e in rows.items() if r.group == group]) for rows in errors)
        lines.append([group, str(len(inside)), *_words(inside), str(len(outside)), *_words(outside)])
    columns = ("group", "runs", "fitted: mean", "median", "worst", "kept aside", "mean", "median", "worst")
    output().print(table("errors of step time", columns, lines))


def _words(errors: np.ndarray) -> list[str]:
    found = np.abs(errors)
    return [f"{100 * f(found):.1f} %" if len(found) else "" for f in (np.mean, np.median, np.max)]


if __name__ == "__main__":
    raise SystemExit(main())
