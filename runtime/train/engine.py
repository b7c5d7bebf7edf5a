"""A training step: micro-batches through the worker, gradients in a fixed order, clip, update.

batch --> count --> worker (all actions) --> loss over dp, pp --> gradient sync --> norm, clip --> optimizer
"""

from __future__ import annotations

import contextlib
import math
import warnings
import weakref
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from partitioner.lowering.check import check_program
from partitioner.lowering.program import Program
from partitioner.ops.collective_kinds import ALL_REDUCE
from partitioner.plan.derived_rows import OPTIMIZER, PIPELINE, SYNC
from partitioner.sharding.mesh_axes import DP, PP
from runtime.checkpoint.load import load
from runtime.checkpoint.plain_data import packed, unpacked
from runtime.checkpoint.record import Progress
from runtime.checkpoint.save import Saver
from runtime.execute.sharded_stages import ShardedStages
from runtime.execute.worker import Named, Worker
from runtime.mesh.groups import Groups
from runtime.ranks.doing import waits
from runtime.ranks.limits import Limits
from runtime.ranks.process_group import largest
from runtime.ranks.watchdog import Watchdog
from runtime.state.compute_copies import ComputeCopies
from runtime.state.export_weights import export_safetensors, full_state
from runtime.state.learning_rates import LearningRates, LrLambda
from runtime.state.optimizer import Factory
from runtime.train.answer_programs import AnswerMaker
from runtime.train.first_nonfinite import first_culprit
from runtime.train.forms import Fitted, Forms, MakeWorker, Making, ready_of
from runtime.train.gradient_sync import GradientNorm, GradientSync
from runtime.train.loss_scale import LossScale
from runtime.train.skipped_steps import SkippedSteps
from runtime.train.step_batches import own_samples


