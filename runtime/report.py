"""The Report noun: what a run of a plan did, beside what was predicted for it; JSON on disk, read without its plan."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from partitioner.errors import InputError
from partitioner.plan.check import check_asked, check_cost, check_decisions
from partitioner.plan.derived_rows import OPTIMIZER, PIPELINE, Cost
from partitioner.plan.json_document import Amount, Count, Positive, parsed, plain, read, write
from partitioner.plan.migrate import UNVERSIONED, VERSION, migrated
from partitioner.plan.plan import Asked, Decisions
from partitioner.sharding.mesh_axes import PP, named
from partitioner.whole_files import write_whole

KIND = "report"
MEASURED_MEMORY = {"cpu": "of the process, interpreter included", "cuda": "of the allocator"}


@dataclass(frozen=True)
class Report:
    """A run of ``steps`` steps on ``ranks`` ranks. ``step_seconds`` is the median, without the first.

    ``losses``: None of a step whose loss was no number, which was skipped.

    ``measured``: seconds of a step by part, of the rank that waited least for others; what is not communication,
    waiting or update is compute. ``peak_bytes`` are those of the fullest rank: on a "cpu" of the whole process, on
    "cuda" of torch's allocator. ``products``: of those that had a kernel chosen, on rank 0, how many "ran" on it, and
    the others by their reason.
    """

    asked: Asked
    decisions: Decisions
    predicted: Cost
    ranks: Positive
    steps: Positive
    losses: tuple[float | None, ...]
    validation_loss: float | None
    step_seconds: Amount
    peak_bytes: Amount
    measured: dict[str, Amount]
    all_step_seconds: tuple[Amount, ...]
    device: str
    data: str
    products: dict[str, Count]

    def parts(self) -> Iterator[tuple[str, float, float]]:
        """(name, predicted seconds, measured seconds): compute, communication by axis, pipeline, optimizer.

        ``pipeline`` is all waiting for other stages: bubbles, and sends that nothing hides.
        """
        for name, value in predicted_parts(self.predicted).items():
            if value or self.measured.get(name):
                yield name, value, self.measured.get(name, 0.0)

    def save(self, path: Path | str) -> None:
        """Write JSON; raises InputError when the path can't be written."""
        write_whole(path, self.to_json())

    def to_json(self) -> str:
        """The document."""
        return write({"kind": KIND, "version": VERSION, **plain(self)})

    @staticmethod
    def of(data: dict[str, object], origin: str) -> Report:
        """Out of a report file's JSON; raises InputError naming the field that is wrong."""
        data = migrated(data, origin, data.get("version", UNVERSIONED))
        found = read(Report, {key: value for key, value in data.items() if key not in ("kind", "version")}, origin)
        check_asked(found.asked, f"{origin}: asked")
        check_decisions(found.decisions, f"{origin}: decisions")
        check_cost(found.predicted, f"{origin}: predicted")
        if not found.step_seconds > 0:
            raise InputError(f"{origin}: step_seconds must be positive: let the run do a step")
        _check(found, origin)
        return found

    @staticmethod
    def load(path: Path | str) -> Report:
        """Read a report file; raises InputError."""
        data = parsed(path, "report: let it be written again", lambda _: None)  # a NaN of earlier files
        if not isinstance(data, dict) or data.get("kind") != KIND:
            raise InputError(f"{path} is no report: partitioner run PLAN --report FILE writes one")
        return Report.of(data, str(path))


def _check(found: Report, origin: str) -> None:
    """All that it says of how many steps and ranks agrees; raises InputError naming what does not."""
    world, times = found.decisions.parallelism.world, found.all_step_seconds
    rows = (
        ("losses", len(found.losses), found.steps, "steps"), ("all_step_seconds", len(times), found.steps, "steps"),
        ("ranks", found.ranks, world, "ranks of its decisions"),
    )  # fmt: skip
    for key, many, wanted, words in rows:
        if many != wanted:
            raise InputError(f"{origin}: {key} are {many}, of {wanted} {words}: let the run be reported again")
    median = statistics.median(times[1:] or times)
    if not math.isclose(median, found.step_seconds, rel_tol=1e-6):
        words = f"step_seconds are {found.step_seconds:g}, the median of all_step_seconds {median:g}"
        raise InputError(f"{origin}: {words}: let the run be reported again")


def predicted_parts(cost: Cost) -> dict[str, float]:
    """The parts of a step as a run can measure them."""
    axes = {f"{axis} communication": cost.exposed_seconds.get(axis, 0.0) for axis in named() if axis != PP}
    pipeline = cost.bubble_seconds + cost.exposed_seconds.get(PP, 0.0)
    return {"compute": cost.compute_seconds, **axes, PIPELINE: pipeline, OPTIMIZER: cost.optimizer_seconds}
