"""Faults planted in one call of a Program: the first op that differs is the one that has the fault."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from plans import spawn
from torch import fx

from cutlass_ops.linear import gemm
from partitioner import Graph, lower, search, trace
from partitioner.comparing.graph_float64 import promote
from partitioner.graph.nodes import operands
from partitioner.lowering.program import Program
from partitioner.sharding.layout import REPLICATE, WHOLE
from runtime.verify.first_difference import First, explain, first_difference
from runtime.verify.parity import CLIP, LR, STEPS, difference, steps_under
from runtime.verify.plain_steps import train
from tools.models.load import load
from tools.verify.plan_families import cluster

os.environ["OMP_NUM_THREADS"] = "1"
SAMPLES = 4
GPT = {"vocab": 32, "hidden": 16, "layers": 2, "heads": 4, "seq": 8, "dropout": 0.1, "tied": True}
MODELS: dict[str, tuple[str, dict[str, object]]] = {
    "gpt": (str(Path(__file__).parents[3] / "examples" / "gpt.py") + ":model", GPT),
    "llama": ("hf:llama", {"num_hidden_layers": 2}),
}
PINS: dict[str, dict[str, str | int]] = {
    "tp": {"tp": 2, "boundary": "whole"},
    "megatron": {
        "tp": 2, "boundary": "whole", "tokens.weight": "shard:0", "*.attention.out.weight": "shard:1",
        "*.mlp.2.weight": "shard:1",
    },
    "sp": {"tp": 2, "boundary": "sharded"},
    "sp recompute": {"tp": 2, "boundary": "sharded", "recompute": "on"},
    "pp": {"pp": 2, "schedule": "1f1b"},
    "dp": {"dp": 2},
}
aten, own = torch.ops.aten, torch.ops.partitioner
Edit = Callable[[fx.Node], None]


class _Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad / 2


def _then(change: Callable[[torch.Tensor], torch.Tensor]) -> Edit:
    """The op, and behind it something that is not its own."""

    def edit(node: fx.Node) -> None:
        target: Any = node.target
        node.target = lambda *a, **k: change(target(*a, **k))

    return edit


def _args(change: Callable[[tuple[Any, ...]], tuple[Any, ...]], target: object = None) -> Edit:
    def edit(node: fx.Node) -> None:
        node.target, node.args = target or node.target, change(node.args)  # type: ignore[assignment]

    return edit


scaled, halved, cut_off = _then(lambda x: x * 1.001), _then(_Halved.apply), _then(torch.Tensor.detach)
dropped = _args(lambda a: a[:1], aten.clone.default)
own_twice = _args(lambda a: ([a[0], a[0]], a[2]), aten.cat.default)
not_reduced = _args(lambda a: (*a[:4], True), own.shard.default)


def turned(position: int) -> Edit:
    """Another backward flag."""
    return _args(lambda a: (*a[:position], not a[position], *a[position + 1 :]))


def _rotated(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Parts in another order: split by half the granule."""
    repeat, units, granule = arguments[5]
    return (*arguments[:5], [2 * repeat, units, granule // 2])


@dataclass(frozen=True)
class Fault:
    """What is done to the ``which``-th node of a target in one call, counted over all stages."""

    target: object
    edit: Edit
    phase: str
    which: int = 0
    call: int = 1


ADD, GEMM, MATMUL = aten.add.Tensor, gemm.ops.linear.default, aten.matmul.default
FAULTS: dict[tuple[str, str], list[Fault]] = {
    ("gpt", "tp"): [
        Fault(aten.softmax.int, scaled, "forward"),
        Fault(own.all_gather.default, own_twice, "forward", which=1),
        Fault(own.reduce_scatter.default, not_reduced, "forward"),
        Fault(own.dropout.default, _args(lambda a: (*a[:3], a[3] + 7, *a[4:])), "forward", which=1, call=2),
        Fault(aten.gelu.default, halved, "backward"),
        Fault(own.shard.default, turned(4), "backward", call=2),
        Fault(aten.permute.default, cut_off, "backward", which=2),
    ],
    ("gpt", "sp recompute"): [
        Fault(own.all_gather.default, turned(4), "backward", which=2, call=2),
        Fault(aten.layer_norm.default, halved, "backward", which=1),
        Fault(GEMM, scaled, "forward", which=3, call=2),
    ],
    ("llama", "sp"): [
        Fault(aten.rsqrt.default, scaled, "forward", call=3),
        Fault(aten.scaled_dot_product_attention.default, halved, "backward", call=2),
        Fault(own.all_reduce.default, turned(2), "backward", call=3),
        Fault(own.all_reduce.default, dropped, "forward", call=3),
        Fault(own.all_to_all.default, _args(_rotated), "forward", which=2),
    ],
    ("gpt", "pp"): [
        Fault(MATMUL, scaled, "forward", which=1, call=2),
        Fault(ADD, halved, "backward", which=1),
        Fault(aten.div.Tensor, scaled, "forward", call=3),
    ],
    ("gpt", "dp"): [
        Fault(aten.gelu.default, lambda node: setattr(node, "kwargs", {"approximate": "tanh"}), "forward", call=2),
        Fault(GEMM, halved, "backward", which=1),
    ],
}


def _case(model: str, pins: str) -> tuple[Graph, dict[str, torch.Tensor], dict[str, torch.Tensor], Program]:
    """A model in float64, where it starts, its batch, and the Program of the best plan under these pins."""
    source = load(*MODELS[model], seq=8, batch=SAMPLES, shrink=model != "gpt")
    graph = promote(trace(source.module, source.batch, compare=False))
    state = dict(source.module.named_parameters(remove_duplicate=False))
    start = {n: state[n].detach().to(graph.parameters[n].dtype) for n in graph.parameters}
    defaults: dict[str, str | int] = {"tp": 1, "pp": 1, "dp": 1, "recompute": "off", "micro_batch": 1}
    plan = search(graph, cluster(2), SAMPLES, defaults | PINS[pins])
    return graph, start, dict(source.batch), lower(graph, plan)


def _planted(program: Program, fault: Fault) -> tuple[Program, fx.Node]:
    """The Program whose one call has the fault, and the node that has it."""
    calls = [(s, n) for s in program.stages for n in range(len(s.calls))]
    stage, n = calls[fault.call]
    graph = fx.Graph()
    graph.output(graph.graph_copy(stage.calls[n].module.graph, {}))  # type: ignore[arg-type]
    node = [x for x in graph.nodes if x.target == fault.target][fault.which]
    fault.edit(node)
    rows = list(stage.calls)
    rows[n] = replace(rows[n], module=fx.GraphModule(rows[n].module, graph))
    stages = tuple(replace(s, calls=tuple(rows)) if s is stage else s for s in program.stages)
    return replace(program, stages=stages), node


def _expected(graph: Graph, program: Program, fault: Fault, node: fx.Node) -> str:
    """The op's own name at the place of the representative's, with what a conversion converts, a GEMM's bias."""
    unit, name = graph.units[fault.call], node.meta["stands_for"]
    twin = next((u for u in graph.units if name in u.nodes and len(u.nodes) == len(unit.nodes)), None)
    given = [n.meta["stands_for"] for n in node.graph.nodes if n.op == "placeholder"]
    if name in given:
        call = [c for s in program.stages for c in s.calls][fault.call]
        name = call.arguments[given.index(name)].partition(":")[0]
    elif twin:
        name = unit.nodes[twin.nodes.index(name)]
    converts = getattr(fault.target, "namespace", "") == "partitioner" and fault.target != own.dropout.default
    if fault.target == GEMM and node.args[2] is not None:
        return f"{operands(graph.nodes[name])[0].name} + {name}"
    return f"{node.name} of {name}" if converts else name


def _find(rank: int, model: str) -> None:
    wrong: list[str] = []
    for pins in (p for m, p in FAULTS if m == model):
        graph, start, batch, program = _case(model, pins)
        assert first_difference(program, graph, start, batch, "gradient of w") == First("the sync of w", "", "sync")
        for fault in FAULTS[model, pins]:
            planted, node = _planted(program, fault)
            found = first_difference(planted, graph, start, batch, "w")
            wanted = _expected(graph, program, fault, node)
            if (wanted, fault.phase) != (found.op, found.phase):
                wrong.append(f"{pins}: {fault.target}: {found}, not {wanted} ({fault.phase})")
    assert not wrong, wrong


@pytest.mark.parametrize("model", [m if m == "gpt" else pytest.param(m, marks=pytest.mark.parity) for m in MODELS])
def test_the_op_that_has_the_fault_is_named(model: str) -> None:
    spawn(_find, 2, model)


def _explain(rank: int) -> None:
    graph, start, batch, program = _case("gpt", "megatron")
    wanted = train(graph, start, batch, STEPS, CLIP, LR) if rank == 0 else None

    def explained(program: Program) -> First | None:
        found = steps_under(program, start, batch)
        return explain(program, graph, start, batch, difference(found, wanted) if wanted else None)

    assert explained(program) is None
    name = next(n for n, p in program.parameters.items() if p.layout == (REPLICATE,))
    unsynced = replace(program.parameters[name], layout=(WHOLE,))
    found = explained(replace(program, parameters=program.parameters | {name: unsynced}))
    assert found == First(f"the sync of {name}", "", "sync")
    kernel = gemm.wgrad
    gemm.wgrad = lambda *a: kernel(*a) * 1.001
    found = explained(program)
    head = [n.name for n in graph.module.graph.nodes if n.target == aten.linear.default][-1]
    assert found is not None
    assert (found.op, found.phase) == (head, "backward"), "a fused kernel's fault is its linear's"


@pytest.mark.parity
def test_a_plan_that_is_equal_needs_none_and_a_sync_or_a_kernel_is_named() -> None:
    spawn(_explain, 2)


def test_enough_faults_are_planted() -> None:
    faults = [f for rows in FAULTS.values() for f in rows]
    assert len(faults) >= 10
    assert {f.phase for f in faults} == {"forward", "backward"}
