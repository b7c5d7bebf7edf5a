"""Which published runs no fit may see: of each source a third of its models, or of one model's source a third of its
runs, by hashes of names; chosen before anything was fitted."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from tools.validate.published_runs import Run

_SHARE = 3


def kept_aside(runs: Iterable[Run]) -> set[int]:
    """The lines of those runs."""
    found, groups = set[int](), dict[str, list[Run]]()
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    for group, members in groups.items():
        models = sorted({run.model for run in members}, key=lambda model: _hash(f"{group} {model}"))
        many = max(1, round(len(models) / _SHARE)) if len(models) > 1 else 0
        found |= {run.line for run in members if run.model in models[:many]}
        if not many:
            found |= {run.line for run in members if _hash(str(run.configuration)) % _SHARE == 0}
    return found


def _hash(text: str) -> int:
    return zlib.crc32(text.encode())
