"""A checkpoint of a later program, or whose record is not whole, is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from partitioner.errors import InputError
from runtime.state import checkpoint

WHOLE: dict[str, Any] = {"version": 1, "progress": {"step": 2, "seed": 0, "samples": 8}, "optimizer": None, "files": {}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "version 2 is newer than this program, which reads 1: update it"),
        ({"progress": {"step": 2, "unheard": 1}}, "is not a whole checkpoint .*load an earlier one"),
        ({"progress": None}, "is not a whole checkpoint .*load an earlier one"),
    ],
)
def test_a_record_that_can_not_be_read_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    (tmp_path / checkpoint.COMPLETE).write_text(json.dumps(WHOLE))
    assert checkpoint._checked_files(tmp_path)["progress"]["step"] == 2  # pyright: ignore[reportPrivateUsage]
    (tmp_path / checkpoint.COMPLETE).write_text(json.dumps(WHOLE | change))
    with pytest.raises(InputError, match=words):
        checkpoint._checked_files(tmp_path)  # pyright: ignore[reportPrivateUsage]
