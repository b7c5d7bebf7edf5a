"""How text becomes tokens: its bytes, or by a JSON file of the ``tokenizers`` library."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from partitioner.errors import InputError

BYTES = 256
TOGETHER = 256  # documents that are encoded at once, on all cores
# what ends a document where no tokenizer_config.json says it, the first that the tokenizer has as a special token
ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[EOS]", "[SEP]")


@dataclass(frozen=True)
class Coder:
    """``encode`` makes token ids of texts; ``end`` closes every document, None: nothing does. ``words``: for people."""

    encode: Callable[[Sequence[str]], Iterable[Sequence[int]]]
    dtype: type[np.unsignedinteger[Any]]
    end: int | None
    unit: str
    words: str

    def documents(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """The token ids of each text, with the end of the document."""
        closing = [] if self.end is None else [self.end]
        rest = iter(texts)
        while some := list(islice(rest, TOGETHER)):
            for ids in self.encode(some):
                yield np.array([*ids, *closing], self.dtype)


def optional(module: str, what: str) -> ModuleType:
    """A module of the extra ``data``; raises InputError, with what needs it, where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{what} needs {module.partition('.')[0]}: pip install 'partitioner[data]'") from error


AS_BYTES = Coder(lambda texts: (list(t.encode()) for t in texts), np.uint8, None, "bytes", "")


def coder(tokenizer: str | Path | None) -> Coder:
    """Of a ``tokenizers`` JSON file, None: bytes; raises InputError where the file is none."""
    if tokenizer is None:
        return AS_BYTES
    path = Path(tokenizer)
    found = tokenizer_file(path)
    end = _end(path, found)
    largest = max(found.get_vocab(with_added_tokens=True).values(), default=0)
    closed = "which nothing ends" if end is None else f"each ended by {end}"

    def encode(texts: Sequence[str]) -> Iterator[Sequence[int]]:
        for encoded in found.encode_batch_fast(list(texts), add_special_tokens=False):
            yield encoded.ids

    dtype = np.uint16 if largest < 1 << 16 else np.uint32
    return Coder(encode, dtype, None if end is None else found.token_to_id(end), "tokens", f"by {path}, {closed}")


def tokenizer_file(path: Path) -> Any:
    """A tokenizer of the ``tokenizers`` library that neither pads nor cuts; InputError where the file is none."""
    library = optional("tokenizers", f"--tokenizer {path}")
    if not path.is_file():
        raise InputError(f"--tokenizer {path}: no such file; give a tokenizer.json")
    try:
        found = library.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exceptions
        raise InputError(f"--tokenizer {path} is no JSON file of the tokenizers library: {error}") from error
    found.no_padding()
    found.no_truncation()
    return found


def _end(path: Path, found: Any) -> str | None:
    """The token that ends a document: what tokenizer_config.json beside the file says, else the first of ENDS."""
    beside = path.parent / "tokenizer_config.json"
    if beside.is_file():
        said = _said(beside)
        if isinstance(said, str) and found.token_to_id(said) is not None:
            return said
    special = {token.content for token in found.get_added_tokens_decoder().values() if token.special}
    return next((end for end in ENDS if end in special), None)


def _said(path: Path) -> object:
    """Its ``eos_token``, which is a text or an object with one."""
    try:
        said = json.loads(path.read_text()).get("eos_token")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path} can't be read: {error}; mend or remove it") from error
    return said.get("content") if isinstance(said, dict) else said
