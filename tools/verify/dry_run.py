"""``partitioner verify PLAN --dry-run``: every distinct rank of a plan in this process, without its machines."""

from __future__ import annotations

import argparse
import json
import time

from partitioner import Plan, lower, trace
from partitioner.lowering.parameter_bytes import held_bytes
from partitioner.lowering.program import Program
from runtime.dry_run.dry_run import Rank, run_ranks
from tools.models.load import Source
from tools.models.load_planned import load_plan
from tools.screen import output, seconds, size, status, table

SHOWN = 20  # problems that are printed


def dry_run(plan: Plan, options: argparse.Namespace) -> int:
    """Exit status 0 when every rank does what is predicted and all meet, 1 otherwise."""
    began = time.perf_counter()
    with status("loading") as say:
        source = load_plan(plan, meta=True)
        say("tracing")
        graph = trace(source.module, source.batch, precision=plan.decisions.precision)
        program = lower(graph, plan)
        rows = run_ranks(
            program, source.batch, lambda place: held_bytes(graph, plan, place), options.backend,
            every=options.every, say=say,
        )  # fmt: skip
    took = time.perf_counter() - began
    if options.json:
        options.document(_document(plan, source, rows, took))
    else:
        _print(plan, source, program, rows, took, options.every)
    return 0 if all(not row.problems for row in rows) else 1


def _print(plan: Plan, source: Source, program: Program, rows: list[Rank], took: float, every: bool) -> None:
    cells = [
        [
            str(row.rank), " ".join(f"{axis} {row.place[axis]}" for axis in program.order), str(len(row.stands_for)),
            f"{row.ops:,}", size(row.parameter_bytes), f"{row.count():,}", size(row.sent_bytes),
            f"{row.count('send'):,}", f"{row.count('recv'):,}", _verdict(row),
        ]
        for row in rows
    ]  # fmt: skip
    columns = ("rank", "place", "alike", "ops", "parameters", "collectives", "payload", "sends", "receives", "")
    console = output()
    console.print(str(source))
    many = program.micro_batches
    executed = "" if every or many <= 2 else f"; of {many} micro-batches the first and last executed, the others played"
    console.print(table(f"{plan.world:,} ranks, {len(rows)} distinct{executed}", columns, cells))
    problems = [f"rank {row.rank}: {words}" for row in rows for words in row.problems]
    for words in problems[:SHOWN]:
        console.print(words, markup=False)
    if len(problems) > SHOWN:
        console.print(f"and {len(problems) - SHOWN} more")
    passed = "all shapes legal, all traffic and parameters as predicted, all ranks meet"
    console.print(f"{'NOT RIGHT' if problems else passed}; {seconds(took)}")


def _verdict(row: Rank) -> str:
    return "WRONG" if row.problems else "right" if row.matched else "right alone"


def _document(plan: Plan, source: Source, rows: list[Rank], took: float) -> str:
    found = [
        {
            "rank": row.rank, "place": dict(row.place), "stands_for": len(row.stands_for), "ops": row.ops,
            "parameter_bytes": row.parameter_bytes, "collectives": row.count(), "payload_bytes": row.sent_bytes,
            "traffic": row.traffic(), "sends": row.count("send"), "receives": row.count("recv"),
            "seconds": row.seconds, "met": row.matched, "problems": row.problems,
        }
        for row in rows
    ]  # fmt: skip
    passed = all(not row.problems for row in rows)
    document = {
        "model": str(source), "digest": plan.model["digest"], "ranks": plan.world, "seconds": took, "distinct": found,
        "passed": passed,
    }  # fmt: skip
    return json.dumps(document, indent=1) + "\n"
