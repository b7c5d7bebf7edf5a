"""Ranks forked from the process that traced: they have its graph already, and meet in a process group of their own."""

from __future__ import annotations

import gc
import multiprocessing as mp
import os
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from multiprocessing.connection import Connection

import torch.distributed as dist
from case import Outcome

from partitioner import Graph, Plan
from partitioner.errors import InputError
from runtime.ranks.launch import free_port
from runtime.verify.trial import Trial, run_plan
from tools.verify.command import divided_flops

SECONDS, ALL_SECONDS = 60.0, 100.0  # that a rank waits for another; that all plans may take
ECHOES = ("closed by peer", "reset by peer", "gloo", "store", "timed out", "recv", "broken pipe", "process group")


def outcomes(trial: Trial, graph: Graph, plans: Mapping[str, Plan], ranks: int) -> dict[str, Outcome]:
    """What each plan came to; after one that failed, new ranks try the others."""
    found: dict[str, Outcome] = {}
    while left := {name: plan for name, plan in plans.items() if name not in found}:
        found |= _forked(trial, graph, left, ranks)
    return found


def _forked(trial: Trial, graph: Graph, plans: Mapping[str, Plan], ranks: int) -> dict[str, Outcome]:
    """Outcomes of at least the first plan."""
    context, port = mp.get_context("fork"), free_port()
    lines: list[Connection] = []
    processes: list[mp.process.BaseProcess] = []
    for rank in range(ranks):
        mine, theirs = context.Pipe(duplex=False)
        own = trial if rank == 0 else replace(trial, reference=None)
        processes.append(context.Process(target=_rank, args=(rank, ranks, port, own, graph, plans, theirs)))
        processes[-1].start()
        theirs.close()
        lines.append(mine)
    end = time.monotonic() + ALL_SECONDS
    answers = [row for line in lines if (row := _received(line, end)) is not None]
    for line, process in zip(lines, processes, strict=True):
        line.close()
        if len(answers) < ranks:
            process.kill()
        process.join(SECONDS)
    if len(answers) < ranks:
        answers.append(dict.fromkeys(list(plans)[:1], Outcome(crashed=f"a rank gave no answer in {ALL_SECONDS:g} s")))
    rows = {name: [a[name] for a in answers if name in a] for name in plans}
    return {name: _of_ranks(of) for name, of in rows.items() if of}


def _received(line: Connection, end: float) -> dict[str, Outcome] | None:
    try:
        return line.recv() if line.poll(max(0.0, end - time.monotonic())) else None
    except (EOFError, ConnectionError):
        return None


def _of_ranks(rows: list[Outcome]) -> Outcome:
    """Rank 0's, unless it is the echo of what happened to another."""
    bad = [row for row in rows if row.crashed or row.refused]
    own = [row for row in bad if row.refused or not any(word in row.crashed.lower() for word in ECHOES)]
    return (own or bad or rows)[0]


def _rank(
    rank: int, ranks: int, port: int, trial: Trial, graph: Graph, plans: Mapping[str, Plan], answer: Connection
) -> None:
    """Answer with the outcomes up to the first that failed: other ranks may be anywhere then."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", rank=rank, world_size=ranks, timeout=timedelta(seconds=SECONDS))
    found: dict[str, Outcome] = {}
    for name, plan in plans.items():
        try:
            found[name] = _outcome(trial, graph, plan)
        except Exception as error:
            found[name] = failed(error)
            break
    answer.send(found)
    gc.collect()
    dist.destroy_process_group()


def _outcome(trial: Trial, graph: Graph, plan: Plan) -> Outcome:
    row = run_plan(trial, plan)
    if row is None:
        return Outcome()
    return Outcome(
        error=row.apart.largest, limit=row.limit, worst=row.apart.worst, first=row.first, unforeseen=row.unforeseen,
        divided=divided_flops(plan, graph), empty=row.apart.empty,
        remark=trial.reference.remark if trial.reference else "",
    )  # fmt: skip


def failed(error: Exception) -> Outcome:
    """A refusal's words, or where an error was raised."""
    if isinstance(error, InputError):
        return Outcome(refused=str(error))
    frame = traceback.extract_tb(sys.exc_info()[2])[-1:]
    where = f" at {os.path.basename(frame[0].filename)}:{frame[0].lineno}" if frame else ""
    line = next(iter(str(error).splitlines()), "")
    return Outcome(crashed=f"{type(error).__name__}: {line[:300]}{where}")
