"""The process that traces the cases that it is sent, once each, and has ranks run their plans."""

from __future__ import annotations

import gc
import importlib
import os
import random
import warnings
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import torch
from case import EXAMPLE, SAMPLES, Case, Outcome, Pins
from ranks import failed, outcomes
from torch import Tensor, nn

from partitioner import Graph, Plan, search, trace
from partitioner.comparing.perturb import perturb
from runtime.verify.trial import Trial, prepare
from tools.verify.plan_families import cluster


def serve(jobs: Connection) -> None:
    """Answer (module, case) with outcomes by plan, until the line is closed.

    Ranks are forked from here, so that autograd must start no thread: no accelerator is seen.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    while True:
        try:
            module, name = jobs.recv()
        except EOFError:
            return
        jobs.send(tried(importlib.import_module(module).CASES[name]))
        gc.collect()


def tried(case: Case) -> dict[str, Outcome]:
    """What each plan of the case came to."""
    try:
        trial, graph = _trial(case)
    except Exception as error:
        return dict.fromkeys(case.pins, failed(error))
    found: dict[str, Outcome] = {}
    for ranks, pins in case.plans.items():
        plans = {name: _planned(graph, fixed, ranks) for name, fixed in pins.items()}
        found |= {name: plan for name, plan in plans.items() if isinstance(plan, Outcome)}
        found |= outcomes(trial, graph, {n: p for n, p in plans.items() if isinstance(p, Plan)}, ranks)
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


def _planned(graph: Graph, pins: Pins, ranks: int) -> Plan | Outcome:
    axes = {axis: pins.get(axis, 1) for axis in ("tp", "pp", "dp")}
    try:
        return search(graph, cluster(ranks), SAMPLES, {"schedule": "1f1b", "recompute": "off", **pins, **axes})
    except Exception as error:
        return failed(error)


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
