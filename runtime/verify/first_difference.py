"""Where a plan's numbers first leave the plain model's: the op that made the first wrong value or gradient.

plan     of every node of every call: its value, and the gradient it gives to each operand, whole over their axes
plain    the same of the graph's nodes, which the emitted nodes name (``stands_for``)

A conversion's operand and result are one value of the graph, so it only has to keep the gradient that it gets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import fx

from partitioner.comparing.capture_check import LIMIT
from partitioner.graph.dependence import module_path
from partitioner.graph.graph import Graph, Unit, has_gradient
from partitioner.graph.interpret import arguments, samples_of, step_values
from partitioner.graph.nodes import operands
from partitioner.graph.resize_batch import resize
from partitioner.graph.step_inputs import SAMPLE_KEYS
from partitioner.lowering.program import Program
from partitioner.sharding.mesh_axes import DP, Axes
from runtime.execute.worker import BoundCall
from runtime.mesh.groups import Groups
from runtime.ranks.process_group import everywhere
from runtime.train.engine import Engine
from runtime.verify.observe_nodes import Observing, Seen, differs, total, whole
from runtime.verify.parity import Difference, engine_of, own_samples


@dataclass(frozen=True, order=True)
class First:
    """The op, by its name in the graph, and the module it is in ("" for none); ``phase``: forward, backward or sync."""

    op: str
    module: str
    phase: str

    def __str__(self) -> str:
        return f"{self.op} in {self.module} ({self.phase})" if self.module else f"{self.op} ({self.phase})"


@dataclass(frozen=True, order=True)
class _Found:
    """A difference; the earliest is the smallest."""

    backward: bool
    micro_batch: int
    place: tuple[int, ...]
    first: First


def first_difference(
    program: Program, graph: Graph, start: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor], worst: str
) -> First:
    """The first op of one step that differs from the plain model's; called on all ranks, the same on all.

    ``worst`` is what ``parity.Difference`` names: where every op agrees, it is its sync or update that differs.
    """
    engine = engine_of(program, start)
    watched = _watch(engine, graph, program)
    own = own_samples(program, engine.groups, batch)
    engine.gradients(own)
    found: list[_Found] = []
    for m in range(program.micro_batches):
        plain = _plain(program, engine.groups, graph, start, batch, m)
        for row in watched:
            found += row.compare(plain, m, engine.groups)
    rows = everywhere(min(found, default=None))
    differing = [row for row in rows if row is not None]
    return min(differing).first if differing else _behind(worst)


def explain(
    program: Program,
    graph: Graph,
    start: Mapping[str, torch.Tensor],
    batch: Mapping[str, torch.Tensor],
    found: Difference | None,
) -> First | None:
    """``first_difference`` where rank 0's ``found`` is beyond the limit, else None; called on all ranks."""
    differing = found is not None and not found.largest <= LIMIT
    said: list[str] = [found.worst if found is not None and differing else ""]
    if dist.is_initialized():
        dist.broadcast_object_list(said, src=0)
    return first_difference(program, graph, start, batch, said[0]) if said[0] else None


def _behind(worst: str) -> First:
    name = worst.removeprefix("gradient of ")
    return First(f"the sync of {name}" if name != worst else f"the update of {name}", "", "sync")


def _watch(engine: Engine, graph: Graph, program: Program) -> list[_Watched]:
    """Every call of this rank's stages, run by an observer from now on."""
    units = iter(graph.units)
    unit_of = {(s.index, n): next(units) for s in program.stages for n in range(len(s.calls))}
    tracked = {n.name for n in has_gradient(graph.module.graph)}
    rows: list[_Watched] = []
    for index, stage in engine.worker.stages.items():
        calls_here = enumerate(stage.calls)
        new = [_Watched((index, n), unit_of[index, n], c, graph, tracked, program.axes) for n, c in calls_here]
        calls = tuple(w.observed() for w in new)
        engine.worker.stages[index] = replace(stage, calls=calls)
        rows += new
    return rows


