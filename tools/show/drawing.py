"""Pictures: a plan with identical blocks once, a block op by op, a lowered program. Graphviz lays them out."""

from __future__ import annotations

from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any, cast

import networkx as nx
import pydot
import pygraphviz
from torch import fx

from partitioner import Plan, Program
from partitioner.emit.block_code import collective_nodes
from partitioner.errors import InputError
from partitioner.lowering.program import Call
from partitioner.plan.derived_rows import BlockRow, OpRow
from partitioner.sharding.mesh_axes import Axes
from tools.figures.block_graph import ENTERING, Moving, block_graph
from tools.figures.outline import Run, Stages, is_product, is_weighty, kind, outline, place, shape, word
from tools.screen import seconds, size

FONT = "Helvetica"
# class: fill, border; the page's style sheet gives the classes other colours in the dark
STYLES = {
    "product": ("#dbeafe", "#3b82f6"),
    "op": ("#f1f5f9", "#94a3b8"),
    "collective": ("#ffedd5", "#ea580c"),
    "cut": ("#fef9c3", "#ca8a04"),
    "like": ("#ffffff", "#94a3b8"),
    "value": ("#ffffff", "#cbd5e1"),
}
LEGEND = (
    ("product", "multiplies, or reads a table"), ("op", "any other op"), ("collective", "collective: bytes a rank"),
    ("cut", "another layout, nothing sent"), ("like", "identical to a block drawn above"),
)  # fmt: skip
FORMATS = ("svg", "png")


def drawn(graph: pydot.Dot, path: str) -> bytes:
    """The drawing as the file's ending says; raises InputError for another."""
    ending = Path(path).suffix.removeprefix(".")
    if ending not in FORMATS:
        raise InputError(f"{path}: a drawing ends in .{' or .'.join(FORMATS)}")
    return rendered(graph, ending)


def rendered(graph: pydot.Dot, form: str) -> bytes:
    """Laid out by Graphviz's dot."""
    laid = pygraphviz.AGraph(string=graph.to_string())
    laid.layout("dot")
    return cast(bytes, laid.draw(format=form))  # None only where a file is written


def plan_graph(plan: Plan, folded: bool = False) -> pydot.Dot:
    """Stages as boxes, alike ones once; what crosses between them. Of identical blocks the first is opened, or, where
    ``folded``, none."""
    made = _canvas("plan")
    homes: dict[str, tuple[str, bool]] = {}  # of each unit, its box, and whether that is opened
    for stages in outline(plan):
        label = f"{stages.title}   {_stage_words(plan, stages)}"
        box = _box(f"stage{stages.first}", label)
        made.add_subgraph(box)
        for n, run in enumerate(stages.runs):
            key = f"s{stages.first}r{n}"
            if run.is_first and not folded:
                _add_block(box, plan, run, key)
            else:
                like = [] if run.is_first else [f"like {run.row.units[0]}"]
                box.add_node(_node(key, [run.title, run.times, *like], "op" if run.is_first else "like"))
            homes |= dict.fromkeys(_all_names(plan, stages, n), (key, run.is_first and not folded))
    _add_crossings(made, plan, homes)
    _add_legend(made, plan.parallelism.axes)
    return made


def block_drawing(plan: Plan, name: str) -> pydot.Dot:
    """One block with all of its ops; raises InputError when the plan has no block of that name."""
    row = next((row for row in plan.blocks if name in row.units), None)
    if row is None:
        known = ", ".join(row.units[0] for row in plan.blocks)
        raise InputError(f"the plan has no block {name}: name one of {known}, or one like them")
    made = _canvas(name)
    _add_ops(made, row, block_graph(plan, row, every=True), "b")
    _add_legend(made, plan.parallelism.axes)
    return made


def program_drawing(program: Program) -> pydot.Dot:
    """The lowered graphs of each stage, a module that several calls share once, with fx's own names; no parameters."""
    made, drawn = _canvas("program"), dict[int, str]()
    homes: dict[str, str] = {}  # of each value, the node that made it last
    for stage in program.stages:
        box = _box(f"stage{stage.index}", f"stage {stage.index}")
        made.add_subgraph(box)
        calls = [call for call in (stage.constants, stage.prelude, *stage.calls) if call is not None]
        for n, call in enumerate(calls):
            key = f"s{stage.index}c{n}"
            if id(call.module) in drawn:
                again = [f"like {drawn[id(call.module)]}", *(["recomputed in backward"] if call.recompute else [])]
                box.add_node(_node(key, [call.block, *again], "like"))
                ends, starts = [key] * len(call.results), dict.fromkeys(call.arguments, key)
            else:
                drawn[id(call.module)] = call.block
                inner = _box(f"{key}box", call.block, "#3b82f6")
                box.add_subgraph(inner)
                ends, starts = _add_module(inner, call, key, program.parameters)
            for name, start in starts.items():
                if name in homes and homes[name] != start:
                    made.add_edge(_edge(homes[name], start, ""))
            homes |= dict(zip(call.results, ends, strict=True))
    _add_legend(made, program.axes)
    return made


