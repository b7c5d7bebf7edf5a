"""A plan as SVG: stages as boxes, identical blocks once, what crosses between them; Graphviz lays it out."""

from __future__ import annotations

from pathlib import Path

import pydot
import pygraphviz

from partitioner import Plan
from partitioner.errors import InputError
from partitioner.layout import parse_placement
from partitioner.plan import BlockRow
from tools.screen import seconds, size

COLLECTIVE, FONT = "#c2410c", "Helvetica"


def draw(plan: Plan, path: str) -> None:
    """Write the drawing; raises InputError when the path can't be written."""
    graph = pygraphviz.AGraph(string=dot(plan).to_string())
    graph.layout("dot")
    try:
        Path(path).write_bytes(graph.draw(format="svg"))
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}") from error


def dot(plan: Plan) -> pydot.Dot:
    """The drawing as a pydot graph."""
    made = pydot.Dot("plan", graph_type="digraph", rankdir="TB", fontname=FONT, compound="true", nodesep="0.3")
    made.set_node_defaults(shape="box", style="rounded,filled", fillcolor="#f8fafc", fontname=FONT, fontsize="11")
    made.set_edge_defaults(fontname=FONT, fontsize="10", color="#475569")
    rows = {name: row for row in plan.blocks for name in row.units}
    previous: str | None = None
    for n, units in enumerate(plan.decisions.stages):
        cost = plan.cost.stages[n]
        label = f"stage {n} (pipeline rank {n % plan.decisions.mesh['pp']})   {size(cost.peak_bytes)}"
        cluster = pydot.Cluster(f"stage{n}", label=_quoted(label), color="#94a3b8", style="rounded", fontname=FONT)
        made.add_subgraph(cluster)
        for index, (names, row) in enumerate(_runs(units, rows)):
            key = f"s{n}u{index}"
            cluster.add_node(pydot.Node(key, label=_label(names, row), tooltip=_quoted(", ".join(names))))
            if previous is not None:
                words = ", ".join(str(parse_placement(p)) for p in row.ports) or ""
                made.add_edge(pydot.Edge(previous, key, label=_quoted(words)))
            previous = key
    _legend(made)
    return made


def _runs(units: tuple[str, ...], rows: dict[str, BlockRow]) -> list[tuple[list[str], BlockRow]]:
    runs: list[tuple[list[str], BlockRow]] = []
    for name in units:
        if runs and runs[-1][1] is rows[name]:
            runs[-1][0].append(name)
        else:
            runs.append(([name], rows[name]))
    return runs


def _label(names: list[str], row: BlockRow) -> str:
    """An HTML-like label: name, time, then the ops that multiply or communicate."""
    title = names[0] if len(names) == 1 else f"{names[0]} .. {names[-1].rsplit('.', 1)[-1]} (x {len(names)})"
    times = f"{seconds(row.forward_seconds)} forward, {seconds(row.backward_seconds)} backward"
    lines = [f"<b>{_escaped(title)}</b>", times]
    for op in row.ops:
        for arrival in op.collectives:
            lines.append(f'<font color="{COLLECTIVE}">{_escaped(arrival)}</font>')
        kind = op.op.split(".")[1]
        if any(k in kind for k in ("linear", "matmul", "attention", "embedding", "cross_entropy", "conv")):
            words = ", ".join(str(parse_placement(p)) for p in op.operands)
            place = op.module.rsplit(".", 1)[-1]
            lines.append(_escaped(f"{place}: {kind}({words}) -> {parse_placement(op.result)}"))
    return "<" + "<br/>".join(lines) + ">"


def _legend(made: pydot.Dot) -> None:
    lines = (
        "W whole on each rank, R whole with partial gradients, P partial sums, S(d) dimension d divided",
        f'<font color="{COLLECTIVE}">value: from -&gt; to is a conversion between layouts</font>',
    )
    made.add_node(pydot.Node("legend", shape="note", fillcolor="#ffffff", label="<" + "<br/>".join(lines) + ">"))


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _quoted(text: str) -> str:
    return '"' + text.replace('"', "'") + '"'
