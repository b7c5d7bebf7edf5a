"""What a rank sends beside the prediction is said, in one process too; what is missing or no number is no equality."""

from __future__ import annotations

import math

import pytest
import torch

from partitioner import Cluster, lower, search, trace
from partitioner.lowering.sent_by_call import Sending
from runtime.mesh.groups import Groups
from runtime.verify.parity import difference, unforeseen
from runtime.verify.plain_steps import Steps
from tools.models.load import load


def test_a_row_that_was_not_predicted_is_told() -> None:
    source = load("examples/gpt.py:model", {"vocab": 32, "hidden": 16, "heads": 2, "seq": 8, "layers": 2}, batch=2)
    graph = trace(source.module, source.batch, compare=False)
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


ZEROS = {name: torch.zeros(2) for name in "abc"}


def test_a_zero_that_should_be_zero_is_equal_and_one_that_is_not_differs() -> None:
    """Where every gradient is 0 there is nothing to divide by, and nothing that tells: ``empty`` says so."""
    wanted = _steps(gradients=ZEROS, norm=0.0)
    same = difference(_steps(gradients=ZEROS, norm=0.0), wanted)
    assert (same.largest, same.empty) == (0, 1)
    assert difference(_steps(gradients=ZEROS | {"b": torch.tensor([0.0, 1e-9])}, norm=0.0), wanted).largest == math.inf
    assert difference(_steps(gradients=ZEROS, norm=1e-9), wanted).largest == math.inf
    assert difference(_steps(), _steps()).empty == 0


def test_a_gradient_where_eager_has_none_differs() -> None:
    wanted = _steps(gradients={name: torch.tensor([1.0, 2.0]) for name in "ab"})
    assert difference(_steps(), wanted).largest > 1
    assert difference(_steps(gradients=wanted.gradients | {"c": torch.zeros(2)}), wanted).largest == 0


def test_errors_are_told_by_the_sizes_of_gradients_that_tell() -> None:
    """Most gradients are exactly 0: the others keep their scale."""
    mostly = {**ZEROS, "d": torch.tensor([1.0, 2.0])}
    wanted = _steps(gradients=mostly, parameters=mostly)
    found = difference(_steps(gradients=mostly | {"d": torch.tensor([1.0, 2.0 + 2e-6])}, parameters=mostly), wanted)
    assert found.gradient == pytest.approx(1e-6, rel=0.1)
    assert found.empty == 0.75
