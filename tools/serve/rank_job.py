"""What a rank of ``partitioner serve`` needs to know."""

from __future__ import annotations

import json
from dataclasses import dataclass

from tools.generate.rank import Model


@dataclass(frozen=True)
class Job:
    """``name`` of the ``model`` for clients; ``queue``: texts that wait for a row; ``timeout``, ``grace``: seconds of a
    request, and of those that run at the end; ``unread``: pieces that a stream's client may be behind."""

    model: Model
    name: str
    host: str
    port: int
    queue: int
    timeout: float
    grace: float
    unread: int


def job_of(text: str) -> Job:
    """As the command writes it."""
    given = json.loads(text)
    return Job(**given | {"model": Model(**given["model"])})
