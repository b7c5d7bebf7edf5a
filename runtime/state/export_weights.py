"""Full parameters out of the ranks that hold their parts, into files that transformers reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from partitioner.lowering.program import Program
from runtime.ranks.process_group import all_here, is_first
from runtime.state.parameters import Groups, gather
from runtime.state.safetensors_files import FILE_BYTES, write_safetensors

Tensors = Mapping[str, torch.Tensor]


def export_safetensors(
    program: Program,
    groups: Groups,
    parameters: Tensors,
    folder: Path | str,
    buffers: Tensors | None = None,
    dtype: torch.dtype | None = None,
    file_bytes: int = FILE_BYTES,
) -> None:
    """Write every full parameter under its first name (tied names once), and ``buffers``, as ``save_pretrained`` does.

    Called on all ranks, written by rank 0, one file's parameters at a time in its memory. ``dtype`` None keeps the
    dtypes in which values are held.
    """
    rows = _full(program, groups, parameters, buffers or {}, dtype)
    if is_first():
        write_safetensors(Path(folder), rows, file_bytes)
    else:
        for _ in rows:
            pass
    all_here()


def full_state(
    program: Program, groups: Groups, parameters: Tensors, buffers: Tensors | None = None
) -> dict[str, torch.Tensor]:
    """Every full parameter under each of its names, and ``buffers``, on the CPU of rank 0; nothing on other ranks.

    Called on all ranks. What is updated in float32 is given so.
    """
    found: dict[str, torch.Tensor] = {}
    for name, whole in _full(program, groups, parameters, buffers or {}, None):
        names = program.parameters[name].names if name in program.parameters else (name,)
        found |= dict.fromkeys(names, whole.detach().cpu())
    return found if is_first() else {}


def _full(
    program: Program, groups: Groups, parameters: Tensors, buffers: Tensors, dtype: torch.dtype | None
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in program.parameters.items():
        kept = dtype or parameter.held_dtype
        local = parameters[name].to(kept) if name in parameters else None
        whole = gather(program, groups, name, local, kept, everywhere=False)
        if whole is not None:
            yield name, whole
    yield from buffers.items()
