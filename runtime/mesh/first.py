"""A whole value as a Partial: itself on the first rank, zeros on the others; nothing is sent."""

from __future__ import annotations

from typing import Any

import torch

from runtime.mesh.collectives import Axis, Bound


class _OnFirst(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, is_first: bool, backward: bool) -> torch.Tensor:
        ctx.keeps = is_first or not backward
        return x.view_as(x) if is_first else torch.zeros_like(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return grad if ctx.keeps else torch.zeros_like(grad), None, None


def on_first(axis: Axis, backward: bool) -> Bound:
    """WHOLE to PARTIAL: the gradient of either is whole. REPLICATE to PARTIAL (``backward``): a Partial comes back."""
    return lambda x: _OnFirst.apply(x, axis.rank == 0, backward)