@dataclass
class _Watched:
    """A call of a stage; ``seen`` has a row for each micro-batch, in order."""

    place: tuple[int, int]
    unit: Unit
    call: BoundCall
    graph: Graph
    tracked: set[str]
    axes: Axes
    seen: list[Seen] = field(default_factory=list)

    def observed(self) -> BoundCall:
        """The call, observed; what the backward runs again is not kept."""
        rerun = self._observe(lambda seen: None) if self.call.rerun else None
        return replace(self.call, run=self._observe(self.seen.append), rerun=rerun)

    def _observe(self, keep: Callable[[Seen], None]) -> Callable[..., Any]:
        module = self.call.module
        tracked = {n.name for n in module.graph.nodes if set(self.names_of(n)) & self.tracked}

        def run(*values: torch.Tensor) -> Any:
            seen = Seen()
            keep(seen)
            return Observing(module, tracked, seen).run(*values)

        return run

    @cached_property
    def names(self) -> dict[str, str]:
        """The representative's names, and this unit's own at the same place."""
        nodes = self.graph.nodes
        inside = {name: unit for unit in self.graph.units for name in unit.nodes}
        marks = (n.meta["stands_for"] for n in self.call.module.graph.nodes if "stands_for" in n.meta)
        first = next(inside[m] for m in marks if m in inside and len(inside[m].nodes) == len(self.unit.nodes))
        found: dict[str, str] = {}
        for a, b in zip(first.nodes, self.unit.nodes, strict=True):
            found |= {x.name: y.name for x, y in zip(operands(nodes[a]), operands(nodes[b]), strict=True)}
        return found | dict(zip(first.nodes, self.unit.nodes, strict=True))

    def names_of(self, node: fx.Node) -> list[str]:
        """The graph's nodes that a node stands for: its own, or those of the parts of its results."""
        marked = [node] if "stands_for" in node.meta else [u for u in node.users if "stands_for" in u.meta]
        return [self.names[n.meta["stands_for"]] for n in marked] if node.op != "output" else []

    @cached_property
    def covered(self) -> dict[str, list[str]]:
        """By node: what it does of the graph's ops, those that were fused into it among them."""
        nodes = [n for n in self.call.module.graph.nodes if n.op == "call_function"]
        alone = {name for n in nodes for name in self.names_of(n)}
        found: dict[str, list[str]] = {}
        for node in nodes:
            names = [name for name in self.names_of(node) if name in self.unit.nodes]
            for name in names:
                inner = (o.name for o in operands(self.graph.nodes[name]))
                names += [n for n in inner if n in self.unit.nodes and n not in alone and n not in names]
            found[node.name] = sorted(names, key=self.unit.nodes.index)
        return found

    def compare(self, plain: Seen, micro_batch: int, groups: Groups) -> list[_Found]:
        """The first value and the last gradient, in the order of execution, that differ."""
        parts = _gathered(self.seen[micro_batch], self.axes, groups)
        nodes = [n for n in self.call.module.graph.nodes if n.op != "output"]
        values = (n for n in enumerate(nodes) if self._value_differs(n[1], parts, plain))
        gradients = (n for n in reversed([*enumerate(nodes)]) if self._gradient_differs(n[1], parts, plain))
        found: list[_Found] = []
        for backward, row in ((False, next(values, None)), (True, next(gradients, None))):
            if row is not None:
                place = (*self.place, row[0])
                place = tuple(-n for n in place) if backward else place
                found.append(_Found(backward, micro_batch, place, self._first(row[1], backward)))
        return found

    def _first(self, node: fx.Node, backward: bool) -> First:
        phase = "backward" if backward else "forward"
        (name, *_) = self.names_of(node)
        source = self.graph.nodes[name]
        module = next((m for m in reversed(module_path(source)) if m), self.unit.name)
        if node.op == "placeholder":
            return First(f"argument {source.meta.get('source', name)}", self.unit.name, phase)
        if _is_conversion(node):
            return First(f"{node.name} of {name}", module, phase)
        return First(" + ".join(self.covered[node.name]), module, phase)

    def _value_differs(self, node: fx.Node, parts: list[Seen], plain: Seen) -> bool:
        if "layout" not in node.meta or node.name not in parts[0].values:
            return False
        (name,) = self.names_of(node)
        if name not in plain.values:
            return False
        made, shape = [p.values[node.name] for p in parts], plain.values[name].shape
        found = whole(made, node.meta["layout"], self.axes, shape, False)
        return differs(found, plain.values[name], plain.value_floor)

    def _gradient_differs(self, node: fx.Node, parts: list[Seen], plain: Seen) -> bool:
        read = [o for o in node.all_input_nodes if (node.name, o.name) in parts[0].given]
        if node.op != "call_function" or not read:
            return False
        floor = plain.gradient_floor
        if _is_conversion(node):
            (name,) = self.names_of(node)
            return not self._keeps(node, parts, plain.values[name].shape, floor)
        for name in dict.fromkeys(n for o in read for n in self.names_of(o)):
            rows = [plain.given[c, name] for c in self.covered[node.name] if (c, name) in plain.given]
            wholes = [self._given(node, o, parts, plain.values[name].shape) for o in read if self.names_of(o) == [name]]
            if rows and differs(total(wholes), torch.stack(rows).sum(0), floor):
                return True
        return False

    def _given(self, node: fx.Node, operand: fx.Node, parts: list[Seen], shape: torch.Size) -> list[torch.Tensor]:
        return whole([p.given[node.name, operand.name] for p in parts], operand.meta["layout"], self.axes, shape, True)

    def _keeps(self, node: fx.Node, parts: list[Seen], shape: torch.Size, floor: float) -> bool:
        """Whether a conversion gives its operand the gradient that it gets."""
        (operand,) = node.all_input_nodes
        given = self._given(node, operand, parts, shape)
        if node.name not in parts[0].gradients:
            return not any(bool(g.any()) for g in given)
        got = whole([p.gradients[node.name] for p in parts], node.meta["layout"], self.axes, shape, True)
        return not differs(given, got[0], floor)


