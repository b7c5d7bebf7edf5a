"""Nothing in a checkpoint runs when it is read, and none of its names leads out of its folder."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.filesystem import FileSystemReader

from runtime.checkpoint.checkpoint_reader import CheckpointReader


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "saved"
    rows = {"a": torch.randn(3, 4), "b": torch.ones(2, dtype=torch.bfloat16), "c": torch.zeros((), dtype=torch.int64)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        state_dict_saver.save(rows, checkpoint_id=folder)
    return folder


def _rewrite(folder: Path, change: Callable[[Any], object]) -> None:
    found = FileSystemReader(folder).read_metadata()
    (folder / ".metadata").write_bytes(pickle.dumps(change(found) or found))


def test_it_reads_what_torch_reads(saved: Path) -> None:
    ours, theirs = CheckpointReader(saved).read_metadata(), FileSystemReader(saved).read_metadata()
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert ours.storage_data == theirs.storage_data


def test_nothing_runs(saved: Path, tmp_path: Path) -> None:
    target = tmp_path / "ran"
    for change in (lambda _: Harmful(target), lambda m: m.state_dict_metadata.update(a=Harmful(target))):
        _rewrite(saved, change)
        with pytest.raises(pickle.UnpicklingError, match="names posix.mkdir, which describes no tensor"):
            CheckpointReader(saved).read_metadata()
        assert not target.exists()
        (saved / ".metadata").unlink()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            state_dict_saver.save({"a": torch.ones(1)}, checkpoint_id=saved)


def _elsewhere(found: Any) -> None:
    for info in found.storage_data.values():
        info.relative_path = "../elsewhere"


def _encoded(found: Any) -> None:
    for info in found.storage_data.values():
        info.transform_descriptors = ["zstd"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_elsewhere, "../elsewhere is no file of its folder"),
        (_encoded, "is encoded"),
        (lambda found: found.state_dict_metadata.update(a=3), "a is no tensor"),
        (lambda found: {"a": 1}, "AttributeError"),
    ],
)
def test_what_describes_no_tensors_of_its_files_is_refused(
    change: Callable[[Any], object], words: str, saved: Path
) -> None:
    _rewrite(saved, change)
    with pytest.raises(pickle.UnpicklingError, match=words):
        CheckpointReader(saved).read_metadata()


def test_a_damaged_file_is_refused(saved: Path) -> None:
    whole = (saved / ".metadata").read_bytes()
    generator = torch.Generator().manual_seed(0)
    wrong = 0
    for _ in range(300):
        place, value = (int(torch.randint(n, (), generator=generator)) for n in (len(whole), 256))
        (saved / ".metadata").write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
        try:
            CheckpointReader(saved).read_metadata()
        except pickle.UnpicklingError:
            wrong += 1
    assert wrong > 100
