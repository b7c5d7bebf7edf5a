"""A corpus: the tokens of documents in a fixed order as one row, read from anywhere, and where documents begin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from partitioner.errors import InputError


@dataclass(frozen=True, eq=False)
class Corpus:
    """``ends[i]``: the number of tokens up to the end of document i, whose tokens are ``document(i)``.

    ``vocab``: the smallest vocabulary that holds them. ``unit``: what a token is, in the plural. ``made_of``: what was
    read, in words; ``label(i)`` names document i in errors.
    """

    name: str
    ends: np.ndarray
    document: Callable[[int], np.ndarray]
    label: Callable[[int], str]
    vocab: int
    unit: str
    made_of: str

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __str__(self) -> str:
        """What was read and what was skipped, on one line."""
        return f"{self.name}: {self.made_of}"

    def read(self, start: int, size: int) -> np.ndarray:
        """Tokens ``start`` to ``start + size`` of the concatenated documents."""
        pieces: list[np.ndarray] = []
        while size:
            index = int(np.searchsorted(self.ends, start, side="right"))
            inside = start - (int(self.ends[index - 1]) if index else 0)
            piece = self.document(index)[inside : inside + size]
            if not len(piece):
                raise InputError(f"data {self.label(index)} became shorter while it was read")
            pieces.append(piece)
            start, size = start + len(piece), size - len(piece)
        return np.concatenate(pieces)

    def starts(self, start: int, size: int) -> np.ndarray:
        """Where documents begin in the window of ``size`` tokens from ``start`` on, counted from it, increasing: 0
        always, since what was cut off before the window is not in it."""
        first, last = np.searchsorted(self.ends, (start, start + size), side="right")
        inside = self.ends[first:last] - start
        return np.concatenate(([0], inside[inside < size]))
