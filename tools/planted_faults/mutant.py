"""The Mutant noun, and how a module of a Program is edited into one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import fx

from partitioner.lowering.program import Program
from runtime.train.engine import Engine

Edit = Callable[[fx.Node], None]


def _nothing(engine: Engine) -> None:
    """No fault in the engine."""


@dataclass(frozen=True)
class Mutant:
    """A fault: the Program that has it, and what is done to the engine."""

    name: str
    program: Program
    prepare: Callable[[Engine], object] = _nothing


def modules(program: Program) -> list[fx.GraphModule]:
    """Each once."""
    return list({id(c.module): c.module for s in program.stages for c in s.calls}.values())


def edited(program: Program, module: fx.GraphModule, index: int, edit: Edit) -> Program:
    """The Program with ``edit`` done to node ``index`` of every use of ``module``."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    node = list(graph.nodes)[index]
    edit(node)
    graph.lint()
    new = fx.GraphModule(module, graph)
    stages = tuple(
        replace(s, calls=tuple(replace(c, module=new) if c.module is module else c for c in s.calls))
        for s in program.stages
    )
    return replace(program, stages=stages)


def bypass(node: fx.Node) -> None:
    """Who reads it reads what it reads."""
    node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
    node.graph.erase_node(node)
