"""Text as training batches: bytes are the tokens, read from files through memory maps, shuffled by a seed.

    files --> one string of bytes --> windows of ``seq`` bytes --> training | validation --> shuffled --> rank's part

A batch is ``{"tokens", "labels"}``, both the same window: models shift labels inside, as those of Hugging Face do.
"""

from __future__ import annotations

import sysconfig
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from partitioner.errors import InputError

BYTES = 256
VALIDATION_SHARE = 0.05
LIBRARY_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


@dataclass(frozen=True)
class Corpus:
    """Files in a fixed order; ``ends[i]`` is the number of bytes up to the end of file i."""

    name: str
    files: tuple[Path, ...]
    ends: tuple[int, ...]
    skipped: int = 0

    def __len__(self) -> int:
        return self.ends[-1]

    def __str__(self) -> str:
        """What was read and what was skipped, on one line."""
        left_out = f", {self.skipped} skipped as not text" if self.skipped else ""
        return f"{self.name}: {len(self.files)} files, {len(self):,} bytes{left_out}"

    def read(self, start: int, size: int) -> np.ndarray:
        """Bytes ``start`` to ``start + size`` of the concatenated files, uint8."""
        pieces: list[np.ndarray] = []
        while size:
            index = bisect_right(self.ends, start)
            inside = start - (self.ends[index - 1] if index else 0)
            piece = _map(self.files[index])[inside : inside + size]
            if not len(piece):
                raise InputError(f"{self.files[index]} became shorter while it was read")
            pieces.append(piece)
            start, size = start + len(piece), size - len(piece)
        return np.concatenate(pieces)


def open_corpus(path: str | Path | None = None) -> Corpus:
    """The text of a file, of all text files below a folder, or of Python's own standard library.

    Raises InputError when there is no such path, it can't be read, is empty, or is not text.
    """
    if path is None:
        root = Path(sysconfig.get_path("stdlib"))
        own = [p for p in root.rglob("*.py") if not LIBRARY_LEFT_OUT.intersection(p.relative_to(root).parts)]
        return _corpus("the Python standard library", own)
    root = Path(path)
    if root.is_file():
        if not _is_text(root):
            raise InputError(f"data {root} is not a text file: it holds zero bytes")
        return _corpus(str(root), [root])
    if not root.is_dir():
        raise InputError(f"data {root}: no such file or folder")
    return _corpus(str(root), [p for p in root.rglob("*") if p.is_file()])


def _corpus(name: str, paths: list[Path]) -> Corpus:
    full = [path for path in sorted(paths) if _size(path)]
    files = tuple(path for path in full if _is_text(path))
    if not files:
        raise InputError(f"data {name} holds no text")
    return Corpus(name, files, tuple(accumulate(map(_size, files))), len(full) - len(files))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error


def _is_text(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return b"\0" not in file.read(4096)
    except OSError as error:
        raise _unreadable(path, error) from error


def _map(path: Path) -> np.ndarray:
    try:
        return np.memmap(path, np.uint8, "r")
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"data {path} can't be read: {error}")


class Batches:
    """Endless batches ``{"tokens": b s, "labels": b s}``, int64, of one data rank; every epoch is shuffled anew.

    All ranks together draw the same samples whatever their number: global sample ``step * global_batch + i`` belongs to
    rank ``i // (global_batch / ranks)``. ``start`` is the number of global samples already drawn, to resume from.
    Raises InputError when the model's vocabulary can't hold a byte, the ranks do not divide the global batch, or the
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
        vocab: int = BYTES,
        part: Literal["training", "validation"] = "training",
        start: int = 0,
    ) -> None:
        if vocab < BYTES:
            raise InputError(f"a vocabulary of {vocab} can't hold bytes: the model needs at least {BYTES}")
        if global_batch % ranks:
            raise InputError(f"a global batch of {global_batch} does not divide over {ranks} data ranks")
        self._corpus, self._seq, self._seed = corpus, seq, seed
        self._first, self._windows = _part(corpus, seq, part)
        self._global_batch, self._own = global_batch, global_batch // ranks
        self._offset = rank * self._own
        self.samples = start
        self._order: tuple[int, np.ndarray] | None = None

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self

    def __next__(self) -> dict[str, Tensor]:
        first = self.samples + self._offset
        windows = np.stack([self._read(sample) for sample in range(first, first + self._own)])
        self.samples += self._global_batch
        tokens = torch.from_numpy(windows.astype(np.int64))
        return {"tokens": tokens, "labels": tokens.clone()}

    def _read(self, sample: int) -> np.ndarray:
        epoch, index = divmod(sample, self._windows)
        window = self._first + int(self._shuffled(epoch)[index])
        return self._corpus.read(window * self._seq, self._seq)

    def _shuffled(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self._seed, epoch]).permutation(self._windows)
        return self._order[1]


def _part(corpus: Corpus, seq: int, part: str) -> tuple[int, int]:
    """The first window of a part and their number: the last twentieth of the text is for validation."""
    windows = len(corpus) // seq
    held = max(1, round(windows * VALIDATION_SHARE))
    if windows - held < 1:
        raise InputError(f"data {corpus.name} has {len(corpus)} bytes: too short for two windows of {seq}")
    return (windows - held, held) if part == "validation" else (0, windows - held)


def fill(example: Mapping[str, Tensor], windows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch with the example's argument names and data types, made of the tokens and labels of ``windows``.

    An integer argument of ``b s`` is labels when its name says label or target, all ones when it says mask, else the
    tokens. Raises InputError for any other argument, which text can't fill, and for another length.
    """
    return {name: _filled(name, tensor, windows) for name, tensor in example.items()}


def _filled(name: str, tensor: Tensor, windows: Mapping[str, Tensor]) -> Tensor:
    tokens = windows["tokens"]
    if tensor.dim() != 2 or tensor.is_floating_point():
        kind = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
        raise InputError(f"text can't fill the model's argument {name} ({kind}): pass your own batches to engine.step")
    if tensor.shape[1] != tokens.shape[1]:
        raise InputError(f"argument {name} has length {tensor.shape[1]}, not the windows' {tokens.shape[1]}")
    if "mask" in name:
        return torch.ones(tokens.shape, dtype=tensor.dtype)
    return windows["labels" if "label" in name or "target" in name else "tokens"].to(tensor.dtype)
