"""Checkpoint folders broken in one place, and loaded into an engine of one process without a process group.

Where an older whole one lies beside, that is loaded, and the one passed over is told; where none does, one line says
why, and nothing of the engine has changed. What was written again with its sum (``signed``), or is of a version without
sums, may also be whole; where it says so and can't be read, the error is as clear, but what was read before it stays.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from partitioner import Plan, lower, trace
from partitioner.errors import InputError
from partitioner.lowering.program import Program
from runtime.checkpoint import record, step_folders
from runtime.checkpoint.checkpoint_reader import METADATA
from runtime.checkpoint.record import COMPLETE
from runtime.train.engine import Engine
from runtime.verify.parity import engine_of
from tools.file_faults.file_mutations import as_json, mutant
from tools.file_faults.heard import limited
from tools.models.load import load

SPEC = ("vocab", 16), ("hidden", 8), ("heads", 2), ("seq", 4), ("layers", 1)
OLDER, NEWER = 1, 2
Tensors = dict[str, torch.Tensor]


class Harmful:
    """Makes a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@dataclass
class Runs:
    """Two runs of one model, each of two steps, with what the engine held after them."""

    folder: Path
    program: Program
    start: Tensors
    held: dict[tuple[str, int], Tensors] = field(default_factory=dict)

    @staticmethod
    def of(folder: Path, spec: str, plan: Path) -> Runs:
        """Written by the Saver, into ``folder``."""
        source = load(spec, dict(SPEC))
        program = lower(trace(source.module, source.batch, compare=False), Plan.load(plan))
        start = {n: p.detach().clone() for n, p in source.module.named_parameters() if n in program.parameters}
        made = Runs(folder, program, start)
        for n, name in enumerate(("run", "other")):
            torch.manual_seed(n)
            engine = engine_of(program, {n: p + 0.1 * torch.randn_like(p) for n, p in start.items()})
            many = program.micro_batch * program.micro_batches
            batch = {k: torch.randint(16, (many, *t.shape[1:])) for k, t in source.batch.items()}
            for step in (OLDER, NEWER):
                engine.step(batch)
                engine.save(folder / name)
                made.held[name, step] = held(engine)
        return made


def held(engine: Engine) -> Tensors:
    """Copies of all that it trains with."""
    rows = engine.optimizer.state
    states = {f"{n}/{w}": v for n, p in engine.parameters.items() for w, v in rows.get(p, {}).items()}
    return {name: torch.as_tensor(value).detach().clone() for name, value in {**engine.parameters, **states}.items()}


def equal(a: Tensors, b: Tensors) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@dataclass
class Broken:
    """A copy of the run whose newer checkpoint is broken. ``signed``: its record was written anew, with a right sum."""

    folder: Path
    other: Path
    mark: Path
    draw: random.Random
    words: str = ""
    signed: bool = False

    @property
    def newer(self) -> Path:
        """The checkpoint that is broken."""
        return step_folders.named(self.folder, NEWER)

    def file(self) -> Path:
        """One of its files."""
        return self.draw.choice(sorted(self.newer.iterdir()))

    def sign(self, said: dict[str, Any] | None = None) -> None:
        """Write its record anew, with the sums of the files as they are."""
        self.signed, path = True, self.newer / COMPLETE
        found: dict[str, Any] = json.loads(path.read_text()) if said is None else said
        for name, row in found["files"].items() if isinstance(found.get("files"), dict) else ():
            if isinstance(row, dict) and (file := self.newer / name).is_file():
                row |= {"bytes": file.stat().st_size, "sha256": record.sha256(file)}
        found.pop("sha256", None)
        path.write_text(json.dumps(found | {"sha256": record.own_sum(found)}))


def _cut(at: Broken) -> None:
    path = at.file()
    place = at.draw.randrange(path.stat().st_size)
    os.truncate(path, place)
    at.words = f"{path.name} cut at {place}"


def _turned(at: Broken) -> None:
    path = at.file()
    content, place = bytearray(path.read_bytes()), at.draw.randrange(path.stat().st_size)
    content[place] ^= 1 << at.draw.randrange(8)
    path.write_bytes(content)
    at.words = f"{path.name} turned at {place}"


def _missing(at: Broken) -> None:
    path = at.file()
    path.unlink()
    at.words = f"{path.name} missing"


