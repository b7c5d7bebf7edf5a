"""A dry run passes what is right and names what is not; its traffic is that of real ranks, row by row."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx
from torch.nn import functional as F

from partitioner import Graph, Plan, Program, lower, search, trace
from partitioner.lowering.parameter_bytes import held_bytes
from partitioner.lowering.sent_by_call import Sending
from partitioner.plan.executed import EXECUTED
from partitioner.schedule.tables import Action
from runtime.dry_run.dry_run import Rank, alike, run_ranks
from runtime.mesh import vocab_parallel
from runtime.mesh.axis import Axis
from runtime.mesh.communication_log import Log
from runtime.mesh.groups import Groups
from runtime.state.module_start import from_seed
from runtime.state.optimizer import factory
from runtime.state.parameters import materialize
from runtime.train.engine import Engine
from tests.runtime.plans import spawn
from tools.models.load import Source, load
from tools.verify.plan_families import cluster, families

SMALL: dict[str, object] = {"vocab": 100, "hidden": 32, "layers": 4, "heads": 4, "seq": 16}
MODELS: dict[str, tuple[str, dict[str, object]]] = {
    "gpt": ("examples/gpt.py:model", SMALL | {"tied": True, "dropout": 0.1}),
    "llama": ("hf:llama", {}),
    "mixtral": ("hf:mixtral", {"num_hidden_layers": 2}),
}
Prepare = Callable[[Engine], object]


@functools.cache
def model(name: str, batch: int) -> tuple[Source, Graph]:
    spec, settings = MODELS[name]
    source = load(spec, settings, batch=batch, meta=True, shrink=spec.startswith("hf:"))
    return source, trace(source.module, source.batch, compare=False)


def planned(name: str, ranks: int, batch: int, **pins: str | int) -> tuple[Plan, Program, dict[str, torch.Tensor]]:
    source, graph = model(name, batch)
    plan = search(graph, cluster(ranks), batch, {"recompute": "off", "zero": 0, **pins})
    return plan, lower(graph, plan), source.batch


def problems(rows: list[Rank]) -> dict[int, list[str]]:
    return {row.rank: row.problems for row in rows if row.problems}


SOME = [pytest.param(*row, marks=pytest.mark.parity) for row in (("gpt", 8), ("llama", 4), ("mixtral", 4))]


@pytest.mark.parametrize(("name", "ranks"), [("gpt", 4), *SOME])
def test_every_family_passes_in_this_process(name: str, ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = 2 * ranks
    source, graph = model(name, batch)
    monkeypatch.setattr(os, "fork", None)
    monkeypatch.setattr(subprocess, "Popen", None)
    for family in families(graph, ranks, batch):
        plan = search(graph, cluster(ranks), batch, family.pins)
        rows = run_ranks(lower(graph, plan), source.batch, lambda place, plan=plan: held_bytes(graph, plan, place))
        assert problems(rows) == {}, family.name
        assert sorted(rank for row in rows for rank in row.stands_for) == list(range(ranks))
        assert all(row.matched and row.ops and row.parameter_bytes and row.count() for row in rows)


class Clip(torch.autograd.Function):
    """A backward of its own, with no gradient for its bound."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, bound: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, bound)
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        x, bound = ctx.saved_tensors
        return (gradient * (1 - x.tanh() ** 2)).clamp(-bound, bound), None


class Clipped(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(4))
        self.bound = torch.nn.Parameter(torch.ones(8))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + F.linear(Clip.apply(block(x) * 2, self.bound), block.weight)
        return F.cross_entropy(x.flatten(0, 1), labels.flatten())


@pytest.mark.parametrize("recompute", EXECUTED["recompute"].executed)
@pytest.mark.parametrize("pins", [{"tp": 2}, {"pp": 2}, {"dp": 2}])
def test_an_autograd_function_runs_without_values(pins: dict[str, str | int], recompute: str) -> None:
    batch = {"x": torch.randn(4, 3, 8), "labels": torch.zeros(4, 3, dtype=torch.int64)}
    graph = trace(Clipped(), batch)
    plan = search(graph, cluster(2), 4, {"recompute": recompute, "zero": 0, **pins})
    assert problems(run_ranks(lower(graph, plan), batch)) == {}
    assert any("autograd.Function[Clip] in" in note and "replicated" in note for note in plan.notes)


def test_ranks_that_are_alike_do_the_same() -> None:
    _, program, batch = planned("gpt", 8, 16, tp=2, pp=2, dp=2, schedule="1f1b")
    folded, all_ranks = run_ranks(program, batch), run_ranks(program, batch, merge=False)
    assert [len(row.stands_for) for row in folded] == [2, 2, 2, 2]
    for row in folded:
        for rank in row.stands_for:
            other = all_ranks[rank]
            assert (row.tape.log.rows, row.parameters) == (other.tape.log.rows, other.parameters)
            assert row.tape.entries == other.tape.entries


