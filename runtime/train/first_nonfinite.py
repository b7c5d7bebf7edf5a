"""Finds the first op that made a NaN or infinity, by running a step's forwards again with every value checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import fx

from partitioner.graph.dependence import module_path
from partitioner.schedule.tables import KINDS
from runtime.execute.worker import BoundCall, Named, Worker


@dataclass(frozen=True, order=True)
class Culprit:
    """Where it happened; the earliest is the smallest."""

    micro_batch: int
    stage: int
    call: int
    node: int
    rank: int
    words: str


class _Checking(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, bad: Any) -> None:
        super().__init__(module)
        self.bad, self.first, self.words, self._count = bad, -1, "", 0

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, and remember the first whose result is bad."""
        result = super().run_node(n)
        self._count += 1
        if self.first < 0 and n.op != "output" and isinstance(result, torch.Tensor) and self.bad(result):
            self.first = self._count
            self.words = f"argument {n.target}" if n.op == "placeholder" else f"{n.name} ({_module(n)})"
        return result


def first_culprit(worker: Worker, batches: list[Named], loss: float) -> str:
    """One line on all ranks: rank and op. Called on all ranks together."""
    bad = _is_nan if math.isnan(loss) else _is_infinite
    found = _search(worker, batches, bad)
    rows = [found]
    if dist.is_initialized():
        rows = [None] * dist.get_world_size()
        dist.all_gather_object(rows, found)
    culprits = [row for row in rows if row is not None]
    if not culprits:
        return "no op of a second forward made it: it comes from the sum over samples"
    first = min(culprits)
    return f"rank {first.rank}, micro-batch {first.micro_batch}, stage {first.stage}: {first.words}"


def _search(worker: Worker, batches: list[Named], bad: Any) -> Culprit | None:
    """This rank's first culprit; every forward of the row runs, so that values and collectives reach other ranks."""
    found: list[Culprit] = []
    worker.transport.begin()
    with torch.no_grad():
        for action in (a for a in worker.actions if KINDS[a.kind].is_forward):
            stage = worker.stages[action.stage]
            values = worker.values(action.stage, batches[action.micro_batch], worker.transport.receive(action))
            rows = list[tuple[int, str] | None]()
            made = worker.made(action.stage, values, lambda call, own, rows=rows: rows.append(_run(call, own, bad)))
            for number, (call, row) in enumerate(zip(stage.calls, rows, strict=True)):
                if row:
                    words = f"{call.call.block}: {row[1]}"
                    found.append(Culprit(action.micro_batch, action.stage, number, row[0], worker.groups.rank, words))
            outputs = [made[v.name].contiguous() for v in stage.stage.sends]
            if outputs:
                worker.transport.send(action, outputs)
    worker.transport.finish()
    return min(found, default=None)


def _run(call: BoundCall, values: Named, bad: Any) -> tuple[int, str] | None:
    interpreter = _Checking(call.module, bad)
    results = call.around(interpreter.run, [values.get(name) for name in call.call.arguments])
    values.update(zip(call.call.results, results if isinstance(results, tuple | list) else (results,), strict=True))
    if interpreter.first < 0:
        return None
    words = interpreter.words
    if words.startswith("argument"):
        names = [n.target for n in call.module.graph.nodes if n.op == "placeholder"]
        words = f"{call.call.arguments[names.index(words.split()[1])]} was so before"
    return interpreter.first, words


def _module(node: fx.Node) -> str:
    return next((name for name in reversed(module_path(node)) if name), "no module")


def _is_nan(x: torch.Tensor) -> bool:
    return x.is_floating_point() and bool(x.isnan().any())


def _is_infinite(x: torch.Tensor) -> bool:
    """An infinity that no mask means: masks hold minus infinity only."""
    return x.is_floating_point() and bool((x == math.inf).any())
