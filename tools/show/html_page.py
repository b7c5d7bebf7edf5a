"""A plan as one page that needs no network: graph, timeline, memory, traffic, candidates; Bokeh draws the charts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bokeh.embed import components
from bokeh.resources import Resources
from jinja2 import Environment, FileSystemLoader

from partitioner import Plan
from partitioner.plan.derived_rows import BlockRow, CollectiveRow, OpRow, OtherRow
from partitioner.sharding.mesh_axes import DP, PP, TP
from tools.figures import figures
from tools.figures.block_graph import movings
from tools.figures.card import facts, headline, looked_at, stale_words
from tools.figures.outline import arrival, kind, outline, place, shape, word
from tools.screen import seconds, size
from tools.show import charts
from tools.show.drawing import block_drawing, plan_graph, rendered

FOLDER = Path(__file__).parent / "page"


def page(plan: Plan) -> str:
    """The document."""
    made, legends, notes = charts.everything(plan)
    script, divisions = components(made)
    return filled(
        "page.html",
        title=plan.model.get("entry") or "a plan",
        subtitle=f"{plan.model['parameters']:,} parameters on {plan.world:,} x {plan.cluster['device']['name']} "
        f"({plan.cluster['name']}), {figures.mesh_words(plan.parallelism)}, {figures.schedule_words(plan.parallelism)}",
        stale=stale_words(plan) if plan.stale else "",
        cards=headline(plan), facts=facts(plan), notes=notes, charts=divisions, legends=legends,
        searched=looked_at(plan), data=_embedded(_data(plan)), script=script,
    )  # fmt: skip


def filled(template: str, **values: Any) -> str:
    """A template of the folder with what all pages need: the style sheet and the charting library."""
    library = Resources(mode="inline", components=["bokeh"]).render_js()
    found = Environment(loader=FileSystemLoader(FOLDER), autoescape=True).get_template(template)
    return found.render(library=library, **values)


def _data(plan: Plan) -> dict[str, Any]:
    """What the page's script reads; blocks and their drawings go by ``b0``, ``b1``, ..."""
    keys = {row.units[0]: f"b{n}" for n, row in enumerate(plan.blocks)}
    homes = {f"s{s.first}r{n}": keys[run.row.units[0]] for s in outline(plan) for n, run in enumerate(s.runs)}
    drawings = {"plan": (plan_graph(plan), homes), "folded": (plan_graph(plan, folded=True), homes)}
    drawings |= {key: (block_drawing(plan, unit), {"b": key}) for unit, key in keys.items()}
    return {
        "drawings": {name: {"svg": _svg(dot), "homes": own} for name, (dot, own) in drawings.items()},
        "blocks": {keys[row.units[0]]: _block(plan, row) for row in plan.blocks},
        "memory": charts.memory_columns(plan),
        "memoryUnit": charts.memory_unit(plan)[1],
        "memorySource": charts.MEMORY_SOURCE,
        "fullest": figures.worst_rank(plan),
        "columns": [{"name": name, "filter": is_word} for name, is_word in COLUMNS],
        "candidates": list(_candidates(plan)),
    }


def _svg(dot: Any) -> str:
    """The drawing's element alone."""
    text = rendered(dot, "svg").decode()
    return re.sub(r"<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)


def _embedded(data: object) -> str:
    """JSON that ends no script element whatever it holds."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _block(plan: Plan, row: BlockRow) -> dict[str, Any]:
    first, *others = row.units
    many = f"{first} .. {others[-1]} (x {len(row.units)})" if others else first
    items = {op.name: _op(plan, row, op) for op in row.ops}
    moves = (*(move for op in row.ops for move in op.collectives), *row.leaving)
    items |= {moving.name: _move(moving.rows) for moving in movings(moves)}
    facts = [
        ["forward", seconds(row.forward_seconds)], ["backward", seconds(row.backward_seconds)],
        ["kept for backward", size(row.saved_bytes)], ["ops", str(len(row.ops))],
    ]  # fmt: skip
    return {"title": many, "facts": facts, "items": items}


def _op(plan: Plan, row: BlockRow, op: OpRow) -> dict[str, Any]:
    operands = zip(op.inputs, op.operands, strict=True)
    facts = [
        ["op", kind(op)], ["module", op.module], ["result", f"{shape(op)}  {word(op.result)}"],
        *([f"operand {n + 1}", f"{name}  {word(placement)}"] for n, (name, placement) in enumerate(operands)),
        ["forward", seconds(op.forward_seconds)], ["backward", seconds(op.backward_seconds)],
    ]  # fmt: skip
    facts += [["FLOPs forward", f"{op.flops:.4g}"]] if op.flops else []
    product = next((p for p in row.products if p.name == op.name), None)
    if product:
        facts += [["GEMM a rank", f"{product.m} x {product.n} x {product.k} {product.dtype}"]]
        facts += [["kernel", product.reason or ", ".join(filter(None, product.kernels))]]
    return {
        "title": f"{place(op, row)}: {kind(op)}", "facts": facts, "moves": [[arrival(move)] for move in op.collectives],
        "others": [[_divided(other), f"+{seconds(other.seconds)}"] for other in op.others],
    }  # fmt: skip


def _divided(other: OtherRow) -> str:
    return f"({', '.join(map(word, other.operands))}) -> {word(other.result)}"


def _move(rows: tuple[CollectiveRow, ...]) -> dict[str, Any]:
    first = rows[0]
    facts = [["value", first.value], ["from", first.source], ["to", first.target], ["axis", first.axis]]
    for row in rows:
        for way, name, many, time in (
            ("forward", row.forward, row.forward_bytes, row.forward_seconds),
            ("backward", row.backward, row.backward_bytes, row.backward_seconds),
        ):
            facts += [[way, f"{name}, {size(many)}, {seconds(time)}"]] if name else []
    return {"title": f"{first.source} -> {first.target}", "facts": facts, "moves": [], "others": []}


COLUMNS = (
    ("mesh", True), (TP, True), (PP, True), (DP, True), ("micro-batch", True), ("schedule", True),
    ("recompute", True), ("compute", False), ("exposed", False), ("bubble", False), ("memory", False), ("step", False),
    ("against best", False),
)  # fmt: skip


def _candidates(plan: Plan) -> Iterable[dict[str, Any]]:
    every = {repr(c): c for c in (*plan.candidates, *plan.front)}
    for n, c in enumerate(every.values()):
        own = c.parallelism
        words = [
            figures.mesh_words(own), *(str(own.mesh[axis]) for axis in (TP, PP, DP)), str(own.micro_batch),
            figures.schedule_label(own), figures.recompute_label(own),
        ]  # fmt: skip
        times = [c.compute_seconds, c.exposed_seconds, c.bubble_seconds]
        against = c.step_seconds / plan.cost.step_seconds
        cells = [*words, *map(seconds, times), size(c.peak_bytes), seconds(c.step_seconds), f"{against:.3f}x"]
        keys = [*words, *times, c.peak_bytes, c.step_seconds, against]
        yield {"cells": cells, "keys": keys, "chosen": n == 0}
