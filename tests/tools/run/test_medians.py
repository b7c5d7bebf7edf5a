"""What a report says of a step's parts adds up to a step."""

from __future__ import annotations

from tools.run.training_loop import medians


def test_what_is_left_of_a_step_is_compute() -> None:
    first = {"step": 90.0, "a": 50.0}
    later = [{"step": 2.0, "a": 0.5}, {"step": 3.0}, {"step": 4.0, "a": 1.5, "b": 1.0}]
    assert medians([first, *later]) == {"compute": 3.0 - 0.5, "a": 0.5, "b": 0.0}
    assert medians([first]) == {"compute": 40.0, "a": 50.0}
