"""What the runtime executes: for each stage a list of calls of rewritten fx GraphModules over named values.

A GraphModule holds no state. Parameters, constants, batch inputs and activations are all named values; a Call says
which of them go in and what names the results get, so that identical blocks share one GraphModule.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import fx

from partitioner.graph.counts import Count
from partitioner.graph.step_inputs import BATCH_SHARE, SAMPLE_COUNT, SAMPLE_KEYS, STEP_KEY
from partitioner.schedule.tables import Action
from partitioner.sharding.layout import Layout
from partitioner.sharding.mesh_axes import DP, REPLICA, SHARD, Axes, whole


@dataclass(frozen=True)
class Value:
    """A tensor that crosses a stage boundary: its name, local shape (one micro-batch, one rank) and dtype.

    ``differentiable``: it has a gradient, which comes back to the stage that sent it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    differentiable: bool


@dataclass(frozen=True, kw_only=True)
class Recompute:
    """Nodes of a module, by name, whose results are dropped until backward, which runs them again: each of ``regions``
    by itself, None for the whole module. Of them, ``kept`` results are held, by what makes them ("product",
    "attention", "collective", "choice"); ``passed`` ones until the collective that alone reads them has run."""

    regions: tuple[frozenset[str], ...] | None = None
    kept: Mapping[str, str] = field(default_factory=dict)
    passed: frozenset[str] = frozenset()

    def runs_again(self, node: str) -> bool:
        """Whether a node of the module does."""
        return node not in self.kept and self.region_of(node) is not None

    def region_of(self, node: str) -> int | None:
        """The number of the region in which a node is."""
        if self.regions is None:
            return 0
        return next((n for n, region in enumerate(self.regions) if node in region), None)


@dataclass(frozen=True)
class Call:
    """``results = module(*arguments)``: one block of a stage. ``recompute``: what of it backward runs again, None for
    nothing."""

    block: str
    module: fx.GraphModule
    arguments: tuple[str, ...]
    results: tuple[str, ...]
    recompute: Recompute | None = None


@dataclass(frozen=True)
class Stage:
    """One (virtual) pipeline stage, which lies on pipeline rank ``rank``.

    ``constants`` depend on buffers only and run once a step; ``prelude`` depends on batch inputs and constants, has no
    gradient, and runs once a micro-batch; ``calls`` are differentiable. ``receives`` come from stage ``index - 1``
    and ``sends`` go to ``index + 1`` (a value that only passes through stands in both). The last stage names ``loss``.
    """

    index: int
    rank: int
    constants: Call | None
    prelude: Call | None
    calls: tuple[Call, ...]
    receives: tuple[Value, ...]
    sends: tuple[Value, ...]
    parameters: tuple[str, ...]
    loss: str | None


@dataclass(frozen=True)
class Parameter:
    """A parameter of the source model as the Program holds it.

    ``shape`` is the full shape. ``layout`` has one placement for each axis of ``Program.axes``; a REPLICATE placement
    means that each rank's gradient is Partial and is summed over that axis once a step. ``stages`` are all stages that
    read it: more than one for a weight tied across stages, whose gradients are summed over those stages once a step.
    ``names`` are all names of the parameter in the source model, the first is the one used everywhere.
    ``requires_grad``: it trains and the loss has a gradient by it; what forward does not read stays as it is.
    ``is_read``: by some op.
    Ops read it in ``dtype``, gradients are added up and summed over ranks in ``gradient_dtype``, and the optimizer
    updates a copy in ``copy_dtype``, or, where that is None, the parameter itself.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool
    layout: Layout
    stages: tuple[int, ...]
    gradient_dtype: torch.dtype
    copy_dtype: torch.dtype | None = None
    is_read: bool = True

    @property
    def held_dtype(self) -> torch.dtype:
        """In which its value is kept from step to step."""
        return self.copy_dtype or self.dtype

    @property
    def can_be_sharded(self) -> bool:
        """Whether dp may divide its state: by rows, in real numbers, where an op reads it."""
        return bool(self.shape) and self.dtype.is_floating_point and self.is_read

    @property
    def name(self) -> str:
        """The name used as a value name in calls."""
        return self.names[0]


@dataclass(frozen=True)
class Program:
    """Everything that a rank needs to run its part.

    Ranks are numbered over ``mesh``, ranks by axis, in the order of ``order`` (last varies fastest).
    ``axes`` are those along which ops lie inside a stage, axes of the mesh or what refines them, and their ranks.
    ``inputs`` are the batch's names, ``batched`` those that carry samples along dimension 0; the others are whole in
    every micro-batch. Calls may also read the inputs of step_inputs.py, and each of ``counts`` by its name, summed over
    the micro-batches of the global batch.
    ``actions[p]`` is what pipeline rank p does, in order. ``buffers`` are the source model's, whole on every rank;
    calls name them ``buffer:NAME``. ``plain`` are the batch's values that are no tensors, as they must stay; ``shapes``
    those that ``inputs`` have in a micro-batch, as they must be. ``loss_scale``: whether the loss is scaled; ``tf32``:
    whether float32 products run in TF32. ``zero``: ZeRO's stage, over groups of ``shards`` neighbouring ranks of dp.
    """

    stages: tuple[Stage, ...]
    parameters: dict[str, Parameter]
    inputs: tuple[str, ...]
    batched: tuple[str, ...]
    counts: tuple[Count, ...]
    mesh: dict[str, int]
    order: tuple[str, ...]
    axes: Axes
    micro_batch: int
    micro_batches: int
    actions: tuple[tuple[Action, ...], ...]
    seed: int
    buffers: dict[str, torch.Tensor]
    plain: Mapping[str, object] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    loss_scale: bool = False
    tf32: bool = False
    zero: int = 0
    shards: int = 1

    @property
    def parts(self) -> dict[str, Axes]:
        """By axis of the mesh that is refined: what refines it, and the ranks of each."""
        found: dict[str, Axes] = {}
        for axis, ranks in (*self.axes, (REPLICA, self.mesh[DP] // self.shards), (SHARD, self.shards)):
            if axis not in self.mesh:
                found[whole(axis)] = (*found.get(whole(axis), ()), (axis, ranks))
        return found

    @property
    def sizes(self) -> dict[str, int]:
        """Ranks along each axis of the mesh, and each that refines one."""
        return dict(self.mesh) | {name: ranks for parts in self.parts.values() for name, ranks in parts}

    def is_sharded(self, parameter: Parameter) -> bool:
        """Whether ranks of dp hold parts of a parameter's state."""
        return self.zero > 0 and self.shards > 1 and parameter.can_be_sharded

    def ranks_of(self, stages: Iterable[int]) -> tuple[int, ...]:
        """The pipeline ranks on which these stages lie, rising."""
        return tuple(sorted({self.stages[n].rank for n in stages}))

    @property
    def counted(self) -> tuple[int, ...]:
        """How many numbers are counted at each level of counts; each level is one sum over data ranks."""
        return tuple(sum(count.numbers for count in level) for level in self.count_levels)

    @property
    def count_levels(self) -> tuple[tuple[Count, ...], ...]:
        """The counts in the order in which they can be summed: those of a level read lower ones only."""
        last = max((count.level for count in self.counts), default=-1)
        return tuple(tuple(c for c in self.counts if c.level == level) for level in range(last + 1))

    @property
    def step_inputs(self) -> set[str]:
        """Names of all that a step gives to calls, beside parameters and buffers."""
        given = {SAMPLE_KEYS, STEP_KEY, SAMPLE_COUNT, BATCH_SHARE}
        return {*self.inputs, *given, *(count.name for count in self.counts)}

    def __str__(self) -> str:
        """Readable Python."""
        return listing(self)


