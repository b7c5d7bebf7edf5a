"""A plan of version 6 and its checkpoint, of a program without precision and ZeRO, go on as they did there."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from runtime.report import Report
from tools.main import main

ROOT, FILES = Path(__file__).parents[3], Path(__file__).with_name("of_version_6.tar.gz")
LOSSES = [5.763294696807861, 5.762016296386719]  # of its steps 3 and 4, when that program ran them


def test_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    with tarfile.open(FILES) as archive:
        archive.extractall(tmp_path, filter="data")
    report, checkpoint = tmp_path / "report.json", str(tmp_path / "ck")
    words = ["--steps", "4", "--checkpoint", checkpoint, "--report", str(report)]
    assert main(["run", str(tmp_path / "plan.json"), *words]) == 0, capfd.readouterr().err
    assert Report.load(report).losses == pytest.approx(LOSSES, rel=1e-6)
