"""The folders ``step-N`` of a run: written aside and renamed when whole, found again, and cleared away when old.

    step-N.writing     being written, or left by a run that was stopped meanwhile: nothing reads it
    step-N.old         the checkpoint of the same step that a new one is taking the place of
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from runtime.checkpoint.record import COMPLETE


def named(folder: Path, step: int) -> Path:
    """The folder of a step."""
    return folder / f"step-{step:08d}"


def writing(target: Path) -> Path:
    """Where a step's checkpoint is written."""
    return target.with_suffix(".writing")


def found(folder: Path) -> list[Path]:
    """What ``folder`` holds, the newest first: itself where it is a checkpoint."""
    if (folder / COMPLETE).is_file() or (_is_step(folder) and folder.is_dir()):
        return [folder]
    return sorted(filter(_is_step, folder.glob("step-*")), reverse=True)


def _is_step(folder: Path) -> bool:
    return folder.name[:5] == "step-" and folder.name[5:].isdigit()


def publish(target: Path) -> None:
    """What was written aside takes its name; nobody sees the folder while it is not whole."""
    old = target.with_suffix(".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    writing(target).rename(target)
    _settle(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _settle(folder: Path) -> None:
    """A folder's names are on the disk before anything else there is removed."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def prune(target: Path, keep: int) -> None:
    """Leave ``target`` and the newest before it, ``keep`` in all; later ones are of no concern here."""
    earlier = [f for f in found(target.parent) if f.name < target.name]
    for folder in earlier[keep - 1 :]:
        shutil.rmtree(folder.rename(writing(folder)), ignore_errors=True)  # none is seen half


def recover(folder: Path) -> None:
    """A checkpoint whose place a stopped run had not yet taken gets its name again."""
    for old in folder.glob("step-*.old"):
        if not old.with_suffix("").exists() and (old / COMPLETE).is_file():
            with contextlib.suppress(FileNotFoundError):  # another process of the same run was first
                old.rename(old.with_suffix(""))


def tidy(folder: Path) -> None:
    """Clear away what a stopped run left: what was half written, and what had been replaced."""
    recover(folder)
    for left in (*folder.glob("step-*.writing"), *folder.glob("step-*.old")):
        shutil.rmtree(left, ignore_errors=True)
