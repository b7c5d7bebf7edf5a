"""The Priced noun: a folded graph, its layouts, and what each unit of it takes and keeps of one micro-batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import fx

from partitioner.cluster import Cluster
from partitioner.cost.backward_peak import Peaks, StagePeaks
from partitioner.cost.op_seconds import Seconds
from partitioner.cost.op_work import Setting
from partitioner.graph.graph import Unit
from partitioner.graph.tied_blocks import Folded
from partitioner.hardware.link import Route
from partitioner.layouts.solution import Solution
from partitioner.precision import Precision
from partitioner.sharding.layout import Layout, Shard, partial_axes


@dataclass(frozen=True)
class Stash:
    """What a way of recomputing keeps of a unit until backward, holds at its fullest, and runs again (seconds).

    ``weight_gradient_seconds``: what can't be put off then, for what was rebuilt is let go after backward.
    """

    bytes: float
    peaks: Peaks | StagePeaks
    compute: float = 0.0
    communication: float = 0.0
    weight_gradient_seconds: float = 0.0


class Held(NamedTuple):
    """Of a trained parameter on a rank; ``dtype``: in which it computes, ``partial``: the axes over which its gradient
    is Partial."""

    elements: float
    dtype: torch.dtype
    partial: tuple[str, ...]


class Entering(NamedTuple):
    """A value that a unit reads of earlier ones; ``kept``: its bytes where the unit's backward keeps it."""

    layout: Layout
    bytes: float
    kept: float


@dataclass(frozen=True, kw_only=True)
class UnitCost:
    """One unit, one micro-batch, one rank: compute, exposed communication, and what is kept for backward.

    ``weight_gradient_seconds``: of compute's backward. ``axis_shares``: of communication, by axis of the mesh.
    ``stash``: by way of recomputing, "none" and those of plan/recompute_ways.py; ``last``: its peaks as a stage's last
    unit, whose gradients another stage has sent. ``ports``: what enters. ``collectives`` and ``kernels``: how many
    there are in forward and backward. ``once_seconds``, ``copied_bytes``: of weights in few bits that are quantized
    once a step, and of what all its micro-batches read then. ``surrogate``: seconds as the choice of layouts saw them,
    products modelled and overlap at its best.
    """

    compute: Seconds
    weight_gradient_seconds: float
    communication: Seconds
    axis_shares: Mapping[str, float]
    collectives: tuple[int, int]
    kernels: tuple[int, int]
    stash: Mapping[str, Stash]
    last: Mapping[str, Peaks]
    ports: tuple[Entering, ...]
    flops: float
    once_seconds: float
    copied_bytes: float
    surrogate: float

    @property
    def seconds(self) -> Seconds:
        """Compute and communication."""
        return self.compute + self.communication