class Engine:
    """Trains a Program on this rank's part of the mesh.

    ``parameters`` are this rank's parts by name, as the optimizer updates them (``materialize``). ``clip`` is the
    largest global gradient norm; infinity measures the norm and clips nothing; None does neither and leaves
    ``grad_norm`` None. ``lr_lambda`` sets every learning rate to its initial one times a factor of the step; None
    leaves the rates to whoever holds ``optimizer``. A rank that trains nothing has an optimizer too, so that all ranks
    may give theirs to a scheduler. ``loss_scale`` is None but where the Program scales its loss: a step whose gradients
    are not finite then updates nothing and is counted there. ``limits`` say when a step, or what reads or writes the
    state, counts as hung; None: never. ``worker`` makes what walks the Action table. ``saving``: a group of all ranks
    for checkpoints alone, without which none is written beside training. ``skip_nonfinite``: a step whose loss or
    gradients are no numbers updates nothing, and is counted in ``skipped``; else it raises. ``making``: Programs for
    batches of other forms than the plan's, and for evaluation; None: there are none. ``buffers``: what else is of the
    model's state.
    """

    def __init__(
        self, program: Program, groups: Groups, parameters: Mapping[str, nn.Parameter], optimizer: Factory,
        clip: float | None = None, lr_lambda: LrLambda | None = None, limits: Limits | None = None,
        worker: MakeWorker = Worker, saving: dist.ProcessGroup | None = None, skip_nonfinite: bool = False,
        making: Making | None = None, buffers: Mapping[str, torch.Tensor] | None = None,
    ) -> None:  # fmt: skip
        check_program(program)
        self.program, self.groups, self.parameters = program, groups, dict(parameters)
        here = [stage for stage in program.stages if stage.rank == groups.coordinates[PP]]
        self._sharded = ShardedStages(program, groups, here, self.parameters) if program.shards > 1 else None
        sharded = self._sharded.names if self._sharded else frozenset[str]()
        self._copies = ComputeCopies(program, {n: p for n, p in self.parameters.items() if n not in sharded})
        ready = partial(ready_of, worker, groups, self._copies.read, self._sharded)  # holds no engine, as no hook does
        plan = ready(program)
        self.worker = plan.worker
        self.loss_scale = LossScale() if program.loss_scale else None
        named = [(name, p) for name, p in self.parameters.items() if p.requires_grad]
        self.trained = [p for _, p in named]
        self.optimizer = optimizer(named or [("", nn.Parameter(torch.zeros(0)))])
        self.clip, self.limits = clip, limits
        self.steps_done = self.samples_read = 0
        self._has_stepped = False
        self._skips = SkippedSteps(skip_nonfinite)
        self.grad_norm: torch.Tensor | None = None
        self._rates = LearningRates(self.optimizer, lr_lambda)
        self._sync = GradientSync(program, groups, self._copies, self._sharded, self.parameters)
        self._norm = GradientNorm(program, groups, self.parameters)
        self._saver, self._buffers = Saver(saving), buffers or {}
        self._forms = Forms(groups, plan, making, ready)
        self.answers: AnswerMaker | None = None  # where the model is at hand
        self._hook()

    def _hook(self) -> None:
        """Let gradients move to their buckets, and travel while the last micro-batch's backward runs.

        A parameter's hook must not keep the engine: its process groups would outlive destroy_process_group.
        """
        ready = weakref.WeakMethod(self._ready)
        for name in self._sync.names:

            def done(_: torch.Tensor, name: str = name) -> None:
                if (call := ready()) is not None:
                    call(name)

            self._copies.read[name].register_post_accumulate_grad_hook(done)

    def _ready(self, name: str) -> None:
        self._sync.move(name)
        if self.worker.is_complete(name):
            self._sync.ready(name)

    def step(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Train on this data rank's part of the batch: inputs with samples (micro_batch * micro_batches, ...), or where
        other forms are made, fewer of them, or of another length.

        Returns the mean loss of the global batch (float64, scalar), the same on every rank. Raises InputError for a
        batch of another shape, for one in which no target is counted, and for a loss that is not a number; the
        parameters are then as they were.
        """
        fitted = self._fitted(batch)
        with self._watched(fitted.is_new or not self._has_stepped):
            self._has_stepped = True
            batches = self._gradients(fitted)
            loss = self._loss
            if self._is_sound(loss, batches):
                with self.groups.log.timed(OPTIMIZER):
                    self._update()
        self.steps_done += 1
        many = self.program.micro_batch * self.program.micro_batches * self.groups.size(DP)
        self.samples_read += fitted.counted.everywhere if fitted.counted else many
        return loss

    def gradients(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """The loss of a step; leaves the synced, unclipped gradients in ``parameters`` and updates nothing."""
        self._gradients(self._fitted(batch))
        return self._loss

    def evaluate(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """The loss of a batch as the model computes it in eval mode: no gradient, nothing is updated.

        The batch is this data rank's part, as ``step`` takes it. Returns the mean loss of the global batch (float64,
        scalar), the same on every rank. Raises InputError as ``step`` does, and where the model reads its parameters
        otherwise in eval mode than the plan divides them.
        """
        fitted = self._fitted(batch, trains=False)
        with self._watched(fitted.is_new):
            ready, counted = fitted.ready, fitted.counted
            batches = ready.batches.of(fitted.batch, self.steps_done, self.holds, counted)
            loss = self._summed(ready.worker.losses(batches, counted and counted.here // ready.program.micro_batch))
            self.forget_gathered()
        return loss

    def worker_of(self, program: Program) -> Worker:
        """What runs another Program of the same parameters, on those that this engine trains."""
        return self._forms.ready(program).worker

    def forget_gathered(self) -> None:
        """Let go what forwards without backwards have left gathered of divided parameters."""
        if self._sharded is not None:
            self._sharded.clear()

    def _fitted(self, batch: Mapping[str, Any], trains: bool = True) -> Fitted:
        limits = self.limits
        with self._watched(not self._has_stepped):
            agreed = self._forms.agreed(batch)
        with contextlib.nullcontext() if limits is None else Watchdog(limits.start, "tracing a batch of another form"):
            return self._forms.fitted(batch, agreed, trains)

    @waits
    def holds(self, condition: torch.Tensor) -> bool:
        """Whether a condition on what was computed is true; the only values that a step reads out of tensors."""
        return bool(condition)

    def _watched(self, is_first: bool) -> contextlib.AbstractContextManager[object]:
        if self.limits is None:
            return contextlib.nullcontext()
        return Watchdog(self.limits.first_step if is_first else self.limits.step, f"step {self.steps_done}")

    def _state_seconds(self) -> float | None:
        """How long reading or writing the state may take: the fullest rank's parameters, moments, and as much again."""
        if self.limits is None:
            return None
        held = sum(4 * p.numel() * p.element_size() for p in self.parameters.values())
        return self.limits.state(largest(float(held)))

    def _sum(self, x: torch.Tensor, axis: str) -> None:
        self.groups.log.add(axis, ALL_REDUCE, x, "control")
        dist.all_reduce(x, group=self.groups.group(axis))

    def _gradients(self, fitted: Fitted) -> list[Named]:
        """Those of the global batch; the micro-batches that made them."""
        ready, counted = fitted.ready, fitted.counted
        batches = ready.batches.of(fitted.batch, self.steps_done, self.holds, counted)
        self.worker = ready.worker
        for parameter in (*self.trained, *self._copies.read.values()):
            parameter.grad = None
        self._sync.begin()
        scale = self.loss_scale.value if self.loss_scale else None
        self._loss = self._summed(
            self.worker.run(batches, scale, counted and counted.here // ready.program.micro_batch)
        )
        with self.groups.log.timed(SYNC):
            self._sync.finish()
        if self.loss_scale is not None:
            self.loss_scale.unscale([p.grad for p in self.trained if p.grad is not None])
        return batches

    def _summed(self, losses: list[torch.Tensor]) -> torch.Tensor:
        """The loss of the global batch, of this rank's micro-batches' parts of it."""
        found = torch.zeros((), dtype=torch.float64, device=self.groups.device)
        for loss in losses:
            found += loss
        with self.groups.log.timed(PIPELINE):  # whoever is done first waits here for the others
            for axis in (DP, PP):
                if self.groups.size(axis) > 1:
                    self._sum(found, axis)
        return found

    @property
    def skipped(self) -> int:
        """Steps that updated nothing since the run began, for their loss or gradients were no numbers."""
        return self._skips.many + (self.loss_scale.skipped if self.loss_scale else 0)

    def _is_sound(self, loss: torch.Tensor, batches: list[Named]) -> bool:
        """Of a loss that is scaled the gradients tell: what overflows in float16 skips a step."""
        if self.loss_scale is not None or self.holds(loss.isfinite()):
            return True
        culprit = "" if self._skips.may else f"; first made by {first_culprit(self.worker, batches, float(loss))}"
        self._skips.skip(self.steps_done, f"the loss is {float(loss)}{culprit}")
        return False

    def _update(self) -> None:
        if self.clip is not None or self.loss_scale is not None or self._skips.may:
            self.grad_norm = self._norm()
            is_finite = self.holds(self.grad_norm.isfinite())
            if self.loss_scale is not None:
                self.loss_scale.update(is_finite)
                if not is_finite:
                    return
            elif not is_finite:
                why = f"the gradient norm is {float(self.grad_norm)}, though the loss is finite"
                self._skips.skip(self.steps_done, why)
                return
            if self.clip is not None and self.clip < math.inf:
                torch.nn.utils.clip_grads_with_norm_(self.trained, self.clip, self.grad_norm)
        self._rates.follow(self.optimizer, self.steps_done)
        self._skips.taken()
        self.optimizer.step()
        self._copies.refresh()

    def own(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """This data rank's part of a global batch of a step's samples, or of fewer; what carries no samples is every
        rank's. Raises InputError where there are fewer samples than data ranks."""
        return own_samples(batch, self.program.batched, self.groups)

    def save(self, folder: Path | str, keep: int | None = None, wait: bool = True, data: Any = None) -> Path:
        """Write FOLDER/step-N from all ranks together and return it; the newest ``keep`` stay there, None: all.

        Without ``wait`` training may go on at once: the state is copied, a thread writes it, and the folder is there
        when ``saved`` has returned. Raises InputError, on all ranks, where it can't be written; without ``wait`` the
        next ``save`` or ``saved`` does, and ``has_failed_to_save`` tells before, on a rank that knows. ``data``: of the
        user's own, as a loader's position (``StatefulDataLoader.state_dict()``), the same on all ranks; ``load``
        returns it: dicts, lists, tuples, tensors, bytes, numbers, strings.
        """
        scale = asdict(self.loss_scale) if self.loss_scale else None
        counts = self.samples_read, scale, self._skips.many
        progress = Progress(self.steps_done, self.program.seed, *counts, packed(data))
        state = self.program, self.groups, self.parameters, self.optimizer
        return self._saver.save(Path(folder), *state, progress, keep, wait, self._state_seconds())

    def export(self, folder: Path | str, dtype: torch.dtype | None = None) -> None:
        """Write all parameters and buffers into FOLDER as safetensors that transformers reads, from all ranks together.

        ``dtype`` None keeps the types in which values are updated. Raises InputError where it can't be written.
        """
        with self._limited(f"exporting to {folder}"):
            export_safetensors(self.program, self.groups, self.parameters, folder, self._buffers, dtype)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All parameters and buffers by the model's own names, whole, on the CPU of rank 0; empty on other ranks.

        All ranks call it. Tied parameters stand under each name; what is updated in float32 is given so.
        """
        with self._limited("gathering the parameters"):
            return full_state(self.program, self.groups, self.parameters, self._buffers)

    def _limited(self, what: str) -> contextlib.AbstractContextManager[object]:
        limit = self._state_seconds()
        return contextlib.nullcontext() if limit is None else Watchdog(limit, what)

    @property
    def has_failed_to_save(self) -> bool:
        """Whether this rank knows that what is being written can't be."""
        return self._saver.has_failed

    def saved(self) -> None:
        """Wait until the checkpoint that is being written is there."""
        self._saver.finish()

    def load(
        self,
        folder: Path | str,
        lr: float | None = None,
        own: Collection[str] = (),
        tell: Callable[[str], object] = warnings.warn,
    ) -> Progress:
        """Go on from a checkpoint, written under this plan or another, with its hyper-parameters, but for ``lr`` and
        those named in ``own``, which stay as they are here. ``tell`` is told of one that is damaged and passed over.
        Returns how far it was, with the user's own ``data``."""
        mine = [{word: group[word] for word in own if word in group} for group in self.optimizer.param_groups]
        self._saver.finish()
        with self._limited(f"loading {folder}"):
            progress = load(folder, self.program, self.groups, self.parameters, self.optimizer, tell)
        for group, kept in zip(self.optimizer.param_groups, mine, strict=True):
            group.update(kept)
        self._copies.refresh()
        self.steps_done, self.samples_read, self._skips.many = progress.step, progress.samples, progress.skipped
        if self.loss_scale is not None and progress.loss_scale is not None:
            self.loss_scale = LossScale(**progress.loss_scale)
        self._rates.start(self.optimizer, lr)
        return replace(progress, data=unpacked(progress.data))
