"""The JSON document of ``partitioner fit``: bytes, seconds and shares as numbers, plans by their decisions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from partitioner import Plan
from partitioner.searching.assumed import assumed
from tools.figures import figures
from tools.fit.screen import batch_words, by_name
from tools.fit.trials import Asked, Trial


def document(asked: Asked, trials: Sequence[Trial], shown: Trial, told: Sequence[str]) -> str:
    """All that was tried, and the plans of ``shown``; ``told``: what would make it fit."""
    device, precision = asked.cluster.device, asked.graph.precision
    found = {
        "model": {**asked.model, "parameters": asked.parameters, **assumed(asked.graph)},
        "precision": str(precision) if precision.compute else "the model's own",
        "cluster": asked.cluster.name, "software": asked.cluster.software.title,
        "memory": {
            "device_bytes": device.memory_bytes, "room_bytes": device.room, "allocator_share": device.allocator_share,
            "reserved_bytes": device.memory_bytes - device.room, "free_share": asked.free,
        },
        "assumed": [] if asked.global_batch is not None else [batch_words(asked)], "notes": list(asked.graph.notes),
        "fits": shown.fits, "devices": shown.devices, "mends": list(told),
        "plans": {name: _plan(plan) for name, plan in by_name(shown).items()},
        "tried": [_trial(row) for row in trials],
    }  # fmt: skip
    return json.dumps(found, indent=1) + "\n"


def _trial(row: Trial) -> dict[str, Any]:
    comfortable = row.comfortable.cost.step_seconds if row.comfortable else None
    return {
        "devices": row.devices, "global_batch": row.global_batch, "fits": row.fits, "reason": row.reason,
        "tightest_bytes": row.tightest.cost.peak_bytes if row.tightest else None,
        "state_bytes_at_least": row.state_bytes, "missing_bytes": None if row.reason else max(row.missing_bytes, 0.0),
        "comfortable_step_seconds": comfortable, "leaves_the_share_free": row.fits and not row.is_full,
    }  # fmt: skip


def _plan(plan: Plan) -> dict[str, Any]:
    return {
        **asdict(plan.parallelism), "recomputed": plan.decisions.recomputed, "global_batch": plan.global_batch,
        "step_seconds": plan.cost.step_seconds, f"{figures.unit(plan.model)}_per_second": figures.rate(plan),
        "peak_bytes": plan.cost.peak_bytes,
        "bytes_by_kind": figures.rank_memory(plan)[figures.worst_rank(plan)],
    }  # fmt: skip
