"""``fill``: a window's tokens, labels, positions and documents under the names that the model's arguments have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from partitioner.errors import InputError

# What an integer argument of ``b s`` is filled with, by what its name says; the first that it says, else the tokens.
WORDS = (
    ("mask", "ones"), ("label", "labels"), ("target", "labels"), ("position", "positions"), ("document", "documents"),
)  # fmt: skip
BOUNDARIES = ("documents", "positions")  # what tells a model where documents end, the plainest first


def fill(example: Mapping[str, Tensor], windows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch with the example's argument names and data types, made of the ``windows``.

    Where these say nothing of documents, a window is one. Raises InputError for an argument that text can't fill, and
    for another length.
    """
    return {name: _filled(name, tensor, windows) for name, tensor in example.items()}


def boundaries(names: Iterable[str]) -> list[str]:
    """Which arguments tell where documents end, the plainest first."""
    rows = [(content(name), name) for name in names]
    return [name for kind in BOUNDARIES for found, name in rows if found == kind]


def content(name: str) -> str:
    """With what an argument is filled."""
    return next((filled for word, filled in WORDS if word in name), "tokens")


def _filled(name: str, tensor: Tensor, windows: Mapping[str, Tensor]) -> Tensor:
    tokens = windows["tokens"]
    if tensor.dim() != 2 or tensor.is_floating_point():
        kind = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
        raise InputError(f"text can't fill the model's argument {name} ({kind}): pass your own batches to engine.step")
    if tensor.shape[1] != tokens.shape[1]:
        raise InputError(f"argument {name} has length {tensor.shape[1]}, not the windows' {tokens.shape[1]}")
    whole = {
        "ones": torch.ones_like(tokens),
        "positions": torch.arange(tokens.shape[1]).expand_as(tokens),
        "documents": torch.zeros_like(tokens),
    }
    return (whole | dict(windows))[content(name)].to(tensor.dtype, copy=True)