Coordinates = Mapping[str, int]


def coordinates(program: Program) -> list[Coordinates]:
    """Of each rank: its index on each axis of the mesh, and on each that refines one."""
    places = product(*(range(program.mesh[axis]) for axis in program.order))
    rows: list[Coordinates] = [dict(zip(program.order, place, strict=True)) for place in places]
    for axis, parts in program.parts.items():
        names, cells = [name for name, _ in parts], list(product(*(range(ranks) for _, ranks in parts)))
        rows = [{**row, **dict(zip(names, cells[row[axis]], strict=True))} for row in rows]
    return rows


def listing(program: Program) -> str:
    """The text of ``print(program)``."""
    names = _functions(program)
    parts = [_head(program), *(_function(name, module) for module, name in names.items())]
    parts += [_stage(stage, names) for stage in program.stages]
    parts += [f"# rank {p} of pp: {' '.join(map(str, row))}" for p, row in enumerate(program.actions)]
    return "\n\n".join(parts) + "\n"


def _head(program: Program) -> str:
    mesh = " x ".join(f"{axis} {size}" for axis, size in program.mesh.items())
    lines = [f"# mesh {mesh}, {program.micro_batches} micro-batches of {program.micro_batch}"]
    for parameter in program.parameters.values():
        layout = ", ".join(str(p) for p in parameter.layout)
        shape = " x ".join(map(str, parameter.shape)) or "scalar"
        lines.append(f"# {parameter.name}: {shape}, {layout}, on stages {', '.join(map(str, parameter.stages))}")
    return "\n".join(lines)


def _calls(stage: Stage) -> list[Call]:
    return [c for c in (stage.constants, stage.prelude, *stage.calls) if c is not None]


def _functions(program: Program) -> dict[fx.GraphModule, str]:
    """Each distinct module under the name of the first block that runs it."""
    found: dict[fx.GraphModule, str] = {}
    for stage in program.stages:
        for call in _calls(stage):
            name = re.sub(r"\W+", "_", call.block)
            taken = set(found.values())
            found.setdefault(call.module, name if name not in taken else f"{name}_{len(found)}")
    return found


def _function(name: str, module: fx.GraphModule) -> str:
    lines = [line for line in module.code.strip().splitlines() if line.strip()]
    body = "\n".join(re.sub(r";  .* = None$", "", line).rstrip() for line in lines)
    body = body.replace("torch.ops.", "")
    return body.replace("def forward(self, ", f"def {name}(").replace("def forward(self)", f"def {name}()")


def _again(recompute: Recompute) -> str:
    """As a comment."""
    named = "".join(f"{', '.join(sorted(region))} " for region in recompute.regions or ())
    kept = f", but for {', '.join(recompute.kept)}" if recompute.kept else ""
    return f"{named}recomputed in backward{kept}"


def _stage(stage: Stage, names: dict[fx.GraphModule, str]) -> str:
    lines = [f"# stage {stage.index}"]
    if stage.receives:
        lines.append(f"# receives {', '.join(f'{v.name} {list(v.shape)}' for v in stage.receives)}")
    for call in _calls(stage):
        results = ", ".join(f"v[{r!r}]" for r in call.results)
        arguments = ", ".join(f"v[{a!r}]" for a in call.arguments)
        again = f"  # {_again(call.recompute)}" if call.recompute else ""
        lines.append(f"{results}, = {names[call.module]}({arguments}){again}")
    if stage.sends:
        lines.append(f"# sends {', '.join(f'{v.name} {list(v.shape)}' for v in stage.sends)}")
    if stage.loss:
        lines.append(f"loss = v[{stage.loss!r}]")
    return "\n".join(lines)