def test_ranks_of_uneven_parts_are_told_apart() -> None:
    _, program, _ = planned("gpt", 8, 16, tp=8, boundary="whole")
    assert [len(ranks) for ranks in alike(program).values()] == [1, 3, 4]  # 100 rows of the embedding on 8 ranks


@pytest.mark.parametrize("pins", [{"tp": 2, "pp": 2, "schedule": "1f1b"}, {"dp": 2, "pp": 2, "virtual": 2, "tp": 1}])
def test_a_played_micro_batch_is_what_it_would_be(pins: dict[str, str | int]) -> None:
    kind = "interleaved" if "virtual" in pins else "1f1b"
    _, program, batch = planned("gpt", 4, 16, **{**pins, "micro_batch": 2, "schedule": kind, "recompute": "on"})
    assert program.micro_batches >= 4
    for played, executed in zip(run_ranks(program, batch), run_ranks(program, batch, every=True), strict=True):
        assert played.tape.ops == executed.tape.ops
        assert played.tape.entries == executed.tape.entries
        assert played.tape.log.rows == executed.tape.log.rows


@functools.cache
def piped() -> tuple[Plan, Program, dict[str, torch.Tensor]]:
    return planned("llama", 2, 8, tp=1, dp=1, pp=2, micro_batch=2, schedule="1f1b")


def of(place: dict[str, int], prepare: Prepare) -> Prepare:
    """``prepare`` on the ranks of this place alone."""
    return lambda engine: prepare(engine) if place.items() <= dict(engine.groups.coordinates).items() else None


def test_a_swapped_send_is_named() -> None:
    _, program, batch = piped()

    def swap(engine: Engine) -> None:
        row = list(engine.worker.actions)
        first, second = row.index(Action(0, "F", 1)), row.index(Action(0, "F", 2))
        row[first], row[second] = row[second], row[first]
        engine.worker.actions = tuple(row)

    found = problems(run_ranks(program, batch, prepare=of({"pp": 0}, swap)))
    assert list(found) == [0]
    assert any("for 1F2" in w and "meets recv from rank 0" in w and "for 1F1" in w for w in found[0])


def test_a_swapped_receive_is_named() -> None:
    _, program, batch = piped()

    def swap(engine: Engine) -> None:
        lane = engine.worker.transport._lanes[0, "F"]
        lane.order = (*lane.order[:1], lane.order[2], lane.order[1], *lane.order[3:])

    assert any("meets" in w for rows in problems(run_ranks(program, batch, prepare=of({"pp": 1}, swap))).values()
               for w in rows)  # fmt: skip


