"""A run that goes on from a checkpoint trains as one that was never interrupted."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tools.main import main
from tools.run import going_on

GPT = f"{Path(__file__).parents[3] / 'examples' / 'gpt.py'}:model"
SMALL = ["--set", "vocab=256", "hidden=32", "heads=4", "seq=32", "layers=2", "dropout=0.1"]
ASKED = ["--lr", "0.01", "--optimizer", "adamw", "--warmup", "2", "--clip", "0.5", "--weight-decay", "0.1"]
ASKED += ["--rate", "tokens*=0.5"]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    place = ["--cluster", "local-cpu", "--devices", "1", "--global-batch", "4"]
    assert main(["plan", GPT, *SMALL, *place, "-o", str(path)]) == 0
    return str(path)


@pytest.fixture(scope="module")
def whole(plan: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps, saved after three too."""
    folder = tmp_path_factory.mktemp("whole") / "saved"
    assert main(["run", plan, "--steps", "6", *ASKED, "--checkpoint", str(folder), "--save-every", "3"]) == 0
    assert sorted(f.name for f in folder.iterdir()) == ["run.json", "step-00000003", "step-00000006"]
    return folder


@pytest.fixture
def half(whole: Path, tmp_path: Path) -> Path:
    """The same, ended after the third step."""
    folder = tmp_path / "half"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "step-00000006")
    return folder


def _weights(plan: str, folder: Path, out: Path) -> dict[str, object]:
    assert main(["export", plan, str(folder), str(out)]) == 0
    return load_file(out / "model.safetensors")


def _equal(plan: str, one: Path, other: Path, out: Path) -> bool:
    a, b = _weights(plan, one, out / "a"), _weights(plan, other, out / "b")
    return all((a[name] == b[name]).all() for name in a)  # type: ignore[union-attr]


def test_it_trains_the_same(plan: str, whole: Path, half: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    assert not _equal(plan, whole, half, tmp_path / "before")
    report = tmp_path / "report.json"
    assert main(["run", plan, "--steps", "6", "--checkpoint", str(half), "--report", str(report)]) == 0
    assert "other than" not in capfd.readouterr().err, "what is not given is as it was"
    assert json.loads(report.read_text())["steps"] == 3
    assert _equal(plan, whole, half, tmp_path / "after")
    assert json.loads((half / "run.json").read_text()) == json.loads((whole / "run.json").read_text())


def test_it_evaluates_now_and_then(plan: str, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    reports = []
    for words in (["--eval-every", "2"], []):
        report = tmp_path / f"{len(words)}.json"
        assert main(["run", plan, "--steps", "5", *words, "--report", str(report)]) == 0
        reports.append(json.loads(report.read_text()))
    found = re.findall(r"^step (\d): validation loss ([\d.]+)$", capfd.readouterr().err, re.MULTILINE)
    assert [step for step, _ in found] == ["2", "4", "5", "5"]
    assert len({loss for _, loss in found}) == 3
    assert reports[0]["losses"] == reports[1]["losses"], "it changes nothing"
    assert f"{reports[0]['validation_loss']:.4f}" == found[2][1]


def test_what_is_given_rules_and_is_said(plan: str, half: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    words = ["--steps", "5", "--lr", "0.02", "--weight-decay", "0.3", "--checkpoint", str(half)]
    assert main(["run", plan, *words]) == 0
    said = "goes on: lr 0.02 (was 0.01), weight_decay 0.3 (was 0.1), steps 5 (was 6)"
    assert said in capfd.readouterr().err
    groups = json.loads((half / "step-00000005" / "complete.json").read_text())["groups"]
    assert [g["initial_lr"] for g in groups] == [0.01, 0.01, 0.02, 0.02]
    assert [g["weight_decay"] for g in groups] == [0.3, 0.0, 0.3, 0.0]
    # the third step of the three after the warm-up: cos(2 pi / 3)
    assert [g["lr"] for g in groups] == pytest.approx([0.0025, 0.0025, 0.005, 0.005])
    assert json.loads((half / "run.json").read_text())["lr"] == 0.02


def test_nothing_is_left_to_train(plan: str, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    report = tmp_path / "report.json"
    for steps in ("6", "4"):
        assert main(["run", plan, "--steps", steps, "--checkpoint", str(whole), "--report", str(report)]) == 0
        assert f"saved holds step 6, --steps asks for {steps} in all" in capfd.readouterr().err
    assert not report.exists()
    assert not (whole / "step-00000007").exists()


def test_killed_in_the_first_save_it_begins_anew(plan: str, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    folder = tmp_path / "saved"
    (folder / "step-00000002.writing").mkdir(parents=True)
    assert main(["run", plan, "--steps", "2", "--checkpoint", str(folder)]) == 0
    assert sorted(f.name for f in folder.iterdir()) == ["run.json", "step-00000002"]


def test_saving_now_and_then_needs_a_place(plan: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["run", plan, "--steps", "6", "--save-every", "3"]) == 2
    assert "--save-every needs --checkpoint" in capsys.readouterr().err


def test_settings() -> None:
    given = dict.fromkeys(going_on.DEFAULTS) | {"clip": 2.0}
    assert going_on.settings(given, None) == going_on.DEFAULTS | {"clip": 2.0}
    assert going_on.settings(given, {})["lr"] is None, "the checkpoint alone knows"
    before = {"lr": 0.1, "clip": 1.0, "warmup": 0, "steps": 3, "global_batch": 8}
    now = going_on.settings(given, before)
    assert now["lr"] == 0.1
    assert list(going_on.changes(before, now | {"steps": 6, "global_batch": 16})) == [
        "clip 2.0 (was 1.0)", "global_batch 16 (was 8)",
    ]  # fmt: skip
