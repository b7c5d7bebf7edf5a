"""Text files, JSON lines and parquet, alone and in folders, as corpora."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from word_tokenizer import tokenizer

from partitioner.errors import InputError
from runtime.data.corpus import Corpus
from runtime.data.sources import open_corpus

ROWS = ["one", "", "twö", None, "three"]


def everything(corpus: Corpus) -> str:
    return corpus.read(0, len(corpus)).astype("uint8").tobytes().decode()


def parquet(path: Path, **columns: list[object]) -> Path:
    arrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    writer.write_table(arrow.table(columns), path, row_group_size=2)
    return path


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files whose bytes count up across their borders: 0..99, 100..199, then 200..255 followed by 0..43."""
    (tmp_path / "sub").mkdir()
    for i in range(3):
        place = tmp_path / ("b.txt", "c.txt", "sub/d")[i]
        place.write_bytes(bytes(1 + (100 * i + j) % 255 for j in range(100)))
    (tmp_path / "a_empty").write_bytes(b"")
    (tmp_path / "picture").write_bytes(b"\x89PNG\0\0")
    return tmp_path


def test_the_default_corpus_is_the_standard_library() -> None:
    corpus = open_corpus()
    assert len(corpus) > 3_000_000
    names = [Path(corpus.label(i)) for i in range(len(corpus.ends))]
    assert [p.name for p in names].count("argparse.py") == 1
    assert not [p for p in names if {"site-packages", "test"} & set(p.parts)]
    assert names == sorted(names)


def test_text_files_are_one_row_of_bytes(folder: Path) -> None:
    corpus = open_corpus(folder)
    assert (len(corpus), corpus.ends.tolist(), corpus.vocab) == (300, [100, 200, 300], 256)
    assert corpus.read(95, 110).tolist() == [1 + i % 255 for i in range(95, 205)]
    assert str(corpus) == f"{folder}: 3 files, 300 bytes, 1 skipped as not text"


def test_a_file_that_shrinks_is_noticed(folder: Path) -> None:
    corpus = open_corpus(folder)
    (folder / "c.txt").write_bytes(b"short")
    with pytest.raises(InputError, match=r"c\.txt became shorter"):
        corpus.read(90, 100)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_rows_are_documents(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    if suffix == ".parquet":
        parquet(path, text=ROWS, other=list("12345"))
    else:
        lines(path, *({"other": "1", "text": row} for row in ROWS))
    corpus = open_corpus(path)
    assert everything(corpus) == "onetwöthree"
    assert corpus.ends.tolist() == [3, 7, 12]
    kind = "parquet" if suffix == ".parquet" else "JSON lines"
    assert str(corpus) == f"{path}: 1 files (1 {kind}), 3 documents, 2 empty ones skipped, 12 bytes"
    assert everything(open_corpus(path, field="other")) == ("12345" if suffix == ".parquet" else "11111")


def test_a_folder_of_all_kinds(tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", {"text": "A"}, {"text": "B"})
    parquet(tmp_path / "b.parquet", text=["C"])
    (tmp_path / "c.json").write_text('{\n "text": 1\n}')
    (tmp_path / "d.txt").write_text("D")
    corpus = open_corpus(tmp_path)
    assert everything(corpus) == 'ABC{\n "text": 1\n}D'
    assert "4 files (1 JSON lines, 1 parquet, 2 text), 5 documents" in str(corpus)


def test_tokens_by_a_tokenizer(tmp_path: Path) -> None:
    path = tokenizer(tmp_path / "tokenizer.json", "</s>", more=3)
    (tmp_path / "data").mkdir()
    lines(tmp_path / "data" / "a.jsonl", {"text": "a b c"}, {"text": "d"})
    (tmp_path / "data" / "b.txt").write_text("w1\nb")
    corpus = open_corpus(tmp_path / "data", path)
    assert corpus.read(0, len(corpus)).tolist() == [1, 2, 3, 8, 4, 8, 6, 2, 8]
    assert (corpus.ends.tolist(), corpus.vocab, corpus.unit) == ([4, 6, 9], 9, "tokens")
    assert str(corpus).endswith(f"3 documents, 9 tokens, by {path}, each ended by </s>")


def test_text_of_no_tokens_is_no_document(tmp_path: Path) -> None:
    path = tokenizer(tmp_path / "tokenizer.json")
    rows = lines(tmp_path / "a.jsonl", {"text": "a"}, {"text": "  "}, {"text": "b"})
    assert open_corpus(rows, path).ends.tolist() == [1, 2]


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


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ('{"text": "a"}\n{"body": "b", "id": 1}\n', r":2 has no field text: give --text-field, one of body, id"),
        ('{"text": "a"}\nb\n', r":2 is no JSON object on one line"),
        ('{"text": "a"}\n\n["b"]\n', r":3 is no JSON object on one line"),
        ('{"text": 3}\n', r":1: field text is no text but int: give --text-field"),
        ('{"text": "\\ud800"}\n', r":1: field text can't be written as UTF-8"),
        ('{"text": ""}\n', "holds no text"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, written: str, words: str) -> None:
    (tmp_path / "rows.jsonl").write_text(written)
    with pytest.raises(InputError, match=rf"rows\.jsonl.*{words}|rows\.jsonl{words}"):
        open_corpus(tmp_path / "rows.jsonl")


def test_bad_encodings_are_named(tmp_path: Path) -> None:
    for name in ("text.txt", "rows.jsonl"):
        (tmp_path / name).write_bytes(b'{"text": "\xff"}\n')
        with pytest.raises(InputError, match=f"{name} can't be read"):
            open_corpus(tmp_path / name, tokenizer(tmp_path / "tokenizer.json"))


def test_bad_parquet_is_named(tmp_path: Path) -> None:
    path = parquet(tmp_path / "rows.parquet", body=["a"], id=[1])
    with pytest.raises(InputError, match=r"rows\.parquet has no field text: give --text-field, one of body, id"):
        open_corpus(path)
    with pytest.raises(InputError, match=r"rows\.parquet: field id is no text but int"):
        open_corpus(path, field="id")
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match=r"rows\.parquet can't be read"):
        open_corpus(path)


def test_parquet_needs_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path / "rows.parquet", text=["a"])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match=r"rows\.parquet needs pyarrow: pip install 'partitioner\[data\]'"):
        open_corpus(path)
