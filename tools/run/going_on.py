"""What a run was asked, kept beside its checkpoints: the next goes on with it, and says what is other than before."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from partitioner.errors import InputError
from partitioner.whole_files import write_whole
from runtime.checkpoint import step_folders
from runtime.data.choices import FIELD, PLAIN

FILE = "run.json"
DEFAULTS: dict[str, Any] = {
    "lr": 3e-4, "optimizer": "adamw", "clip": 1.0, "warmup": 0, "weight_decay": None, "rates": None, "data": None,
    "tokenizer": None, "text_field": FIELD, "pack": PLAIN,
}  # fmt: skip
Settings = dict[str, Any]


def settings(given: Mapping[str, Any], before: Settings | None) -> Settings:
    """What is given, else what the run before had, else the default; a learning rate that the checkpoint alone knows is
    None."""
    known = DEFAULTS if before is None else DEFAULTS | {"lr": None} | before
    return {key: known[key] if given[key] is None else given[key] for key in DEFAULTS}


def before(folder: str | None) -> Settings | None:
    """What the run that saved in ``folder`` was asked, {} where nobody knows; None where it holds no checkpoint."""
    if folder is None:
        return None
    step_folders.recover(Path(folder))
    if not step_folders.found(Path(folder)):
        return None
    path = Path(folder) / FILE
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read: {error}; mend or remove it") from error


def changes(before: Settings, now: Settings) -> Iterator[str]:
    """``lr 0.001 (was 0.01)``, of each setting that is other than before and changes how the model is trained."""
    for key, value in now.items():
        told = key != "steps" or now["warmup"]
        if told and key in before and before[key] != value:
            yield f"{key} {value} (was {before[key]})"


def keep(folder: str, now: Settings) -> None:
    """Write it there."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_whole(Path(folder) / FILE, json.dumps(now, indent=1) + "\n")
