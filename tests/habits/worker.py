"""One rank of a warm world: runs the cases that it is sent, each in a process group of its own."""

from __future__ import annotations

import gc
import importlib
import os
import random
import sys
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from case import EXAMPLE, SAMPLES, Case, Outcome, Pins
from torch import Tensor, nn

from partitioner import Graph, Plan, search, trace
from partitioner.errors import InputError
from partitioner.perturb import perturb
from runtime.trial import Trial, prepare, run_plan
from runtime.world import everywhere, is_first
from tools.families import cluster
from tools.verify import divided_flops

SECONDS = 60.0  # that a rank waits for another


@dataclass(frozen=True)
class Job:
    """Plans of a case; all ranks meet at ``port``."""

    module: str
    case: str
    plans: dict[str, Pins]
    port: int


def serve(rank: int, ranks: int, jobs: Connection) -> None:
    """Answer jobs with outcomes by plan, until None comes; a plan after one that failed has none."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    while (job := jobs.recv()) is not None:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(job.port), GLOO_SOCKET_IFNAME="lo")
        dist.init_process_group("gloo", rank=rank, world_size=ranks, timeout=timedelta(seconds=SECONDS))
        try:
            found = _run(job, ranks)
        finally:
            gc.collect()
            dist.destroy_process_group()
        jobs.send(found)


def _run(job: Job, ranks: int) -> dict[str, Outcome]:
    case: Case = importlib.import_module(job.module).CASES[job.case]
    found: dict[str, Outcome] = {}
    try:
        trial, graph = _trial(case)
    except Exception as error:
        failed = _failed(error)
        trial, graph = None, None
    said = [o for o in everywhere(failed if trial is None else None) if o is not None]
    if said or trial is None or graph is None:
        return dict.fromkeys(job.plans, said[0])
    for name, pins in job.plans.items():
        try:
            found[name] = _outcome(trial, graph, _agreed(graph, pins, ranks))
        except _Refused as error:
            found[name] = Outcome(refused=str(error))
        except Exception as error:
            return {**found, name: _failed(error)}  # other ranks may be anywhere: they notice that this one left
    return found


def _trial(case: Case) -> tuple[Trial, Graph]:
    module, example = made(case, EXAMPLE)
    _, batch = made(case, SAMPLES)
    perturb(module)
    before = _state(module)
    graph = trace(module, example)
    if changes := _changed(before, _state(module)):
        raise AssertionError(f"trace left the module otherwise than it was: {', '.join(changes)}")
    return prepare(module, graph, batch), graph


def made(case: Case, samples: int) -> tuple[nn.Module, dict[str, Tensor]]:
    """The case's module and a batch, the same on every rank and every time."""
    torch.manual_seed(0)
    random.seed(0)
    return case.build(samples)


def _state(module: nn.Module) -> dict[str, Any]:
    """What must be the same before and after a trace, by name."""
    rows: dict[str, Any] = {f"mode of {n}": m.training for n, m in module.named_modules()}
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    rows |= {n: t.detach().clone() for n, t in tensors}
    rows |= {f"requires_grad of {n}": t.requires_grad for n, t in tensors}
    rows |= {f"attributes of {n}": sorted(vars(m)) for n, m in module.named_modules()}
    return rows | {"torch's random state": torch.get_rng_state(), "Python's random state": random.getstate()}


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    same = {n for n in before if n in after and _equal(before[n], after[n])}
    return [n for n in {**before, **after} if n not in same]


def _equal(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


class _Refused(Exception):
    """What rank 0's search said."""


def _agreed(graph: Graph, pins: Pins, ranks: int) -> Plan:
    """Rank 0 searches, all take its plan."""
    said: list[Plan | str] = [""]
    if is_first():
        axes = {axis: pins.get(axis, 1) for axis in ("tp", "pp", "dp")}
        try:
            fixed = {"schedule": "1f1b", "recompute": "off", **pins, **axes}
            said = [search(graph, cluster(ranks), SAMPLES, fixed)]
        except InputError as error:
            said = [str(error)]
        except Exception as error:
            said = [f"\0{_failed(error).crashed}"]
    dist.broadcast_object_list(said, src=0)
    (plan,) = said
    if isinstance(plan, str):
        raise AssertionError(plan[1:]) if plan.startswith("\0") else _Refused(plan)
    return plan


def _outcome(trial: Trial, graph: Graph, plan: Plan) -> Outcome:
    row = run_plan(trial, plan)
    if row is None:
        return Outcome()
    return Outcome(
        error=row.apart.largest, limit=row.limit, worst=row.apart.worst, first=row.first, unforeseen=row.unforeseen,
        divided=divided_flops(plan, graph), empty=row.apart.empty,
        remark=trial.reference.remark if trial.reference else "",
    )  # fmt: skip


def _failed(error: Exception) -> Outcome:
    if isinstance(error, InputError):
        return Outcome(refused=str(error))
    frame = traceback.extract_tb(sys.exc_info()[2])[-1:]
    where = f" at {os.path.basename(frame[0].filename)}:{frame[0].lineno}" if frame else ""
    line = next(iter(str(error).splitlines()), "")
    return Outcome(crashed=f"{type(error).__name__}: {line[:300]}{where}")
