"""Saving, at once or beside training: what is saved is copied, and written by a thread while training goes on."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException

from partitioner.errors import InputError
from partitioner.lowering.program import Program
from runtime.checkpoint import step_folders
from runtime.checkpoint.checkpoint_writer import CheckpointWriter
from runtime.checkpoint.dcp_chunks import SavePlanner
from runtime.checkpoint.entries import Tensors, entries_of, states_of
from runtime.checkpoint.record import Progress, Record
from runtime.ranks.doing import waits
from runtime.ranks.process_group import is_first, own_rank
from runtime.ranks.watchdog import Watchdog
from runtime.state.optimizer import hyper_parameters
from runtime.state.parameters import Groups

# one process without a process group is a case of its own here, and torch warns of it, in the thread that writes too
warnings.filterwarnings("ignore", message="torch.distributed is disabled")


THREAD = "AsyncCheckpointExecutor"  # what torch names its own


class Saver:
    """Writes checkpoints from all ranks together; a value held by many ranks is written by one.

    ``group`` connects all ranks for this alone (gloo), so that what is written beside training meets none of its
    collectives; None in a single process.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group
        self._copies: dict[str, torch.Tensor] = {}
        self._tidied = set[Path]()
        self._written: tuple[Future[object], CheckpointWriter] | None = None

    def save(
        self,
        folder: Path,
        program: Program,
        groups: Groups,
        parameters: Tensors,
        optimizer: torch.optim.Optimizer | None,
        progress: Progress,
        keep: int | None = None,
        wait: bool = True,
        limit_seconds: float | None = None,
    ) -> Path:
        """Write FOLDER/step-N and return it. ``keep``: how many checkpoints stay there, None for all.

        ``parameters`` are this rank's parts; those that ``optimizer`` updates are found in it by identity. Without
        ``wait`` it is being written when this returns, and is there when ``finish`` has returned. Raises InputError, on
        every rank, where one could not write; what was there before is as it was. What takes longer than
        ``limit_seconds`` counts as hung.
        """
        if self._group is None and not wait and dist.is_initialized():
            raise ValueError("many ranks need a group of their own to write beside training")
        self.finish()
        entries = entries_of(program, groups, parameters, states_of(parameters, optimizer))
        kind, rows = (type(optimizer).__name__, hyper_parameters(optimizer)) if optimizer is not None else (None, [])
        record = Record(progress, kind, rows)
        if is_first() and folder not in self._tidied:
            step_folders.tidy(folder)
        self._tidied.add(folder)
        target = step_folders.named(folder, progress.step)
        writer = CheckpointWriter(target, record, keep, self._copies)
        asked: dict[str, Any] = {
            "storage_writer": writer,
            "planner": SavePlanner(flatten_state_dict=False),
            "process_group": self._group,
        }
        what, thread = f"saving {target}", None if wait else THREAD
        watch = None if limit_seconds is None else Watchdog(limit_seconds, what, thread)
        if wait:
            with watch or contextlib.nullcontext():
                _told(writer, lambda: state_dict_saver.save(entries, **asked))
        else:
            running = cast("Future[object]", _told(writer, lambda: state_dict_saver.async_save(entries, **asked)))
            if watch is not None:
                watch.start()
                running.add_done_callback(lambda _: watch.stop())
            self._written = running, writer
        return target

    @property
    def has_failed(self) -> bool:
        """Whether what was being written is known, on this rank, not to be there: ``finish`` raises, on all."""
        return self._written is not None and self._written[0].done() and self._written[0].exception() is not None

    @waits
    def finish(self) -> None:
        """Wait until what is being written is there; raises InputError, on all ranks, where it can't be."""
        if self._written is None:
            return
        (running, writer), self._written = self._written, None
        _told(writer, running.result)


def _told(writer: CheckpointWriter, write: Callable[[], object]) -> object:
    """What ``write`` returns; where it fails, on all ranks, what was half written goes and one line says why."""
    try:
        return write()
    except CheckpointException as error:
        writer.abandon()
        rank, (cause, _) = min(error.failures.items())
        words = cause.strerror if isinstance(cause, OSError) and cause.strerror else cause
        whose = "" if rank == own_rank() else f" by a peer, rank {rank}"
        raise InputError(f"{writer.target} can't be written{whose}: {words}") from error
