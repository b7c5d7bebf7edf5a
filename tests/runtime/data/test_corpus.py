"""A corpus is one row of tokens over its documents."""

from __future__ import annotations

import numpy as np
import pytest

from partitioner.errors import InputError
from runtime.data.corpus import Corpus


def corpus_of(*lengths: int, held: int | None = None) -> Corpus:
    """Documents whose tokens count up across their borders; each holds ``held`` tokens, None: as many as it says."""
    ends = np.cumsum(lengths)

    def document(index: int) -> np.ndarray:
        return np.arange(ends[index] - lengths[index], ends[index])[:held]

    return Corpus("some", ends, document, lambda i: f"file {i}", 256, "bytes", "of tests")


def test_reading_crosses_the_borders_of_documents() -> None:
    corpus = corpus_of(100, 3, 97)
    assert len(corpus) == 200
    assert corpus.read(95, 50).tolist() == list(range(95, 145))
    assert corpus.read(100, 3).tolist() == [100, 101, 102]
    assert str(corpus) == "some: of tests"


@pytest.mark.parametrize(
    ("start", "size", "found"),
    [
        (0, 5, [0]), (0, 6, [0, 5]), (0, 12, [0, 5, 8]), (4, 4, [0, 1]), (4, 5, [0, 1, 4]), (5, 3, [0]), (6, 6, [0, 2]),
        (9, 3, [0]),
    ],
)  # fmt: skip
def test_documents_begin_where_others_end_and_where_a_window_does(start: int, size: int, found: list[int]) -> None:
    assert corpus_of(5, 3, 4).starts(start, size).tolist() == found


def test_a_document_that_shrinks_is_noticed() -> None:
    with pytest.raises(InputError, match="data file 1 became shorter"):
        corpus_of(10, 10, held=7).read(10, 8)
    with pytest.raises(InputError, match="data file 0 became shorter"):
        corpus_of(10, 10, held=7).read(5, 8)
