"""What a rank sends beside the prediction is said, in one process too; what is missing or no number is no equality."""

from __future__ import annotations

import math

import pytest
import torch

from partitioner import Cluster, lower, search, trace
from partitioner.traffic import Sending
from runtime.groups import Groups
from runtime.parity import difference, unforeseen
from runtime.reference import Steps
from tools.models import load


def test_a_row_that_was_not_predicted_is_told() -> None:
    source = load("examples/gpt.py:model", {"vocab": 32, "hidden": 16, "heads": 2, "seq": 8, "layers": 2}, batch=2)
    graph = trace(source.module, source.batch)
    program = lower(graph, search(graph, Cluster.load("local-cpu", devices=1), 2))
    groups = Groups(program)
    assert unforeseen(program, groups) == ""
    groups.log.rows.append(Sending("tp", "all_reduce", "forward", 64))
    assert "rank 0 sent Counter({('tp', 'all_reduce', 'forward', 64): 1})" in unforeseen(program, groups)


def _steps(**changes: object) -> Steps:
    tensors = {name: torch.tensor([1.0, 2.0]) for name in "abc"}
    given: dict[str, object] = {"loss": 1.0, "gradients": tensors, "norm": 3.0, "parameters": tensors}
    return Steps(**given | changes)  # type: ignore[arg-type]


def test_equal_steps_do_not_differ() -> None:
    assert difference(_steps(), _steps()).largest == 0


TENSORS = {name: torch.tensor([1.0, 2.0]) for name in "ab"}


@pytest.mark.parametrize(
    "changes",
    [
        {"gradients": TENSORS},
        {"parameters": TENSORS},
        {"gradients": TENSORS | {"c": torch.tensor([1.0, math.nan])}},
        {"parameters": TENSORS | {"c": torch.tensor([math.nan, 2.0])}},
        {"loss": math.nan},
        {"norm": math.nan},
    ],
)
def test_what_is_missing_or_no_number_differs(changes: dict[str, object]) -> None:
    assert difference(_steps(**changes), _steps()).largest == math.inf
