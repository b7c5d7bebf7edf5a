"""Texts in pieces: whole characters, without stop texts, the same as all tokens decoded at once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Metaspace

from tools.generate.pieces import Pieces
from tools.generate.text_coder import TextCoder, text_coder


def pieces(coder: TextCoder, tokens: Sequence[int], *stops: str) -> tuple[list[str], bool]:
    """Those that are told, and whether a stop text ended them."""
    made, found = Pieces(coder.decode, stops), list[str]()
    for token in tokens:
        found.append(made.add(token))
        if made.stopped:
            return found, True
    found.append(made.rest())
    return found, made.stopped


def test_characters_are_told_whole() -> None:
    found, _ = pieces(text_coder(None), list("aé€😀b".encode()))
    assert [piece for piece in found if piece] == ["a", "é", "€", "😀", "b"]


def test_what_is_no_character_is_told_in_the_end() -> None:
    found, _ = pieces(text_coder(None), [97, 0xE2, 0x82])
    assert found == ["a", "", "", "\ufffd"]


def test_bytes_of_chance_are_told_as_they_are_decoded_at_once() -> None:
    rng, coder = random.Random(0), text_coder(None)
    for _ in range(300):
        tokens = [rng.choice([rng.randrange(256), rng.randrange(97, 100), *"é€😀".encode()]) for _ in range(30)]
        found, stopped = pieces(coder, tokens)
        assert ("".join(found), stopped) == (coder.decode(tokens), False)


@pytest.mark.parametrize("stops", [("b",), ("ab",), ("b", "ab"), ("abc", "bcd"), ("aab", "€"), ("cab", "ca", "bbbb")])
def test_an_answer_ends_before_the_first_stop_text(stops: tuple[str, ...]) -> None:
    rng, coder = random.Random(1), text_coder(None)
    for _ in range(200):
        text = "".join(rng.choice("abcd€") for _ in range(20))
        ends = [text.find(stop) for stop in stops if stop in text]
        found, stopped = pieces(coder, list(text.encode()), *stops)
        assert stopped == bool(ends)
        # of several the first that has come whole ends it
        come = min((text.find(stop) + len(stop) for stop in stops if stop in text), default=len(text))
        first = min((text[:come].find(stop) for stop in stops if stop in text[:come]), default=len(text))
        assert "".join(found) == text[:first]


def test_no_part_of_a_stop_text_is_told_before_it_is_there() -> None:
    made, told = Pieces(text_coder(None).decode, ("<end>",)), ""
    for token in b"ab<en<end>":
        told += made.add(token)
        assert "<end".startswith(told[2:]) or told == "ab<en"
    assert (told, made.stopped) == ("ab<en", True)


def test_what_might_have_become_a_stop_text_is_told_at_the_end() -> None:
    found, stopped = pieces(text_coder(None), list(b"ab<en"), "<end>")
    assert (found[-1], stopped) == ("<en", False)


def test_a_stop_text_in_what_is_held_back_as_no_character() -> None:
    assert pieces(text_coder(None), [97, 0x80], "\ufffd") == (["a", "", ""], True)


def test_spaces_before_words_stay(tmp_path: Path) -> None:
    words = {"▁": 0, "a": 1, "b": 2, "▁a": 3, "▁b": 4}
    made = Tokenizer(BPE(words, [("▁", "a"), ("▁", "b")]))
    made.pre_tokenizer, made.decoder = Metaspace(), MetaspaceDecoder()
    made.save(str(tmp_path / "tokenizer.json"))
    coder = text_coder(str(tmp_path))
    tokens = coder.prompt("a b ab a")
    found, _ = pieces(coder, tokens)
    assert "".join(found) == coder.decode(tokens) == "a b ab a"
