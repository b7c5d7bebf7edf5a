"""Windows under the names that a model's arguments have."""

from __future__ import annotations

import pytest
import torch

from partitioner.errors import InputError
from runtime.data.filling import boundaries, fill

IDS = torch.zeros(2, 3, dtype=torch.int32)
WINDOWS = {"tokens": torch.arange(6).view(2, 3), "labels": torch.arange(6).view(2, 3) + 10}


def test_fill_names_the_arguments_as_the_example_does() -> None:
    example = {"input_ids": IDS, "attention_mask": IDS.bool(), "labels": IDS.long(), "target_ids": IDS.long()}
    filled = fill(example, WINDOWS)
    assert list(filled) == list(example)
    assert torch.equal(filled["input_ids"], WINDOWS["tokens"].int())
    assert torch.equal(filled["attention_mask"], torch.ones(2, 3, dtype=torch.bool))
    assert torch.equal(filled["labels"], WINDOWS["labels"])
    assert torch.equal(filled["target_ids"], WINDOWS["labels"])


def test_positions_and_documents_are_those_of_the_windows() -> None:
    example = {"input_ids": IDS, "position_ids": IDS, "document_ids": IDS.long()}
    packed = {"positions": torch.tensor([[0, 1, 0]] * 2), "documents": torch.tensor([[0, 0, 1]] * 2)}
    filled = fill(example, WINDOWS | packed)
    assert filled["position_ids"].dtype == torch.int32
    assert filled["position_ids"].tolist() == [[0, 1, 0]] * 2
    assert filled["document_ids"].tolist() == [[0, 0, 1]] * 2
    plain = fill(example, WINDOWS)
    assert plain["position_ids"].tolist() == [[0, 1, 2]] * 2
    assert plain["document_ids"].tolist() == [[0, 0, 0]] * 2


def test_what_tells_where_documents_end() -> None:
    assert boundaries(["input_ids", "position_ids", "labels", "document_ids"]) == ["document_ids", "position_ids"]
    assert boundaries(["input_ids", "attention_mask", "labels"]) == []


@pytest.mark.parametrize(
    ("example", "words"),
    [
        ({"pixel_values": torch.zeros(2, 3, 4, 4)}, "argument pixel_values"),
        ({"labels": torch.zeros(2, dtype=torch.long)}, "argument labels"),
        ({"position_ids": torch.zeros(3, dtype=torch.long)}, "argument position_ids"),
        ({"input_ids": torch.zeros(2, 5, dtype=torch.long)}, "length 5"),
    ],
)
def test_text_cannot_fill_everything(example: dict[str, torch.Tensor], words: str) -> None:
    tokens = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(InputError, match=words):
        fill(example, {"tokens": tokens, "labels": tokens})
