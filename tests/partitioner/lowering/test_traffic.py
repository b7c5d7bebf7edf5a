"""The predicted traffic of a step is what every rank logs, row by row; of the gradient sync the sum of bytes."""

from __future__ import annotations

import functools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from partitioner import Graph, Plan, lower, search, trace
from partitioner.lowering.traffic import tally, traffic
from partitioner.schedule.tables import BACKWARD, WEIGHT_GRADIENT, Action
from runtime.mesh.groups import Groups
from runtime.state.module_start import from_seed
from runtime.state.optimizer import factory
from runtime.state.parameters import materialize
from runtime.train.engine import Engine
from tests.runtime.plans import spawn
from tools.models.load import load
from tools.verify.plan_families import cluster

BATCH = 8
_SMALL: dict[str, object] = {"vocab": 100, "hidden": 32, "layers": 4, "heads": 4, "seq": 16}
MODELS: dict[str, tuple[str, dict[str, object]]] = {
    "gpt": ("examples/gpt.py:model", _SMALL),
    "tied": ("examples/gpt.py:model", _SMALL | {"tied": True, "dropout": 0.1, "layers": 2}),
    "llama": ("hf:llama", {"num_hidden_layers": 2}),
    "deepseek": ("hf:deepseek_v3", {}),  # its router's choice passes no gradient back
}

# name: ranks, model, pins
CASES: dict[str, tuple[int, str, dict[str, str | int]]] = {
    "dp2": (2, "gpt", {"dp": 2, "micro_batch": 2}),
    "tp2": (2, "gpt", {"tp": 2, "micro_batch": 2, "boundary": "whole"}),
    "tp2, sharded": (2, "gpt", {"tp": 2, "micro_batch": 2, "boundary": "sharded"}),
    "tp2, sharded, recompute": (2, "gpt", {"tp": 2, "micro_batch": 4, "boundary": "sharded", "recompute": "on"}),
    "tp2, tied, dropout, recompute": (2, "tied", {"tp": 2, "micro_batch": 4, "boundary": "whole", "recompute": "on"}),
    "tp2, sharded, operators": (2, "gpt", {"tp": 2, "micro_batch": 4, "boundary": "sharded", "recompute": "operators"}),
    "llama tp2, operators": (2, "llama", {"tp": 2, "micro_batch": 4, "boundary": "whole", "recompute": "operators"}),
    "tp2, selective": (2, "deepseek", {"tp": 2, "micro_batch": 2, "boundary": "sharded", "recompute": "selective"}),
    "pp2": (2, "gpt", {"pp": 2, "micro_batch": 2, "schedule": "1f1b"}),
    "pp2, tied": (2, "tied", {"pp": 2, "micro_batch": 2, "schedule": "gpipe"}),
    "pp2, interleaved": (2, "gpt", {"pp": 2, "micro_batch": 2, "schedule": "interleaved", "virtual": 2}),
    "llama tp2": (2, "llama", {"tp": 2, "micro_batch": 4, "boundary": "sharded"}),
    "deepseek tp2": (2, "deepseek", {"tp": 2, "micro_batch": 2, "boundary": "sharded"}),
    "llama pp2": (2, "llama", {"pp": 2, "micro_batch": 4, "schedule": "1f1b"}),
    "tp2 pp2": (4, "gpt", {"tp": 2, "pp": 2, "dp": 1, "micro_batch": 4, "schedule": "1f1b", "recompute": "on"}),
    "pp2 dp2": (4, "gpt", {"pp": 2, "tp": 1, "dp": 2, "micro_batch": 2, "schedule": "1f1b"}),
    "dp2, zero 1": (2, "tied", {"dp": 2, "micro_batch": 2, "zero": 1}),
    "dp2, zero 2": (2, "gpt", {"dp": 2, "micro_batch": 2, "zero": 2}),
    "dp2, zero 3": (2, "tied", {"dp": 2, "micro_batch": 2, "zero": 3, "recompute": "on"}),
    "pp2 dp2, zero 1": (4, "tied", {"pp": 2, "tp": 1, "dp": 2, "micro_batch": 2, "schedule": "1f1b", "zero": 1}),
    "tp2 dp2, zero 3": (4, "gpt", {"tp": 2, "pp": 1, "dp": 2, "micro_batch": 4, "zero": 3}),
    "dp4, zero 3 over 2": (4, "gpt", {"dp": 4, "micro_batch": 1, "zero": 3, "zero_group": 2}),
    "tp2 dp2": (4, "gpt", {"tp": 2, "pp": 1, "dp": 2, "micro_batch": 4}),
}