def _is_conversion(node: fx.Node) -> bool:
    """Whether a node stands for what its one operand stands for."""
    mine, read = node.meta.get("stands_for"), node.all_input_nodes
    return mine is not None and len(read) == 1 and read[0].meta.get("stands_for") == mine


def _plain(
    program: Program,
    groups: Groups,
    graph: Graph,
    start: Mapping[str, torch.Tensor],
    batch: Mapping[str, torch.Tensor],
    micro_batch: int,
) -> Seen:
    """What the plain model makes of this rank's micro-batch, on this rank alone."""
    sized = resize(graph, samples_of(graph, batch))
    values = step_values(sized, batch)
    size = program.micro_batch
    first = (groups.coordinates[DP] * program.micro_batches + micro_batch) * size
    batched = (*graph.batched, SAMPLE_KEYS)
    values = {n: t[first : first + size] if n in batched else t for n, t in values.items()}
    graph = resize(graph, size)
    seen = Seen()
    parameters = {n: start[n].clone().requires_grad_(p.requires_grad) for n, p in graph.parameters.items()}
    tracked = {n.name for n in has_gradient(graph.module.graph)}
    result = Observing(graph.module, tracked, seen).run(*arguments(graph, parameters, values))
    (result[0] if isinstance(result, tuple | list) else result).backward()
    return seen


def _gathered(seen: Seen, axes: Axes, groups: Groups) -> list[Seen]:
    """What every rank along ``axes`` saw, the last varying fastest."""
    found = [seen]
    for axis, ranks in reversed(axes):
        if ranks > 1:
            rows: list[list[Seen]] = [[]] * ranks
            dist.all_gather_object(rows, found, group=groups.group(axis))
            found = [one for row in rows for one in row]
    return found
