"""What one call sends, forward, backward and as it runs again: the call on meta tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import fx

from partitioner.lowering.program import Call, Coordinates
from partitioner.ops.collectives import Shape
from partitioner.ops.payloads import RANK_OPS, axis_place, tensor_places


class Sending(NamedTuple):
    """One communication: mesh axis, op, phase of the step, and payload bytes.

    The payload is the whole tensor of an all_reduce, all_gather or reduce_scatter, and the rank's own part of an
    all_to_all or a send.
    """

    axis: str
    kind: str
    phase: str
    bytes: int


@dataclass(frozen=True)
class MetaTensor:
    """What a call needs to know of a value to be run on meta."""

    shape: Shape
    dtype: torch.dtype
    differentiable: bool

    @staticmethod
    def of(x: torch.Tensor) -> MetaTensor:
        return MetaTensor(tuple(x.shape), x.dtype, x.requires_grad)

    def make(self) -> torch.Tensor:
        return torch.empty(self.shape, dtype=self.dtype, device="meta").requires_grad_(self.differentiable)


@dataclass(frozen=True)
class Ran:
    """Results of a call, the rows of its forward, of its recompute and of its backward.

    ``sent`` are of each result the rows of backward that its gradient makes, ``read`` the arguments that it comes to.
    """

    results: tuple[MetaTensor, ...]
    forward: tuple[Sending, ...]
    recompute: tuple[Sending, ...]
    backward: tuple[Sending, ...]
    sent: tuple[frozenset[int], ...]
    read: tuple[frozenset[int], ...]

    def rows(self, slots: list[int]) -> list[Sending]:
        """Of backward, where these results have a gradient."""
        found = {n for slot in slots for n in self.sent[slot]}
        return [row for n, row in enumerate(self.backward) if n in found] + (list(self.recompute) if slots else [])


class _Stand(torch.autograd.Function):
    """A tensor of another shape that has a gradient where one of its sources has; ``keeps`` as the op it stands for."""

    @staticmethod
    def forward(ctx: Any, shape: Shape, keeps: bool, *sources: torch.Tensor) -> torch.Tensor:
        if keeps:
            ctx.save_for_backward(*sources)
        return sources[0].new_empty(shape)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> None:
        raise AssertionError("nothing here runs backward")


class CallReader(fx.Interpreter):
    """Runs a call on meta tensors and notes what it would send."""

    def __init__(self, call: Call, axes: dict[str, int], here: Coordinates) -> None:
        super().__init__(call.module)
        self.call, self.axes, self.here = call, axes, here
        self.node = ""  # that runs
        self.forward: list[Sending] = []
        self.again: list[tuple[int, Sending]] = []  # of them, by nodes that run again, with their region
        self.backward: list[tuple[Any, Sending]] = []  # the autograd node that sends, and what
        self.kept: dict[int, int] = {}  # by region, rows of ``again`` before the last tensor that backward needs

    def read(self, arguments: tuple[MetaTensor, ...]) -> Ran:
        """The call with these arguments."""
        with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda x: x):
            given = [a.make() for a in arguments]
            out = super().run(*given)
        made = out if isinstance(out, tuple | list) else (out,)
        reached = [_reached(x) for x in made]  # an index computed from a value passes nothing back to it
        return Ran(
            tuple(MetaTensor.of(x) for x in made),
            tuple(self.forward),
            tuple(row._replace(phase="recompute") for n, (region, row) in enumerate(self.again)
                  if n < self.kept.get(region, 0)),
            tuple(row for _, row in self.backward),
            tuple(frozenset(n for n, (node, _) in enumerate(self.backward) if node in nodes) for nodes in reached),
            tuple(frozenset(n for n, x in enumerate(given) if x in nodes) for nodes in reached),
        )

    def _keep(self, x: torch.Tensor) -> torch.Tensor:
        region = self.call.recompute.region_of(self.node) if self.call.recompute else None
        if region is not None:
            self.kept[region] = len(self.again)
        return x

    def run_node(self, n: fx.Node) -> Any:
        """Noting which it is."""
        self.node = n.name
        return super().run_node(n)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An op of ours in place, torch's own as it is."""
        row = RANK_OPS.get(str(target))
        if row is None:
            return super().call_function(target, args, kwargs)
        place = axis_place(target)
        axis = "" if place is None or place >= len(args) else str(args[place])
        shape = row.shape(self.axes.get(axis, 1), self.here.get(axis, 0), *args)
        whole = max(math.prod(shape), args[0].numel()) * args[0].element_size()
        sent = [Sending(axis, kind, "forward", int(size)) for kind, size in row.forward(whole, *args)]
        self.forward += sent
        if self.call.recompute and self.call.recompute.runs_again(self.node):
            self.again += [(self.call.recompute.region_of(self.node) or 0, row) for row in sent]
        out = _Stand.apply(shape, row.keeps, *(args[n] for n in tensor_places(target)))
        if out.requires_grad:
            back = [Sending(axis, kind, "backward", int(size)) for kind, size in row.backward(whole, *args)]
            self.backward += [(out.grad_fn, sending) for sending in back]
        return out


def _reached(result: torch.Tensor) -> set[Any]:
    """The autograd nodes that backward from a result runs, and the tensors in which it ends."""
    found: set[Any] = {result}
    left = [result.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in found:
            found.add(node)
            found.add(getattr(node, "variable", node))
            left += [n for n, _ in node.next_functions]
    return found
