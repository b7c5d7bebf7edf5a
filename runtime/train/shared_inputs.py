"""Inputs that carry no samples (a count of items, positions) are the same on all data ranks, or the step is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
import torch.distributed as dist

from partitioner.errors import InputError
from partitioner.ops.collective_kinds import ALL_REDUCE
from partitioner.ops.own_ops import has_values
from runtime.mesh.groups import Groups


def check_shared(inputs: Mapping[str, torch.Tensor], groups: Groups) -> None:
    """Compare the inputs' fingerprints over data ranks; raises InputError, on all of them, naming the first unlike."""
    if not inputs or groups.size("dp") == 1:
        return
    own = [_fingerprint(t) for t in inputs.values()]
    both = torch.tensor([*own, *(-n for n in own)], dtype=torch.int64, device=groups.device)
    groups.log.add("dp", ALL_REDUCE, both, "control")
    dist.all_reduce(both, dist.ReduceOp.MAX, groups.group("dp"))
    if not has_values(both):
        return
    largest, smallest = both.tolist()[: len(own)], [-n for n in both.tolist()[len(own) :]]
    for name, a, b in zip(inputs, largest, smallest, strict=True):
        if a != b:
            raise InputError(
                f"{name} carries no samples and is not the same on all data ranks: give each rank the one of the "
                "whole global batch"
            )


def _fingerprint(tensor: torch.Tensor) -> int:
    """62 bits of a hash of its bytes."""
    if not has_values(tensor):
        return 0
    content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest()) >> 2
