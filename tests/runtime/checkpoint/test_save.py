"""A checkpoint is what training was when it was asked for, there whole or not at all; the newest whole is loaded."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import plans
import pytest
import small
import torch
from small_engine import build, local, samples

from partitioner.errors import InputError
from runtime.checkpoint import record, step_folders
from runtime.checkpoint.record import COMPLETE
from runtime.ranks.process_group import saving_group
from runtime.train.engine import Engine

ONE = small.program()
DATA = small.batch(samples(ONE))


def _trained(steps: int) -> Engine:
    engine = build(ONE)
    for _ in range(steps):
        engine.step(DATA)
    return engine


def _held(engine: Engine) -> dict[str, torch.Tensor]:
    states = {f"{n}/{w}": v for n, p in engine.parameters.items() for w, v in engine.optimizer.state[p].items()}
    return {name: value.detach().clone() for name, value in {**engine.parameters, **states}.items()}


def _equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


def _beside(rank: int, folder: str, shards: int) -> None:
    program = small.program(pp=2, dp=shards) if shards == 1 else small.program(dp=2)
    engine, data = build(program, saving=saving_group()), small.batch(samples(program))
    engine.step(local(program, engine, data))
    before = _held(engine)
    engine.save(folder, wait=False)
    engine.step(local(program, engine, data))  # changes all that is being written
    engine.step(local(program, engine, data))
    engine.save(folder, wait=False)  # once the first is there
    assert (Path(folder) / "step-00000001" / COMPLETE).exists()
    engine.saved()
    again = build(program)
    assert again.load(Path(folder) / "step-00000001").step == 1
    _equal(_held(again), before)
    assert again.load(folder).step == 3
    _equal(_held(again), _held(engine))


@pytest.mark.parametrize("shards", [1, 2])
def test_what_is_written_beside_training_is_what_it_was(shards: int, tmp_path: Path) -> None:
    plans.spawn(_beside, 2, str(tmp_path), shards)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [_flip, _truncate, Path.unlink])
@pytest.mark.parametrize("file", ["__0_0.distcp", ".metadata", COMPLETE])
def test_the_newest_whole_one_is_loaded_and_said(
    file: str, damage: Callable[[Path], object], tmp_path: Path
) -> None:
    engine = build(ONE)
    for _ in range(2):
        engine.step(DATA)
        engine.save(tmp_path)
    damage(tmp_path / "step-00000002" / file)
    said, again = list[str](), build(ONE)
    assert again.load(tmp_path, tell=said.append).step == 1
    _equal(_held(again), _held(_trained(1)))
    assert len(said) == 1
    assert f"step-00000002 is not a whole checkpoint ({file}" in said[0]
    assert said[0].endswith("step-00000001 is loaded")
    with pytest.raises(InputError, match=f"step-00000002 is not a whole checkpoint \\({file}.*: load another"):
        again.load(tmp_path / "step-00000002")


def test_what_says_that_it_is_whole_and_is_not_is_told_in_one_line(tmp_path: Path) -> None:
    newest = _trained(1).save(tmp_path)
    (newest / "__0_0.distcp").write_bytes(pickle.dumps(os.getcwd, protocol=2))
    said = json.loads((newest / COMPLETE).read_text()) | {"version": 1}
    said["files"] = {name: (newest / name).stat().st_size for name in said["files"]}
    (newest / COMPLETE).write_text(json.dumps(said))
    with pytest.raises(InputError, match="step-00000001 can't be read, by rank 0: ") as raised:
        build(ONE).load(tmp_path)
    assert len(str(raised.value).splitlines()) == 1


def test_a_record_that_names_no_metadata_is_not_whole(tmp_path: Path) -> None:
    newest = _trained(1).save(tmp_path)
    said = json.loads((newest / COMPLETE).read_text()) | {"version": 1, "files": {}}
    (newest / COMPLETE).write_text(json.dumps(said))
    with pytest.raises(InputError, match="complete.json: it does not name .metadata"):
        build(ONE).load(tmp_path)


def test_none_is_whole(tmp_path: Path) -> None:
    engine = _trained(1)
    _flip(engine.save(tmp_path) / "__0_0.distcp")
    engine.step(DATA)
    _flip(engine.save(tmp_path) / COMPLETE)
    before = _held(engine)
    with pytest.raises(InputError, match=r"holds no whole one: .*step-00000002 is not a whole checkpoint"):
        engine.load(tmp_path)
    _equal(_held(engine), before)


def test_every_bit_of_the_record_counts(tmp_path: Path) -> None:
    engine = _trained(1)
    path = engine.save(tmp_path) / COMPLETE
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(InputError, match="is not a whole checkpoint"):
            engine.load(tmp_path)


def test_as_many_as_asked_for_stay(tmp_path: Path) -> None:
    engine = build(ONE)
    for step in range(1, 6):
        engine.step(DATA)
        engine.save(tmp_path, keep=2, wait=step % 2 == 0)
        engine.saved()
        assert [int(f.name[5:]) for f in step_folders.found(tmp_path)] == list(range(step, max(0, step - 2), -1))
    assert sorted(os.listdir(tmp_path)) == ["step-00000004", "step-00000005"]


def test_the_one_just_written_stays_whatever_lies_after_it(tmp_path: Path) -> None:
    later = _trained(3).save(tmp_path)
    engine = _trained(1)
    engine.save(tmp_path, keep=1)
    assert sorted(os.listdir(tmp_path)) == ["step-00000001", later.name]


def test_what_a_stopped_run_left_goes(tmp_path: Path) -> None:
    for step in (1, 2):
        _trained(step).save(tmp_path)
    (tmp_path / "step-00000009.writing").mkdir()
    shutil.copytree(tmp_path / "step-00000001", tmp_path / "step-00000001.old")  # its place had been taken
    (tmp_path / "step-00000002").rename(tmp_path / "step-00000002.old")  # its place was to be taken, and was not
    _trained(3).save(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["step-00000001", "step-00000002", "step-00000003"]


def test_one_whose_place_was_to_be_taken_is_loaded(tmp_path: Path) -> None:
    saved = _trained(1).save(tmp_path)
    saved.rename(saved.with_suffix(".old"))
    assert build(ONE).load(tmp_path).step == 1


def test_a_file_that_can_not_be_read_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _trained(1).save(tmp_path)
    newest = _trained(2).save(tmp_path)
    inner = record.sha256

    def failing(path: Path) -> str:
        if path.parent == newest:
            raise OSError(errno.EIO, "Input/output error")
        return inner(path)

    monkeypatch.setattr(record, "sha256", failing)
    said = list[str]()
    assert build(ONE).load(tmp_path, tell=said.append).step == 1
    assert "can't be read: Input/output error" in said[0]


def _apart(rank: int, folder: str) -> None:
    program = small.program(pp=2)
    engine = build(program, saving=saving_group())
    with pytest.raises(InputError, match="rank 0 does not see __1_0.distcp: all nodes have to share the folder"):
        engine.save(Path(folder) / str(rank))
    torch.distributed.barrier()
    assert not list(Path(folder).glob("*/step-*"))


def test_a_folder_that_not_all_share(tmp_path: Path) -> None:
    plans.spawn(_apart, 2, str(tmp_path))


def _limited(rank: int, folder: str, wait: bool) -> None:
    program = small.program(pp=2)
    engine, data = build(program, saving=saving_group()), small.batch(samples(program))
    engine.step(data)
    engine.save(folder)
    before, limits = _held(engine), resource.getrlimit(resource.RLIMIT_FSIZE)
    engine.step(data)
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    save = partial(engine.save, folder, wait=wait)
    whose = "" if rank == 1 else " by a peer, rank 1"
    if wait:
        with pytest.raises(InputError, match=f"step-00000002 can't be written{whose}: File too large"):
            save()
    else:
        save()
        with pytest.raises(InputError, match=f"step-00000002 can't be written{whose}: File too large"):
            engine.saved()
    torch.distributed.barrier()
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(folder) == ["step-00000001"]
    again = build(program)
    assert again.load(folder).step == 1
    _equal(_held(again), before)


@pytest.mark.parametrize("wait", [True, False])
def test_one_rank_that_can_not_write(wait: bool, tmp_path: Path) -> None:
    plans.spawn(_limited, 2, str(tmp_path), wait)
