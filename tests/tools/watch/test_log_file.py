"""A log is a line of valid JSON for each event, appended by every run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from watch.events import step

from partitioner.errors import InputError
from tools.watch.log_file import LogFile


def _rows(path: Path) -> list[dict[str, Any]]:
    def no_constant(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return [json.loads(line, parse_constant=no_constant) for line in path.read_text().splitlines()]


def test_every_line_is_there_at_once_and_what_is_no_number_is_null(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = LogFile(str(path))
    log.tell(step(1, loss=math.nan, parts={"compute": math.inf}))
    (row,) = _rows(path)
    assert (row["event"], row["step"], row["loss"], row["parts"]) == ("step", 1, None, {"compute": None})
    for event in ({"warning": "slow"}, {"saving": "a/b"}, {"validation_loss": 2.0}, {"left": 3}, {"status": 0}):
        log.tell(event)
    log.close()
    assert [row["event"] for row in _rows(path)] == ["step", "warning", "saving", "validation", "stopped", "end"]


def test_a_run_that_goes_on_appends_and_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, hours = tmp_path / "log.jsonl", iter("abcdef")
    monkeypatch.setattr("tools.watch.log_file._now", lambda: next(hours))
    for _ in range(2):
        log = LogFile(str(path))
        log.tell(step(1))
        log.close()
    assert [(row["run"], row["time"], row["step"]) for row in _rows(path)] == [("a", "b", 1), ("c", "d", 1)]


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"st')
    log = LogFile(str(path))
    log.tell(step(2))
    log.close()
    first, torn, last = path.read_text().splitlines()
    assert (json.loads(first)["step"], torn, json.loads(last)["step"]) == (1, '{"st', 2)


def test_a_file_that_cant_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--log .*nowhere/log.jsonl can't be written: No such file or directory"):
        LogFile(str(tmp_path / "nowhere" / "log.jsonl"))
