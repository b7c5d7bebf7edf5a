"""A custom ``torch.autograd.Function`` as one op of a graph: it runs the user's forward and the user's backward.

    y = Round.apply(x, 8)              -->      %round = call_function[target=autograd.Function[Round]](args = (%x, 8))
    a, b = Two.apply(x)                -->      both in one value, side by side, and split again behind it

It has no sharding rule: ranks of tp run it whole, and samples are tried one by one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes  # pyright: ignore[reportPrivateUsage]

Function = type[torch.autograd.Function]
_APPLY: Any = torch._C._FunctionBase.__dict__["apply"]  # pyright: ignore


@dataclass(frozen=True, eq=False)
class AutogradCall:
    """A Function with those of its arguments that a graph can't hold; called with the others in order.

    ``held``: place and value of each. ``outputs``: which of a Function's several results are returned, side by side
    along dimension ``side``; None: it has one. ``autocast``: device types and dtypes that autocast was on for.
    """

    function: Function
    name: str
    held: tuple[tuple[int, object], ...] = ()
    outputs: tuple[int, ...] | None = None
    side: int = 0
    autocast: tuple[tuple[str, torch.dtype], ...] = ()
    tags: tuple[torch.Tag, ...] = ()

    @property
    def __name__(self) -> str:
        return self.function.__name__

    def __str__(self) -> str:
        return f"autograd.Function[{self.name}]"

    def __call__(self, *arguments: Any) -> torch.Tensor:
        """One tensor; of meta tensors a meta tensor, whose backward gives what the Function's own does."""
        tensors = [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, torch.Tensor)]
        if any(t.is_meta for t in tensors):
            return apply_plainly(_OnMeta, self, arguments, *tensors)
        return self.run(arguments)

    def run(self, arguments: Sequence[Any]) -> torch.Tensor:
        given = list(arguments)
        for place, value in self.held:
            given.insert(place, value)
        with ExitStack() as stack:
            for device, dtype in self.autocast:
                stack.enter_context(torch.autocast(device, dtype))
            results = apply_plainly(self.function, *given)
        if self.outputs is None:
            return results if isinstance(results, torch.Tensor) else results[0]
        return _beside([results[n] for n in self.outputs], self.side)


def _beside(tensors: list[torch.Tensor], side: int) -> torch.Tensor:
    """Several tensors in one, of the widest of their dtypes: flat, or with dimension 0 kept."""
    wide = functools.reduce(torch.promote_types, (t.dtype for t in tensors))
    if len(tensors) == 1:
        return tensors[0]
    return torch.cat([t.to(wide).reshape(_side_by_side(t, side)) for t in tensors], side)


def _side_by_side(tensor: torch.Tensor, side: int) -> tuple[int, ...]:
    return (*tensor.shape[:side], math.prod(tensor.shape[side:]))


def apart(whole: torch.Tensor, likes: list[torch.Tensor], side: int) -> list[torch.Tensor]:
    """What ``_beside`` put into one."""
    if len(likes) == 1:
        return [whole]
    parts = whole.split([_side_by_side(like, side)[side] for like in likes], side)
    return [p.reshape(like.shape).to(like.dtype) for p, like in zip(parts, likes, strict=True)]


class _OnMeta(torch.autograd.Function):
    """An AutogradCall on meta tensors: forward and backward run on fake tensors, which have a device to ask for."""

    @staticmethod
    def forward(ctx: Any, call: AutogradCall, arguments: Sequence[Any], *tensors: torch.Tensor) -> torch.Tensor:
        ctx.mode = FakeTensorMode(allow_non_fake_inputs=True)
        with alone(), ctx.mode:
            ctx.tensors = [fake(t, needed) for t, needed in zip(tensors, ctx.needs_input_grad[2:], strict=True)]
            with torch.enable_grad():
                ctx.result = call.run(filled(arguments, ctx.tensors))
        return on_meta(ctx.result)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        needed = [t for t in ctx.tensors if t.requires_grad]
        with alone(), ctx.mode:
            found = torch.autograd.grad(ctx.result, needed, torch.empty_like(ctx.result), allow_unused=True)
        rows = iter(found)
        of = [next(rows) if t.requires_grad else None for t in ctx.tensors]
        return None, None, *(None if g is None else on_meta(g) for g in of)


def apply_plainly(function: Function, *arguments: Any) -> Any:
    """``function.apply`` as torch runs it."""
    return _APPLY.__get__(None, function)(*arguments)


class Unhooked(torch.autograd.graph.saved_tensors_hooks):
    """What is saved inside is no affair of hooks outside, as those of torch's checkpoint."""

    def __init__(self) -> None:
        super().__init__(lambda x: x, lambda x: x)


@contextmanager
def alone() -> Generator[None]:
    """No mode sees what runs inside, and no hook what it saves."""
    with _disable_current_modes(), torch._C.DisableTorchFunction(), Unhooked():  # type: ignore[attr-defined]
        yield


def fake(like: torch.Tensor, requires_grad: bool) -> torch.Tensor:
    made = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="cpu")
    return made.requires_grad_(requires_grad)


def on_meta(value: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def filled(arguments: Sequence[Any], tensors: Sequence[torch.Tensor]) -> list[Any]:
    """The arguments with other tensors in place of theirs."""
    rows = iter(tensors)
    return pytree.tree_map(lambda leaf: next(rows) if isinstance(leaf, torch.Tensor) else leaf, list(arguments))
