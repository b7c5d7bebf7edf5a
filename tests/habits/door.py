"""One rank of a training loop as a user writes it: ``parallelize`` and ``engine.step``, beside the plain loop.

python door.py MODULE.CASE/tp=2,pp=1 ...   prints {"name": [[loss, plain loss], ...] or "what went wrong"} on rank 0
"""

from __future__ import annotations

import copy
import importlib
import json
import sys
import warnings

import torch
import torch.distributed as dist
from case import EXAMPLE, Pins
from torch import Tensor
from worker import made

from partitioner import search, trace
from partitioner.user_code.outputs import loss_of
from runtime import parallelize
from runtime.ranks.process_group import finish_ranks, is_first, start_ranks
from tools.verify.plan_families import cluster

STEPS, SAMPLES, LR = 3, 16, 0.05


def main(names: list[str]) -> None:
    """Every name in one world."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    start_ranks()
    rows = {name: _tried(name) for name in names}
    if is_first():
        sys.stdout.write("\n" + json.dumps(rows) + "\n")
    finish_ranks()


def _tried(name: str) -> list[list[float]] | str:
    try:
        return _trained(name)
    except Exception as error:  # what each case came to is reported by its name
        return f"{type(error).__name__}: {error}"


def _trained(name: str) -> list[list[float]]:
    """The losses of the engine and of the plain loop: the example has 4 samples, a step 16."""
    words, _, pins = name.partition("/")
    module_name, _, case_name = words.partition(".")
    case = importlib.import_module(f"cases.{module_name}").CASES[case_name]
    module, example = made(case, EXAMPLE)
    _, batch = made(case, SAMPLES)
    plain = copy.deepcopy(module)
    plan = None
    if pins:
        fixed: Pins = {axis: int(size) for axis, size in (pair.split("=") for pair in pins.split(","))}
        graph = trace(module, example)
        plan = search(graph, cluster(dist.get_world_size()), SAMPLES, {"micro_batch": 4, **fixed})
    engine = parallelize(
        module, example, global_batch=SAMPLES, plan=plan, optimizer=torch.optim.SGD, lr=LR, momentum=0.9
    )
    rank, each = engine.groups.coordinates["dp"], SAMPLES // engine.groups.size("dp")
    mine = {n: t[rank * each : (rank + 1) * each] for n, t in batch.items()}
    return [[float(engine.step(mine)), wanted] for wanted in _plain(plain, batch)]


def _plain(module: torch.nn.Module, batch: dict[str, Tensor]) -> list[float]:
    optimizer = torch.optim.SGD(module.parameters(), lr=LR, momentum=0.9)
    losses: list[float] = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(module(**batch))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


if __name__ == "__main__":
    main(sys.argv[1:])