def _box(name: str, label: str, color: str = "#94a3b8", fontsize: str = "12") -> pydot.Subgraph:
    """A frame: what Graphviz calls a cluster, by its name."""
    made = pydot.Subgraph(f"cluster_{name}", label=_quoted(label), color=color, fontsize=fontsize, fontname=FONT)
    for attribute, value in {"style": "rounded", "labeljust": "l", "margin": "14"}.items():
        made.set(attribute, value)
    return made


def _canvas(name: str) -> pydot.Dot:
    made = pydot.Dot(_quoted(name), graph_type="digraph", rankdir="TB", fontname=FONT, nodesep="0.25", ranksep="0.3")
    made.set("compound", "true")
    made.set("newrank", "true")
    made.set_node_defaults(shape="box", style='"rounded,filled"', fontname=FONT, fontsize="11", margin='"0.12,0.06"')
    made.set_edge_defaults(fontname=FONT, fontsize="9", color="#64748b", fontcolor="#475569", arrowsize="0.6")
    return made


def _stage_words(plan: Plan, stages: Stages) -> str:
    peaks = [plan.cost.stages[n].peak_bytes for n in stages.numbers]
    held = size(max(peaks)) if len(peaks) == 1 else f"{size(min(peaks))} to {size(max(peaks))}"
    rank = f"pipeline rank {plan.parallelism.pipeline_rank(stages.first)}, " if stages.count == 1 else ""
    return f"{rank}{held} a rank"


def _all_names(plan: Plan, stages: Stages, run: int) -> Iterable[str]:
    """The units of the same run in all of the folded stages."""
    before = sum(len(r.names) for r in stages.runs[:run])
    for n in stages.numbers:
        yield from plan.decisions.stages[n][before : before + len(stages.runs[run].names)]


def _add_block(box: pydot.Subgraph, plan: Plan, run: Run, key: str) -> None:
    label = f"{run.title}   {run.times}"
    inner = _box(f"{key}box", label, "#3b82f6", fontsize="11")
    box.add_subgraph(inner)
    _add_ops(inner, run.row, block_graph(plan, run.row), key)


def _add_ops(box: pydot.Graph, row: BlockRow, graph: nx.DiGraph[str], key: str) -> None:
    for name, data in graph.nodes(data=True):
        if data.get("kind") == ENTERING:
            box.add_node(_node(f"{key}:{name}", [name], "value"))
        elif "moving" in data:
            box.add_node(_move_node(f"{key}:{name}", data["moving"]))
        else:
            box.add_node(_op_node(f"{key}:{name}", data["op"], row))
    for source, target, data in graph.edges(data=True):
        box.add_edge(_edge(f"{key}:{source}", f"{key}:{target}", data["layout"]))


def _op_node(key: str, op: OpRow, row: BlockRow) -> pydot.Node:
    lines = [f"{place(op, row)}: {kind(op)}"]
    if op.shape:
        lines.append(f"{shape(op)}   {word(op.result)}")
    if op.forward_seconds:
        lines.append(f"{seconds(op.forward_seconds)} + {seconds(op.backward_seconds)}")
    return _node(key, lines, "product" if is_weighty(op) else "op", f"{op.name} = {op.op}")


def _move_node(key: str, moving: Moving) -> pydot.Node:
    lines = [f"{moving.rows[0].source} -> {moving.target}"]
    for way, rows in (("", [(r.forward, r.forward_bytes) for r in moving.rows]),
                      ("back: ", [(r.backward, r.backward_bytes) for r in moving.rows])):  # fmt: skip
        lines += [f"{way}{kind} {size(many)}" for kind, many in rows if kind]
    sends = any(row.forward or row.backward for row in moving.rows)
    return _node(key, lines, "collective" if sends else "cut", f"{moving.value} over {moving.rows[0].axis}")


