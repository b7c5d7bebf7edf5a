"""``partitioner show``: the card and a tree of stages, blocks and ops; pictures, a timeline, a page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from rich.markup import escape
from rich.tree import Tree

from partitioner import Plan, Program, lower, trace
from partitioner.errors import InputError
from partitioner.whole_files import write_whole
from tools.figures.card import check_readable, summary
from tools.figures.gemm_words import products
from tools.figures.outline import Run, arrival, is_weighty, outline, sentence
from tools.models.load_planned import load_plan
from tools.screen import output, size
from tools.show.drawing import block_drawing, drawn, layouts_said, plan_graph, program_drawing
from tools.show.html_page import page
from tools.show.perfetto import trace_json


def show_command(options: argparse.Namespace) -> int:
    """Write what was asked for; print the plan where no file was."""
    plan = Plan.load(options.plan)
    if options.json:
        options.document(plan.to_json())
        return 0
    check_readable(plan)
    if options.program and options.block:
        raise InputError("--program draws all blocks: leave out --block")
    program = _program(plan) if options.program else None
    made = {path: make(plan, path) for path, make in _files(options, program) if path}  # all, before any is written
    for path, content in made.items():
        write_whole(path, content)
        output().print(f"{path}: {size(Path(path).stat().st_size)}", markup=False)
    if program is not None and not made:
        sys.stdout.write(str(program))
    elif options.block and not made:
        output().print(_one_block(plan, options.block))
    elif not made:
        output().print(summary(plan))
        output().print(tree(plan, options.ops))
        output().print(layouts_said(plan.parallelism.axes), style="dim")
        output().print(products(plan))
    return 0


_Make = Callable[[Plan, str], str | bytes]


def _files(options: argparse.Namespace, program: Program | None) -> list[tuple[str | None, _Make]]:
    """The files that may be asked for, and what makes the content of each."""

    def drawing(plan: Plan, path: str) -> bytes:
        if program is not None:
            return drawn(program_drawing(program), path)
        return drawn(block_drawing(plan, options.block) if options.block else plan_graph(plan), path)

    return [
        (options.svg, drawing), (options.png, drawing), (options.trace, lambda plan, _: trace_json(plan)),
        (options.html, lambda plan, _: page(plan)),
    ]  # fmt: skip


def _program(plan: Plan) -> Program:
    source = load_plan(plan, meta=True)
    return lower(trace(source.module, source.batch, precision=plan.decisions.precision), plan)


def tree(plan: Plan, every_op: bool = False) -> Tree:
    """Stages, under them blocks (identical ones once), under them ops with layouts and conversions."""
    root = Tree("stages")
    for stages in outline(plan):
        where = f" on pipeline rank {plan.parallelism.pipeline_rank(stages.first)}" if stages.count == 1 else ""
        branch = root.add(f"{stages.title}{where}")
        for run in stages.runs:
            leaf = branch.add(f"{escape(run.title)}  [dim]{run.times}[/dim]")
            if run.is_first:
                _add_ops(leaf, run, every_op)
            else:
                leaf.add(f"[dim]like {escape(run.row.units[0])}[/dim]")
    return root


def _one_block(plan: Plan, name: str) -> Tree:
    row = next((row for row in plan.blocks if name in row.units), None)
    if row is None:
        known = ", ".join(row.units[0] for row in plan.blocks)
        raise InputError(f"the plan has no block {name}: name one of {known}, or one like them")
    run = Run((name,), row, True)
    root = Tree(f"{escape(name)}  [dim]{run.times}, one of {len(row.units)}[/dim]")
    _add_ops(root, run, every_op=True)
    return root


def _add_ops(leaf: Tree, run: Run, every_op: bool) -> None:
    for op in run.row.ops:
        if every_op or op.collectives or is_weighty(op):
            text = escape(sentence(op, run.row))
            made = leaf.add(f"[bold]{text}[/bold]" if is_weighty(op) else text)
            for row in op.collectives:
                made.add(f"[yellow]{escape(arrival(row))}[/yellow]")
    for row in run.row.leaving:
        leaf.add(f"[yellow]{escape(arrival(row))}[/yellow]")
