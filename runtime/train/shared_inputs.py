"""Inputs that carry no samples (a count of items, positions) are the same on all data ranks, or the step is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist

from partitioner.errors import InputError
from partitioner.ops.collective_kinds import ALL_REDUCE
from partitioner.sharding.mesh_axes import DP
from runtime.mesh.groups import Groups


def check_shared(
    inputs: Mapping[str, torch.Tensor], groups: Groups, holds: Callable[[torch.Tensor], bool] = bool
) -> None:
    """Compare the inputs' fingerprints over data ranks; raises InputError, on all of them, naming the first unlike.

    ``holds`` reads a condition out of a tensor.
    """
    if not inputs or groups.size(DP) == 1:
        return
    own = torch.stack([fingerprint(t) for t in inputs.values()])
    both = torch.cat([own, -own])
    groups.log.add(DP, ALL_REDUCE, both, "control")
    dist.all_reduce(both, dist.ReduceOp.MAX, groups.group(DP))
    largest, smallest = both[: len(own)], -both[len(own) :]
    alike = largest == smallest
    if holds(alike.all()):
        return
    name = next(name for name, is_alike in zip(inputs, alike.tolist(), strict=True) if not is_alike)
    raise InputError(
        f"{name} carries no samples and is not the same on all data ranks: give each rank the one of the whole global "
        "batch"
    )


@torch.library.custom_op("runtime::fingerprint", mutates_args=())
def fingerprint(tensor: torch.Tensor) -> torch.Tensor:
    """62 bits of a hash of its bytes (int64, scalar)."""
    content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    number = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest()) >> 2
    return torch.tensor(number, dtype=torch.int64, device=tensor.device)


@fingerprint.register_fake
def _(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty((), dtype=torch.int64, device=tensor.device)
