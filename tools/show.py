"""``partitioner show``: the card and a tree of stages, blocks and ops; the same as a drawing."""

from __future__ import annotations

import argparse
import sys

from rich.tree import Tree

from partitioner import Plan
from partitioner.layout import parse_placement
from partitioner.plan import BlockRow, OpRow
from tools.card import summary
from tools.drawing import draw
from tools.screen import output, seconds


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
    if options.svg:
        console.print(f"drawn in {options.svg}")
    return 0


def tree(plan: Plan, every_op: bool = False) -> Tree:
    """Stages, under them blocks (identical ones once), under them ops with layouts and conversions."""
    rows = {name: row for row in plan.blocks for name in row.units}
    root = Tree("stages")
    opened: set[str] = set()
    for n, units in enumerate(plan.decisions.stages):
        branch = root.add(f"stage {n} on pipeline rank {n % plan.decisions.mesh['pp']}")
        for names in _runs(units, rows):
            row = rows[names[0]]
            label = names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]} (x {len(names)})"
            time = f"forward {seconds(row.forward_seconds)}, backward {seconds(row.backward_seconds)}"
            leaf = branch.add(f"{label}  [dim]{time}[/dim]")
            if row.units[0] in opened:
                leaf.add(f"[dim]like {row.units[0]}[/dim]")
            else:
                opened.add(row.units[0])
                _ops(leaf, row, every_op)
    return root


def _runs(units: tuple[str, ...], rows: dict[str, BlockRow]) -> list[list[str]]:
    runs: list[list[str]] = []
    for name in units:
        if runs and rows[runs[-1][0]] is rows[name]:
            runs[-1].append(name)
        else:
            runs.append([name])
    return runs


def _ops(leaf: Tree, row: BlockRow, every_op: bool) -> None:
    for op in row.ops:
        if every_op or op.collectives or _weighty(op):
            operands = ", ".join(word(p) for p in op.operands)
            text = f"{op.name}  {op.op.split('.')[1]}({operands}) -> {word(op.result)}"
            made = leaf.add(f"[bold]{text}[/bold]" if _weighty(op) else text)
            for arrival in op.collectives:
                made.add(f"[yellow]{arrival}[/yellow]")


def _weighty(op: OpRow) -> bool:
    kind = op.op.split(".")[1]
    return any(k in kind for k in ("linear", "matmul", "attention", "embedding", "cross_entropy", "conv"))


def word(placement: object) -> str:
    """A placement as R, W, P or S(dim)."""
    return str(parse_placement(placement))  # type: ignore[arg-type]
