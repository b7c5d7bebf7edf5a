"""A plan of a small model for two ranks, which starts commands of their own in several tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.main import main

GPT = f"{Path(__file__).parents[3] / 'examples' / 'gpt.py'}:model"
SMALL = ["--set", "vocab=256", "hidden=32", "heads=4", "seq=32", "layers=2", "dropout=0.1"]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    place = ["--cluster", "local-cpu", "--devices", "2", "--global-batch", "4", "--pin", "pp=2"]
    assert main(["plan", GPT, *SMALL, *place, "-o", str(path)]) == 0
    return str(path)