def _add_crossings(made: pydot.Dot, plan: Plan, homes: dict[str, tuple[str, bool]]) -> None:
    """An edge for each pair of boxes of which one reads what the other makes, in the layout in which it arrives."""
    rows, seen = {name: row for row in plan.blocks for name in row.units}, set[tuple[str, str]]()
    for reader, sources in plan.reads.items():
        for (maker, value), port in zip(sources, rows[reader].ports, strict=True):
            arrives = word(port)
            start = _leaves(rows[maker], homes[maker], value, arrives)
            end = _enters(plan, rows[reader], homes[reader], value)
            if homes[maker][0] != homes[reader][0] and (start, end) not in seen:
                seen.add((start, end))
                made.add_edge(_edge(start, end, arrives))


def _leaves(row: BlockRow, home: tuple[str, bool], value: str, arrives: str) -> str:
    key, is_open = home
    if not is_open:
        return key
    moved = any((move.value, move.target) == (value, arrives) for move in row.leaving)
    return f"{key}:{value}>{arrives}" if moved else f"{key}:{value}"


def _enters(plan: Plan, row: BlockRow, home: tuple[str, bool], value: str) -> str:
    key, is_open = home
    first = [name for _, name in plan.reads[row.units[0]]]
    return f"{key}:{value if value in first else first[0]}" if is_open else key


def _add_module(
    box: pydot.Subgraph, call: Call, key: str, parameters: Container[str]
) -> tuple[list[str], dict[str, str]]:
    """The nodes that make its results, and by argument those that read it from elsewhere."""
    moving, starts, hidden = set(collective_nodes(call.module)), dict[str, str](), set[fx.Node]()
    placeholders = [node for node in call.module.graph.nodes if node.op == "placeholder"]
    for name, node in zip(call.arguments, placeholders, strict=True):
        if name in parameters:
            hidden.add(node)
        else:
            starts[name] = f"{key}:{node.name}"
            box.add_node(_node(starts[name], [name], "value"))
    for node in (n for n in call.module.graph.nodes if n.op == "call_function"):
        name = str(node.target).removesuffix(".default")
        style = "collective" if node in moving else "product" if is_product(name) else "op"
        box.add_node(_node(f"{key}:{node.name}", [name], style, node.name))
        for source in node.all_input_nodes:
            if source not in hidden:
                box.add_edge(_edge(f"{key}:{source.name}", f"{key}:{node.name}", ""))
    made = next(node for node in call.module.graph.nodes if node.op == "output").args[0]
    return [f"{key}:{node.name}" for node in made], starts


def _node(key: str, lines: list[str], style: str, tip: str = "") -> pydot.Node:
    fill, border = STYLES[style]
    label = "\\n".join(line.replace("\\", "/").replace('"', "'") for line in lines)
    given: dict[str, Any] = {"fillcolor": _quoted(fill), "color": _quoted(border), "class": style, "id": _quoted(key)}
    if style == "like":
        given["style"] = '"rounded,filled,dashed"'
    return pydot.Node(_quoted(key), label=f'"{label}"', tooltip=_quoted(tip or lines[0]), **given)


def _edge(source: str, target: str, label: str) -> pydot.Edge:
    return pydot.Edge(_quoted(source), _quoted(target), label=_quoted(f" {label} "), tooltip=_quoted(label))


def layouts_said(axes: Axes) -> str:
    """What the words of a layout mean, of which there is one for each axis."""
    names = " x ".join(axis for axis, _ in axes)
    each = f"  One word for each of {names}." if len(axes) > 1 else ""
    over = "" if each else f" over {names}"
    return f"S(d): dimension d divided{over}.  W: whole.  R: whole, its gradient partial.  P: partial sums.{each}"


def _add_legend(made: pydot.Dot, axes: Axes) -> None:
    """A table below the drawing."""
    cells = "".join(
        f'<tr><td bgcolor="{STYLES[style][0]}" color="{STYLES[style][1]}" border="1" width="28"> </td>'
        f'<td align="left">{words}</td></tr>'
        for style, words in LEGEND
    )
    cells += f'<tr><td></td><td align="left">{layouts_said(axes)}</td></tr>'
    made.set("label", f'<<table border="0" cellborder="0" cellspacing="3">{cells}</table>>')
    made.set("labeljust", "l")
    made.set("fontsize", "10")


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "/").replace('"', "'") + '"'
