"""Differences between two plans in words, largest first: which decision changed, what that saves and what it costs."""

from __future__ import annotations

from collections.abc import Iterator

from partitioner import Plan
from partitioner.plan.derived_rows import OPTIMIZER, PIPELINE
from partitioner.plan.plan import Decisions
from partitioner.plan.sent_by_plan import volume
from partitioner.sharding.mesh_axes import CP, DP, PP, TP, named, refining, whole
from runtime.report import Report
from tools.figures import figures
from tools.figures.columns import HELD, Column
from tools.screen import seconds, size

LEAST_SHARE = 0.002  # of the step, or of the memory: below it a difference is not worth a line
# what a part of the step or of memory hangs on first of all
_CAUSES = {
    "compute": ("cluster", "recompute", "micro-batch", TP, PP, "layouts"),
    f"{TP} communication": ("cluster", TP, "micro-batch", "layouts"),
    f"{CP} communication": ("cluster", CP, "micro-batch"),
    f"{PP} communication": ("cluster", PP, "virtual stages", "schedule", "micro-batch"),
    f"{DP} communication": ("cluster", DP, "ZeRO", PP, TP, "layouts"),
    "bubble": (PP, "schedule", "virtual stages", "micro-batch", DP),
    OPTIMIZER: (TP, PP, "ZeRO", "layouts"),
    **dict.fromkeys(("weights", "gradients", "optimizer state"), (TP, PP, "ZeRO", "layouts")),
    "activations": ("recompute", "micro-batch", TP, PP, "schedule", "virtual stages", "layouts"),
    "transient": ("micro-batch", TP, "recompute", "layouts"),
}  # fmt: skip


def explain(best: Column, other: Column) -> list[str]:
    """From ``best`` to ``other``: a headline, then a line for each part, largest first."""
    if other.kind == "infeasible":
        return [f"{other.name}: {other.reason}"]
    if best.plan is None or other.plan is None:
        return [headline(best, other)]
    a, b = best.plan, other.plan
    changed, rows = changes(a, b), list(_slower(a, b))
    held = a.cost.peak_bytes
    rows += [(abs(x) / held, line) for x, line in _bytes(a, b, changed) if abs(x) > LEAST_SHARE * held]
    return [headline(best, other), *(f"  {line}" for _, line in sorted(rows, key=lambda row: -abs(row[0])))]


def costs_most(a: Plan, b: Plan) -> str:
    """What makes the step of ``b`` longer, the largest part of it; "" for nothing."""
    return max(((share, line) for share, line in _slower(a, b) if share > 0), default=(0.0, ""))[1]


def _slower(a: Plan, b: Plan) -> Iterator[tuple[float, str]]:
    step = a.cost.step_seconds
    return ((x / step, line) for x, line in _times(a, b, changes(a, b)) if abs(x) > LEAST_SHARE * step)


def headline(best: Column, other: Column) -> str:
    """How much slower, or faster, and how much more it holds."""
    a, b = best.values["step"], other.values["step"]
    assert a is not None
    assert b is not None
    ratio = b / a
    words = "as fast as" if round(ratio, 3) == 1 else f"{ratio:.2f}x the step of" if ratio < 10 else f"{ratio:.0f}x"
    held, had = other.values.get("memory"), best.values.get("memory")
    more = ""
    if held is not None and had is not None and best.kind == other.kind:
        more = f", {size(abs(held - had))} {'more' if held > had else 'less'} memory" if size(held) != size(had) else ""
    return f"{other.name}: {words} {best.name} ({seconds(b)}, {seconds(a)}){more}"


