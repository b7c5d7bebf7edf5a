"""A tokenizer of a few words, as a JSON file of the ``tokenizers`` library."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

WORDS = ("a", "b", "c", "d")


def tokenizer(path: Path, *special: str, more: int = 0) -> Path:
    """``a`` is 1, ``b`` 2, ..., what is none of WORDS 0; ``special`` tokens follow after ``more`` others."""
    known = {"?": 0} | {word: i for i, word in enumerate(WORDS, 1)} | {f"w{i}": 5 + i for i in range(more)}
    made = Tokenizer(WordLevel(known, unk_token="?"))
    made.pre_tokenizer = Whitespace()
    made.add_special_tokens([AddedToken(token, special=True) for token in special])
    made.save(str(path))
    return path
