"""A plan whose model this machine can't hold for a comparison is refused before the model is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from partitioner import Plan
from partitioner.errors import InputError
from tools.main import main
from tools.verify import command
from tools.verify.memory_needed import free_bytes, needed_bytes, refuse_too_large

GPT = f"{Path(__file__).parents[3] / 'examples' / 'gpt.py'}:model"
SMALL = ["--set", "vocab=64", "hidden=16", "heads=2", "seq=8", "layers=2"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("plan") / "plan.json"
    words = ["--cluster", "local-cpu", "--devices", "2", "--global-batch", "4", "-o", str(found)]
    assert main(["plan", GPT, *SMALL, *words]) == 0
    return found


def test_bytes_that_are_held_at_once() -> None:
    """By hand: a module in each of 3 processes; 2 starts and 1 copy in float64; of that copy two gradients and two
    moments where it trains."""
    module = nn.Linear(10, 10, bias=False)
    assert needed_bytes(module, ranks=2) == 100 * (3 * 4 + 3 * 8 + 4 * 8)
    module.weight.requires_grad_(False)
    assert needed_bytes(module, ranks=2) == 100 * (3 * 4 + 3 * 8)
    assert needed_bytes(module.to(torch.bfloat16), ranks=1) == 100 * (2 * 2 + 2 * 8)


def test_refused_in_one_line_with_both_numbers(path: Path) -> None:
    plan = Plan.load(path)
    with pytest.raises(InputError, match=r"parameters on 2 ranks need at least .* which has 1 kB free: .*--dry-run"):
        refuse_too_large(plan, 1000.0)
    refuse_too_large(plan, None)
    refuse_too_large(plan, 1e9)


def test_verify_asks_before_it_makes_the_model(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def made(*given: Any, **also: Any) -> None:
        raise AssertionError("the model was made")

    monkeypatch.setattr(command, "free_bytes", lambda: 1000.0)
    monkeypatch.setattr(command, "subject_of", made)
    assert main(["verify", str(path)]) == 2
    assert "has 1 kB free" in capsys.readouterr().err.splitlines()[-1]


def test_free_is_what_the_system_says(tmp_path: Path) -> None:
    file = tmp_path / "meminfo"
    file.write_text("MemTotal:  24684100 kB\nMemAvailable:   2000 kB\nSwapFree:    500 kB\nHugePages_Total:   0\n")
    assert free_bytes(file) == 2500 * 1024
    file.write_text("MemTotal:  24684100 kB\n")
    assert free_bytes(file) is None
    assert free_bytes(tmp_path / "none") is None
