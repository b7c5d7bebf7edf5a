"""Broken files are each told or legal; what a reader must not do is seen where it is done."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tools.file_faults import file_readers
from tools.file_faults.file_readers import BEFORE, Place
from tools.file_faults.heard import Heard, hear, verdict
from tools.file_faults.mutated_files import KINDS, Files, Result


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    files = Files(tmp_path_factory.mktemp("files"), 1)
    return [files.tried(number)[0] for number in range(60)]


@pytest.mark.timeout(600)
def test_every_file_of_a_small_sample_is_handled_right(found: list[Result]) -> None:
    assert {row.kind for row in found} == {*KINDS}
    assert [row for row in found if not row.is_right] == []
    assert sum(row.verdict == "clear" for row in found) > 30


@pytest.mark.parametrize(
    ("heard", "word"),
    [
        (Heard(2, "", "partitioner: plan.json: decisions.seed is missing\n"), "clear"),
        (Heard(2, "", "partitioner: something is wrong\n"), "unclear"),
        (Heard(2, "", "partitioner: plan.json\npartitioner: again\n"), "unclear"),
        (Heard(2, "", f"partitioner: plan.json {'x' * 1000}\n"), "unclear"),
        (Heard(4, "", ""), "unclear"),
        (Heard(1, "", "Traceback (most recent call last):\n"), "traceback"),
        (Heard(None, "", "", "KeyError: 'a'"), "traceback"),
        (Heard(0, "step 1.2 s", "importing examples/gpt.py:model\n"), "accepted"),
        (Heard(0, "step -1.2 s", ""), "nonsense"),
        (Heard(0, "step nan s", ""), "nonsense"),
    ],
)
def test_what_was_heard_has_a_verdict(heard: Heard, word: str) -> None:
    assert verdict(heard, {"plan.json"})[0] == word


def test_what_waits_is_stopped() -> None:
    def wait(_: list[str]) -> int:
        time.sleep(60)
        return 0

    assert verdict(hear([], 0.2, wait), set())[0] == "hang"


def test_what_runs_and_what_is_overwritten_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path)
    run = file_readers._Running(place, {"plan.json"})
    target = place.target("shown.svg")
    assert target.read_text() == BEFORE

    def careless(_: list[str]) -> Heard:
        target.write_text("half")
        return Heard(2, "", "partitioner: plan.json is wrong\n")

    def harmful(_: list[str]) -> Heard:
        place.mark.touch()
        return Heard(0, "", "")

    monkeypatch.setattr(file_readers, "hear", careless)
    run("show", targets=[target])
    monkeypatch.setattr(file_readers, "hear", harmful)
    run("show")
    assert [word for _, word, _ in run.verdicts] == ["overwritten", "executed"]
