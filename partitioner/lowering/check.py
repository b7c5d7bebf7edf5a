"""Is this Graph, Plan or Program legal? Called at every door between the rooms, in production too.

A plan file can be broken by hand, so what is wrong with a Plan is an InputError. A Graph or a Program that is not legal
is a fault of this package: a ValueError.
"""

from __future__ import annotations

import operator

from torch import fx

from partitioner.errors import InputError
from partitioner.graph.graph import Graph, loss_node
from partitioner.graph.tied_blocks import Folded
from partitioner.layouts.strategies import space
from partitioner.lowering.program import Call, Program, Stage
from partitioner.ops.autograd_functions import AutogradCall
from partitioner.ops.collectives import OPS
from partitioner.plan.plan import Plan
from partitioner.schedule.tables import Action, rank_of
from partitioner.solve.solve import Solution


def check_graph(graph: Graph) -> None:
    """Every op is functional, its value known; the units cover in order what has a gradient; the loss is a scalar."""
    graph.module.graph.lint()
    for node in graph.module.graph.nodes:
        _check_node(node)
    free = {*graph.constants, *graph.prelude}
    body = [n.name for n in graph.module.graph.nodes if n.op == "call_function" and n.name not in free]
    if [name for unit in graph.units for name in unit.nodes] != body:
        raise ValueError("the units do not cover, in order, the ops that have a gradient")
    loss = loss_node(graph.module.graph).meta["val"]
    if loss.dim() or not loss.is_floating_point():
        raise ValueError(f"the graph returns {tuple(loss.shape)} of {loss.dtype}, not a loss")


def _check_node(node: fx.Node) -> None:
    if node.op == "output":
        return
    if node.op not in ("placeholder", "call_function"):
        raise ValueError(f"{node.name}: a {node.op} node can't stand in a Graph")
    schema = getattr(node.target, "_schema", None)
    if schema is not None and schema.is_mutable:
        raise ValueError(f"{node.name}: {node.target} changes its operand")
    known = node.target is operator.getitem or isinstance(node.target, AutogradCall)
    if node.op == "call_function" and schema is None and not known:
        raise ValueError(f"{node.name}: {node.target} is not an op")
    if "val" not in node.meta:
        raise ValueError(f"{node.name}: {node.target} has no known value")


def check_plan(plan: Plan) -> None:
    """The decisions agree with one another and with the global batch; raises InputError naming those that do not."""
    decisions = plan.decisions
    mesh = decisions.mesh
    samples = mesh["dp"] * decisions.micro_batch * decisions.micro_batches
    if samples != plan.global_batch:
        raise InputError(
            f"the plan's dp x micro_batch x micro_batches is {samples}, "
            f"not its global batch {plan.global_batch}: plan again"
        )
    if len(decisions.stages) != mesh["pp"] * decisions.virtual:
        raise InputError(
            f"the plan has {len(decisions.stages)} stages for pp {mesh['pp']} x virtual {decisions.virtual}: plan again"
        )


def check_layouts(folded: Folded, solution: Solution, ranks: int) -> None:
    """Every op runs in a way that its rule allows on ``ranks``; raises InputError naming the first that does not."""
    options = space(folded, ranks).strategies
    for node, strategy in solution.strategies.items():
        if strategy not in options[node]:
            operands = ", ".join(map(str, strategy.operands))
            raise InputError(
                f"the plan runs {node.name} as {operands} -> {strategy.result}, "
                f"which the rule of {node.target} does not allow: plan again"
            )


def check_program(program: Program) -> None:
    """What is read was made, what is sent is received, every axis exists, every stage runs every micro-batch once."""
    everywhere = {*program.step_inputs, *(f"buffer:{name}" for name in program.buffers)}
    arriving: tuple[object, ...] = ()
    for stage in program.stages:
        if stage.receives != arriving:
            raise ValueError(f"stage {stage.index} does not receive what the stage before it sends")
        _check_stage(stage, everywhere | program.parameters.keys() & set(stage.parameters), dict(program.axes))
        arriving = stage.sends
    if arriving or program.stages[-1].loss is None:
        raise ValueError("the last stage must make the loss and send nothing")
    _check_actions(program)


def _check_stage(stage: Stage, known: set[str], axes: dict[str, int]) -> None:
    known |= {v.name for v in stage.receives}
    for call in (stage.constants, stage.prelude, *stage.calls):
        if call is not None:
            _check_call(call, known, axes)
            known.update(call.results)
    for name in (*(v.name for v in stage.sends), *([stage.loss] if stage.loss else [])):
        if name not in known:
            raise ValueError(f"stage {stage.index} does not make {name}")


def _check_call(call: Call, known: set[str], axes: dict[str, int]) -> None:
    nodes = list(call.module.graph.nodes)
    read = [n for n in nodes if n.op == "placeholder"]
    made = next(n for n in nodes if n.op == "output").args[0]
    assert isinstance(made, tuple | list)
    if (len(read), len(made)) != (len(call.arguments), len(call.results)):
        raise ValueError(f"{call.block} is called with {len(call.arguments)} arguments for {len(call.results)} results")
    for name in call.arguments:
        if name not in known:
            raise ValueError(f"{call.block} reads {name}, which nothing before it makes")
    for node in nodes:
        if str(node.target) in _AXIS and node.args[1] not in axes:
            raise ValueError(f"{node.name} of {call.block} communicates over {node.args[1]!r}, which is no axis")


_AXIS = {f"partitioner.{name}.default" for name in OPS}


def _check_actions(program: Program) -> None:
    pp = program.mesh["pp"]
    rows = [(rank, action) for rank, row in enumerate(program.actions) for action in row]
    wanted = {
        Action(stage.index, kind, m) for stage in program.stages for kind in "FB" for m in range(program.micro_batches)
    }
    if len(rows) != len(wanted) or {action for _, action in rows} != wanted:
        raise ValueError("the action table does not run each stage once forward and once backward a micro-batch")
    for rank, action in rows:
        if rank_of(action.stage, pp) != rank:
            raise ValueError(f"{action} stands in the row of pipeline rank {rank}")
