"""Faults to plant: in a Program's modules, in its calls and layouts, or in the engine that runs it.

collectives   each one dropped (shapes kept), each backward flag turned
layouts       a fused weight cut in one run, a sum of Partial gradients forgotten, one too many
calls         a block left out, two blocks' weights exchanged, a micro-batch left out, a literal changed
engine        sums, counts, norms, gradients and keys
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from partitioner.graph.step_inputs import SAMPLE_KEYS
from partitioner.lowering.program import Call, Parameter, Program, Stage
from partitioner.sharding.layout import REPLICATE, WHOLE, Placement, Segment, Shard
from tools.planted_faults.engine_faults import ENGINE
from tools.planted_faults.mutant import Edit, Mutant, bypass, edited, modules

aten, own = torch.ops.aten, torch.ops.partitioner


def mutants(program: Program) -> Iterator[Mutant]:
    """Every fault that this Program can have."""
    for make in (_of_nodes, _of_layouts, _of_calls, _of_engine):
        yield from make(program)


# ---- modules


def _swap(target: object, change: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> Edit:
    """The node calls ``target`` with changed arguments."""

    def edit(node: fx.Node) -> None:
        if target is not None:
            node.target = target  # type: ignore[assignment]
        node.args = change(node.args)

    return edit


def _repeat_own(node: fx.Node) -> None:
    """An all_gather that takes its own part for everybody's."""
    _swap(aten.cat.default, lambda a: ([a[0], a[0]], a[2]))(node)


def _flip(position: int) -> Edit:
    return _swap(None, lambda a: (*a[:position], not a[position], *a[position + 1 :]))


def _own_part(node: fx.Node) -> None:
    """A reduce_scatter that does not reduce."""
    _swap(own.shard.default, lambda a: (*a[:4], True))(node)


