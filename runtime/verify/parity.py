"""A plan against the plain model: loss, every gradient, the clipped norm and every parameter after AdamW steps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from partitioner.comparing.capture_check import FLOOR, largest_of_modules
from partitioner.lowering.program import Program
from partitioner.lowering.traffic import tally, traffic
from partitioner.sharding.mesh_axes import DP
from runtime.mesh.groups import Groups
from runtime.ranks.process_group import everywhere
from runtime.state.optimizer import Factory, factory
from runtime.state.parameters import gather, materialize
from runtime.state.shard_pieces import cut, part_of
from runtime.train.engine import Engine
from runtime.verify.plain_steps import Steps

STEPS, CLIP, LR = 3, 1.0, 1e-3
ZERO = 1e-9  # of the median size: a gradient below it is structurally zero


@dataclass(frozen=True)
class Difference:
    """Largest relative errors of one plan, and the tensor that has the largest.

    ``zero`` gradients are structurally zero; ``empty`` is the share of them that is exactly 0 and so tells nothing.
    """

    loss: float
    gradient: float
    norm: float
    parameter: float
    worst: str
    median_gradient: float
    zero: tuple[str, ...]
    empty: float

    @property
    def largest(self) -> float:
        """The largest of all."""
        return max(self.loss, self.gradient, self.norm, self.parameter)


def steps_under(
    program: Program,
    start: Mapping[str, torch.Tensor],
    batch: Mapping[str, torch.Tensor],
    prepare: Callable[[Engine], object] = lambda engine: None,
) -> Steps:
    """The plain model's steps under a Program, on all ranks together; ``prepare`` sees the engine before the first.

    Whole tensors come back on rank 0, none elsewhere.
    """
    engine = engine_of(program, start)
    groups, parameters = engine.groups, engine.parameters
    prepare(engine)
    own = own_samples(program, groups, batch)
    engine.gradients(own)
    gradients = whole_tensors(program, groups, {n: p.grad for n, p in parameters.items()})
    losses = [engine.step(own)]
    norm = engine.grad_norm
    losses += [engine.step(own) for _ in range(STEPS - 1)]
    after = whole_tensors(program, groups, dict(parameters))
    assert norm is not None
    return Steps(float(losses[0]), gradients, float(norm), after)


def unforeseen(program: Program, groups: Groups) -> str:
    """What some rank sent in ``steps_under`` otherwise than predicted, "" for nothing; the same on every rank."""
    predicted = tally([*traffic(program, groups.rank, clipped=False), *STEPS * traffic(program, groups.rank)])
    sent = tally(groups.log.rows)
    words = f"rank {groups.rank} sent {sent - predicted}, predicted {predicted - sent}"
    return next(filter(None, everywhere("" if sent == predicted else words)), "")


def engine_of(
    program: Program, start: Mapping[str, torch.Tensor], optimizer: Factory | None = None, clip: float | None = CLIP
) -> Engine:
    """This rank's engine, its parameters cut from whole ones; AdamW where no optimizer is given."""
    groups = Groups(program)
    parameters = materialize(program, groups.coordinates, lambda p, part: cut(start[p.name], part), groups.device)
    return Engine(program, groups, parameters, optimizer or factory(torch.optim.AdamW, lr=LR), clip=clip)


def own_samples(program: Program, groups: Groups, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What this data rank reads of a global batch; an input without a row a sample is read whole."""
    each = program.micro_batch * program.micro_batches
    first = groups.coordinates[DP] * each
    return {n: t[first : first + each] if n in program.batched else t for n, t in batch.items()}


def whole_tensors(
    program: Program, groups: Groups, local: Mapping[str, torch.Tensor | None]
) -> dict[str, torch.Tensor]:
    """Parameters, or their gradients, of all ranks put together: on rank 0, nothing elsewhere."""
    found: dict[str, torch.Tensor] = {}
    for name, parameter in program.parameters.items():
        mine = local.get(name)
        if mine is None and name in local:
            mine = torch.zeros(part_of(program, parameter, groups.coordinates).shape, dtype=parameter.held_dtype)
        whole = gather(program, groups, name, mine, everywhere=False)
        if whole is not None:
            found[name] = whole.detach().clone()
    return found


def difference(found: Steps, wanted: Steps) -> Difference:
    """Errors relative to each tensor's size, or to a thousandth of the median size, or of its module's, where it is
    smaller.

    A parameter that is not to have a gradient must have none, or zeros.
    """
    absent = {n: torch.zeros_like(g) for n, g in found.gradients.items() if n not in wanted.gradients}
    sizes = {n: float(g.abs().max()) if g.numel() else 0.0 for n, g in wanted.gradients.items()}
    telling = [s for s in sizes.values() if s > 0]
    median = statistics.median(telling) if telling else 0.0
    zero = tuple(n for n, s in sizes.items() if s <= ZERO * median)
    largest = largest_of_modules(wanted.gradients | absent)
    floors = {n: max(median, size) for n, size in largest.items()}
    grads = _errors(found.gradients, wanted.gradients | absent, floors)
    middle = statistics.median(float(p.abs().max()) for p in wanted.parameters.values() if p.numel())
    compared = {n: p for n, p in wanted.parameters.items() if n not in zero}
    moved = _errors(found.parameters, compared, dict.fromkeys(compared, middle))
    named = [*((e, f"gradient of {n}") for n, e in grads.items()), *((e, n) for n, e in moved.items())]
    worst = max(named, default=(0.0, "the loss"))
    return Difference(
        _apart(found.loss, wanted.loss),
        max(grads.values(), default=0.0),
        _apart(found.norm, wanted.norm),
        max(moved.values(), default=0.0),
        worst[1],
        median,
        zero,
        1.0 - len(telling) / max(1, len(sizes)),
    )


def _apart(found: float, wanted: float) -> float:
    return _relative(abs(found - wanted), abs(wanted))


def _relative(error: float, scale: float) -> float:
    """The error in parts of ``scale``; infinite where it is no number, or where nothing at all was to be there."""
    if math.isnan(error) or (error and not scale):
        return math.inf
    return error / scale if error else 0.0


def _errors(
    found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], floors: Mapping[str, float]
) -> dict[str, float]:
    """Relative errors; infinite where a tensor is missing or no number."""
    rows: dict[str, float] = {}
    for name, b in wanted.items():
        if name not in found:
            rows[name] = math.inf
        elif b.numel():
            scale = max(float(b.abs().max()), FLOOR * floors[name])
            rows[name] = _relative(float((found[name].to(b.dtype) - b).abs().max()), scale)
    return rows
