"""Texts as bytes, and as the ids of a ``tokenizers`` JSON file, with what ends a document."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from word_tokenizer import tokenizer

from partitioner.errors import InputError
from runtime.data import tokens
from runtime.data.tokens import coder


def ids(path: Path | None, *texts: str) -> list[list[int]]:
    return [document.tolist() for document in coder(path).documents(texts)]


def test_bytes() -> None:
    assert ids(None, "ab", "", "é") == [[97, 98], [], [195, 169]]
    assert coder(None).end is None


def test_a_document_is_encoded_and_ended(tmp_path: Path) -> None:
    path = tokenizer(tmp_path / "tokenizer.json", "</s>")
    assert ids(path, "a b", "", "d z a") == [[1, 2, 5], [5], [4, 0, 1, 5]]
    assert coder(path).words == f"by {path}, each ended by </s>"


def test_more_documents_than_are_encoded_at_once(tmp_path: Path) -> None:
    path = tokenizer(tmp_path / "tokenizer.json")
    texts = [" ".join("ab" * (i % 3)) for i in range(tokens.TOGETHER + 5)]
    assert ids(path, *texts) == [[1, 2] * (i % 3) for i in range(tokens.TOGETHER + 5)]
    assert "which nothing ends" in coder(path).words


@pytest.mark.parametrize("said", ["<stop>", {"content": "<stop>"}])
def test_what_ends_a_document_is_said_beside(tmp_path: Path, said: object) -> None:
    path = tokenizer(tmp_path / "tokenizer.json", "</s>", "<stop>")
    assert ids(path, "a") == [[1, 5]]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": said}))
    assert ids(path, "a") == [[1, 6]]


def test_the_smallest_type_that_holds_all_ids(tmp_path: Path) -> None:
    small, large = (tokenizer(tmp_path / f"{more}.json", more=more) for more in (65531, 65532))
    (document,) = coder(small).documents(["w65530"])
    assert (document.dtype, document.tolist()) == (np.uint16, [65535])
    (document,) = coder(large).documents(["w65531"])
    assert (document.dtype, document.tolist()) == (np.uint32, [65536])


def test_no_tokenizer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"--tokenizer .*absent\.json: no such file; give a tokenizer\.json"):
        coder(tmp_path / "absent.json")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(InputError, match=r"other\.json is no JSON file of the tokenizers library"):
        coder(tmp_path / "other.json")
    path = tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(InputError, match=r"tokenizer_config\.json can't be read"):
        coder(path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match=r"needs tokenizers: pip install 'partitioner\[data\]'"):
        coder(path)
