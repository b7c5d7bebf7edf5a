"""The applications in examples/ run from plain models to answers, each in its quick form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SECONDS = 300


def run(script: str, folder: Path, *words: str, said: str = "") -> str:
    """What a script of examples/ prints."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "examples" / script), *words, "--out", str(folder)]
    done = subprocess.run(
        command, input=said, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def row_of(name: str, folder: Path) -> dict[str, Any]:
    """Of a quick run."""
    run(f"{name}/run.py", folder, "--quick")
    row = json.loads((folder / "row.json").read_text(encoding="utf-8"))
    assert row["application"] == name
    assert row["samples"]
    return row


@pytest.mark.apps
@pytest.mark.timeout(SECONDS)
def test_text_is_continued(tmp_path: Path) -> None:
    figures = row_of("text", tmp_path)["figures"]
    assert figures["bits a byte"] < figures["before training"]


@pytest.mark.apps
@pytest.mark.timeout(SECONDS)
def test_code_is_completed(tmp_path: Path) -> None:
    row = row_of("code", tmp_path)
    assert row["figures"]["bits a byte"] < 8
    assert all(set(line) == {"before", "said", "was"} for line in row["samples"]["lines"])


@pytest.mark.apps
@pytest.mark.timeout(SECONDS)
def test_messages_are_translated(tmp_path: Path) -> None:
    row = row_of("translation", tmp_path)
    assert 0 <= row["figures"]["chrF"] <= 100
    assert {sample["asked"] for sample in row["samples"]}


@pytest.mark.apps
@pytest.mark.timeout(2 * SECONDS)
def test_a_conversation_is_held(tmp_path: Path) -> None:
    figures = row_of("conversation", tmp_path)["figures"]
    before = figures["loss of answers, of the base"]
    assert figures["trained whole"] < before
    assert figures["by adapters"] < before
    all_of_it, adapters = (int(n.replace(",", "")) for n in figures["parameters trained"].split(" and "))
    assert adapters < all_of_it
    said = run("conversation/chat.py", tmp_path, said="Hello\nWho are you?\n")
    assert said.count("\n") >= 2  # an answer each, which may have lines
