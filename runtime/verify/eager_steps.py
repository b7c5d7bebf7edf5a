"""The reference: training steps of the eager nn.Module itself, in float64, on the whole global batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from partitioner.comparing.capture_check import LIMIT, ROUNDED
from partitioner.comparing.eager_float64 import Rounding, Widening, copied, float64_by_default, wide, widened
from partitioner.draws.eager_draws import eager_draws
from partitioner.errors import InputError
from partitioner.graph.graph import Graph
from partitioner.graph.interpret import samples_of
from partitioner.user_code.batches import flat
from partitioner.user_code.outputs import loss_of
from runtime.verify.plain_steps import Steps

Tensors = Mapping[str, torch.Tensor]
Batch = Mapping[str, Any]  # of tensors, or nested ones


@dataclass(frozen=True)
class Reference:
    """The steps that are wanted, the relative error that is a difference, and a remark for who reads the result."""

    steps: Steps
    limit: float
    remark: str


@dataclass(frozen=True)
class Ran:
    """Steps of the eager module, the dtypes that they made, and where they rounded."""

    steps: Steps
    made: set[torch.dtype]
    rounded: tuple[str, torch.dtype] | None


def wanted(module: nn.Module, graph: Graph, batch: Batch, steps: int, clip: float, lr: float) -> Reference:
    """The eager module's steps; what it draws at random it draws by the keys of ``graph``, as every plan does."""
    ran = steps_in_float64(module, graph, batch, steps, clip, lr)
    if ran.rounded is None:
        return Reference(ran.steps, LIMIT, "")
    op, dtype = ran.rounded
    limit = ROUNDED * torch.finfo(dtype).eps
    return Reference(ran.steps, limit, f"the module rounds to {dtype} in float64 too ({op}): limit {limit:.1g}")


def steps_in_float64(
    module: nn.Module, graph: Graph, batch: Batch, steps: int, clip: float = math.inf, lr: float = 0.0
) -> Ran:
    """``steps`` AdamW steps of a float64 copy of ``module``, in its own modes, on one batch."""
    made, given = widened(module), tree_map_only(torch.Tensor, wide, dict(batch))
    with float64_by_default():
        return _steps(made, graph, given, steps, clip, lr, Widening)


def first_step(module: nn.Module, graph: Graph, batch: Batch) -> Ran:
    """Loss and gradients of a copy of ``module`` in its own dtypes."""
    return _steps(copied(module), graph, batch, 1, math.inf, 0.0, nullcontext)


def _steps(
    module: nn.Module, graph: Graph, batch: Batch, steps: int, clip: float, lr: float,
    within: Callable[[], AbstractContextManager[object]],
) -> Ran:  # fmt: skip
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr) if trained else None
    samples = range(samples_of(graph, flat(batch).tensors))
    rounding = Rounding()
    first: tuple[float, dict[str, torch.Tensor], float] | None = None
    for step in range(steps):
        module.zero_grad()
        with eager_draws(module, graph, 0, step, samples), nullcontext() if first else rounding, within(), uncompiled():
            loss = _loss(module, tree_map_only(torch.Tensor, torch.clone, dict(batch)))  # forward may change it
            if loss.requires_grad:
                loss.backward()
        gradients = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
        norm = float(torch.nn.utils.clip_grad_norm_(trained, clip))
        first = first or (float(loss.detach()), gradients, norm)
        if optimizer is not None:
            optimizer.step()
    assert first is not None
    after = {n: p.detach() for n, p in module.named_parameters()}
    return Ran(Steps(*first, after), rounding.made, rounding.first)


def _loss(module: nn.Module, batch: Batch) -> torch.Tensor:
    try:
        output = module(**batch)
    except Exception as error:  # the user's own forward may raise anything
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in flat(batch).tensors.items())
        reason = next(iter(str(error).splitlines()), "")
        raise InputError(
            f"{type(module).__name__} itself fails on a batch of {shapes}: {type(error).__name__}: {reason}"
        ) from error
    return loss_of(output, type(module).__name__)


@contextmanager
def uncompiled() -> Generator[None]:
    """What torch.compile wraps runs as it was written."""
    with torch.compiler.set_stance("force_eager"):
        yield
