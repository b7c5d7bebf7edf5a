"""Runs a GraphModule and keeps what every node made: its value, its gradient, and those it gave to its operands.

%a --copy--> %b      the gradient at the copy is what %b gave to %a, and no other reader's
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import fx

from partitioner.ops.cut_tensors import assemble
from partitioner.sharding.layout import PARTIAL, REPLICATE, Layout, Shard, local_shape
from partitioner.sharding.mesh_axes import Axes

LIMIT = 1e-10  # of a value's size, or of its floor where that is larger
FLOOR = 1e-3  # of the median size
MASKED = 1e30  # a number beyond it is a mask's, and no measure of a value's size
Edge = tuple[str, str]


@dataclass
class Seen:
    """What one run of a module made, by node name; ``given``: the gradient that (a reader, gives its operand)."""

    values: dict[str, torch.Tensor] = field(default_factory=dict)
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    given: dict[Edge, torch.Tensor] = field(default_factory=dict)

    @cached_property
    def value_floor(self) -> float:
        """Below it a value's error is measured against it."""
        return FLOOR * statistics.median([size_of(v) for v in self.values.values()] or [0.0])

    @cached_property
    def gradient_floor(self) -> float:
        """Below it a gradient's error is measured against it."""
        return FLOOR * statistics.median([size_of(v) for v in self.given.values()] or [0.0])


class Observing(fx.Interpreter):
    """Runs a module; every op reads copies, so that each keeps the gradient that it gives."""

    def __init__(self, module: fx.GraphModule, tracked: set[str], seen: Seen) -> None:
        super().__init__(module)
        self.tracked, self.seen = tracked, seen

    def run_node(self, n: fx.Node) -> Any:
        """The node's result, its value and its gradient kept."""
        result = super().run_node(n)
        if n.op != "output" and isinstance(result, torch.Tensor):
            is_given = n.op == "placeholder"  # whose memory may be let go after the call
            self.seen.values[n.name] = result.detach().clone() if is_given else result.detach()
            if n.op != "placeholder" and result.requires_grad:
                _keep(self.seen.gradients, n.name, result)
        return result

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[Any, Any]:
        """The operands' values, copied."""

        def load(operand: fx.Node) -> Any:
            return self._read(n, operand)

        return fx.map_arg(n.args, load), fx.map_arg(n.kwargs, load)

    def _read(self, reader: fx.Node, operand: fx.Node) -> Any:
        x = self.env[operand]
        if reader.op == "output" or not isinstance(x, torch.Tensor):
            return x
        x = x.clone()
        if operand.name in self.tracked and torch.is_grad_enabled():
            x = x if x.requires_grad else x.detach().requires_grad_()
            _keep(self.seen.given, (reader.name, operand.name), x)
        return x


def _keep(table: dict[Any, torch.Tensor], key: object, x: torch.Tensor) -> None:
    """Add up in ``table`` the gradients that reach ``x``."""
    table.setdefault(key, torch.zeros_like(x, requires_grad=False))

    def add(gradient: torch.Tensor) -> None:
        table[key] = table[key] + gradient.detach()

    x.register_hook(add)


def whole(
    parts: list[torch.Tensor], layout: Layout, axes: Axes, shape: torch.Size, is_gradient: bool
) -> list[torch.Tensor]:
    """All whole tensors that the parts of a layout, the last axis varying fastest, say there are; [] where the parts
    have not its shape."""
    sizes = [ranks for _, ranks in axes]
    cells = itertools.product(*map(range, sizes))
    if any(
        part.shape != local_shape(tuple(shape), layout, zip(cell, sizes, strict=True))
        for part, cell in zip(parts, cells, strict=True)
    ):
        return []
    return _put_together(parts, layout, sizes, is_gradient)


def _put_together(
    parts: list[torch.Tensor], layout: Layout, sizes: list[int], is_gradient: bool
) -> list[torch.Tensor]:
    if not sizes:
        return parts
    each = len(parts) // sizes[0]
    rows = [_put_together(parts[n : n + each], layout[1:], sizes[1:], is_gradient) for n in range(0, len(parts), each)]
    if isinstance(layout[0], Shard):
        return [assemble([row[n % len(row)] for row in rows], layout[0]) for n in range(max(map(len, rows)))]
    is_sum = layout[0] == (REPLICATE if is_gradient else PARTIAL)
    return total(rows) if is_sum else [part for row in rows for part in row]


def total(wholes: Sequence[list[torch.Tensor]]) -> list[torch.Tensor]:
    """Sums of one tensor of each list, as ranks have them; [] where a list is empty."""
    if not all(wholes):
        return []
    many = max(map(len, wholes))
    return [torch.stack([w[n % len(w)] for w in wholes]).sum(0) for n in range(many)]


def size_of(x: torch.Tensor) -> float:
    """The largest absolute value, masks apart."""
    sizes = x.double().abs()
    sizes = sizes[sizes < MASKED]
    return float(sizes.max()) if sizes.numel() else 0.0


def differs(found: list[torch.Tensor], wanted: torch.Tensor, floor: float) -> bool:
    """Whether any of ``found`` (none: also) is not ``wanted``; a NaN differs from all but a NaN."""
    limit = LIMIT * max(size_of(wanted), floor)
    return not found or any(_apart(f, wanted) > limit for f in found)


def _apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    if not wanted.numel():
        return 0.0
    a, b = found.double(), wanted.double()
    same = (a == b) | (a.isnan() & b.isnan())
    apart = torch.where(same, 0.0, (a - b).abs())
    return float("inf") if bool(apart.isnan().any()) else float(apart.max())
