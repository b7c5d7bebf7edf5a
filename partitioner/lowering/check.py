"""Is this Program legal? One that is not is a fault of this package: a ValueError."""

from __future__ import annotations

from partitioner.graph.nodes import buffer_name
from partitioner.lowering.program import Call, Program, Stage
from partitioner.ops.payloads import RANK_OPS, axis_place
from partitioner.schedule.tables import SENDING, Action
from partitioner.sharding.mesh_axes import whole


def check_program(program: Program) -> None:
    """What is read was made, what is sent is received, every axis exists, every stage runs every micro-batch once."""
    everywhere = {*program.step_inputs, *(buffer_name(name) for name in program.buffers)}
    axes = {name for axis, _ in program.axes for name in (axis, whole(axis))}
    arriving: tuple[object, ...] = ()
    for stage in program.stages:
        if stage.receives != arriving:
            raise ValueError(f"stage {stage.index} does not receive what the stage before it sends")
        _check_stage(stage, everywhere | program.parameters.keys() & set(stage.parameters), axes)
        arriving = stage.sends
    if arriving or program.stages[-1].loss is None:
        raise ValueError("the last stage must make the loss and send nothing")
    _check_actions(program)


def _check_stage(stage: Stage, known: set[str], axes: set[str]) -> None:
    known |= {v.name for v in stage.receives}
    for call in (stage.constants, stage.prelude, *stage.calls):
        if call is not None:
            _check_call(call, known, axes)
            known.update(call.results)
    for name in (*(v.name for v in stage.sends), *([stage.loss] if stage.loss else [])):
        if name not in known:
            raise ValueError(f"stage {stage.index} does not make {name}")


def _check_call(call: Call, known: set[str], axes: set[str]) -> None:
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
        place = axis_place(node.target) if str(node.target) in RANK_OPS else None
        if place is not None and place < len(node.args) and node.args[place] not in axes:
            raise ValueError(f"{node.name} of {call.block} communicates over {node.args[place]!r}, which is no axis")


def _check_actions(program: Program) -> None:
    rows = [(rank, action) for rank, row in enumerate(program.actions) for action in row]
    kinds = {*SENDING, *(action.kind for _, action in rows)}
    wanted = {
        Action(stage.index, kind, m) for stage in program.stages for kind in kinds for m in range(program.micro_batches)
    }
    if len(rows) != len(wanted) or {action for _, action in rows} != wanted:
        raise ValueError("the action table does not run each stage once forward and once backward a micro-batch")
    for rank, action in rows:
        if program.stages[action.stage].rank != rank:
            raise ValueError(f"{action} stands in the row of pipeline rank {rank}")
