"""With --json standard output is one document, whatever the user's code prints there and however."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.streams import document_alone

LOUD = """
import atexit, ctypes, logging, os, subprocess, sys
import torch
from examples import gpt

logging.basicConfig(stream=sys.stdout, level=logging.INFO)
libc = ctypes.CDLL(None)
atexit.register(print, '{"printed": "at exit"}')

def loud(where):
    print('{"printed": "%s"}' % where)
    print("no end of line", end="")
    logging.info(where)
    sys.__stdout__.write(where)
    os.write(1, b"written\\n")
    libc.puts(b"put by C")
    subprocess.run(["echo", "by a child"])

class Loud(gpt.GPT):
    def forward(self, tokens, labels):
        print("forward")
        return super().forward(tokens, labels)

gpt.GPT, plain = Loud, gpt.GPT
loud("import")

def model(batch: int = 2):
    loud("build")
    return gpt.model(vocab=256, hidden=32, heads=4, seq=32, layers=2, batch=batch)
"""
PLACE = ["--cluster", "local-cpu", "--devices", "1", "--global-batch", "4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loud")
    (folder / "loud.py").write_text(LOUD)
    _run(["plan", f"{folder / 'loud.py'}:model", *PLACE, "-o", str(folder / "plan.json")])
    return folder


def _run(words: list[str]) -> tuple[str, str]:
    """A process of its own: its standard output and error."""
    command = [sys.executable, "-m", "tools.main", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


COMMANDS = {
    "plan": (["plan", "MODEL", *PLACE], "found"),
    "verify": (["verify", "PLAN"], "passed"),
    "dry run": (["verify", "PLAN", "--dry-run"], "distinct"),
    "show": (["show", "PLAN"], "found"),
    "compare": (["compare", "PLAN", "--baseline", "ddp"], "columns"),
    "run": (["run", "PLAN", "--steps", "2"], "losses"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_prints_one_document(name: str, folder: Path) -> None:
    words, key = COMMANDS[name]
    places = {"MODEL": f"{folder / 'loud.py'}:model", "PLAN": str(folder / "plan.json")}
    out, err = _run([*(places.get(word, word) for word in words), "--json"])
    assert json.loads(out)[key]
    if name != "show":  # which imports no model
        said = ("import", "build", "written", "put by C", "by a child", "at exit")
        assert not [words for words in said if words not in err]


def test_without_json_prints_stay_where_they_are(folder: Path) -> None:
    out, _ = _run(["run", str(folder / "plan.json"), "--steps", "1"])
    assert '{"printed": "build"}' in out
    assert "1 steps on 1 ranks" in out


def test_standard_output_comes_back(capfd: pytest.CaptureFixture[str]) -> None:
    with document_alone(True) as document:
        os.write(1, b"hidden\n")
        print("hidden too")
        document("whole\n")
    os.write(1, b"shown\n")
    print("shown too")
    sys.stdout.flush()
    told = capfd.readouterr()
    assert sorted(told.out.split("\n")) == ["", "shown", "shown too", "whole"]
    assert sorted(told.err.split("\n")) == ["", "hidden", "hidden too"]
