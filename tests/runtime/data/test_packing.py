"""A packed window trains as if each of its documents stood alone: held against transformers itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from runtime.data.batches import Batches
from runtime.data.corpus import Corpus
from runtime.data.filling import fill
from runtime.data.packing import window
from tools.models.load import Source, load

LENGTHS = (7, 1, 12, 9, 30, 5, 11, 2, 40, 23)
SEQ = 20


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    tokens = np.random.default_rng(0).integers(0, 256, sum(LENGTHS)).astype(np.uint16)
    ends = np.cumsum(LENGTHS)

    def document(index: int) -> np.ndarray:
        return tokens[ends[index] - LENGTHS[index] : ends[index]]

    return Corpus("some", ends, document, str, 256, "tokens", "of tests")


@pytest.fixture(scope="module")
def llama() -> Source:
    source = load("hf:llama", {"position_ids": True, "num_hidden_layers": 2}, seq=SEQ, shrink=True)
    source.module.double()
    return source


def test_a_window_by_hand(corpus: Corpus) -> None:
    made = window(corpus, 5, 17, "documents")
    assert made["positions"].tolist() == [0, 1, 0, *range(12), 0, 1]
    assert made["documents"].tolist() == [0, 0, 1, *[2] * 12, 3, 3]
    begins = [0, 2, 3, 15]
    assert made["labels"][begins].tolist() == [-100] * 4
    rest = np.setdiff1d(np.arange(17), begins)
    assert made["labels"][rest].tolist() == made["tokens"][rest].tolist() == corpus.read(5, 17)[rest].tolist()
    assert {v.dtype for v in made.values()} == {np.dtype(np.int64)}
    assert list(window(corpus, 5, 17, "plain")) == ["tokens", "labels"]


def alone(source: Source, batch: dict[str, torch.Tensor]) -> tuple[float, int]:
    """The loss of every document of a packed batch run by itself, weighted by tokens, and how many there were."""
    losses, many = list[torch.Tensor](), 0
    for tokens, documents in zip(batch["tokens"], batch["documents"], strict=True):
        for number in documents.unique():
            document = tokens[documents == number][None]
            many += 1
            logits = source.module(input_ids=document).logits[0]
            losses.append(F.cross_entropy(logits[:-1], document[0, 1:], reduction="none"))
    return torch.cat(losses).mean().item(), many


def test_packed_documents_train_as_alone(corpus: Corpus, llama: Source) -> None:
    packed = next(Batches(corpus, SEQ, 4, pack="documents"))
    wanted, many = alone(llama, packed)
    assert many > 8
    assert llama.module(**fill(llama.batch, packed)).loss.item() == pytest.approx(wanted, rel=1e-6)


def test_as_one_text_they_do_not(corpus: Corpus, llama: Source) -> None:
    packed, plain = (next(Batches(corpus, SEQ, 4, pack=pack)) for pack in ("documents", "plain"))
    wanted, _ = alone(llama, packed)
    assert abs(llama.module(**fill(llama.batch, plain)).loss.item() - wanted) > 1e-3
    mixed = {name: packed[name] for name in ("tokens", "labels")}  # the labels alone do not make it
    assert abs(llama.module(**fill(llama.batch, mixed)).loss.item() - wanted) > 1e-4
