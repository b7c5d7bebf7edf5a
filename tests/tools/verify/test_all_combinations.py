"""Every stage of ZeRO with every recompute on each mesh of 4 ranks, in each precision, of one model: all equal."""

from __future__ import annotations

import itertools

import pytest

from partitioner import search
from partitioner.plan.recompute_ways import NO_RECOMPUTE, WAYS
from partitioner.precision import OWN, PRESETS
from tools.verify.command import run_plans
from tools.verify.plan_families import CAST, cluster
from tools.verify.subject import EXAMPLE, subject_of

RANKS, BATCH, STAGES = 4, 8, (0, 1, 2, 3)
SIZES = {"vocab": 64, "hidden": 32, "heads": 4, "seq": 16, "layers": 4, "dropout": 0.1, "tied": True}
MESHES: dict[str, dict[str, str | int]] = {
    "dp": {"dp": 4, "micro_batch": 1},
    "tp x dp": {"tp": 2, "dp": 2, "boundary": "sharded", "micro_batch": 2},
    "pp x dp": {"pp": 2, "dp": 2, "schedule": "1f1b", "micro_batch": 1},
}


@pytest.mark.parity
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mesh", MESHES)
def test_all_are_equal(mesh: str) -> None:
    subject = subject_of("examples/gpt.py:model", SIZES, None, EXAMPLE, BATCH, shrink=True, precision=OWN)
    precisions = {"own": OWN, **{name: PRESETS[name] for name in CAST}}
    plans = [
        (
            f"ZeRO {zero}, {way}, {name}",
            search(
                subject.traced_in(precision), cluster(RANKS), BATCH,
                {"tp": 1, "pp": 1, "zero": zero, "recompute": way, **MESHES[mesh]},
            ),
        )
        for zero, way, (name, precision) in itertools.product(STAGES, (NO_RECOMPUTE, *WAYS), precisions.items())
    ]  # fmt: skip
    rows, _ = run_plans(subject, plans, 0.0)
    assert len(rows) == len(STAGES) * (1 + len(WAYS)) * len(precisions)
    assert {row.name: row.verdict for row in rows if not row.passed} == {}
