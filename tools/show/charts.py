"""A plan's charts as Bokeh figures whose ground is transparent and whose ink shows on light and dark pages."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, HoverTool, Range1d
from bokeh.models import Span as Rule
from bokeh.plotting import figure

from partitioner import Cluster, Plan
from partitioner.plan.derived_rows import Candidate
from partitioner.plan.sent_by_plan import volume
from partitioner.plan.timeline import Span, holdings, timeline
from partitioner.schedule.tables import KINDS, Action
from partitioner.sharding.mesh_axes import PP, named, whole
from tools.figures import figures
from tools.figures.columns import HELD, Column
from tools.screen import seconds, size

INK, GRID = "#7c8696", "#7c86964d"
ACTIONS = {"forward": "#3b82f6", "backward": "#8b5cf6", "weight gradients": "#14b8a6", "sync": "#ea580c",
           "optimizer": "#eab308"}  # fmt: skip
_AXES = ("#ea580c", "#f59e0b", "#d946ef", "#ef4444", "#be123c", "#a16207")  # in the order in which they are named
AXIS_COLORS = dict(zip(named(), itertools.cycle(_AXES), strict=False))
PARTS = {"compute": "#3b82f6", **{f"{axis} communication": color for axis, color in AXIS_COLORS.items()},
         "communication": "#fb923c", "bubble": "#94a3b8", "pipeline": "#94a3b8", "optimizer": "#eab308"}  # fmt: skip
MEMORY: dict[str, str] = dict(zip(figures.MEMORY, ("#3b82f6", "#06b6d4", "#8b5cf6", "#22c55e", "#eab308"), strict=True))
MOST_SPANS = 20_000
Legend = dict[str, str]  # colours by name


def spans_chart(plan: Plan) -> tuple[Any, Legend, str]:
    """What each pipeline rank does when, and what the reader must know of it."""
    rows = timeline(plan)
    shown, words = _shown(plan, rows)
    chart = _figure(height=min(640, 90 + 24 * len(rows)), x_axis_label="seconds", y_axis_label="pipeline rank",
                    y_range=Range1d(start=len(rows) - 0.5, end=-0.5), tools="xpan,xwheel_zoom,xbox_zoom,reset,save",
                    active_scroll="xwheel_zoom")  # fmt: skip
    for letter, kind in KINDS.items():
        bars = [(p, span) for p, row in enumerate(shown) for span in row if span.action.kind == letter]
        _add_bars(chart, bars, kind.name)
    if not words:
        end = max(row[-1].end for row in rows)
        synced = end + plan.cost.sync_seconds
        _add_bars(chart, [(p, _after(end, synced)) for p in range(len(rows)) if synced > end], "sync")
        updated = synced + plan.cost.optimizer_seconds
        _add_bars(chart, [(p, _after(synced, updated)) for p in range(len(rows))], "optimizer")
    chart.yaxis.ticker.desired_num_ticks = min(16, len(rows))
    chart.yaxis.ticker.num_minor_ticks = 0
    drawn = {renderer.name for renderer in chart.renderers}
    return chart, {name: color for name, color in ACTIONS.items() if name in drawn}, words


def _after(start: float, end: float) -> Span:
    return Span(Action(-1, "", -1), start, end)


def _add_bars(chart: Any, rows: list[tuple[int, Span]], kind: str) -> None:
    """Bars of one colour."""
    if not rows:
        return
    columns = {
        "rank": np.array([p for p, _ in rows], np.int32),
        "left": np.array([span.start for _, span in rows], np.float32),
        "right": np.array([span.end for _, span in rows], np.float32),
        "takes": np.array([span.end - span.start for _, span in rows], np.float32),
        "stage": np.array([span.action.stage for _, span in rows], np.int32),
        "micro": np.array([span.action.micro_batch for _, span in rows], np.int32),
    }
    bars = chart.hbar(y="rank", left="left", right="right", height=0.9, color=ACTIONS[kind], line_color="#0f172a40",
                      line_width=0.5, source=ColumnDataSource(columns), name=kind)  # fmt: skip
    what = f"{kind} of stage @stage, micro-batch @micro" if kind in KINDS.values() else kind
    chart.add_tools(HoverTool(renderers=[bars], tooltips=[("", what), ("from", "@left s"), ("takes", "@takes s")]))


def _shown(plan: Plan, rows: tuple[tuple[Span, ...], ...]) -> tuple[tuple[tuple[Span, ...], ...], str]:
    """All actions, or of very many those of the first micro-batches."""
    many = sum(map(len, rows))
    if many <= MOST_SPANS:
        return rows, ""
    most = max(1, plan.parallelism.micro_batches * MOST_SPANS // many)
    words = f"the first {most} of {plan.parallelism.micro_batches} micro-batches; the whole is in show --trace"
    return tuple(tuple(s for s in row if s.action.micro_batch < most) for row in rows), words


def memory_chart(plan: Plan) -> Any:
    """Bytes by kind over the step of the fullest pipeline rank, stacked; the page changes it to another."""
    room, (unit, one) = Cluster.from_dict(plan.cluster).device.room, memory_unit(plan)
    shown = ColumnDataSource(_stacked(memory_columns(plan)[figures.worst_rank(plan)], one), name=MEMORY_SOURCE)
    chart = _figure(height=300, x_axis_label="seconds", y_axis_label=unit, tools="xpan,xwheel_zoom,reset,save",
                    active_scroll="xwheel_zoom")  # fmt: skip
    for kind, color in MEMORY.items():
        chart.varea_step(x="second", y1=f"{kind} from", y2=kind, step_mode="after", color=color, alpha=0.85,
                         source=shown)  # fmt: skip
    if plan.cost.peak_bytes > room / 3:
        chart.add_layout(Rule(location=room / one, dimension="width", line_color="#ef4444", line_dash="dashed"))
    edge = chart.step(x="second", y=figures.MEMORY[-1], mode="after", color=INK, line_width=1, source=shown)
    tips = [("at", "@second s"), *((kind, f"@{{{kind} words}}") for kind in figures.MEMORY)]
    chart.add_tools(HoverTool(renderers=[edge], tooltips=tips, mode="vline"))
    chart.y_range.start = 0
    return chart


def _stacked(columns: dict[str, list[float]], one: float) -> dict[str, Any]:
    """Where each kind starts and ends in the stack, and its bytes in words; the page's script does the same."""
    found: dict[str, Any] = {"second": columns["second"]}
    below = np.zeros(len(columns["second"]))
    for kind in figures.MEMORY:
        above = below + np.array(columns[kind]) / one
        found |= {f"{kind} from": below, kind: above, f"{kind} words": [size(many) for many in columns[kind]]}
        below = above
    return found