@dataclass(frozen=True, eq=False)
class Priced:
    """A folded graph whose layouts are chosen, with the price of each unit, which alike ones share."""

    setting: Setting
    solution: Solution
    cluster: Cluster
    units: Mapping[Unit, UnitCost]

    @property
    def folded(self) -> Folded:
        """What was priced."""
        return self.setting.folded

    @property
    def precision(self) -> Precision:
        """As it was traced."""
        return self.folded.graph.precision

    @property
    def ranks(self) -> int:
        """Over which ops are divided."""
        return self.setting.ranks

    @cached_property
    def routes(self) -> Mapping[str, Route]:
        """Between the ranks of each axis that divides a micro-batch's work."""
        return self.setting.routes(self.cluster)

    @cached_property
    def seconds(self) -> float:
        """Of one micro-batch through all units."""
        return sum(self.units[unit].seconds.total for unit in self.folded.graph.units)

    @cached_property
    def input_bytes(self) -> float:
        """Of the samples of one micro-batch."""
        graph = self.folded.graph
        found = [n.meta["val"] for n in graph.module.graph.nodes if n.op == "placeholder" and n.meta["kind"] == "input"]
        return sum(v.numel() * v.element_size() for v in found) * self.folded.sized.batch / graph.batch

    @cached_property
    def held(self) -> dict[Unit, dict[fx.Node, Held]]:
        """By unit and trained parameter."""
        folded, known = self.folded, dict[fx.Node, Held]()

        def held(node: fx.Node) -> Held:
            alike = folded.parameter[folded.own(node)]
            if alike not in known:
                layout, value = self.solution.parameters[alike], node.meta["val"]
                elements = value.numel() * self.setting.share(node, layout)
                known[alike] = Held(elements, value.dtype, partial_axes(layout, self.solution.axes))
            return known[alike]

        return {unit: {n: held(n) for n in found} for unit, found in folded.graph.trained.items()}

    @cached_property
    def frozen(self) -> dict[Unit, dict[fx.Node, float]]:
        """Bytes on a rank by unit and parameter that nothing trains, as ops read it."""
        folded, rows = self.folded, self.folded.graph.frozen.items()
        layout = {n: self.solution.parameters[folded.parameter[folded.own(n)]] for _, found in rows for n in found}
        return {unit: {n: self.setting.bytes(n, layout[n]) for n in found} for unit, found in rows}

    @cached_property
    def unit_states(self) -> dict[tuple[Unit, frozenset[fx.Node]], tuple[float, ...]]:
        """What was found of units, without parameters that others of their stage read (step/sharded_peaks.py)."""
        return {}

    @cached_property
    def place(self) -> dict[Unit, int]:
        """Of each unit, how many come before it."""
        return {unit: n for n, unit in enumerate(self.folded.graph.units)}

    @cached_property
    def crossing(self) -> list[float]:
        """Bytes that a micro-batch hands on at a cut before a unit: what earlier ones have made and later ones read."""
        return self._crossing(scattered=False)

    @cached_property
    def sent(self) -> list[float]:
        """``crossing``, as a rank sends it."""
        return self._crossing(self.cluster.software.scatter_sends)

    @cached_property
    def returned(self) -> list[float]:
        """Bytes of the gradients that come back over each cut: of ``crossing``, what has one."""
        return self._crossing(scattered=False, differentiable=True)

    @cached_property
    def returned_to_maker(self) -> list[float]:
        """``returned``, as far as the unit before the cut has made what it is the gradient of."""
        found = [0.0] * (len(self.folded.graph.units) + 1)
        for (node, _), (made, last, size) in self.spans.items():
            if made < last and self._has_gradient(node):
                found[made + 1] += size
        return found

    @cached_property
    def sent_back(self) -> list[float]:
        """``returned``, as a rank sends it."""
        return self._crossing(self.cluster.software.scatter_sends, differentiable=True)

    @cached_property
    def spans(self) -> dict[tuple[fx.Node, Layout], tuple[int, int, float]]:
        """Of each value that units hand on: the places of its maker and of its last reader, and bytes."""
        units, home = self.folded.graph.units, self.folded.home
        found = {}
        for n, unit in enumerate(units):
            for node, port in zip(self.folded.entering[unit], self.unit(unit).ports, strict=True):
                found[node, port.layout] = self.place[home[node]], n, port.bytes
        return found

    def _crossing(self, scattered: bool, differentiable: bool = False) -> list[float]:
        found = [0.0] * (len(self.folded.graph.units) + 1)
        for (node, layout), (made, last, size) in self.spans.items():
            if differentiable and not self._has_gradient(node):
                continue
            part = size / self._holders(layout) if scattered else size
            for cut in range(made + 1, last + 1):
                found[cut] += part
        return found

    def _has_gradient(self, node: fx.Node) -> bool:
        return self.folded.own(self.folded.node[node]) in self.folded.differentiable

    def _holders(self, layout: Layout) -> int:
        """Ranks that hold the same of a value."""
        rows = zip(layout, self.solution.axes, strict=True)
        return math.prod(ranks for placement, (_, ranks) in rows if not isinstance(placement, Shard))

    def unit(self, unit: Unit) -> UnitCost:
        """The price of one unit."""
        return self.units[unit]

    @property
    def groups(self) -> tuple[UnitCost, ...]:
        """Of the first unit of each group."""
        return tuple(self.units[units[0]] for units in self.folded.groups)
