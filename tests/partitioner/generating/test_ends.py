"""How many tokens a model knows, and how long its texts can be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from examples.gpt import model
from partitioner import Graph, trace
from partitioner.errors import InputError
from partitioner.generating.lengths import Lengths, lengths


def of_length(length: int) -> Lengths:
    module, batch = model(vocab=50, hidden=16, layers=1, heads=2, seq=12)

    def traced(given: Mapping[str, Any]) -> Graph:
        return trace(module, given, compare=False)

    return lengths(batch, length, traced)


def test_all_rows_of_the_table_of_tokens_are_known() -> None:
    assert of_length(12).vocabulary == 50


def test_texts_longer_than_the_table_of_positions_are_refused() -> None:
    with pytest.raises(InputError, match=r"texts of 13 positions: positions.weight has 12 rows"):
        of_length(13)
