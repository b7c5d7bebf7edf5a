"""Steps are curves of tensorboard, and a run that goes on writes over the steps that it repeats."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from shown import plan
from watch.events import step

from partitioner.errors import InputError
from tools.watch.metrics import beside_plan
from tools.watch.tensorboard_log import TensorboardLog


class Writer:
    """In place of torch's, which needs the package."""

    made: list[Writer]

    def __init__(self, folder: str, purge_step: int, flush_secs: int) -> None:
        self.folder, self.purge_step, self.closed = folder, purge_step, False
        self.points = dict[tuple[str, int], float]()
        self.made.append(self)

    def add_scalar(self, curve: str, value: float, step: int) -> None:
        self.points[curve, step] = value

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> list[Writer]:
    module: Any = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter, Writer.made = Writer, []
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return Writer.made


def test_a_step_is_a_point_of_each_curve(writers: list[Writer], tmp_path: Path) -> None:
    log = TensorboardLog(str(tmp_path / "new" / "curves"))
    assert (tmp_path / "new" / "curves").is_dir()
    log.tell({"warning": "slow"})
    assert writers == []
    log.tell(beside_plan(step(5), plan()))
    log.tell(beside_plan(step(6, loss=None), plan()))
    log.tell({"validation_loss": 4.0, "peak_bytes": 5e3, "parts": {"compute": 1.0}})
    log.close()
    (made,) = writers
    assert (made.folder, made.purge_step, made.closed) == (str(tmp_path / "new" / "curves"), 5, True)
    assert {step: value for (curve, step), value in made.points.items() if curve == "loss/training"} == {5: 5.25}
    assert made.points["loss/validation", 6] == 4.0
    assert made.points["parts/pipeline", 6] == made.points["parts/compute", 6] == 0.25
    assert made.points["speed/MFU", 5] == beside_plan(step(5), plan())["mfu"]
    assert len({curve for curve, _ in made.points}) == 12


def test_the_package_itself_takes_it(tmp_path: Path) -> None:
    reader: Callable[[str], Any] = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", exc_type=ImportError
    ).EventAccumulator
    for first in (1, 2):
        log = TensorboardLog(str(tmp_path))
        for number in (first, first + 1):
            log.tell(beside_plan(step(number, loss=float(10 * first + number)), plan()))
        log.close()
    found = reader(str(tmp_path))
    found.Reload()
    assert [(point.step, point.value) for point in found.Scalars("loss/training")] == [(1, 11.0), (2, 22.0), (3, 23.0)]


def test_a_missing_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match="a package that is not installed: pip install tensorboard"):
        TensorboardLog(str(tmp_path))


def test_a_folder_that_cant_be_made_is_named(writers: list[Writer], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="--tensorboard .*file/curves can't be written: Not a directory"):
        TensorboardLog(str(tmp_path / "file" / "curves"))