def _rotate(node: fx.Node) -> None:
    """An all_to_all whose parts come in another order: split by half the granule."""
    numbers = list(node.args[5])  # type: ignore[arg-type]
    _swap(None, lambda a: (*a[:5], [2 * numbers[0], numbers[1], numbers[2] // 2]))(node)


# op: the fault's name and edit, for two ranks
COLLECTIVES: dict[object, tuple[tuple[str, Edit], ...]] = {
    own.all_reduce.default: (("dropped", bypass), ("backward turned", _flip(2))),
    own.copy.default: (
        ("dropped", bypass),
        ("made an all_reduce", _swap(own.all_reduce.default, lambda a: (*a, True))),
    ),
    own.on_first.default: (("dropped", bypass), ("backward turned", _flip(2))),
    own.all_gather.default: (("dropped", _repeat_own), ("backward turned", _flip(4))),
    own.reduce_scatter.default: (("dropped", _own_part),),
    own.shard.default: (("backward turned", _flip(4)),),
    own.all_to_all.default: (("parts rotated", _rotate),),
}


def _literal(position: int, change: Callable[[Any], Any]) -> Edit:
    return _swap(None, lambda a: (*a[:position], change(a[position]), *a[position + 1 :]))


def _shifted(position: int) -> Edit:
    """The second rank looks for its rows of the vocabulary behind the right place."""
    return _literal(position, lambda s: [s[0], s[1] + 1, s[2]])


_LITERALS: dict[object, tuple[str, Edit]] = {
    aten.layer_norm.default: ("eps", _literal(4, lambda eps: eps * 3)),
    aten.gelu.default: ("derivative", lambda node: setattr(node, "kwargs", {"approximate": "tanh"})),
    own.dropout.default: ("site", _literal(3, lambda site: site + 1)),
    own.vocab_parallel_embedding.default: ("vocabulary offset", _shifted(4)),
}


def _of_nodes(program: Program) -> Iterator[Mutant]:
    for n, module in enumerate(modules(program)):
        nodes = list(module.graph.nodes)
        graded = {n for n in nodes if n.meta.get("differentiable")}
        seen: set[object] = set()
        for index, node in enumerate(nodes):
            where = f"{type(module).__name__ or n} {node.name}"
            if node.target in COLLECTIVES:
                for word, edit in COLLECTIVES[node.target]:
                    if word == "backward turned" and node not in graded:
                        continue  # nothing comes back through it
                    yield Mutant(f"{where}: {word}", edited(program, module, index, edit))
            elif node.target in _LITERALS and node.target not in seen:
                seen.add(node.target)
                word, edit = _LITERALS[node.target]
                if node.target != aten.layer_norm.default or len(node.args) > 4:
                    yield Mutant(f"{where}: {word}", edited(program, module, index, edit))
            elif node.target == aten.add.Tensor and len(node.all_input_nodes) == 2 and aten.add.Tensor not in seen:
                seen.add(node.target)
                yield Mutant(f"{where}: a term left out", edited(program, module, index, bypass))


# ---- layouts


def _with_layout(program: Program, parameter: Parameter, placement: Placement) -> Program:
    changed = replace(parameter, layout=(placement,))
    return replace(program, parameters=program.parameters | {parameter.name: changed})


def _of_layouts(program: Program) -> Iterator[Mutant]:
    ranks = program.axes[0][1]
    seen: set[object] = set()
    for parameter in program.parameters.values() if ranks > 1 else ():
        (placement,) = parameter.layout
        kind = (placement, parameter.shape, parameter.name.rpartition(".")[2])
        if kind in seen or not parameter.requires_grad:
            continue
        seen.add(kind)
        if placement == REPLICATE:
            yield Mutant(f"{parameter.name}: Partial gradient not summed", _with_layout(program, parameter, WHOLE))
        elif placement == WHOLE:
            yield Mutant(f"{parameter.name}: whole gradient summed", _with_layout(program, parameter, REPLICATE))
        elif isinstance(placement, Shard):
            other = _other_cut(placement, ranks)
            if other is not None:
                yield Mutant(f"{parameter.name}: cut in the wrong order", _with_layout(program, parameter, other))


def _other_cut(shard: Shard, ranks: int) -> Shard | None:
    """A division into parts of the same size that takes other elements."""
    segment, *others = shard.segments
    if others:
        return Shard(shard.dim, (Segment(1, ranks, shard.size // ranks),))
    if segment.granule % 2 or not segment.is_even(ranks):
        return None
    return Shard(shard.dim, (Segment(segment.repeat * 2, segment.units, segment.granule // 2),))


# ---- calls


def _of_calls(program: Program) -> Iterator[Mutant]:
    for stage in program.stages:
        twins = [c for c in stage.calls if sum(d.module is c.module for d in stage.calls) > 1]
        if twins:
            yield Mutant(f"{twins[0].block}: left out", _changed(program, stage, _left_out(stage, twins[0])))
            pair = _exchanged(program, twins[0], twins[1])
            yield Mutant(f"{twins[0].block}: weights of {twins[1].block}", _changed(program, stage, pair))
    many = program.micro_batches
    if many > 1:
        rows = tuple(tuple(a for a in row if a.micro_batch < many - 1) for row in program.actions)
        yield Mutant("the last micro-batch left out", replace(program, actions=rows))
    if any(SAMPLE_KEYS in c.arguments for s in program.stages for c in (*s.calls, s.prelude) if c):
        yield Mutant("another seed", replace(program, seed=program.seed + 1))


def _changed(program: Program, stage: Stage, calls: dict[int, Call | None]) -> Program:
    """The Program with these calls of a stage, by position, replaced or left out."""
    rows = [calls.get(n, call) for n, call in enumerate(stage.calls)]
    new = replace(stage, calls=tuple(c for c in rows if c is not None))
    return replace(program, stages=tuple(new if s is stage else s for s in program.stages))


def _left_out(stage: Stage, call: Call) -> dict[int, Call | None]:
    """What reads the block's result reads what the block read: the value that the other calls made."""
    made = {r for c in stage.calls for r in c.results} | {v.name for v in stage.receives}
    (before,) = [name for name in call.arguments if name in made][:1]
    found: dict[int, Call | None] = {stage.calls.index(call): None}
    for n, other in enumerate(stage.calls):
        if set(other.arguments) & set(call.results):
            names = tuple(before if name in call.results else name for name in other.arguments)
            found[n] = replace(other, arguments=names)
    return found


def _exchanged(program: Program, one: Call, two: Call) -> dict[int, Call | None]:
    stage = next(s for s in program.stages if one in s.calls)
    weights = [b if b in program.parameters else a for a, b in zip(one.arguments, two.arguments, strict=True)]
    return {stage.calls.index(one): replace(one, arguments=tuple(weights))}


# ---- engine


def _of_engine(program: Program) -> Iterator[Mutant]:
    for name, (applies, prepare) in ENGINE.items():
        if applies(program):
            yield Mutant(name, program, prepare)
