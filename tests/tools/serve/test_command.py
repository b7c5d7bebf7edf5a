"""The command refuses what can't be before anything is started."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tools.main import main

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    "words",
    [("--rows", "0"), ("--length", "1"), ("--max-queue", "-1"), ("--max-unread", "0"), ("--timeout", "nan"),
     ("--timeout", "0"), ("--grace", "-1"), ("--port", "70000"), ("--chunk", "0"), ("--patience", "0"),
     ("--tokenizer", "no/such/folder")],
)  # fmt: skip
def test_impossible_options_are_named(words: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "examples/gpt.py:model", *words]) == 2
    assert words[0] in capsys.readouterr().err


def test_without_the_extra_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    assert main(["serve", "examples/gpt.py:model"]) == 2
    assert capsys.readouterr().err == "partitioner: serve needs uvicorn: pip install 'partitioner[serve]'\n"


def test_the_extra_is_imported_by_ranks_alone() -> None:
    words = "import sys\nfor n in 'fastapi', 'uvicorn', 'pydantic': sys.modules[n] = None\nimport tools.serve.command"
    subprocess.run([sys.executable, "-c", words], cwd=ROOT, check=True, timeout=100)