MEMORY_SOURCE = "memory"  # the name by which the page finds it


def memory_columns(plan: Plan) -> list[dict[str, list[float]]]:
    """Of each pipeline rank: seconds, and at each of them bytes by kind."""
    found: list[dict[str, list[float]]] = []
    for p, row in enumerate(timeline(plan)):
        moments = holdings(plan, row, p)
        columns = {kind: [float(f"{getattr(h, kind):.4g}") for h in moments] for kind in figures.MEMORY}
        found.append({"second": [float(f"{h.second:.6g}") for h in moments], **columns})
    return found


def memory_unit(plan: Plan) -> tuple[str, float]:
    """That of the fullest rank."""
    return _unit(plan.cost.peak_bytes)


def parts_chart(plan: Plan) -> tuple[Any, Legend]:
    """Where the seconds of the plan's step go, and those of its best candidates."""
    rows = [("this plan", figures.parts(plan)), *((_name(c), _candidate_parts(c)) for c in plan.candidates[1:8])]
    kinds = [kind for kind in PARTS if any(found.get(kind) for _, found in rows)]
    names = [f"{n + 1}. {name}" for n, (name, _) in enumerate(rows)]
    columns: dict[str, Any] = {"name": names} | {kind: [found.get(kind, 0.0) for _, found in rows] for kind in kinds}
    colors = [PARTS[kind] for kind in kinds]
    chart = _figure(height=80 + 26 * len(rows), x_axis_label="seconds", y_range=list(reversed(names)),
                    tools="hover,save", tooltips="$name: @$name s")  # fmt: skip
    chart.hbar_stack(kinds, y="name", height=0.8, color=colors, source=ColumnDataSource(columns))
    return chart, dict(zip(kinds, colors, strict=True))


def _candidate_parts(c: Candidate) -> dict[str, float]:
    rest = c.step_seconds - c.compute_seconds - c.exposed_seconds - c.bubble_seconds
    return {"compute": c.compute_seconds, "communication": c.exposed_seconds, "bubble": c.bubble_seconds,
            "optimizer": max(0.0, rest)}  # fmt: skip


def _name(c: Candidate) -> str:
    own = c.parallelism
    mesh, schedule = figures.mesh_words(own, " "), figures.schedule_label(own)
    return f"{mesh}, mb {own.micro_batch}, {schedule}, {own.recompute}"


def volume_chart(plan: Plan) -> Any:
    """What a rank of the busiest pipeline rank sends in a step, by axis and kind of collective."""
    ranks = range(plan.parallelism.mesh[PP])
    rows = max((volume(plan, p) for p in ranks), key=lambda rows: sum(r.bytes for r in rows))
    if not rows:
        return None
    names = [f"{row.axis} {row.kind}, {row.phase}" for row in rows]
    unit, one = _unit(max(row.bytes for row in rows))
    columns = {
        "name": names, "bytes": [row.bytes / one for row in rows],
        "color": [AXIS_COLORS[whole(row.axis)] for row in rows],
        "words": [size(row.bytes) for row in rows], "count": [f"{row.count:,}" for row in rows],
    }  # fmt: skip
    chart = _figure(height=80 + 24 * len(rows), x_axis_label=f"{unit} a step", y_range=list(reversed(names)),
                    tools="hover,save", tooltips=[("", "@name"), ("bytes", "@words"), ("times", "@count")])  # fmt: skip
    chart.hbar(y="name", right="bytes", height=0.7, color="color", source=ColumnDataSource(columns))
    chart.x_range.start = 0
    return chart