@functools.cache
def graph_of(name: str) -> tuple[Graph, dict[str, torch.Tensor]]:
    spec, settings = MODELS[name]
    source = load(spec, settings, seq=None, batch=BATCH, shrink=spec.startswith("hf:"))
    return trace(source.module, source.batch, compare=False), source.batch


Tally = list[list[object]]  # rows of one rank, each with how often it was sent


class Sent:
    """Of the cases of each number of ranks, what every rank was to send and sent; each world is started once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.failed: dict[int, Exception | None] = {}

    def of(self, name: str) -> list[tuple[Tally, Tally]]:
        """By rank; raises what stopped the ranks at this case or before it."""
        ranks = CASES[name][0]
        if ranks not in self.failed:
            self.failed[ranks] = self.started(ranks)
        files = [self.folder / f"{name}.{rank}.json" for rank in range(ranks)]
        if not all(file.exists() for file in files):
            raise AssertionError(f"{name} was not executed") from self.failed[ranks]
        return [tuple(json.loads(file.read_text())) for file in files]

    def started(self, ranks: int) -> Exception | None:
        names = [name for name, case in CASES.items() if case[0] == ranks]
        for name in names:
            graph, _ = graph_of(CASES[name][1])
            pins: dict[str, str | int] = {"tp": 1, "pp": 1, "dp": 1, "recompute": "off"} | CASES[name][2]
            search(graph, cluster(ranks), BATCH, {"zero": 0} | pins).save(self.folder / f"{name}.json")
        try:
            spawn(execute, ranks, str(self.folder), names)
        except Exception as error:
            return error
        return None


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Sent:
    return Sent(tmp_path_factory.mktemp("traffic"))


_SWEPT = [pytest.param(n, marks=() if case[0] == 2 else pytest.mark.parity) for n, case in CASES.items()]


@pytest.mark.parametrize("name", _SWEPT)
def test_every_rank_sends_what_is_predicted(name: str, sent: Sent) -> None:
    rows = sent.of(name)
    assert len(rows) == CASES[name][0]
    for predicted, logged in rows:
        assert logged == predicted
        axes = {axis for axis, n in CASES[name][2].items() if axis in AXES and n != 1}
        assert {row[0].partition("_")[0] for row in logged} == axes  # the parts of dp are named after it


AXES = ("tp", "pp", "dp")


def test_a_backward_whose_weights_are_put_off_communicates_once() -> None:
    graph, _ = graph_of("gpt")
    program = lower(graph, search(graph, cluster(2), BATCH, {"tp": 2, "micro_batch": 4}))
    (row,) = program.actions
    weights = tuple(Action(a.stage, WEIGHT_GRADIENT, a.micro_batch) for a in row if a.kind == BACKWARD)
    assert any(sending.phase == "backward" for sending in traffic(program))
    assert traffic(replace(program, actions=((*row, *weights),))) == traffic(program)


def execute(rank: int, folder: str, names: list[str]) -> None:
    """One step of each case; writes what this rank was to send, and what it sent."""
    for name in names:
        graph, batch = graph_of(CASES[name][1])
        program = lower(graph, Plan.load(Path(folder) / f"{name}.json"))
        groups = Groups(program)
        source = from_seed(0, lambda _, shape: torch.randn(shape) * 0.02)
        parameters = materialize(program, groups.coordinates, source, "cpu")
        engine = Engine(program, groups, parameters, factory(torch.optim.SGD, lr=0.1), clip=1.0)
        each = program.micro_batch * program.micro_batches
        first = groups.coordinates["dp"] * each
        groups.log.keep = True
        engine.step({k: t[first : first + each] for k, t in batch.items()})
        tallies = [_rows(tally(traffic(program, rank))), _rows(tally(groups.log.rows))]
        (Path(folder) / f"{name}.{rank}.json").write_text(json.dumps(tallies))


def _rows(found: Counter[tuple[str, str, str, int]]) -> Tally:
    return sorted([*row, count] for row, count in found.items())
