"""Windows that hold parts of several documents, with what keeps these apart: labels, positions, document numbers.

    documents   a a a a a b b b c c c c
    positions   0 1 2 3 4 0 1 2 0 1 2 3
    documents   0 0 0 0 0 1 1 1 2 2 2 2
    labels      - a a a a - b b - c c c    "-" is not asked: a model shifts labels, so that "a" would be asked for "b"
"""

from __future__ import annotations

import numpy as np

from runtime.data.choices import PLAIN
from runtime.data.corpus import Corpus

IGNORED = -100  # what torch's cross entropy does not count


def window(corpus: Corpus, start: int, seq: int, pack: str) -> dict[str, np.ndarray]:
    """Tokens and labels of ``seq`` tokens from ``start`` on, int64; of packed ones positions and documents too."""
    tokens = corpus.read(start, seq).astype(np.int64)
    if pack == PLAIN:
        return {"tokens": tokens, "labels": tokens.copy()}
    starts, labels = corpus.starts(start, seq), tokens.copy()
    labels[starts] = IGNORED
    lengths = np.diff(starts, append=seq)
    documents = np.repeat(np.arange(len(starts)), lengths)
    return {"tokens": tokens, "labels": labels, "positions": np.arange(seq) - starts[documents], "documents": documents}
