"""What compare sets side by side: a plan, a run of one, or why there is none, each as a column of words and figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from partitioner import Plan
from partitioner.errors import InputError
from partitioner.plan.derived_rows import OPTIMIZER, PIPELINE
from partitioner.plan.plan import Asked, Decisions
from partitioner.plan.sent_by_plan import volume
from partitioner.sharding.mesh_axes import PP, named, whole
from runtime.report import KIND, Report
from tools.figures import figures
from tools.figures.card import check_readable
from tools.screen import number, percent, seconds, size

Value = float | None


@dataclass(frozen=True)
class Figure:
    """A figure: how it reads, and whether less of it is better (None: neither)."""

    name: str
    unit: str
    less: bool | None

    def words(self, value: float) -> str:
        """The value as people read it."""
        return _UNITS[self.unit](value)


_UNITS = {
    "seconds": seconds, "bytes": size, "percent": percent, "number": number, "dollars": lambda v: f"${number(v)}",
    "kWh": lambda v: f"{number(v)} kWh",
}  # fmt: skip
HELD = {kind: "optimizer state" if kind == "optimizer" else kind for kind in figures.MEMORY}  # a kind's row
ROWS = (
    Figure("step", "seconds", True),
    Figure("compute", "seconds", True),
    *(Figure(f"{axis} communication", "seconds", True) for axis in named()),
    Figure("bubble", "seconds", True),
    Figure(PIPELINE, "seconds", True),
    Figure(OPTIMIZER, "seconds", True),
    *(Figure(f"{unit}/s", "number", False) for unit in ("tokens", "samples")),
    Figure("MFU", "percent", False),
    *(Figure(f"a billion {unit}", "dollars", True) for unit in ("tokens", "samples")),
    Figure("energy for them", "kWh", True),
    Figure("memory", "bytes", True),
    *(Figure(name, "bytes", True) for name in HELD.values()),
    *(Figure(f"{axis} collectives", "number", True) for axis in named()),
    *(Figure(f"{axis} bytes", "bytes", True) for axis in named()),
)
WORDS = ("cluster", "priced as", "precision", "a sample", "mesh", "micro-batch", "schedule", "recompute")


@dataclass(frozen=True)
class Column:
    """``kind``: "plan", "run", or "infeasible" with the ``reason``; figures by a row's name, None where unknown."""

    name: str
    kind: str
    words: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Value] = field(default_factory=dict)
    plan: Plan | None = None
    report: Report | None = None
    reason: str = ""

    @property
    def decisions(self) -> Decisions | None:
        """Of the plan, or of the one that ran."""
        source = self.plan or self.report
        return source.decisions if source else None


def load_all(paths: list[str]) -> list[Column]:
    """Plan and report files, by the shortest names that tell them apart."""
    stems = [Path(path).stem for path in paths]
    names = stems if len(set(stems)) == len(stems) else paths
    return [replace(load(path), name=name) for path, name in zip(paths, names, strict=True)]


def load(path: str) -> Column:
    """A plan file or a report file; raises InputError when it is neither."""
    try:
        with Path(path).open() as file:
            head = file.read(200)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if f'"kind": "{KIND}"' in head:
        return of_report(path, Report.load(path))
    return of_plan(path, Plan.load(path))


def of_plan(name: str, plan: Plan) -> Column:
    """Predicted figures; memory by kind and what is sent are those of the fullest and of the busiest pipeline rank."""
    check_readable(plan)
    cost, unit = plan.cost, figures.unit(plan.model)
    rows = [volume(plan, p) for p in range(plan.parallelism.mesh[PP])]
    busiest = max(rows, key=lambda found: sum(row.bytes for row in found))
    values: dict[str, Value] = {
        "step": cost.step_seconds, "compute": cost.compute_seconds,
        **{f"{axis} communication": cost.exposed_seconds.get(axis, 0.0) for axis in named()},
        "bubble": cost.bubble_seconds, OPTIMIZER: cost.optimizer_seconds,
        f"{unit}/s": figures.rate(plan), "MFU": figures.mfu(plan),
        f"a billion {unit}": figures.dollars(plan), "energy for them": figures.kilowatt_hours(plan),
        "memory": cost.peak_bytes,
        **{HELD[kind]: many for kind, many in figures.rank_memory(plan)[figures.worst_rank(plan)].items()},
        **{f"{axis} collectives": float(sum(r.count for r in busiest if whole(r.axis) == axis)) for axis in named()},
        **{f"{axis} bytes": sum(r.bytes for r in busiest if whole(r.axis) == axis) for axis in named()},
    }  # fmt: skip
    asked = plan.asked
    return Column(name, "plan", _words(asked, plan.decisions, plan.world), values, plan=plan)


def of_report(name: str, report: Report) -> Column:
    """Measured figures; what a run can't tell stays unknown."""
    asked, model = report.asked, report.asked.model
    unit, rate = figures.unit(model), figures.rate_of(model, asked.global_batch, report.step_seconds)
    measured = {name: value for name, value in report.measured.items() if name in {row.name for row in ROWS}}
    values: dict[str, Value] = {
        **measured, "step": report.step_seconds, f"{unit}/s": rate,
        "MFU": figures.mfu_of(model, asked.cluster, report.ranks, report.predicted.flops, report.step_seconds),
        f"a billion {unit}": figures.dollars_of(asked.cluster, report.ranks, rate),
        "energy for them": figures.kilowatt_hours_of(asked.cluster, report.ranks, rate), "memory": report.peak_bytes,
    }  # fmt: skip
    return Column(name, "run", _words(asked, report.decisions, report.ranks), values, report=report)


def infeasible(name: str, reason: str) -> Column:
    """No plan, and why."""
    return Column(name, "infeasible", {"mesh": "none: see below"}, reason=reason)


def _words(asked: Asked, d: Decisions, devices: int) -> dict[str, str]:
    own = d.parallelism
    recompute = figures.recompute_words(d).removeprefix("recompute ") + figures.zero_label(own)
    rows = (
        f"{devices:,} x {asked.cluster['device']['name']}", asked.software["name"],
        figures.precision_label(asked.model, d.precision, asked.cluster),
        figures.sample_words(asked.model).removesuffix(" a sample") or "no text", figures.mesh_words(own),
        f"{own.micro_batches} of {own.micro_batch}", figures.schedule_label(own), recompute,
    )  # fmt: skip
    return dict(zip(WORDS, rows, strict=True))


def shown_rows(columns: list[Column]) -> list[Figure]:
    """The rows in which some column has something to say."""
    return [row for row in ROWS if any(column.values.get(row.name) for column in columns)]


def winners(columns: list[Column], row: Figure) -> set[str]:
    """The columns that are best in a row, where they differ as people read it."""
    known = {c.name: v for c in columns if (v := c.values.get(row.name)) is not None}
    if row.name == "MFU" and len({c.words["precision"] for c in columns if c.values}) > 1:
        return set()  # shares of different peaks
    if row.less is None or len({row.words(v) for v in known.values()}) < 2:
        return set()
    best = (min if row.less else max)(known.values())
    return {name for name, value in known.items() if row.words(value) == row.words(best)}


def as_json(columns: list[Column], told: list[str]) -> str:
    """Words, figures in seconds, bytes and shares, winners by row, and the explanations."""
    rows = [
        {"name": c.name, "kind": c.kind, **({"reason": c.reason} if c.reason else {}), **c.words, "figures": c.values}
        for c in columns
    ]
    best = {row.name: sorted(winners(columns, row)) for row in shown_rows(columns)}
    return json.dumps({"columns": rows, "winners": best, "explanations": told}, indent=1) + "\n"
