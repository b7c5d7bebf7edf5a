"""Illegal Graphs, Plans and Programs are refused at the door, each for its own fault."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import replace

import pytest
from small_plans import graph_of

from partitioner import Cluster, Graph, Plan, Program, lower, search
from partitioner.errors import InputError
from partitioner.graph.check import check_graph
from partitioner.hardware.link import Link
from partitioner.lowering.check import check_program
from partitioner.lowering.program import Stage
from partitioner.ops.own_ops import own


@functools.cache
def divided_plan() -> Plan:
    """A plan for ranks whose links are free, so that all that can be divided is."""
    cluster = Cluster.load("local-cpu")
    cluster = replace(cluster, node=Link(1e15, 1.0, 0.0))
    return search(graph_of("gpt"), cluster, 8, {"micro_batch": 2, "tp": 2, "pp": 2})


def _reversed(graph: Graph) -> Graph:
    return replace(graph, units=graph.units[::-1])


def _uncovered(graph: Graph) -> Graph:
    return replace(graph, units=graph.units[1:])


def _vector(graph: Graph) -> Graph:
    """A graph that returns logits."""
    module = copy.deepcopy(graph.module)
    output = next(n for n in module.graph.nodes if n.op == "output")
    output.args = (next(n for n in module.graph.nodes if n.name == graph.units[0].nodes[0]),)
    return replace(graph, module=module)


@pytest.mark.parametrize(("change", "told"), [(_reversed, "cover"), (_uncovered, "cover"), (_vector, "not a loss")])
def test_an_illegal_graph(change: Callable[[Graph], Graph], told: str) -> None:
    check_graph(graph_of("gpt"))
    with pytest.raises(ValueError, match=told):
        check_graph(change(graph_of("gpt")))


def _last(program: Program, **changes: object) -> Program:
    return replace(program, stages=(*program.stages[:-1], replace(program.stages[-1], **changes)))  # type: ignore[arg-type]


def _without_call(program: Program) -> Program:
    return _last(program, calls=program.stages[-1].calls[1:])


def _not_received(program: Program) -> Program:
    return _last(program, receives=())


def _no_loss(program: Program) -> Program:
    return _last(program, loss="nothing")


def _no_parameters(program: Program) -> Program:
    return _last(program, parameters=())


def _one_argument_less(program: Program) -> Program:
    calls: tuple[object, ...] = program.stages[-1].calls
    first = program.stages[-1].calls[0]
    return _last(program, calls=(replace(first, arguments=first.arguments[1:]), *calls[1:]))


def _other_axis(program: Program) -> Program:
    return replace(program, axes=(("ep", 2),))


def _loss_over_another_axis(program: Program) -> Program:
    """A loss that its ranks reduce by themselves, over an axis that is not there."""
    changed = copy.deepcopy(program.stages[-1])
    nodes = (node for call in changed.calls for node in call.module.graph.nodes)
    loss = next(node for node in nodes if node.target == own.cross_entropy.default)
    loss.target, loss.args = own.vocab_parallel_cross_entropy.default, (*loss.args, "ep", [1, 2, 64])
    return replace(program, stages=(*program.stages[:-1], changed))


def _twice(program: Program) -> Program:
    return replace(program, actions=((*program.actions[0], program.actions[0][0]), program.actions[1]))


def _other_rank(program: Program) -> Program:
    return replace(program, actions=program.actions[::-1])


PROGRAMS = [
    (_without_call, "which nothing before it makes"),
    (_not_received, "does not receive"),
    (_no_loss, "does not make nothing"),
    (_no_parameters, "which nothing before it makes"),
    (_one_argument_less, "is called with"),
    (_other_axis, "is no axis"),
    (_loss_over_another_axis, "'ep', which is no axis"),
    (_twice, "action table"),
    (_other_rank, "stands in the row"),
]


@pytest.mark.parametrize(("change", "told"), PROGRAMS)
def test_an_illegal_program(change: Callable[[Program], Program], told: str) -> None:
    program = lower(graph_of("gpt"), divided_plan())
    check_program(program)
    assert all(isinstance(s, Stage) and s.calls for s in program.stages)
    with pytest.raises(ValueError, match=told):
        check_program(change(program))


def _restamped(plan: Plan, **changes: object) -> Plan:
    """A plan whose decisions were changed and whose derived part claims to know."""
    decisions = replace(plan.decisions, **changes)  # type: ignore[arg-type]
    return replace(plan, decisions=decisions).stamped()


def _more_samples(plan: Plan) -> Plan:
    own = plan.parallelism
    return _restamped(plan, parallelism=replace(own, micro_batches=own.micro_batches + 1))


def _one_stage(plan: Plan) -> Plan:
    return _restamped(plan, stages=(tuple(name for stage in plan.decisions.stages for name in stage),))


def _turned_layout(plan: Plan) -> Plan:
    """The first divided linear claims to make its result whole."""
    blocks = list(plan.blocks)
    for b, block in enumerate(blocks):
        for o, op in enumerate(block.ops):
            if "linear" in op.op and op.result[0] not in ("W", "R", "P"):
                ops = (*block.ops[:o], replace(op, result=["W"]), *block.ops[o + 1 :])
                blocks[b] = replace(block, ops=ops)
                return replace(plan, blocks=tuple(blocks))
    raise AssertionError("no linear is divided")


@pytest.mark.parametrize(
    ("change", "told"),
    [(_more_samples, "not its global batch"), (_one_stage, "1 stages for pp 2"), (_turned_layout, "does not allow")],
)
def test_an_illegal_plan(change: Callable[[Plan], Plan], told: str) -> None:
    plan = divided_plan()
    lower(graph_of("gpt"), plan)
    with pytest.raises(InputError, match=told):
        lower(graph_of("gpt"), change(plan))