def changes(a: Plan, b: Plan) -> dict[str, str]:
    """What was decided otherwise, by name: ``tp 8 -> 4``."""
    found: dict[str, str] = {}
    x, y = a.parallelism, b.parallelism
    if a.cluster != b.cluster:
        found["cluster"] = f"cluster {_cluster(a)} -> {_cluster(b)}"
    pairs: list[tuple[str, object, object]] = [
        *((axis, x.degree(axis), y.degree(axis)) for axis in named()),
        ("micro-batch", x.micro_batch, y.micro_batch), ("schedule", x.schedule, y.schedule),
        ("virtual stages", x.virtual, y.virtual), ("recompute", _recompute(a.decisions), _recompute(b.decisions)),
        ("ZeRO", x.zero, y.zero), ("order", " ".join(x.order), " ".join(y.order)),
    ]  # fmt: skip
    pairs += [(part, x.refined.get(part, 1), y.refined.get(part, 1)) for part in refining()]
    found |= {name: f"{name} {was} -> {now}" for name, was, now in pairs if was != now}
    if TP not in found and a.decisions.parameters != b.decisions.parameters:
        found["layouts"] = "other layouts"
    return found


def _cluster(plan: Plan) -> str:
    return f"{plan.world} x {plan.cluster['device']['name']}"


def _recompute(d: Decisions) -> str:
    return figures.recompute_words(d).removeprefix("recompute ")


def _cause(part: str, changed: dict[str, str]) -> str:
    """The changes that a part hangs on, or, where none of those changed, all."""
    named = [changed[name] for name in _CAUSES.get(part, ()) if name in changed]
    return ", ".join(named or changed.values()) or "the same decisions"


def _times(a: Plan, b: Plan, changed: dict[str, str]) -> Iterator[tuple[float, str]]:
    was, now = figures.parts(a), figures.parts(b)
    for part in dict.fromkeys((*was, *now)):
        more = now.get(part, 0.0) - was.get(part, 0.0)
        verb = "costs" if more > 0 else "saves"
        yield more, f"{_cause(part, changed)} {verb} {seconds(abs(more))} of {_kinds(part, a, b)}"


def _kinds(part: str, a: Plan, b: Plan) -> str:
    """A part's name; of communication, the collectives that it is made of."""
    axis = part.split()[0]
    if axis not in named():
        return part
    sums: dict[str, float] = {}
    for plan in (a, b):
        for row in volume(plan, 0):
            if whole(row.axis) == axis:
                sums[row.kind] = sums.get(row.kind, 0.0) + row.bytes
    most = sorted(sums, key=lambda kind: -sums[kind])[:2]
    return f"{axis} {' and '.join(most)}" if most else part


def _bytes(a: Plan, b: Plan, changed: dict[str, str]) -> Iterator[tuple[float, str]]:
    was, now = (figures.rank_memory(p)[figures.worst_rank(p)] for p in (a, b))
    for kind in figures.MEMORY:
        more = now[kind] - was[kind]
        verb = "costs" if more > 0 else "saves"
        yield more, f"{_cause(HELD[kind], changed)} {verb} {size(abs(more))} of {HELD[kind]}"


def off(report: Report) -> list[str]:
    """Predicted against measured: which parts of a run's step were off, by how much, largest first."""
    rows = [(now - was, name, was, now) for name, was, now in report.parts()]
    predicted = report.predicted.step_seconds
    lines = [f"measured {seconds(report.step_seconds)}, predicted {seconds(predicted)}: "
             f"{report.step_seconds / predicted:.2f}x"]  # fmt: skip
    for more, name, was, now in sorted(rows, key=lambda row: -abs(row[0])):
        if abs(more) > LEAST_SHARE * predicted:
            share = 100 * abs(more) / abs(report.step_seconds - predicted) if report.step_seconds != predicted else 0.0
            word = "longer" if more > 0 else "shorter"
            waits = " (bubbles and sends)" if name == PIPELINE else ""
            lines.append(f"  {name}{waits} {seconds(abs(more))} {word}: {seconds(now)} instead of {seconds(was)}"
                         + (f", {share:.0f} % of what the step is off" if share <= 1000 else ""))  # fmt: skip
    return lines
