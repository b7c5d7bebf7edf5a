"""Text corpora and the batches drawn from them."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch

from partitioner.errors import InputError
from runtime.data import Batches, Corpus, fill, open_corpus


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files whose bytes count up across their borders: 0..99, 100..199, then 200..255 followed by 0..43."""
    for i in range(3):
        (tmp_path / "sub").mkdir(exist_ok=True)
        place = tmp_path / ("b.txt", "c.txt", "sub/d")[i]
        place.write_bytes(bytes(1 + (100 * i + j) % 255 for j in range(100)))
    (tmp_path / "a_empty").write_bytes(b"")
    (tmp_path / "picture").write_bytes(b"\x89PNG\0\0")
    return tmp_path


def take(corpus: Corpus, steps: int, ranks: int = 1, rank: int = 0, **other: int | str) -> list[torch.Tensor]:
    batches = Batches(corpus, 7, 4, rank, ranks, **other)  # type: ignore[arg-type]
    return [batch["tokens"] for batch in islice(batches, steps)]


def test_the_default_corpus_is_the_standard_library() -> None:
    corpus = open_corpus()
    assert len(corpus) > 3_000_000
    assert [p.name for p in corpus.files].count("argparse.py") == 1
    assert not [p for p in corpus.files if {"site-packages", "test"} & set(p.parts)]
    assert list(corpus.files) == sorted(corpus.files)


def test_reading_crosses_the_borders_of_files(folder: Path) -> None:
    corpus = open_corpus(folder)
    assert (len(corpus), len(corpus.files), corpus.skipped) == (300, 3, 1)
    assert corpus.read(95, 110).tolist() == [1 + i % 255 for i in range(95, 205)]
    assert "3 files, 300 bytes, 1 skipped as not text" in str(corpus)


def test_the_samples_do_not_depend_on_the_number_of_ranks(folder: Path) -> None:
    corpus = open_corpus(folder)
    whole = take(corpus, 25)
    for ranks in (2, 4):
        parts = [take(corpus, 25, ranks, rank) for rank in range(ranks)]
        for step, tokens in enumerate(whole):
            assert torch.equal(tokens, torch.cat([part[step] for part in parts]))


def test_an_epoch_holds_every_window_once_and_the_next_another_order(folder: Path) -> None:
    corpus = open_corpus(folder)
    training = 300 // 7 - 2
    drawn = [int(row[0]) for tokens in take(corpus, 20) for row in tokens]
    first, second = drawn[:training], drawn[training : 2 * training]
    assert sorted(first) == sorted(1 + 7 * w % 255 for w in range(training)) == sorted(second)
    assert first != second
    assert first != sorted(first)


def test_seeds_differ_and_repeat(folder: Path) -> None:
    corpus = open_corpus(folder)
    a, b, c = (torch.stack(take(corpus, 5, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_training_never_sees_validation(folder: Path) -> None:
    corpus = open_corpus(folder)
    training = {tuple(row.tolist()) for tokens in take(corpus, 20) for row in tokens}
    validation = {tuple(row.tolist()) for tokens in take(corpus, 20, part="validation") for row in tokens}
    assert len(validation) == 2
    assert not training & validation


def test_resuming_continues(folder: Path) -> None:
    corpus = open_corpus(folder)
    batches = Batches(corpus, 7, 4)
    for _ in islice(batches, 11):
        pass
    resumed = Batches(corpus, 7, 4, start=batches.samples)
    assert torch.equal(next(batches)["tokens"], next(resumed)["tokens"])


def test_labels_are_the_tokens() -> None:
    batch = next(Batches(open_corpus(), 64, 2))
    assert batch["tokens"].dtype == torch.int64
    assert batch["tokens"].shape == (2, 64)
    assert torch.equal(batch["tokens"], batch["labels"])
    assert batch["tokens"].data_ptr() != batch["labels"].data_ptr()


def test_fill_names_the_arguments_as_the_example_does() -> None:
    windows = {"tokens": torch.arange(6).view(2, 3), "labels": torch.arange(6).view(2, 3) + 10}
    ids = torch.zeros(2, 3, dtype=torch.int32)
    example = {"input_ids": ids, "attention_mask": ids.bool(), "labels": ids.long(), "target_ids": ids.long()}
    filled = fill(example, windows)
    assert list(filled) == list(example)
    assert torch.equal(filled["input_ids"], windows["tokens"].int())
    assert torch.equal(filled["attention_mask"], torch.ones(2, 3, dtype=torch.bool))
    assert torch.equal(filled["labels"], windows["labels"])
    assert torch.equal(filled["target_ids"], windows["labels"])


@pytest.mark.parametrize(
    ("example", "words"),
    [
        ({"pixel_values": torch.zeros(2, 3, 4, 4)}, "argument pixel_values"),
        ({"labels": torch.zeros(2, dtype=torch.long)}, "argument labels"),
        ({"input_ids": torch.zeros(2, 5, dtype=torch.long)}, "length 5"),
    ],
)
def test_text_cannot_fill_everything(example: dict[str, torch.Tensor], words: str) -> None:
    tokens = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(InputError, match=words):
        fill(example, {"tokens": tokens, "labels": tokens})


def test_bad_data_is_named(folder: Path) -> None:
    (folder / "nothing").mkdir()
    for path, words in [
        ("absent", "no such file or folder"),
        ("a_empty", "holds no text"),
        ("nothing", "holds no text"),
        ("picture", "not a text file"),
    ]:
        with pytest.raises(InputError, match=f"{path}.*{words}"):
            open_corpus(folder / path)


def test_a_batch_that_cannot_be_is_refused(folder: Path) -> None:
    corpus = open_corpus(folder)
    with pytest.raises(InputError, match="vocabulary of 101"):
        Batches(corpus, 7, 4, vocab=101)
    with pytest.raises(InputError, match="4 does not divide over 3"):
        Batches(corpus, 7, 4, ranks=3)
    with pytest.raises(InputError, match="300 bytes"):
        Batches(corpus, 200, 4)


def test_a_file_that_shrinks_is_noticed(folder: Path) -> None:
    corpus = open_corpus(folder)
    (folder / "c.txt").write_bytes(b"short")
    with pytest.raises(InputError, match=r"c\.txt became shorter"):
        corpus.read(90, 100)
