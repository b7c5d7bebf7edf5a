"""All ranks together: joining and leaving the process group, and what every rank says; one process needs no group."""

from __future__ import annotations

import gc
import os
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from partitioner.errors import InputError
from runtime.ranks import meeting_store, slurm
from runtime.ranks.limits import START_SECONDS
from runtime.ranks.meeting_store import Store
from runtime.ranks.own_device import all_backends, own_device
from runtime.ranks.watchdog import Watchdog, answer_stack_signal, answer_when_asked, is_watched

T = TypeVar("T")
TIMEOUT = timedelta(days=1)  # of a collective; a watchdog ends what takes too long sooner
_word_seconds: float | None = None  # in which every rank has to come to a word of all, where it has no other limit


def start_ranks(limit_seconds: float = START_SECONDS) -> None:
    """Join the process group that torchrun, srun or our launcher describes; nothing in a single process.

    Raises InputError where ranks are announced, but not where they meet. A rank that has not met all others after
    ``limit_seconds`` ends, here and wherever all ranks exchange a word.
    """
    global _word_seconds
    if dist.is_initialized():
        return  # by the user, whose own limits hold
    _word_seconds = limit_seconds
    answer_stack_signal()
    own = announced_rank()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        if own is None or name not in os.environ:
            raise InputError(f"{world} ranks are announced, but {name} is not set: start with torchrun, or export it")
    with Watchdog(limit_seconds, "joining the other ranks"):
        store = meeting_store.join(timedelta(seconds=limit_seconds))
        answer_when_asked()
        _join(store, own, world)


def _join(store: Store, rank: int, world: int) -> None:
    place: dict[str, Any] = {"store": store, "rank": rank, "world_size": world, "timeout": TIMEOUT}
    device = own_device()
    if device.type != "cpu":
        torch.accelerator.set_device_index(device)
        place["device_id"] = device  # communicators are then made when groups are, in the same order on all ranks
    dist.init_process_group(all_backends(device), **place)


def announced_rank() -> int | None:
    """The rank that torchrun, srun or our launcher started this process as; None where nobody did."""
    if slurm.is_task():
        slurm.tell_place(os.environ)
    return int(os.environ["RANK"]) if "RANK" in os.environ else None


def own_rank() -> int:
    """This process's; 0 of the only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is rank 0, or the only process."""
    return own_rank() == 0


def finish_ranks() -> None:
    """Leave the process group once all ranks are done; nothing in a single process."""
    if dist.is_initialized():
        all_here()
        gc.collect()  # a process group that something still holds would outlive the next line, and its threads Python
        dist.destroy_process_group()


def all_here() -> None:
    """Wait until every rank is here."""
    if dist.is_initialized():
        with _in_time():
            dist.barrier()


def saving_group() -> dist.ProcessGroup | None:
    """Another group of all ranks, on the CPU, for what is written beside training; None in a single process."""
    return cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=TIMEOUT)) if dist.is_initialized() else None


def largest(value: float) -> float:
    """The largest of all ranks' values."""
    if not dist.is_initialized():
        return value
    held = torch.tensor(value, dtype=torch.float64)
    with _in_time():
        dist.all_reduce(held, dist.ReduceOp.MAX)
    return float(held)


def everywhere(value: T) -> list[T]:
    """Every rank's value, in rank order."""
    if not dist.is_initialized():
        return [value]
    rows = [value] * dist.get_world_size()
    with _in_time():
        dist.all_gather_object(rows, value)
    return rows


def _in_time() -> AbstractContextManager[object]:
    """A limit, unless what asks for the word has one, which allows for what ranks do before they come to it."""
    if _word_seconds is None or is_watched():
        return nullcontext()
    return Watchdog(_word_seconds, "waiting for a word of every rank")
