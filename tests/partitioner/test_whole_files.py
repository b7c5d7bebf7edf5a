"""A file is written whole or not at all."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from partitioner.errors import InputError
from partitioner.whole_files import write_whole


def test_what_can_not_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_whole(path, "before")
    path.chmod(0o640)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"plan.json cannot be written: File too large"):
            write_whole(path, "x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["plan.json"]
    write_whole(path, b"after")
    assert path.read_text() == "after"
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_link_and_a_device_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_whole(tmp_path / "link", "through")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "through"
    (tmp_path / "null").symlink_to("/dev/null")
    write_whole(tmp_path / "null", "gone")
    assert Path("/dev/null").is_char_device()
    with pytest.raises(InputError, match="cannot be written: No such file or directory"):
        write_whole(tmp_path / "none" / "file", "")
    with pytest.raises(InputError, match="cannot be written: Is a directory"):
        write_whole(tmp_path, "")
