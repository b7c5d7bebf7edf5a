"""``partitioner compare``: plans side by side, the best of each row marked."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable

from partitioner import Plan
from partitioner.errors import InputError
from tools.figures import dollars, kilowatt_hours, mesh_words, mfu, targets_per_second
from tools.screen import output, seconds, size, table

Row = tuple[str, Callable[[Plan], float | None], Callable[[float], str], bool]
ROWS: tuple[Row, ...] = (
    ("step", lambda p: p.cost.step_seconds, seconds, True),
    ("compute", lambda p: p.cost.compute_seconds, seconds, True),
    ("exposed communication", lambda p: p.cost.communication_seconds + p.cost.sync_seconds, seconds, True),
    ("bubble", lambda p: p.cost.bubble_seconds, seconds, True),
    ("optimizer", lambda p: p.cost.optimizer_seconds, seconds, True),
    ("peak memory", lambda p: p.cost.peak_bytes, size, True),
    ("tokens/s", targets_per_second, lambda v: f"{v:,.4g}", False),
    ("MFU", mfu, lambda v: f"{100 * v:.1f} %", False),
    ("$ a billion tokens", dollars, lambda v: f"{v:,.4g}", True),
    ("kWh a billion tokens", kilowatt_hours, lambda v: f"{v:,.4g}", True),
)


def declare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    command = commands.add_parser(
        "compare", help="compare plans by cost", epilog="example: partitioner compare a.json b.json"
    )
    command.add_argument("plans", nargs="+", metavar="PLAN")
    command.add_argument("--json", action="store_true")
    command.set_defaults(action=compare_command)


def compare_command(options: argparse.Namespace) -> int:
    """Print the table."""
    if len(options.plans) < 2:
        raise InputError("compare takes at least two plans")
    plans = [Plan.load(path) for path in options.plans]
    if options.json:
        rows = [
            {"plan": path, **{name: value(p) for name, value, _, _ in ROWS}}
            for path, p in zip(options.plans, plans, strict=True)
        ]
        sys.stdout.write(json.dumps(rows, indent=1) + "\n")
        return 0
    cells = [["mesh", *(mesh_words(p) for p in plans)], ["micro-batch", *(str(p.decisions.micro_batch) for p in plans)]]
    cells += [["schedule", *(p.decisions.schedule for p in plans)]]
    cells += [_cells(plans, row) for row in ROWS]
    output().print(table("plans", ("", *options.plans), cells))
    return 0


def _cells(plans: list[Plan], row: Row) -> list[str]:
    name, value, form, small = row
    values = [value(p) for p in plans]
    known = {v for v in values if v is not None}
    best = (min if small else max)(known) if len(known) > 1 else None
    return [name, *("" if v is None else f"{form(v)} *" if v == best else form(v) for v in values)]
