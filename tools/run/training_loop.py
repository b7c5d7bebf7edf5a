"""The loop of ``partitioner run``: steps until all are done or someone asks to leave, saved on the way, and told."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from runtime.mesh.step_clock import Clock
from runtime.ranks.doing import waits
from runtime.ranks.limits import Limits
from runtime.ranks.process_group import everywhere, is_first
from runtime.ranks.watchdog import Watchdog
from runtime.state.learning_rates import base_rate
from runtime.train.engine import Engine
from tools.run.going_on import Settings, keep
from tools.run.leaving import FAILED, Leaving
from tools.watch.metrics import VALIDATION, Tell, measured
from tools.watch.step_trace import StepTrace

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Saving:
    """Where a run saves, and after how many steps; the newest ``keep`` stay (None: all). ``settings``: kept beside."""

    folder: str | None
    every: int | None
    keep: int | None
    settings: Settings

    def save(self, trainer: Engine, tell: Tell) -> Path | None:
        """Begin to, and return where; it is written beside training, and is there when the next begins."""
        if self.folder is None:
            return None
        target = trainer.save(self.folder, self.keep, wait=False)
        tell({"saving": str(target)})
        if is_first():
            keep(self.folder, self.settings | {"lr": base_rate(trainer.optimizer)})
        return target

    def is_due(self, step: int) -> bool:
        """Whether it is saved after so many steps."""
        return self.every is not None and step % self.every == 0


@dataclass(frozen=True)
class Evaluating:
    """After how many steps a run evaluates, None for once at its end; ``batches``: the same ones each time."""

    every: int | None
    batches: Callable[[], Iterator[Batch]]

    def loss(self, trainer: Engine) -> float:
        """The mean over the batches, in eval mode."""
        return statistics.fmean(_numbers(trainer.evaluate(batch))[0] for batch in self.batches())

    def is_due(self, step: int) -> bool:
        """Whether it evaluates after so many steps."""
        return self.every is not None and step % self.every == 0


@dataclass(frozen=True)
class Ran:
    """``asked``: the signal that ended it, 0 when all steps were done. ``parts``: medians of a step's, by rank.
    ``validation_loss``: at the end, None of a run that was ended before."""

    asked: int
    steps: int
    parts: list[dict[str, float]]
    validation_loss: float | None


def run_steps(
    trainer: Engine, steps: int, batches: Iterator[Batch], saving: Saving, evaluating: Evaluating, limits: Limits,
    tell: Tell, trace: StepTrace,
) -> Ran:  # fmt: skip
    """Train until ``steps`` are done in all, or a signal came to any rank; the state is then saved."""
    leaving, parts, asked, saved = Leaving(), list[dict[str, float]](), 0, None
    evaluated: float | None = None
    clock = trainer.groups.log.clock = Clock(trainer.groups.device)
    while trainer.steps_done < steps:
        with Watchdog(limits.step, f"reading the batch of step {trainer.steps_done}"):
            if asked := leaving.asked(trainer.has_failed_to_save):
                break
            batch = next(batches)
            trace.before(trainer.steps_done + 1)
        clock.clear()
        skipped, began = trainer.skipped, time.perf_counter()
        with clock.around(f"step {trainer.steps_done + 1}", "step"):
            loss = trainer.step(batch)
            norm = trainer.grad_norm if trainer.skipped == skipped else None
            found = _numbers(loss, *([] if norm is None else [norm]))
        seconds, spent = time.perf_counter() - began, clock.read()
        tell(measured(trainer, found[0], None if norm is None else found[1], seconds, spent))
        parts.append({"step": seconds, **spent})
        with Watchdog(limits.step, "writing the trace"):
            trace.after(trainer.steps_done)
        if saving.is_due(trainer.steps_done):
            saved = saving.save(trainer, tell)
        if evaluating.is_due(trainer.steps_done) or trainer.steps_done == steps:
            evaluated = evaluating.loss(trainer)
            tell({VALIDATION: evaluated, "evaluated": trainer.steps_done})
    with Watchdog(limits.step, "writing the trace"):
        trace.end()
    trainer.groups.log.clock = None
    if asked == FAILED:
        trainer.saved()  # raises
    if parts and not saving.is_due(trainer.steps_done):
        saved = saving.save(trainer, tell)
    trainer.saved()
    if saved is not None:
        tell({"saved": str(saved)})
    with Watchdog(limits.step, "telling one another of the steps"):
        return Ran(asked, len(parts), everywhere(medians(parts)) if parts else [], None if asked else evaluated)


@waits
def _numbers(*held: torch.Tensor) -> list[float]:
    """Their values, read at once. A GPU is waited for here, and what it waits for."""
    return torch.stack([value.detach().double() for value in held]).tolist()


def medians(steps: list[dict[str, float]]) -> dict[str, float]:
    """Of each part over all steps but the first; what is left of a step is compute."""
    steps = steps[1:] or steps
    names = sorted({name for step in steps for name in step} - {"step"})
    found = {name: statistics.median(step.get(name, 0.0) for step in steps) for name in names}
    return {"compute": statistics.median(step["step"] for step in steps) - sum(found.values()), **found}
