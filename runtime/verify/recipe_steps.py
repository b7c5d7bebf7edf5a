"""A plan in its real data types against a plain loop of the same recipe: what is lost beyond rounding shows.

    plain    float32 parameters --cast--> the eager module, whole batch or parts --> gradients --> float32 --> SGD
    plan     the same, over ranks and micro-batches; no float64 anywhere

SGD, for an update by AdamW hides a scale. Rounding differs, since sums are taken in another order; a gradient that is
halved, or lacks a rank's part, differs by more. Where the plain loop takes the same parts of a batch one by one, and no
op is divided, only the sums of float32 differ in their order: whatever is rounded once more than it says shows.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from partitioner.comparing.eager_float64 import copied
from partitioner.draws.eager_draws import eager_draws
from partitioner.graph.graph import Graph
from partitioner.graph.interpret import samples_of
from partitioner.lowering.program import Program
from partitioner.precision import PRESETS
from partitioner.tracing.cast_parameters import computing_in
from partitioner.user_code.batches import flat
from partitioner.user_code.outputs import loss_of
from runtime.state.optimizer import factory
from runtime.train.engine import Engine
from runtime.train.loss_scale import LossScale
from runtime.verify.eager_steps import uncompiled
from runtime.verify.parity import engine_of, own_samples, whole_tensors

LR, SCALE = 0.1, 1024.0  # a loss scale that needs no search
HALVED = 0.25  # of a gradient's length: rounding stays below it, what loses half or doubles is beyond it
FLOOR = 0.05  # of the median length, or of its module's longest: a gradient below it is rounding throughout
ROUNDINGS = 2.0  # as far off as the plain loop is of one in float32, twice, any loop of the recipe may be


@dataclass(frozen=True)
class Step:
    """Loss, gradients before clipping, and by how much one SGD step moves each parameter."""

    loss: float
    gradients: dict[str, torch.Tensor]
    moved: dict[str, torch.Tensor]


def plain_step(module: nn.Module, graph: Graph, batch: Mapping[str, Any], parts: int = 1) -> Step:
    """One process; what is random it draws by the keys of ``graph``.

    ``parts``: how many equal parts of the batch it takes one by one, of a loss that counts the same in each.
    """
    precision, samples = graph.precision, samples_of(graph, flat(batch).tensors)
    scale, each, total = SCALE if precision.loss_scale else 1.0, samples // parts, 0.0
    grads = dict[str, torch.Tensor]()
    for first in range(0, each * parts, each):
        rows = slice(first, first + each)
        with computing_in(copied(module), precision) as made:
            with eager_draws(made, graph, 0, 0, range(samples)[rows]), uncompiled():
                own = tree_map_only(torch.Tensor, torch.clone, _rows(graph, batch, rows) if parts > 1 else dict(batch))
                loss = loss_of(made(**own), type(module).__name__) / parts
                (loss * scale).backward()
            for name, p in made.named_parameters():
                if p.grad is not None:
                    grads[name] = grads.get(name, 0.0) + p.grad.float() / scale
        total += float(loss.detach())
    return Step(total, grads, {n: -LR * grad for n, grad in grads.items()})


def _rows(graph: Graph, batch: Mapping[str, Any], rows: slice) -> dict[str, Any]:
    """Some samples of a batch; an input without a row a sample stays whole."""
    return {n: t[rows] if n in graph.batched else t for n, t in batch.items()}


def step_under(
    program: Program,
    start: Mapping[str, torch.Tensor],
    batch: Mapping[str, torch.Tensor],
    prepare: Callable[[Engine], object] = lambda engine: None,
) -> Step:
    """On all ranks together; ``prepare`` sees the engine first. Whole tensors come back on rank 0, none elsewhere."""
    engine = engine_of(program, start, factory(torch.optim.SGD, lr=LR), clip=None)
    prepare(engine)
    engine.loss_scale = engine.loss_scale and LossScale(SCALE)
    own = own_samples(program, engine.groups, batch)
    engine.gradients(own)
    gradients = whole_tensors(program, engine.groups, {n: p.grad for n, p in engine.parameters.items()})
    loss = engine.step(own)
    after = whole_tensors(program, engine.groups, dict(engine.parameters))
    kept = [n for n in after if (p := program.parameters[n]).requires_grad and p.held_dtype.itemsize >= 4]
    return Step(float(loss), gradients, {n: (after[n] - start[n]).float() for n in kept})


def rounding(module: nn.Module, graph: Graph, batch: Mapping[str, Any], plain: Step) -> dict[str, float]:
    """By how much a plain loop's gradients are off those of the same loop in float32, their difference's length."""
    exact = plain_step(module, replace(graph, precision=PRESETS["fp32"]), batch).gradients
    return {n: float((g - exact[n]).norm()) for n, g in plain.gradients.items() if n in exact}


def apart(found: Step, wanted: Step, rounded: Mapping[str, float] | None = None) -> tuple[float, str]:
    """The largest difference of a gradient or a movement, in parts of its length, and whose it is.

    ``rounded``: of the gradients that are wanted, how far rounding alone takes them; one that it takes far counts in
    parts of that. Movements of what is held in a short type are not told apart from its rounding.
    """
    far = {n: length * ROUNDINGS / HALVED for n, length in (rounded or {}).items()}
    moved = {n: LR * length for n, length in far.items()}
    rows = [
        *((error, f"gradient of {name}") for error, name in _errors(found.gradients, wanted.gradients, far)),
        *((error, f"the update of {name}") for error, name in _errors(found.moved, wanted.moved, moved)),
        (abs(found.loss - wanted.loss) / max(abs(wanted.loss), 1e-6), "the loss"),
    ]
    return max((math.inf if math.isnan(error) else error, name) for error, name in rows)


def _errors(
    found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], least: Mapping[str, float]
) -> list[tuple[float, str]]:
    """In parts of lengths, or of the ``least`` that counts."""
    lengths = {n: float(g.norm()) for n, g in wanted.items() if g.numel()}
    median = statistics.median([length for length in lengths.values() if length > 0] or [0.0])
    rows: list[tuple[float, str]] = []
    for name, tensor in found.items():
        if not tensor.numel():
            continue
        near = [length for n, length in lengths.items() if n.rpartition(".")[0] == name.rpartition(".")[0]]
        scale = max(lengths.get(name, 0.0), FLOOR * max(median, *near, 0.0), least.get(name, 0.0))
        error = float((tensor - wanted[name]).norm()) if name in wanted else float(tensor.norm())
        rows.append((error / scale if error else 0.0, name))
    return rows + [(math.inf, name) for name in wanted if name not in found and lengths.get(name)]
