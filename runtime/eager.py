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

from partitioner.errors import InputError
from partitioner.graph import Graph
from runtime.reference import Steps, train
from runtime.resample import flat
from runtime.widen import Rounding, Widening, copied, float64_by_default, wide, widened

LIMIT = 1e-9  # of float64: a larger relative error is a difference
ROUNDED = 64  # times the unit of a lower dtype, where the module rounds to it even in float64

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
    """Steps of the eager module, the dtypes that they made, where they rounded, and whether they drew."""

    steps: Steps
    made: set[torch.dtype]
    rounded: tuple[str, torch.dtype] | None
    drew: bool


def wanted(
    module: nn.Module, graph: Graph, start: Tensors, batch: Batch, steps: int, clip: float, lr: float
) -> Reference:
    """The eager module's steps; those of ``graph``, the same model promoted, where the module draws random numbers.

    A module that draws has masks of its own, and a plan those of the keys, which the graph draws too.
    """
    ran = steps_in_float64(module, batch, steps, clip, lr)
    if ran.drew:
        drawn = train(graph, start, {n: wide(t) for n, t in flat(batch).items()}, steps, clip, lr)
        return Reference(drawn, LIMIT, "the model draws random numbers: compared with its graph, not the eager module")
    if ran.rounded is None:
        return Reference(ran.steps, LIMIT, "")
    op, dtype = ran.rounded
    limit = ROUNDED * torch.finfo(dtype).eps
    return Reference(ran.steps, limit, f"the module rounds to {dtype} in float64 too ({op}): limit {limit:.1g}")


def steps_in_float64(module: nn.Module, batch: Batch, steps: int, clip: float = math.inf, lr: float = 0.0) -> Ran:
    """``steps`` AdamW steps of a float64 copy of ``module``, in its own modes, on one batch."""
    made, given = widened(module), tree_map_only(torch.Tensor, wide, dict(batch))
    with float64_by_default():
        return _steps(made, given, steps, clip, lr, Widening)


def first_step(module: nn.Module, batch: Batch) -> Ran:
    """Loss and gradients of a copy of ``module`` in its own dtypes."""
    return _steps(copied(module), batch, 1, math.inf, 0.0, nullcontext)


def _steps(
    module: nn.Module, batch: Batch, steps: int, clip: float, lr: float,
    within: Callable[[], AbstractContextManager[object]],
) -> Ran:  # fmt: skip
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr) if trained else None
    rounding = Rounding()
    state = torch.get_rng_state()
    first: tuple[float, dict[str, torch.Tensor], float] | None = None
    for _ in range(steps):
        module.zero_grad()
        with nullcontext() if first else rounding, within(), uncompiled():
            loss = _loss(module, batch)
            if loss.requires_grad:
                loss.backward()
        gradients = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
        norm = float(torch.nn.utils.clip_grad_norm_(trained, clip))
        first = first or (float(loss.detach()), gradients, norm)
        if optimizer is not None:
            optimizer.step()
    assert first is not None
    drew = not torch.equal(state, torch.get_rng_state())
    torch.set_rng_state(state)
    after = {n: p.detach() for n, p in module.named_parameters()}
    return Ran(Steps(*first, after), rounding.made, rounding.first, drew)


def _loss(module: nn.Module, batch: Batch) -> torch.Tensor:
    try:
        output = module(**batch)
    except Exception as error:  # the user's own forward may raise anything
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in flat(batch).items())
        reason = next(iter(str(error).splitlines()), "")
        raise InputError(
            f"{type(module).__name__} itself fails on a batch of {shapes}: {type(error).__name__}: {reason}"
        ) from error
    return loss_of(output)


@contextmanager
def uncompiled() -> Generator[None]:
    """What torch.compile wraps runs as it was written."""
    with torch.compiler.set_stance("force_eager"):
        yield


def loss_of(output: Any) -> torch.Tensor:
    """The loss in what a module returned: the tensor itself, ``.loss``, ``["loss"]``, or the one scalar float in it."""
    named = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    found = output if isinstance(output, torch.Tensor) else named
    if not isinstance(found, torch.Tensor):
        held = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
        scalars = [t for t in held if isinstance(t, torch.Tensor) and not t.dim() and t.is_floating_point()]
        found = scalars[0] if len(scalars) == 1 else None
    if not isinstance(found, torch.Tensor) or found.dim():
        raise InputError(f"the model must return a scalar loss, it returned {type(output).__name__}")
    return found
