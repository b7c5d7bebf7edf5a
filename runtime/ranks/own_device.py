"""The device that this process computes on, and the backend by which tensors travel from there."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from partitioner.errors import InputError


def own_device() -> torch.device:
    """The accelerator of this rank's LOCAL_RANK, the first where there is one process alone.

    The CPU where there is none, and in a world that speaks gloo alone. Raises InputError where the machine has more
    ranks than accelerators.
    """
    if not torch.accelerator.is_available() or (dist.is_initialized() and dist.get_backend() == "gloo"):
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator()
    index, have = int(os.environ.get("LOCAL_RANK", "0")), torch.accelerator.device_count()
    if kind is None or index >= have:
        raise InputError(f"rank {index} of this machine finds {have} accelerators: start one rank for each of them")
    return torch.device(kind.type, index)


def backend_of(device: torch.device) -> str:
    """What torch sends by from there: "nccl", "gloo", ..."""
    return dist.get_default_backend_for_device(device.type)


def all_backends(device: torch.device) -> str:
    """That, and gloo for objects and whatever lies in the memory of the CPU."""
    return "gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:{backend_of(device)}"
