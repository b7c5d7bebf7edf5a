"""``open_corpus``: documents of text files, JSON lines and parquet become one corpus of bytes or tokens.

A text file is one document, and as bytes it stays where it is, read through a memory map; a line of a .jsonl and a row
of a .parquet is one, by the field that holds its text. A .json file is lines where its first one is a whole object, and
text where it is not.
"""

from __future__ import annotations

import json
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import numpy as np

from partitioner.errors import InputError
from runtime.data.choices import FIELD
from runtime.data.corpus import Corpus
from runtime.data.tokens import AS_BYTES, BYTES, coder, optional

LIBRARY_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
TEXT = "text"  # what no suffix says otherwise of


def open_corpus(
    path: str | Path | None = None, tokenizer: str | Path | None = None, field: str = FIELD
) -> Corpus:
    """The documents of a file, of all files below a folder, or of Python's own standard library; as bytes, or as the
    tokens of a ``tokenizers`` JSON file.

    Raises InputError when there is no such path, it can't be read, is empty, or does not hold what its name says.
    """
    if path is None:
        root = Path(sysconfig.get_path("stdlib"))
        own = [p for p in root.rglob("*.py") if not LIBRARY_LEFT_OUT.intersection(p.relative_to(root).parts)]
        return _corpus("the Python standard library", own, tokenizer, field)
    root = Path(path)
    if root.is_file():
        if _size(root) and _kind(root) == TEXT and not _is_text(root):
            raise InputError(f"data {root} is not a text file: it holds zero bytes")
        return _corpus(str(root), [root], tokenizer, field)
    if not root.is_dir():
        raise InputError(f"data {root}: no such file or folder")
    return _corpus(str(root), [p for p in root.rglob("*") if p.is_file()], tokenizer, field)


@dataclass(frozen=True)
class _Files:
    """Those that hold documents, each with its kind, in a fixed order; how many were left out as not text."""

    name: str
    kinds: dict[Path, str]
    skipped: int

    def words(self) -> str:
        """``3 files``, and what kind they are where they are not all text."""
        kinds = Counter(self.kinds.values())
        told = "" if set(kinds) == {TEXT} else f" ({', '.join(f'{many} {kind}' for kind, many in kinds.items())})"
        return f"{len(self.kinds)} files{told}"

    def left_out(self) -> str:
        return f", {self.skipped} skipped as not text" if self.skipped else ""


def _corpus(name: str, paths: list[Path], tokenizer: str | Path | None, field: str) -> Corpus:
    full = {path: _kind(path) for path in sorted(paths) if _size(path)}
    held = {path: kind for path, kind in full.items() if kind != TEXT or _is_text(path)}
    if not held:
        raise InputError(f"data {name} holds no text")
    files = _Files(name, held, len(full) - len(held))
    if tokenizer is None and set(held.values()) == {TEXT}:
        return _mapped(files)
    return _encoded(files, tokenizer, field)


def _mapped(files: _Files) -> Corpus:
    """Bytes of text files, which stay where they are."""
    paths = list(files.kinds)
    ends = np.array(list(accumulate(map(_size, paths))), np.int64)
    words = f"{files.words()}, {ends[-1]:,} bytes{files.left_out()}"
    return Corpus(files.name, ends, lambda i: _map(paths[i]), lambda i: str(paths[i]), BYTES, AS_BYTES.unit, words)


def _encoded(files: _Files, tokenizer: str | Path | None, field: str) -> Corpus:
    """Tokens in memory, each document encoded once."""
    by, empty = coder(tokenizer), 0

    def texts() -> Iterator[str]:
        nonlocal empty
        for path, kind in files.kinds.items():
            for text in READERS[kind](path, field):
                if text:
                    yield text
                else:
                    empty += 1

    made = [ids for ids in by.documents(texts()) if len(ids)]
    ends = np.cumsum([len(ids) for ids in made], dtype=np.int64)
    if not made:
        raise InputError(f"data {files.name} holds no text")
    tokens = np.concatenate(made)
    rest = f", {empty} empty ones skipped" if empty else ""
    words = f"{files.words()}, {len(ends):,} documents{rest}, {len(tokens):,} {by.unit}{files.left_out()}"
    words += f", {by.words}" if by.words else ""
    starts = np.concatenate(([0], ends[:-1]))
    vocab = BYTES if tokenizer is None else int(tokens.max()) + 1

    def document(index: int) -> np.ndarray:
        return tokens[starts[index] : ends[index]]

    return Corpus(files.name, ends, document, lambda i: f"document {i}", vocab, by.unit, words)


def _whole(path: Path, field: str) -> Iterator[str]:
    try:
        yield path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _lines(path: Path, field: str) -> Iterator[str | None]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _field(f"{path}:{number}", _object(line), field)
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def _object(line: str) -> dict[str, Any] | None:
    """What a line holds, None where that is no JSON object."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return cast(dict[str, Any], found) if isinstance(found, dict) else None


def _field(place: str, row: dict[str, Any] | None, field: str) -> str | None:
    if row is None:
        raise InputError(f"data {place} is no JSON object on one line")
    if field not in row:
        raise InputError(f"data {place} has no field {field}: give --text-field, one of {', '.join(row) or 'none'}")
    if not isinstance(row[field], str | None):
        raise InputError(f"data {place}: field {field} is no text but {type(row[field]).__name__}: give --text-field")
    text = row[field]
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:  # half a surrogate pair, which JSON can spell
        raise InputError(f"data {place}: field {field} can't be written as UTF-8: {error}") from error
    return text


def _rows(path: Path, field: str) -> Iterator[str | None]:
    parquet = optional("pyarrow.parquet", f"data {path}")
    try:
        with parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if field not in columns:
                known = ", ".join(columns)
                raise InputError(f"data {path} has no field {field}: give --text-field, one of {known}")
            for batch in file.iter_batches(columns=[field]):
                for row in batch.to_pylist():
                    yield _field(str(path), row, field)
    except (OSError, optional("pyarrow", f"data {path}").ArrowException) as error:
        raise _unreadable(path, error) from error


READERS: dict[str, Callable[[Path, str], Iterator[str | None]]] = {
    TEXT: _whole, "JSON lines": _lines, "parquet": _rows,
}  # fmt: skip
SUFFIXES = {".jsonl": "JSON lines", ".json": "JSON lines", ".parquet": "parquet"}


def _kind(path: Path) -> str:
    """A key of READERS."""
    kind = SUFFIXES.get(path.suffix.lower(), TEXT)
    return TEXT if path.suffix.lower() == ".json" and not _opens_with_an_object(path) else kind


def _opens_with_an_object(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return _object(file.readline()) is not None
    except OSError as error:
        raise _unreadable(path, error) from error


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
