"""Endless batches of windows, shuffled by a seed: the same global samples whatever the number of ranks.

    corpus --> windows of ``seq`` tokens --> training | validation --> shuffled --> rank's part

A batch is ``{"tokens", "labels"}``, both the same window: models shift labels inside, as those of Hugging Face do.
Where documents are kept apart, ``packing`` makes both, and positions and documents beside them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from partitioner.errors import InputError
from runtime.data.choices import PACKS, PLAIN
from runtime.data.corpus import Corpus
from runtime.data.packing import window
from runtime.data.tokens import AS_BYTES

VALIDATION_SHARE = 0.05


class Batches:
    """Endless batches, int64 ``b s``, of one data rank; every epoch is shuffled anew.

    All ranks together draw the same samples whatever their number: global sample ``step * global_batch + i`` belongs to
    rank ``i // (global_batch / ranks)``. ``start`` is the number of global samples already drawn, to resume from.
    ``pack``: "documents" keeps documents apart, "plain" does not.
    Raises InputError when the model's vocabulary can't hold a token, the ranks do not divide the global batch, or the
    text is shorter than one window a part.
    """

    def __init__(
        self,
        corpus: Corpus,
        seq: int,
        global_batch: int,
        rank: int = 0,
        ranks: int = 1,
        seed: int = 0,
        vocab: int | None = None,
        part: Literal["training", "validation"] = "training",
        start: int = 0,
        pack: str = PLAIN,
    ) -> None:
        if vocab is not None and vocab < corpus.vocab:
            held = corpus.unit if corpus.unit == AS_BYTES.unit else f"token {corpus.vocab - 1} of {corpus.name}"
            raise InputError(f"a vocabulary of {vocab} can't hold {held}: the model needs at least {corpus.vocab}")
        if global_batch % ranks:
            raise InputError(f"a global batch of {global_batch} does not divide over {ranks} data ranks")
        if pack not in PACKS:
            raise InputError(f"pack must be one of {', '.join(PACKS)}, not {pack!r}")
        self._corpus, self._seq, self._seed, self._pack = corpus, seq, seed, pack
        self._first, self._windows = _part(corpus, seq, part)
        self._global_batch, self._own = global_batch, global_batch // ranks
        self._offset = rank * self._own
        self.samples = start
        self._order: tuple[int, np.ndarray] | None = None

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self

    def __next__(self) -> dict[str, Tensor]:
        first = self.samples + self._offset
        windows = [self._read(sample) for sample in range(first, first + self._own)]
        self.samples += self._global_batch
        return {name: torch.from_numpy(np.stack([w[name] for w in windows])) for name in windows[0]}

    def _read(self, sample: int) -> dict[str, np.ndarray]:
        epoch, index = divmod(sample, self._windows)
        place = self._first + int(self._shuffled(epoch)[index])
        return window(self._corpus, place * self._seq, self._seq, self._pack)

    def _shuffled(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self._seed, epoch]).permutation(self._windows)
        return self._order[1]


def _part(corpus: Corpus, seq: int, part: str) -> tuple[int, int]:
    """The first window of a part and their number: the last twentieth of the text is for validation."""
    windows = len(corpus) // seq
    held = max(1, round(windows * VALIDATION_SHARE))
    if windows - held < 1:
        raise InputError(f"data {corpus.name} has {len(corpus)} {corpus.unit}: too short for two windows of {seq}")
    return (windows - held, held) if part == "validation" else (0, windows - held)
