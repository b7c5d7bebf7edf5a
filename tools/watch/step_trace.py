"""Chosen steps of a run as a timeline for Perfetto, the predicted step beside them, in the Trace Event Format.

a process for each rank      predicted, and measured by the rank's own clock: steps, in them the actions, in those parts
                             of a step; of many ranks one for each pipeline rank
the same moment              all ranks meet before the first of the steps, and count from there
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from partitioner import Plan
from partitioner.errors import InputError
from partitioner.sharding.mesh_axes import PP
from partitioner.whole_files import write_whole
from runtime.mesh.groups import Groups
from runtime.mesh.step_clock import Slice
from runtime.ranks.process_group import all_here, everywhere, is_first, own_rank
from tools.show.perfetto import MOST_RANKS, trace_events
from tools.watch.metrics import Tell

MOST_STEPS = 10
Chosen = tuple[str, int, int]  # the file, the first and the last step


def traced_steps(path: str | None, steps: str | None, every: int) -> Chosen | None:
    """What ``--trace`` and ``--trace-steps`` ask for, of a run of ``every`` steps; raises InputError."""
    if path is None and steps is None:
        return None
    if path is None:
        raise InputError("--trace-steps needs --trace FILE, to write there")
    found = re.fullmatch(r"(\d+):(\d+)", steps or "")
    if found is None:
        asked = "--trace needs --trace-steps" if steps is None else f"--trace-steps {steps}: give"
        raise InputError(f"{asked} A:B, the first and the last step, as in 3:4")
    first, last = int(found[1]), int(found[2])
    if not 1 <= first <= last <= every or last - first >= MOST_STEPS:
        raise InputError(f"--trace-steps {steps}: give at most {MOST_STEPS} steps, the first one first, of 1:{every}")
    if not Path(path).resolve().parent.is_dir():
        raise InputError(f"--trace {path} can't be written: the folder {Path(path).parent} is not there")
    return str(Path(path).resolve()), first, last


class StepTrace:
    """Follows the clock of every rank during the chosen steps; rank 0 then writes what all have seen."""

    def __init__(self, asked: Chosen | None, plan: Plan, groups: Groups, tell: Tell) -> None:
        self._path, self._first, self._last = asked or ("", 0, 0)
        self._plan, self._groups, self._tell = plan, groups, tell
        self._begun = False

    def before(self, step: int) -> None:
        """All ranks call it before each step."""
        if not self._begun and self._first <= step <= self._last and self._groups.log.clock is not None:
            self._begun = True
            all_here()
            self._groups.log.clock.follow()

    def after(self, step: int) -> None:
        """All ranks call it after each step."""
        if self._begun and step == self._last:
            self._write()

    def end(self) -> None:
        """All ranks call it behind the last step that is done."""
        if self._begun:
            self._write()
        elif self._path:
            which = f"{self._first} to {self._last}"
            self._tell({"warning": f"{self._path} is not written: this run did none of the steps {which}"})

    def _write(self) -> None:
        clock = self._groups.log.clock
        assert clock is not None
        clock.unfollow()
        self._begun, path, self._path, self._last = False, self._path, "", 0
        few = self._plan.world <= MOST_RANKS
        alone = all(at == 0 for axis, at in self._groups.coordinates.items() if axis != PP)
        rows = everywhere((own_rank(), self._groups.coordinates[PP], clock.slices if few or alone else []))
        if not is_first():
            return
        seen = {f"rank {rank}" if few else f"pipeline rank {p} (rank {rank})": own for rank, p, own in rows if own}
        try:
            write_whole(path, trace_text(self._plan, seen))
            self._tell({"trace": path})
        except InputError as error:
            self._tell({"warning": str(error)})


def trace_text(plan: Plan, seen: dict[str, list[Slice]]) -> str:
    """The document; ``seen``: of each process by its name, what was done when."""
    events = list(_predicted(plan))
    first = 1 + max(event["pid"] for event in events)
    for n, (name, slices) in enumerate(seen.items()):
        events += _measured(first + n, n, f"measured {name}", slices)
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}) + "\n"


def _predicted(plan: Plan) -> Iterator[dict[str, Any]]:
    for event in trace_events(plan):
        if event["name"] == "process_name":
            event["args"] = {"name": f"predicted {event['args']['name']}"}
        if event["name"] == "process_sort_index":
            event["args"] = {"sort_index": 2 * event["args"]["sort_index"]}
        yield event


def _measured(pid: int, n: int, name: str, slices: list[Slice]) -> Iterator[dict[str, Any]]:
    """Beside the predicted process of the same number; what holds others comes first."""
    yield {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": name}}
    yield {"ph": "M", "pid": pid, "name": "process_sort_index", "args": {"sort_index": 2 * n + 1}}
    yield {"ph": "M", "pid": pid, "tid": 0, "name": "thread_name", "args": {"name": "steps and actions"}}
    for own in sorted(slices, key=lambda own: (own.start, -own.stop)):
        start, stop = (round(1e9 * second) for second in (own.start, own.stop))  # whole ns, so that they still nest
        yield {
            "ph": "X", "pid": pid, "tid": 0, "name": own.name, "cat": own.kind,
            "ts": start / 1e3, "dur": (stop - start) / 1e3,
        }  # fmt: skip
