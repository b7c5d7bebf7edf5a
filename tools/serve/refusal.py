"""What a client is told instead of an answer, in the shape of OpenAI's errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Refusal(Exception):
    """``status``: of HTTP; ``param``: the field that is wrong; ``code``: a word for programs."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def document(self) -> dict[str, Any]:
        """As OpenAI's API tells it."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def full() -> Refusal:
    """No text more can wait."""
    return Refusal(503, "all rows answer and the queue is full: try again", None, "queue_full", {"Retry-After": "1"})


def leaving() -> Refusal:
    """The server was asked to end."""
    return Refusal(503, "the server is leaving", None, "leaving", {"Connection": "close"})


def too_late(seconds: float) -> Refusal:
    """Before the first token."""
    return Refusal(504, f"no row was free within {seconds:g} s", None, "timeout")


def failed() -> Refusal:
    """The ranks no longer answer."""
    return Refusal(500, "the model's ranks have failed", None, "failed", {"Connection": "close"})
