"""What ``partitioner generate`` shows of one text as it comes, and of several in the end."""

from __future__ import annotations

import json

import pytest

from tools.generate.command import _Screen
from tools.generate.pieces import before_stop
from tools.generate.text_coder import text_coder
from tools.watch.telling import MARK


def shown(tokens: bytes, stops: list[str], streams: bool, capsys: pytest.CaptureFixture[str]) -> str:
    screen = _Screen(text_coder(None), stops, streams)
    for token in tokens:
        screen.read(MARK + json.dumps({"text": 0, "token": token}))
    screen.read("a word of the model's own\n")
    screen.read(MARK + json.dumps({"answers": [{"tokens": list(tokens), "finish": "stop"}]}))
    assert screen.answers is not None
    found = capsys.readouterr()
    assert found.err == "a word of the model's own\n"
    return found.out


def test_a_text_is_shown_up_to_its_stop_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown("Où? <end".encode(), ["<end>"], True, capsys) == "Où? <end\n"
    assert shown("Où? <end> more".encode(), ["<end>"], True, capsys) == "Où? \n"
    assert shown(b"abc", [], False, capsys) == ""


def test_what_stands_before_the_first_stop_text_is_the_text() -> None:
    assert before_stop("ab<end>c\n", ["\n", "<end>"]) == "ab"
    assert before_stop("ab", ["c"]) == before_stop("ab", []) == "ab"
