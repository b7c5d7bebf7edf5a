"""A plan as SVG: stages as boxes, identical blocks once, what crosses between them; Graphviz lays it out."""

from __future__ import annotations

from pathlib import Path

import pydot
import pygraphviz

from partitioner import Plan
from partitioner.errors import InputError
from tools.outline import Run, arrival, is_weighty, outline, sentence, word
from tools.screen import size

COLLECTIVE, FONT = "#c2410c", "Helvetica"
_LEFT = '<br align="left"/>'


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
    made = pydot.Dot("plan", graph_type="digraph", rankdir="TB", fontname=FONT, fontsize="11", nodesep="0.3")
    made.set("label", _legend())
    made.set("labeljust", "l")
    made.set_node_defaults(shape="box", style="rounded,filled", fillcolor="#f8fafc", fontname=FONT, fontsize="11")
    made.set_edge_defaults(fontname=FONT, fontsize="10", color="#475569")
    previous: str | None = None
    for n, runs in enumerate(outline(plan)):
        cost = plan.cost.stages[n]
        label = f"stage {n} (pipeline rank {n % plan.decisions.mesh['pp']})   {size(cost.peak_bytes)}"
        cluster = pydot.Cluster(f"stage{n}", label=_quoted(label), color="#94a3b8", style="rounded", labeljust="l")
        made.add_subgraph(cluster)
        for index, run in enumerate(runs):
            key = f"s{n}u{index}"
            cluster.add_node(pydot.Node(key, label=_label(run), tooltip=_quoted(", ".join(run.names))))
            if previous is not None:
                made.add_edge(pydot.Edge(previous, key, label=_quoted(", ".join(word(p) for p in run.row.ports))))
            previous = key
    return made


def _label(run: Run) -> str:
    """An HTML-like label: name, time, then the ops that multiply or communicate, or the block that it is like."""
    lines = [f"<b>{_escaped(run.title)}</b>{_LEFT}", run.times + _LEFT]
    for op in run.row.ops if run.is_first else ():
        lines += [f'<font color="{COLLECTIVE}">{_escaped(arrival(c))}</font>{_LEFT}' for c in op.collectives]
        if is_weighty(op):
            lines.append(_escaped(sentence(op, run)) + _LEFT)
    if not run.is_first:
        lines.append(f'<font color="#64748b">like {_escaped(run.row.units[0])}</font>{_LEFT}')
    return "<" + "".join(lines) + ">"


def _legend() -> str:
    """The drawing's own label, below it."""
    lines = (
        "S(d): dimension d divided over tp. W: whole on each rank. R: whole, with partial gradients. P: partial sums",
        f'<font color="{COLLECTIVE}">value: from -&gt; to</font> is a conversion between layouts',
    )
    return "<" + "".join(line + _LEFT for line in lines) + ">"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _quoted(text: str) -> str:
    return '"' + text.replace('"', "'") + '"'
