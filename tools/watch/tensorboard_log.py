"""A run's steps as curves of tensorboard, which is an optional package."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from partitioner.errors import InputError
from tools.watch.metrics import STEP, VALIDATION, Event

CURVES = {
    "loss": "loss/training", "learning_rate": "step/learning rate", "grad_norm": "step/gradient norm",
    "skipped": "step/skipped", "seconds": "seconds/measured", "predicted_seconds": "seconds/predicted",
    "tokens_per_second": "speed/tokens a second", "samples_per_second": "speed/samples a second", "mfu": "speed/MFU",
    "peak_bytes": "memory/peak bytes",
}  # fmt: skip
FLUSH_SECONDS = 10


class TensorboardLog:
    """Writes into a folder; of steps that a run repeats, gone on from an older checkpoint, the later curve is shown."""

    def __init__(self, folder: str) -> None:
        try:
            self._make: Any = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        except ImportError as error:
            raise InputError(
                "--tensorboard needs a package that is not installed: pip install tensorboard"
            ) from error
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--tensorboard {folder} can't be written: {error.strerror or error}") from error
        self._folder, self._step = folder, 0
        self._writer: Any = None

    def __str__(self) -> str:
        return f"--tensorboard {self._folder}"

    def tell(self, event: Event) -> None:
        """Add a step's points, or the validation loss at the last step."""
        self._step = event.get(STEP, self._step)
        points = dict(_points(event))
        if points and self._writer is None:
            self._writer = self._make(self._folder, purge_step=self._step, flush_secs=FLUSH_SECONDS)
        for curve, value in points.items():
            self._writer.add_scalar(curve, value, self._step)

    def close(self) -> None:
        """Nothing more comes."""
        if self._writer is not None:
            self._writer.close()


def _points(event: Event) -> Iterator[tuple[str, float]]:
    found = {f"parts/{part}": value for part, value in event.get("parts", {}).items()} if STEP in event else {}
    found |= {curve: event[key] for key, curve in CURVES.items() if key in event}
    found |= {"loss/validation": event[VALIDATION]} if VALIDATION in event else {}
    yield from ((curve, value) for curve, value in found.items() if value is not None)
