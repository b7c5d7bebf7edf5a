"""What is told of a step is what the engine and the clock say, and the plan's figures for its seconds."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from shown import plan, report
from torch import nn

from runtime.train.engine import Engine
from tools.figures.columns import of_report
from tools.watch.metrics import beside_plan, finite, measured


def _trainer() -> Engine:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.25)
    found = SimpleNamespace(steps_done=7, skipped=2, samples_read=112, optimizer=optimizer)
    return cast(Engine, found)


def test_a_step_is_told() -> None:
    found = measured(_trainer(), math.nan, 2.0, 0.5, {"pipeline": 0.125, "optimizer": 0.25})
    assert found.pop("peak_bytes") > 1e6
    assert next(iter(found)) == "step"
    assert found == {
        "step": 7, "loss": None, "seconds": 0.5, "skipped": 2, "learning_rate": 0.25, "grad_norm": 2.0, "samples": 112,
        "parts": {"compute": 0.125, "pipeline": 0.125, "optimizer": 0.25},
    }  # fmt: skip


def test_rate_and_mfu_are_those_of_compare() -> None:
    run = report(compute=1.5)
    column = of_report("run", run).values
    found = beside_plan({"step": 1, "seconds": run.step_seconds}, plan())
    assert found["tokens_per_second"] == column["tokens/s"] == pytest.approx(16 * 32 / run.step_seconds)
    assert found["mfu"] == column["MFU"]
    assert found["predicted_seconds"] == plan().cost.step_seconds


@pytest.mark.parametrize(("value", "told"), [(0.0, 0.0), (None, None), (math.inf, None), (math.nan, None)])
def test_no_number_is_none(value: float | None, told: float | None) -> None:
    assert finite(value) == told