def candidates_chart(plan: Plan) -> Any:
    """Time against memory of every candidate that was priced; the front that none beats is joined by a line."""
    found = list({(c.step_seconds, c.peak_bytes, _name(c)): c for c in (*plan.candidates, *plan.front)}.values())
    unit, one = _unit(max(c.peak_bytes for c in found))
    columns = {
        "seconds": [c.step_seconds for c in found], "bytes": [c.peak_bytes / one for c in found],
        "name": [_name(c) for c in found], "step": [seconds(c.step_seconds) for c in found],
        "held": [size(c.peak_bytes) for c in found],
    }  # fmt: skip
    chart = _figure(height=300, x_axis_label=f"{unit} a rank", y_axis_label="seconds a step",
                    tools="pan,wheel_zoom,reset,save")  # fmt: skip
    front = sorted(plan.front, key=lambda c: c.peak_bytes)
    chart.line([c.peak_bytes / one for c in front], [c.step_seconds for c in front], color="#3b82f6", alpha=0.6)
    dots = chart.scatter(x="bytes", y="seconds", size=8, color="#3b82f6", alpha=0.7, source=ColumnDataSource(columns))
    chart.scatter([plan.cost.peak_bytes / one], [plan.cost.step_seconds], size=14, marker="star", color="#ea580c")
    chart.add_tools(HoverTool(renderers=[dots], tooltips=[("", "@name"), ("step", "@step"), ("memory", "@held")]))
    return chart


def _figure(**given: Any) -> Any:
    chart = figure(sizing_mode="stretch_width", toolbar_location="above", **given)
    chart.toolbar.logo = None
    chart.background_fill_color = chart.border_fill_color = None
    chart.outline_line_color = None
    for axis in chart.axis:
        axis.axis_line_color = axis.major_tick_line_color = axis.minor_tick_line_color = GRID
        axis.major_label_text_color = axis.axis_label_text_color = INK
        axis.axis_label_text_font_style = "normal"
    chart.grid.grid_line_color = GRID
    chart.ygrid.visible = False
    return chart


def _unit(most: float) -> tuple[str, float]:
    """The unit of bytes in which the largest value reads best."""
    return next(((name, one) for name, one in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)) if most >= one), ("kB", 1e3))


def everything(plan: Plan) -> tuple[dict[str, Any], dict[str, Legend], dict[str, str]]:
    """All charts by name, their legends, and notes on them."""
    spans, actions, words = spans_chart(plan)
    parts, kinds = parts_chart(plan)
    found: Sequence[tuple[str, Any]] = (
        ("spans", spans), ("memory", memory_chart(plan)), ("parts", parts), ("volume", volume_chart(plan)),
        ("tradeoff", candidates_chart(plan)),
    )  # fmt: skip
    made = {name: chart for name, chart in found if chart is not None}
    return made, {"spans": actions, "memory": MEMORY, "parts": kinds}, {"spans": words}


def compared(columns: Sequence[Column]) -> tuple[dict[str, Any], dict[str, Legend]]:
    """The steps of plans and runs, and the memory of plans, as stacked bars."""
    times = [(c.name, {kind: c.values.get(kind) or 0.0 for kind in PARTS}) for c in columns]
    made = {"time": _stacked_bars(times, PARTS, "seconds", 1.0)}
    held = [(c.name, {kind: c.values.get(HELD[kind]) or 0.0 for kind in MEMORY}) for c in columns if c.plan]
    if held:
        unit, one = _unit(max(sum(found.values()) for _, found in held))
        made["memory"] = _stacked_bars(held, MEMORY, unit, one)
    seen = {kind: color for kind, color in PARTS.items() if any(found[kind] for _, found in times)}
    return made, {"time": seen, "memory": MEMORY}


def _stacked_bars(rows: list[tuple[str, dict[str, float]]], colors: Legend, unit: str, one: float) -> Any:
    names = [f"{n + 1}. {name}" for n, (name, _) in enumerate(rows)]
    kinds = [kind for kind in colors if any(found[kind] for _, found in rows)]
    columns = {"name": names} | {kind: [found[kind] / one for _, found in rows] for kind in kinds}
    chart = _figure(height=80 + 32 * len(rows), x_axis_label=unit, y_range=list(reversed(names)), tools="hover,save",
                    tooltips=f"$name: @$name {unit}")  # fmt: skip
    source = ColumnDataSource(columns)
    chart.hbar_stack(kinds, y="name", height=0.8, color=[colors[kind] for kind in kinds], source=source)
    return chart
