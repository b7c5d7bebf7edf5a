"""The batches drawn from a corpus: the same samples for any number of ranks, training and validation apart."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch

from partitioner.errors import InputError
from runtime.data.batches import Batches
from runtime.data.corpus import Corpus
from runtime.data.sources import open_corpus


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Three documents whose bytes count up across their borders: 1, 2, ... 255, 1, ... 45."""
    for i in range(3):
        (tmp_path / f"{i}.txt").write_bytes(bytes(1 + (100 * i + j) % 255 for j in range(100)))
    return open_corpus(tmp_path)


def take(corpus: Corpus, steps: int, ranks: int = 1, rank: int = 0, **other: int | str) -> list[torch.Tensor]:
    batches = Batches(corpus, 7, 4, rank, ranks, **other)  # type: ignore[arg-type]
    return [batch["tokens"] for batch in islice(batches, steps)]


def test_the_samples_do_not_depend_on_the_number_of_ranks(corpus: Corpus) -> None:
    whole = take(corpus, 25)
    for ranks in (2, 4):
        parts = [take(corpus, 25, ranks, rank) for rank in range(ranks)]
        for step, tokens in enumerate(whole):
            assert torch.equal(tokens, torch.cat([part[step] for part in parts]))


def test_an_epoch_holds_every_window_once_and_the_next_another_order(corpus: Corpus) -> None:
    training = 300 // 7 - 2
    drawn = [int(row[0]) for tokens in take(corpus, 20) for row in tokens]
    first, second = drawn[:training], drawn[training : 2 * training]
    assert sorted(first) == sorted(1 + 7 * w % 255 for w in range(training)) == sorted(second)
    assert first != second
    assert first != sorted(first)


def test_seeds_differ_and_repeat(corpus: Corpus) -> None:
    a, b, c = (torch.stack(take(corpus, 5, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_training_never_sees_validation(corpus: Corpus) -> None:
    training = {tuple(row.tolist()) for tokens in take(corpus, 20) for row in tokens}
    validation = {tuple(row.tolist()) for tokens in take(corpus, 20, part="validation") for row in tokens}
    assert len(validation) == 2
    assert not training & validation


@pytest.mark.parametrize("pack", ["plain", "documents"])
def test_resuming_continues(corpus: Corpus, pack: str) -> None:
    batches = Batches(corpus, 7, 4, pack=pack)
    for _ in islice(batches, 11):
        pass
    resumed = next(Batches(corpus, 7, 4, start=batches.samples, pack=pack))
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in next(batches).items())


def test_labels_are_the_tokens() -> None:
    batch = next(Batches(open_corpus(), 64, 2))
    assert list(batch) == ["tokens", "labels"]
    assert batch["tokens"].dtype == torch.int64
    assert batch["tokens"].shape == (2, 64)
    assert torch.equal(batch["tokens"], batch["labels"])
    assert batch["tokens"].data_ptr() != batch["labels"].data_ptr()


def test_packed_batches_have_the_same_tokens_and_say_where_documents_begin(corpus: Corpus) -> None:
    plain, packed = (Batches(corpus, 30, 9, pack=pack) for pack in ("plain", "documents"))
    a, b = next(plain), next(packed)
    assert torch.equal(a["tokens"], b["tokens"])
    assert {name: tuple(t.shape) for name, t in b.items()} == dict.fromkeys(b, (9, 30))
    begins = {int(t) for t in b["tokens"][b["positions"] == 0]}
    assert begins == {1 + 30 * w % 255 for w in range(9)} | {101, 201}, "windows and the second and third document"
    assert torch.equal(b["labels"] == -100, b["positions"] == 0)


def test_a_batch_that_cannot_be_is_refused(corpus: Corpus) -> None:
    with pytest.raises(InputError, match="vocabulary of 101 can't hold bytes: the model needs at least 256"):
        Batches(corpus, 7, 4, vocab=101)
    rows = Corpus("some", corpus.ends, corpus.document, str, 700, "tokens", "of tests")
    with pytest.raises(InputError, match="of 699 can't hold token 699 of some: the model needs at least 700"):
        Batches(rows, 7, 4, vocab=699)
    assert next(Batches(rows, 7, 4, vocab=700))
    with pytest.raises(InputError, match="4 does not divide over 3"):
        Batches(corpus, 7, 4, ranks=3)
    with pytest.raises(InputError, match="300 bytes: too short for two windows of 200"):
        Batches(corpus, 200, 4)
    with pytest.raises(InputError, match="pack must be one of plain, documents, not 'none'"):
        Batches(corpus, 7, 4, pack="none")
