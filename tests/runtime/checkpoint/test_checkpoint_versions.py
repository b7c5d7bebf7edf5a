"""A checkpoint of a later program, or whose record is not whole, is refused in one line; one of before is read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from partitioner.errors import InputError
from runtime.checkpoint.entries import States, give
from runtime.checkpoint.record import (
    COMPLETE,
    File,
    NotWhole,
    Progress,
    Record,
    check_files,
    not_whole,
    read_record,
    write_record,
)  # fmt: skip

WITHOUT_SUMS: dict[str, Any] = {
    "version": 1, "progress": {"step": 2, "seed": 0, "samples": 8}, "optimizer": None, "files": {"a": 3},
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"version": 3}, InputError, "version 3 is newer than this program, which reads 2: update it"),
        ({"progress": {"step": 2, "unheard": 1}}, NotWhole, "is not a whole checkpoint"),
        ({"progress": None}, NotWhole, "is not a whole checkpoint"),
        ({"version": 2}, NotWhole, "is not a whole checkpoint"),
        ({"files": {"../b": 3}}, NotWhole, "../b is no file of it"),
    ],
)
def test_a_record_that_can_not_be_read_is_refused(
    change: dict[str, Any], kind: type[InputError], words: str, tmp_path: Path
) -> None:
    (tmp_path / "a").write_text("abc")
    (tmp_path / COMPLETE).write_text(json.dumps(WITHOUT_SUMS))
    found = read_record(tmp_path)
    assert (found.progress.step, found.files) == (2, {"a": File(3, None)})
    check_files(tmp_path, found.files.items())
    (tmp_path / COMPLETE).write_text(json.dumps(WITHOUT_SUMS | change))
    with pytest.raises(InputError, match=words) as raised:
        check_files(tmp_path, read_record(tmp_path).files.items())
    assert type(raised.value) is kind


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000, '{"version": 1, "files": ' + '{"a":' * 100_000 + "}" * 100_001, "\xff", "[]",
        json.dumps(WITHOUT_SUMS | {"version": 0}), json.dumps(WITHOUT_SUMS | {"version": True}),
        json.dumps(WITHOUT_SUMS | {"version": 3, "sha256": "of other bytes"}),
        *(json.dumps(WITHOUT_SUMS | {"progress": WITHOUT_SUMS["progress"] | wrong})
          for wrong in ({"step": -1}, {"step": "2"}, {"seed": None}, {"samples": 0.5}, {"loss_scale": {"scale": 1}},
                        {"loss_scale": {"value": "1"}})),
        json.dumps(WITHOUT_SUMS | {"optimizer": 7}), json.dumps(WITHOUT_SUMS | {"groups": [1]}),
        json.dumps(WITHOUT_SUMS | {"groups": [{"lr": [[]]}]}),
        json.dumps(WITHOUT_SUMS | {"files": {"a": -3}}),
    ],
)  # fmt: skip
def test_a_record_that_says_what_none_says_is_not_whole(text: str, tmp_path: Path) -> None:
    (tmp_path / COMPLETE).write_bytes(text.encode("latin-1"))
    with pytest.raises(NotWhole, match=f"is not a whole checkpoint .{COMPLETE}") as raised:
        read_record(tmp_path)
    assert len(str(raised.value)) < 700


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / COMPLETE)
    with pytest.raises(NotWhole, match="it is missing, or no file"):
        read_record(tmp_path)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    groups = [{"lr": 0.1, "betas": (0.9, 0.999), "amsgrad": False}]
    record = Record(Progress(3, 1, 24, {"value": 65536.0}), "AdamW", groups, {"a": File(3, "12ab")})
    write_record(tmp_path, record)
    found = read_record(tmp_path)
    assert found.groups[0].pop("betas") == [0.9, 0.999]
    groups[0].pop("betas")
    assert found == record


def test_a_state_that_an_optimizer_can_not_take_is_one_line() -> None:
    held = torch.nn.Parameter(torch.zeros(3))
    states: States = {"a": {"exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3)}}
    with pytest.raises(InputError, match="AdamW can't take the state that was saved .KeyError: 'step'."):
        give(torch.optim.AdamW([held]), {"a": held}, states, [])


def test_why_one_is_not_whole_is_one_line(tmp_path: Path) -> None:
    said = str(not_whole(tmp_path, "an error\nof two lines"))
    assert said == f"{tmp_path} is not a whole checkpoint (an error of two lines)"