def _other_kind(at: Broken) -> None:
    """A folder, a link to nothing or to itself, or a pipe in place of a file or of the whole checkpoint."""
    path = at.draw.choice((at.file(), at.file(), at.file(), at.newer))
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    kind, make = at.draw.choice((
        ("a folder", path.mkdir), ("a link to nothing", lambda: path.symlink_to("nowhere")),
        ("a pipe", lambda: os.mkfifo(path)), ("a link to itself", lambda: path.symlink_to(path.name)),
        ("a text", lambda: path.write_text("x")),
    ))  # fmt: skip
    make()
    at.words = f"{path.name} made {kind}"


def _swapped(at: Broken) -> None:
    path = at.file()
    source = at.draw.choice((at.other / at.newer.name, step_folders.named(at.other, OLDER)))
    shutil.copy(source / path.name, path)
    at.words = f"{path.name} of another"


def _pickle(at: Broken) -> None:
    """A pickle that runs what it names, in place of a file of tensors or of what tells of them."""
    name = at.draw.choice((METADATA, METADATA, *(p.name for p in at.newer.iterdir() if p.suffix == ".distcp")))
    content = pickle.dumps(Harmful(at.mark), protocol=at.draw.choice((2, 4)))
    whole = (at.newer / name).read_bytes()
    (at.newer / name).write_bytes(content + at.draw.choice((b"", whole)))
    at.words = f"{name} made a pickle that runs"
    if at.draw.random() < 0.7:
        at.sign()


def _edited(at: Broken) -> None:
    """The record with something else in it; half of them with a sum that says so, or of a version that had none."""
    path = at.newer / COMPLETE
    said = json.loads(path.read_text())
    kind = at.draw.choice(("unsigned", "signed", "without sums"))
    if kind == "without sums":
        said = {k: v for k, v in said.items() if k != "sha256"} | {"version": 1}
        said["files"] = {name: row["bytes"] for name, row in said["files"].items()}
    made = mutant(said, as_json, at.draw)
    path.write_bytes(made.content)
    at.signed = kind == "without sums"
    at.words = f"{COMPLETE}, {kind}: {'.'.join(map(str, made.place))} {made.words}"
    try:
        found = json.loads(made.content) if kind == "signed" else None
    except (ValueError, RecursionError):
        return
    if isinstance(found, dict):
        at.sign(found)


def _signed_damage(at: Broken) -> None:
    """A damaged file, with sums that say that it is whole."""
    at.draw.choice((_cut, _turned, _swapped))(at)
    try:
        at.sign()
    except (ValueError, AttributeError):
        at.signed = False
    at.words += ", signed"


BREAK: tuple[Callable[[Broken], None], ...] = (
    _cut, _cut, _turned, _turned, _missing, _other_kind, _other_kind, _swapped, _pickle, _edited, _edited,
    _signed_damage,
)  # fmt: skip


def tried(runs: Runs, folder: Path, mark: Path, draw: random.Random) -> tuple[str, str, str]:
    """What was done to a copy, the verdict, and what shows it."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(runs.folder / "run", folder)
    at = Broken(folder, runs.folder / "other", mark, draw)
    draw.choice(BREAK)(at)
    alone = draw.random() < 0.3
    if alone:
        shutil.rmtree(step_folders.named(folder, OLDER))
    engine, told, error = engine_of(runs.program, runs.start), list[str](), ""
    before = held(engine)
    try:
        with limited():
            engine.load(folder, tell=told.append)
    except InputError as raised:
        error = str(raised)
    except BaseException as raised:
        frame = raised.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        where = f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}" if frame else ""
        word = "hang" if type(raised).__name__ == "TooLong" else "traceback"
        return at.words, word, f"{type(raised).__name__}: {str(raised)[:120]} ({where})"
    return at.words, *_verdict(at, runs, alone, engine, before, told, error)


def _verdict(
    at: Broken, runs: Runs, alone: bool, engine: Engine, before: Tensors, told: list[str], error: str
) -> tuple[str, str]:
    if at.mark.exists():
        at.mark.rmdir()
        return "executed", "a mark was made"
    now = held(engine)
    if error:
        if not equal(now, before) and not at.signed:
            return "overwritten", error
        if not at.signed and not alone:
            return "not passed over", error
        ok = len(error.splitlines()) == 1 and len(error) < 700 and str(at.folder) in error
        return ("clear" if ok else "unclear"), error[:400]
    if equal(now, runs.held["run", OLDER]) and not alone:
        ok = len(told) == 1 and at.newer.name in told[0] and len(told[0]) < 700
        return ("clear", told[0]) if ok else ("untold", f"{told[:2]}")
    if at.signed or equal(now, runs.held["run", NEWER]):
        return "accepted", "" if equal(now, runs.held["run", NEWER]) else "other values, signed"
    return "nonsense", "values of no checkpoint"
