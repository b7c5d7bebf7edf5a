"""``partitioner show``: the card and a tree of stages, blocks and ops; the same as a drawing."""

from __future__ import annotations

import argparse
import sys

from rich.markup import escape
from rich.tree import Tree

from partitioner import Plan
from tools.card import summary
from tools.drawing import draw
from tools.gemms import products
from tools.outline import Run, arrival, is_weighty, outline, sentence
from tools.screen import output


def declare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    show = commands.add_parser(
        "show", help="look at a plan", epilog="example: partitioner show plan.json --svg plan.svg"
    )
    show.add_argument("plan", metavar="PLAN")
    show.add_argument("--svg", metavar="FILE", help="draw stages, blocks and collectives")
    show.add_argument("--ops", action="store_true", help="list every op, not only those that move or multiply")
    show.add_argument("--json", action="store_true")
    show.set_defaults(action=show_command)


def show_command(options: argparse.Namespace) -> int:
    """Print the plan; draw it where asked."""
    plan = Plan.load(options.plan)
    if options.svg:
        draw(plan, options.svg)
    if options.json:
        sys.stdout.write(plan.to_json())
        return 0
    console = output()
    console.print(summary(plan))
    console.print(tree(plan, options.ops))
    console.print(products(plan))
    if options.svg:
        console.print(f"drawn in {options.svg}")
    return 0


def tree(plan: Plan, every_op: bool = False) -> Tree:
    """Stages, under them blocks (identical ones once), under them ops with layouts and conversions."""
    root = Tree("stages")
    for n, runs in enumerate(outline(plan)):
        branch = root.add(f"stage {n} on pipeline rank {n % plan.decisions.mesh['pp']}")
        for run in runs:
            leaf = branch.add(f"{run.title}  [dim]{run.times}[/dim]")
            if run.is_first:
                _ops(leaf, run, every_op)
            else:
                leaf.add(f"[dim]like {run.row.units[0]}[/dim]")
    return root


def _ops(leaf: Tree, run: Run, every_op: bool) -> None:
    for op in run.row.ops:
        if every_op or op.collectives or is_weighty(op):
            text = escape(sentence(op, run))
            made = leaf.add(f"[bold]{text}[/bold]" if is_weighty(op) else text)
            for row in op.collectives:
                made.add(f"[yellow]{escape(arrival(row))}[/yellow]")