def test_communicators_that_would_wait_for_each_other_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were they not made before the step: rank 0 asks for a gradient before it sends the last of its values."""
    _, program, batch = planned("gpt", 2, 8, tp=1, dp=1, pp=2, micro_batch=2, schedule="gpipe")
    assert problems(run_ranks(program, batch)) == {}
    monkeypatch.setattr(Groups, "_meet", lambda self: None)
    found = problems(run_ranks(program, batch))
    assert all("deadlock: it waits in recv from rank" in words for rank in (0, 1) for words in found[rank])
    assert problems(run_ranks(program, batch, backend="gloo")) == {}


def test_a_wrong_shape_between_stages_is_named() -> None:
    _, program, batch = piped()
    (value,) = program.stages[0].sends
    wrong = replace(value, shape=(value.shape[0], value.shape[1] // 2, value.shape[2]))
    stages = (replace(program.stages[0], sends=(wrong,)), replace(program.stages[1], receives=(wrong,)))
    found = problems(run_ranks(replace(program, stages=stages), batch))
    assert found[1][0].startswith("1F0: model.layers.")
    assert "is invalid for input of size" in found[1][0]


def test_a_wrong_local_shape_is_named_with_its_block_and_line() -> None:
    plan, _, batch = planned("llama", 2, 8, tp=2, pp=1, dp=1, boundary="whole")
    program = lower(model("llama", 8)[1], plan)
    call = next(c for c in program.stages[0].calls if _reshapes(c.module))
    node = _reshapes(call.module)[0]
    shape = list(node.args[1])  # type: ignore[arg-type]
    node.args = (node.args[0], [*shape[:-1], 7])
    call.module.recompile()
    (words,) = problems(run_ranks(program, batch))[0]
    assert words.startswith(f"0F0: {call.block}: ")
    assert "reshape" in words
    assert "invalid" in words


def _reshapes(module: fx.GraphModule) -> list[fx.Node]:
    return [n for n in module.graph.nodes if n.target == torch.ops.aten.reshape.default]


def test_a_missing_collective_is_named() -> None:
    _, program, batch = planned("gpt", 4, 16, tp=2, pp=1, dp=2, boundary="sharded")

    def forget(engine: Engine) -> None:
        inner = engine._sync._sum
        engine._sync._sum = lambda flat, tied, axis: None if axis == "tp" else inner(flat, tied, axis)  # type: ignore[method-assign]

    found = problems(run_ranks(program, batch, merge=False, prepare=of({"tp": 1, "dp": 0}, forget)))
    assert found[1][0].startswith("tp all_reduce sync of ")
    assert found[1][0].endswith("sent 0 times, predicted 1 times")
    assert any("meets" in w or "deadlock" in w for rank in (0, 1, 2) for w in found.get(rank, []))


def test_a_collective_that_no_log_holds_is_named() -> None:
    _, program, batch = planned("gpt", 4, 16, tp=2, pp=1, dp=2, boundary="sharded")

    def more(engine: Engine) -> None:
        inner = engine._norm
        engine._norm = lambda: (torch.distributed.all_reduce(torch.zeros((), device="meta")), inner())[1]  # type: ignore

    found = problems(run_ranks(program, batch, prepare=more))
    assert "all_reduce of 4 bytes is sent, its log holds nothing" in found[0][0]


def test_a_deadlock_is_named() -> None:
    _, program, batch = piped()
    program = replace(program, micro_batches=2, actions=(_row(0, "FBFB"), _row(1, "FFBB")))
    found = problems(run_ranks(program, batch))
    assert found[0][0].startswith("deadlock: it waits in recv from rank 1 of ")
    assert "rank 1, which waits in recv from rank 0" in found[0][0]
    assert "for 1F1" in found[1][0]


def _row(stage: int, kinds: str) -> tuple[Action, ...]:
    return tuple(Action(stage, kind, kinds[:n].count(kind)) for n, kind in enumerate(kinds))


def test_a_parameter_of_another_size_is_named() -> None:
    plan, program, batch = piped()
    name = "model.embed_tokens.weight"
    rows, columns = program.parameters[name].shape
    wide, graph = replace(program.parameters[name], shape=(rows + 8, columns)), model("llama", 8)[1]
    planted = replace(program, parameters=program.parameters | {name: wide})
    found = problems(run_ranks(planted, batch, lambda place: held_bytes(graph, plan, place)))
    assert list(found) == [0]
    assert found[0][0].startswith(f"{name} has ")
    assert "predicted are" in found[0][0]


def _compare(rank: int, folder: str, wanted: list[list[Sending]]) -> None:
    source = load(*MODELS["gpt"], batch=16)
    graph = trace(source.module, source.batch, compare=False)
    program = lower(graph, Plan.load(Path(folder) / "plan.json"))
    groups = Groups(program)
    read = from_seed(0, lambda _, shape: torch.randn(shape) * 0.02)
    parameters = materialize(program, groups.coordinates, read, "cpu")
    engine = Engine(program, groups, parameters, factory(torch.optim.AdamW, lr=0.1), clip=1.0)
    each = program.micro_batch * program.micro_batches
    first = groups.coordinates["dp"] * each
    groups.log.keep = True
    engine.step({k: t[first : first + each] for k, t in source.batch.items()})
    assert groups.log.rows == [Sending(*row) for row in wanted[rank]]


@pytest.mark.parity
def test_the_traffic_is_that_of_real_ranks(tmp_path: Path) -> None:
    plan, program, batch = planned("gpt", 4, 16, tp=2, pp=2, dp=1, micro_batch=4, schedule="1f1b", recompute="on")
    plan.save(tmp_path / "plan.json")
    rows = run_ranks(program, batch, backend="gloo", merge=False)
    assert problems(rows) == {}
    spawn(_compare, 4, str(tmp_path), [[tuple(row) for row in rank.tape.log.rows] for rank in rows])


def test_ops_on_meta_pass_gradients_back() -> None:
    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta", requires_grad=dtype.is_floating_point)

    x, keys = empty(2, 4, 6), empty(2, dtype=torch.int64)
    rows, weight, expert = empty(8, 6), empty(3, 6, 5), empty(8, dtype=torch.int64)
    torch.ops.partitioner.dropout(x, 0.1, keys, 0).sum().backward()
    torch.ops.partitioner.expert_linear(rows, weight, expert).sum().backward()
    divided = vocab_parallel.dropout(Axis("tp", 0, 2, None, Log(), True), 0.1, 0, 1, [1, 8, 1])  # type: ignore[arg-type]
    y = empty(2, 4, 6)
    divided(y, keys).sum().backward()
    for tensor in (x, rows, weight, y):
        assert tensor.grad is not None
        assert tensor.grad.shape == tensor.shape
    with pytest.raises(RuntimeError, match="batch2"):
        torch.ops.partitioner.expert_linear(empty(8, 7), weight, expert)
