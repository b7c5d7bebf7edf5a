"""A batch taken apart: tensors by dotted names, plain values beside them, and which tensors carry samples.

{"inputs": {"ids": ids}, "labels": labels, "scale": 2.0}  -->  inputs.ids, labels | scale | how they lie together
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from partitioner.errors import InputError

_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Flat:
    """``tensors`` and ``plain`` values by dotted name; ``names`` are all of them in the order of ``spec``."""

    tensors: dict[str, torch.Tensor]
    plain: dict[str, object]
    names: tuple[str, ...]
    spec: pytree.TreeSpec

    def together(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The batch as it was, of other tensors."""
        return pytree.tree_unflatten([tensors[n] if n in tensors else self.plain[n] for n in self.names], self.spec)


def flat(batch: Mapping[str, Any]) -> Flat:
    """Nested dicts, lists and tuples taken apart; raises InputError for a leaf that is no tensor and no plain value."""
    leaves, spec = pytree.tree_flatten_with_path(dict(batch))
    rows = {".".join(map(_word, path)): leaf for path, leaf in leaves}
    if len(rows) != len(leaves):
        raise InputError("two tensors of the batch have one dotted name: rename one of them")
    for name, leaf in rows.items():
        if not isinstance(leaf, torch.Tensor) and type(leaf) not in _PLAIN:
            raise InputError(
                f"the batch's {name} is a {type(leaf).__name__}: a batch is a dict of example tensors and plain "
                "values, one for each argument of the model's forward; it may be nested"
            )
    tensors = {name: leaf for name, leaf in rows.items() if isinstance(leaf, torch.Tensor)}
    return Flat(tensors, {n: leaf for n, leaf in rows.items() if n not in tensors}, tuple(rows), spec)


def _word(key: Any) -> str:
    return str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))))


def carriers(tensors: Mapping[str, torch.Tensor]) -> tuple[int, tuple[str, ...]]:
    """The number of samples, and the names of the tensors whose dimension 0 counts them.

    It is the size that most tensors have there; among equals that of the tensor with the most dimensions, the first.
    """
    sizes = {name: t.shape[0] for name, t in tensors.items() if t.dim()}
    if not sizes:
        raise InputError("no tensor of the batch has a dimension: give each a leading batch dimension")
    found = list(sizes.values())
    deepest = {size: max(tensors[n].dim() for n, s in sizes.items() if s == size) for size in found}
    samples = max(found, key=lambda size: (found.count(size), deepest[size]))
    return samples, tuple(name for name, size in sizes.items() if size == samples)
