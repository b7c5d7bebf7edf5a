"""Faults of the engine: which Programs can have each one, and what is done to the engine before its first step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from partitioner.graph.step_inputs import SAMPLE_KEYS
from partitioner.lowering.program import Program
from partitioner.sharding.layout import Shard
from partitioner.sharding.mesh_axes import DP, PP, SHARD, TP
from runtime.train.engine import Engine


def _unsummed(axis: str) -> Callable[[Engine], None]:
    """The gradient sync forgets an axis."""

    def prepare(engine: Any) -> None:
        inner = engine._sync._sum
        engine._sync._sum = lambda flat, tied, a: None if a == axis else inner(flat, tied, a)

    return prepare


def _scaled(which: int, factor: float) -> Callable[[Engine], None]:
    def prepare(engine: Any) -> None:
        inner = engine._sync.finish

        def finish() -> None:
            inner()
            engine.trained[which].grad.mul_(factor)

        engine._sync.finish = finish

    return prepare


def holders(engine: Any) -> list[Any]:
    """Whatever gathers parameters."""
    roots = engine._sharded._roots.values()
    return [part for root in roots for part in root.modules() if getattr(part, "by_name", dict)()]


class _Alone:
    """A collective that hears nothing of other ranks."""

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any, *_: Any, **__: Any) -> None:
        rank, ranks = group.rank(), group.size()
        if output_tensor.numel() < input_tensor.numel():
            output_tensor.copy_(input_tensor.chunk(ranks)[rank])
        else:
            output_tensor.copy_(input_tensor.repeat(ranks))


def _gathered_alone(engine: Any) -> None:
    for part in holders(engine):
        part.set_custom_all_gather(_Alone())


def _scattered_alone(engine: Any) -> None:
    for part in holders(engine):
        part.set_custom_reduce_scatter(_Alone())


def _never_last(engine: Any) -> None:
    """No backward is taken to be the last of a step."""
    inner = engine._sharded.before_backward
    engine._sharded.before_backward = lambda stage, is_last: inner(stage, False)


def _unsummed_replicas(engine: Any) -> None:
    """What groups hold again is not summed over them."""
    for root in engine._sharded._roots.values():
        inner = root.set_requires_all_reduce
        root.set_requires_all_reduce = lambda _, inner=inner: inner(False)


def _stale_copies(engine: Any) -> None:
    """What ops read is cast once, before the first step."""
    engine._copies.refresh = lambda: None


def _still_scaled(engine: Any) -> None:
    engine.loss_scale.unscale = lambda gradients: None


def _rerun(change: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> Callable[[Engine], None]:
    """What runs again is given other arguments than what ran."""

    def prepare(engine: Any) -> None:
        for index, stage in engine.worker.stages.items():
            calls = [replace(c, rerun=_of(c.rerun, change)) if c.rerun else c for c in stage.calls]
            engine.worker.stages[index] = replace(stage, calls=tuple(calls))

    return prepare


def _of(run: Callable[..., Any], change: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> Callable[..., Any]:
    return lambda *arguments: run(*change(arguments))


def _doubled(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The first tensor that has a gradient."""
    place = next(n for n, x in enumerate(arguments) if x.requires_grad)
    return (*arguments[:place], 2 * arguments[place], *arguments[place + 1 :])


def _counts(change: Callable[[Engine, list[torch.Tensor]], list[torch.Tensor]]) -> Callable[[Engine], None]:
    """Other loss counts than the global one."""

    def prepare(engine: Any) -> None:
        batches = engine._forms._plan.batches
        inner = batches.of

        def micro_batches(*given: Any) -> list[dict[str, torch.Tensor]]:
            rows = inner(*given)
            for count in engine.program.counts:
                own = [batches._part(count, row) for row in rows]
                for row, value in zip(rows, change(engine, own), strict=True):
                    row[count.name] = value.view(count.shape)
            return rows

        batches.of = micro_batches

    return prepare


def _mean_of_means(engine: Engine, counts: list[torch.Tensor]) -> list[torch.Tensor]:
    return [count * len(counts) * engine.groups.size(DP) for count in counts]


