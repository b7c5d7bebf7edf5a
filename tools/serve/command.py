"""``partitioner serve``: starts the ranks, says where they listen, and how they ended."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from partitioner.errors import InputError
from runtime.ranks import launch
from runtime.ranks.limits import START_SECONDS, Limits
from tools.generate.command import planned, tell_values, whole
from tools.generate.rank import Model
from tools.generate.text_coder import text_coder
from tools.serve.rank_job import Job
from tools.watch.telling import event_of

EXTRA = ("fastapi", "uvicorn", "pydantic")
END_SECONDS = 30.0  # to close connections and leave, beside the grace for answers


def serve_command(options: argparse.Namespace) -> int:
    """Serve until a signal comes; 128 and its number then, 1 where a rank failed."""
    _check(options)
    text_coder(options.tokenizer)  # refused before anything is started
    with planned(options, options.length, options.length // 2) as (plan, path):
        model = Model(
            plan=path, weights=whole(options.weights), checkpoint=whole(options.checkpoint),
            tokenizer=whole(options.tokenizer), rows=options.rows, chunk=options.chunk, length=options.length,
            patience=options.patience,
        )  # fmt: skip
        job = Job(
            model=model, name=options.name or Path(options.target).name, host=options.host, port=options.port,
            queue=options.max_queue, timeout=options.timeout, grace=options.grace, unread=options.max_unread,
        )  # fmt: skip
        tell_values(options, plan)
        screen = _Screen(job)
        leave = options.grace + END_SECONDS + Limits(plan.cost.step_seconds, options.patience).step
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "job.json"
            file.write_text(json.dumps(asdict(job)))
            result = launch.local_module("tools.serve.rank", [str(file)], plan.world, math.inf, screen.read, leave,
                                         START_SECONDS * options.patience)  # fmt: skip
    if (failed := result.failure) is not None:
        return 2 if result.statuses[failed.rank or 0] == 2 else 1
    number = result.asked or screen.left
    sys.stderr.write(f"stopped by {signal.Signals(number).name} as asked\n")
    return 128 + number


class _Screen:
    """What rank 0 tells, on standard error; ``left``: the signal after which it ended."""

    def __init__(self, job: Job) -> None:
        self.left = 0
        self._job = job

    def read(self, line: str) -> None:
        """A line of rank 0: an event, or what the user's code printed."""
        event = event_of(line, sys.stderr)
        if event is None:
            return
        if "listening" in event:
            model = self._job.model
            what = f"{self._job.name}, {model.rows} texts at once on a data rank, of up to {model.length:,} tokens"
            sys.stderr.write(f"listening on {event['listening']}: {what}\n")
        elif "log" in event:
            sys.stderr.write(event["log"])
        else:
            self.left = event["left"]
        sys.stderr.flush()


def _check(options: argparse.Namespace) -> None:
    if missing := [name for name in EXTRA if importlib.util.find_spec(name) is None]:
        raise InputError(f"serve needs {', '.join(missing)}: pip install 'partitioner[serve]'")
    least = {"rows": 1, "chunk": 1, "length": 2, "max_queue": 0, "max_unread": 1}
    for name, value in least.items():
        if getattr(options, name) < value:
            words = f"--{name.replace('_', '-')} must be at least {value}"
            raise InputError(f"{words}, not {getattr(options, name)}")
    for name in ("timeout", "grace", "patience"):
        value = getattr(options, name)
        if not (0 < value < math.inf or (name == "grace" and value == 0)):
            raise InputError(f"--{name} must be positive, not {value}")
    if not 0 <= options.port < 1 << 16:
        raise InputError(f"--port {options.port}: ports go from 0, any that is free, to 65535")
