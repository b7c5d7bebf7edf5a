"""``lower``: a Graph and a Plan become a Program; collectives stand where placements differ, literals are local.

graph + plan --> the chosen layouts --> one GraphModule a kind of block --> calls, stages, parameters --> Program
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import fx

from partitioner.emit.block_code import Emitted, emit
from partitioner.emit.product_rows import with_kernels
from partitioner.errors import InputError
from partitioner.graph.graph import Graph, ParameterInfo, Unit, has_gradient, placeholders, reached, stage_units
from partitioner.graph.nodes import is_parameter, operands, shape_of, value_name
from partitioner.graph.resize_batch import resize
from partitioner.graph.tied_blocks import Folded, fold
from partitioner.layouts.check import check_layouts
from partitioner.layouts.exports import Export, exports
from partitioner.layouts.from_plan import recall
from partitioner.layouts.run_again import run_again
from partitioner.layouts.solution import Solution
from partitioner.lowering.check import check_program
from partitioner.lowering.gradient_free_calls import extract
from partitioner.lowering.mark_recompute import marked
from partitioner.lowering.program import Call, Parameter, Program, Recompute, Stage, Value
from partitioner.plan.check import check_executed, check_plan
from partitioner.plan.derived_rows import BlockRow
from partitioner.plan.parallelism import Parallelism
from partitioner.plan.plan import Decisions, Plan
from partitioner.sharding.layout import WHOLE, Layout, everywhere, largest_shape


@dataclass(frozen=True)
class _Lowered:
    graph: Graph
    folded: Folded
    solution: Solution
    exports: dict[Unit, tuple[Export, ...]]
    calls: dict[Unit, Call]


def lower(graph: Graph, plan: Plan) -> Program:
    """The Program of ``plan`` for this graph.

    Raises InputError when the plan is stale or was made for another model, naming the first thing that differs.
    """
    check_plan(plan)
    decisions, parallelism = plan.decisions, plan.parallelism
    check_executed(plan)
    graph = resize(graph, parallelism.micro_batch)
    folded = fold(graph)
    solution = recall(plan, folded)
    check_layouts(folded, solution)
    out = exports(folded, solution)
    split = stage_units(graph, decisions.stages)
    again = _Again(parallelism.recompute, _recomputed(split, decisions))
    lowered = _Lowered(graph, folded, solution, out, _calls(folded, solution, plan.blocks, out, again))
    program = Program(
        stages=_stages(lowered, split, parallelism),
        parameters=_parameters(lowered, split),
        inputs=graph.inputs,
        batched=graph.batched,
        counts=graph.counts,
        mesh=dict(parallelism.mesh),
        order=parallelism.order,
        axes=parallelism.axes,
        micro_batch=parallelism.micro_batch,
        micro_batches=parallelism.micro_batches,
        actions=parallelism.actions,
        seed=decisions.seed,
        buffers=dict(graph.buffers),
        plain=graph.plain,
        shapes={
            n: shape_of(node) for n, node in placeholders(graph.module.graph, "input").items() if n in graph.inputs
        },
        zero=parallelism.zero,
        shards=parallelism.shards,
        loss_scale=graph.precision.loss_scale,
        tf32=graph.precision.tf32,
    )
    check_program(program)
    for name, parameter in program.parameters.items():
        ranks = [program.stages[n].rank for n in parameter.stages]
        if program.is_sharded(parameter) and len(set(ranks)) < len(ranks):
            raise InputError(f"two stages of a rank read {name}, which ZeRO can't divide there: plan with zero=0")
    return program


class _Again(NamedTuple):
    """Units that are recomputed, and how."""

    way: str
    units: set[Unit]


def _recomputed(split: list[list[Unit]], decisions: Decisions) -> set[Unit]:
    """The first blocks of each stage, as many as the plan says."""
    rows = zip(split, decisions.recomputed, strict=True)
    return {unit for units, count in rows for unit in [u for u in units if u.is_block][:count]}


def _calls(
    folded: Folded,
    solution: Solution,
    rows: tuple[BlockRow, ...],
    out: dict[Unit, tuple[Export, ...]],
    again: _Again,
) -> dict[Unit, Call]:
    cache: dict[object, Emitted] = {}
    recomputed: dict[object, Recompute | None] = {}
    calls: dict[Unit, Call] = {}
    for group, units in enumerate(folded.groups):
        for unit in units:
            wanted = tuple((unit.nodes.index(e.node.name), e.layout) for e in out[unit])
            key = (group, wanted)
            if key not in cache:
                emitted = emit(folded, solution, group, wanted)
                module = with_kernels(emitted.module, rows[group].products, solution.axes)
                cache[key] = Emitted(module, emitted.inputs)
            arguments = _arguments(folded, solution, unit, cache[key], group)
            names = tuple(e.name for e in out[unit])
            if unit in again.units and key not in recomputed:
                row = run_again(folded, solution, group, again.way)
                recomputed[key] = marked(cache[key].module, row)
            recompute = recomputed[key] if unit in again.units else None
            calls[unit] = Call(unit.name, cache[key].module, arguments, names, recompute)
    return calls


def _arguments(folded: Folded, solution: Solution, unit: Unit, emitted: Emitted, group: int) -> tuple[str, ...]:
    """Names of what the unit itself reads where its representative reads ``emitted.inputs``."""
    first = folded.groups[group][0]
    nodes = folded.graph.nodes
    own: dict[fx.Node, fx.Node] = {}
    for a, b in zip(unit.nodes, first.nodes, strict=True):
        own |= dict(zip(operands(nodes[b]), operands(nodes[a]), strict=True))
    return tuple(_value_name(folded, solution, own[n], folded.port_of.get((group, n))) for n in emitted.inputs)


def _value_name(folded: Folded, solution: Solution, node: fx.Node, port: object) -> str:
    if port is not None:
        representative = folded.node[node]
        layout = solution.ports[port]  # type: ignore[index]
        return Export(node, layout, solution.made(representative) == layout).name
    return value_name(node)


def _stages(lowered: _Lowered, split: list[list[Unit]], parallelism: Parallelism) -> tuple[Stage, ...]:
    graph = lowered.graph
    stage_of = {u: n for n, units in enumerate(split) for u in units}
    made = {e.name: (e, stage_of[u]) for u, rows in lowered.exports.items() for e in rows}
    differentiable = has_gradient(graph.module.graph)
    last: dict[str, int] = {}
    for unit, call in lowered.calls.items():
        for name in call.arguments:
            if name in made:
                last[name] = max(last.get(name, 0), stage_of[unit])
    loss = next(n for n in graph.module.graph.nodes if n.op == "output").all_input_nodes[0]
    last[loss.name] = len(split) - 1
    crossing = [
        tuple(_value(lowered, e, differentiable) for name, (e, n) in made.items() if n <= cut < last.get(name, 0))
        for cut in range(-1, len(split))
    ]
    rows: list[Stage] = []
    for n, units in enumerate(split):
        calls = tuple(lowered.calls[u] for u in units)
        needed = dict.fromkeys(name for c in calls for name in c.arguments)
        prelude = extract(graph, graph.prelude, needed, f"prelude {n}")
        asked = needed | dict.fromkeys(prelude.arguments if prelude else ())
        constants = extract(graph, graph.constants, asked, f"constants {n}")
        final = loss.name if n == len(split) - 1 else None
        rank, read = parallelism.pipeline_rank(n), _read(graph, asked)
        rows.append(Stage(n, rank, constants, prelude, calls, crossing[n], crossing[n + 1], read, final))
    return tuple(rows)


def _read(graph: Graph, names: dict[str, None]) -> tuple[str, ...]:
    return tuple(name for name in names if name in graph.parameters)


def _value(lowered: _Lowered, export: Export, differentiable: set[fx.Node]) -> Value:
    shape = largest_shape(shape_of(export.node), export.layout, lowered.solution.axes)
    return Value(export.name, shape, export.node.meta["val"].dtype, export.node in differentiable)


def _parameters(lowered: _Lowered, split: list[list[Unit]]) -> dict[str, Parameter]:
    nodes = lowered.graph.nodes
    stages: dict[fx.Node, set[int]] = {}
    for n, units in enumerate(split):
        for unit in units:
            for name in unit.nodes:
                for operand in operands(nodes[name]):
                    if is_parameter(operand):
                        stages.setdefault(operand, set()).add(n)
    found: dict[str, Parameter] = {}
    trained = reached(lowered.graph.module.graph)
    for node, readers in stages.items():
        info = lowered.graph.parameters[node.meta["source"]]
        layout = lowered.solution.parameters[lowered.folded.parameter[node]]
        found[info.names[0]] = _parameter(lowered, info, node in trained, layout, tuple(sorted(readers)), True)
    whole = everywhere(WHOLE, lowered.solution.axes)
    for name, info in lowered.graph.parameters.items():  # what no op reads is held, whole, and never changes
        if name not in found:
            found[name] = _parameter(lowered, info, False, whole, (0,), False)
    order = {name: n for n, name in enumerate(lowered.graph.parameters)}
    return dict(sorted(found.items(), key=lambda row: order[row[0]]))


def _parameter(
    lowered: _Lowered, info: ParameterInfo, trains: bool, layout: Layout, stages: tuple[int, ...], is_read: bool
) -> Parameter:
    own, precision = str(info.dtype).removeprefix("torch."), lowered.graph.precision
    copy = precision.state_of(own) if trains else None
    return Parameter(
        names=info.names, shape=info.shape, dtype=info.dtype, requires_grad=trains, layout=layout, stages=stages,
        gradient_dtype=getattr(torch, precision.gradient_of(own)),
        copy_dtype=None if copy is None else getattr(torch, copy), is_read=is_read,
    )  # fmt: skip