def _own_count(engine: Engine, counts: list[torch.Tensor]) -> list[torch.Tensor]:
    return [torch.stack(counts).sum(0) * engine.groups.size(DP)] * len(counts)


def _same_keys(engine: Any) -> None:
    batches = engine._forms._plan.batches
    inner = batches._sample_keys
    batches._sample_keys = lambda step, m: inner(step, 0)


def _norm_without(axis: str) -> Callable[[Engine], None]:
    def prepare(engine: Any) -> None:
        engine._norm._axes = [a for a in engine._norm._axes if a != axis]

    return prepare


def _every_value_counts(engine: Any) -> None:
    engine._norm._counted = engine.trained


def _loss_without(axis: str) -> Callable[[Engine], None]:
    def prepare(engine: Any) -> None:
        inner = engine._sum
        engine._sum = lambda x, a: None if a == axis else inner(x, a)

    return prepare


def _unclipped(engine: Engine) -> None:
    engine.clip = float("inf")


def _forgotten(engine: Engine) -> None:
    """The optimizer never sees the last parameter."""
    assert engine.optimizer is not None
    engine.optimizer.param_groups[0]["params"].pop()


def _wider(axis: str) -> Callable[[Program], bool]:
    return lambda program: program.mesh[axis] > 1


def _has_keys(program: Program) -> bool:
    return program.micro_batches > 1 and any(
        SAMPLE_KEYS in c.arguments for s in program.stages for c in (*s.calls, s.prelude) if c
    )


def _sharded(program: Program) -> bool:
    return program.shards > 1


def _held_again(program: Program) -> bool:
    return _sharded(program) and program.shards < program.mesh[DP]


def _copied(program: Program) -> bool:
    return not _sharded(program) and any(p.copy_dtype for p in program.parameters.values())


def _recomputed(program: Program) -> bool:
    return any(c.recompute and c.recompute.regions is None for s in program.stages for c in s.calls)


def _always(program: Program) -> bool:
    return True


def _tied(program: Program) -> bool:
    return any(len({s % program.mesh[PP] for s in p.stages}) > 1 for p in program.parameters.values())


def _replicated(program: Program) -> bool:
    return program.axes[0][1] > 1 and any(not isinstance(p.layout[0], Shard) for p in program.parameters.values())


ENGINE: dict[str, tuple[Callable[[Program], bool], Callable[[Engine], object]]] = {
    "no gradient sum over dp": (lambda p: p.mesh[DP] > 1 and not _sharded(p), _unsummed(DP)),
    "each rank's gradients scattered": (_sharded, _scattered_alone),
    "each rank's own rows gathered": (_sharded, _gathered_alone),
    "no gradient sum over groups that hold the same": (_held_again, _unsummed_replicas),
    "gradients never scattered": (lambda p: _sharded(p) and p.zero == 1, _never_last),
    "norm not summed over what divides dp": (_sharded, _norm_without(SHARD)),
    "parameters cast once": (_copied, _stale_copies),
    "other values run again": (_recomputed, _rerun(_doubled)),
    "the loss scale left in gradients": (lambda p: p.loss_scale, _still_scaled),
    "no gradient sum over tp": (_replicated, _unsummed(TP)),
    "no gradient sum of tied weights": (_tied, _unsummed(PP)),
    "half the first gradient": (_always, _scaled(0, 0.5)),
    "half the last gradient": (_always, _scaled(-1, 0.5)),
    "a gradient wrong by 1e-6": (_always, _scaled(0, 1 + 1e-6)),
    "mean of means": (lambda p: p.micro_batches > 1 and bool(p.counts), _counts(_mean_of_means)),
    "each data rank's own count": (_wider(DP), _counts(_own_count)),
    "loss not summed over dp": (_wider(DP), _loss_without(DP)),
    "loss not summed over pp": (_wider(PP), _loss_without(PP)),
    "norm not summed over pp": (_wider(PP), _norm_without(PP)),
    "norm not summed over tp": (_wider(TP), _norm_without(TP)),
    "norm counts copies": (lambda p: _replicated(p) or _tied(p), _every_value_counts),
    "the same dropout keys for all micro-batches": (_has_keys, _same_keys),
    "gradients not clipped": (_always, _unclipped),
    "a parameter not updated": (_always, _forgotten),
}
