"""A signal ends a run after the step that it is in; the state is saved, and the same command goes on from there."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tools.main import main

RUN = [sys.executable, "-m", "tools.main", "run"]
pytestmark = pytest.mark.disturbed


def _weights(two_ranks: str, folder: Path, out: Path) -> dict[str, object]:
    assert main(["export", two_ranks, str(folder), str(out)]) == 0
    return load_file(out / "model.safetensors")


def _interrupted(words: list[str], number: int) -> tuple[int, str]:
    """Its exit status and what it said, asked to leave after its first step."""
    with subprocess.Popen([*RUN, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as run:
        lines = list[str]()
        for line in run.stderr or ():
            lines.append(line)
            if re.match(r"step \d", line):
                run.send_signal(number)
                break
        lines.extend(run.stderr or ())
        return run.wait(), "".join(lines)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_saves_and_leaves(two_ranks: str, number: signal.Signals, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    status, said = _interrupted([two_ranks, "--steps", "100000", "--checkpoint", str(folder), "--keep", "1"], number)
    assert status == 128 + number
    found = re.search(rf"stopped by {number.name} as asked; step (\d+) is saved in {folder}: the same command", said)
    assert found, said
    steps = int(found[1])
    assert sorted(f.name for f in folder.iterdir()) == ["run.json", f"step-{steps:08d}"]
    assert main(["run", two_ranks, "--steps", str(steps + 2), "--checkpoint", str(folder)]) == 0
    assert main(["run", two_ranks, "--steps", str(steps + 2), "--checkpoint", str(tmp_path / "whole")]) == 0
    resumed, whole = (_weights(two_ranks, f, tmp_path / "out" / f.name) for f in (folder, tmp_path / "whole"))
    assert all((resumed[name] == whole[name]).all() for name in whole)  # type: ignore[union-attr]


@pytest.mark.timeout(300)
def test_without_a_place_nothing_is_saved(two_ranks: str) -> None:
    status, said = _interrupted([two_ranks, "--steps", "100000"], signal.SIGTERM)
    assert status == 143
    assert said.endswith("stopped by SIGTERM as asked; nothing is saved\n")
