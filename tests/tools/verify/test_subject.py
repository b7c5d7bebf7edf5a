"""What verify compares is traced at one batch size and run at another, its constants moved."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.verify.command import Verified
from tools.verify.subject import EXAMPLE, subject_of

GPT = f"{Path(__file__).parents[3] / 'examples' / 'gpt.py'}:model"
SMALL: dict[str, object] = {"vocab": 32, "hidden": 16, "heads": 2, "seq": 8, "layers": 2}


@pytest.mark.parametrize(("given", "samples"), [({}, 4), ({}, EXAMPLE), ({"batch": 4}, 4)])
def test_the_traced_size_is_not_the_one_that_is_run(given: dict[str, object], samples: int) -> None:
    subject = subject_of(GPT, SMALL | given, None, EXAMPLE, samples)
    assert subject.graph.batch != samples
    assert {t.shape[0] for t in subject.batch.values()} == {samples}
    assert "blocks.0.norm1.weight" in subject.moved
    assert any("noise" in remark for remark in subject.remarks())


def _row(**changes: object) -> Verified:
    given: dict[str, object] = {
        "name": "tp", "mesh": "tp 2", "ranks": 2, "tp": 2, "least": 0.9, "loss": 0.0, "gradient": 0.0, "norm": 0.0,
        "parameter": 0.0, "worst": "", "parameters_divided": 1.0, "flops_divided": 1.0, "zero": (), "empty": 0.0,
        "limit": 1e-9, "first": "", "unforeseen": "",
    }  # fmt: skip
    return Verified(**{"real": "", "real_error": 0.0} | given | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "equal"),
        ({"gradient": 1e-8, "worst": "gradient of a"}, "DIFFERS: gradient of a"),
        ({"gradient": float("inf"), "worst": "gradient of a"}, "DIFFERS: gradient of a"),
        ({"gradient": 1e-8, "limit": 1e-6}, "equal"),
        ({"unforeseen": "rank 0"}, "SENDS WHAT IS NOT PREDICTED: rank 0"),
        ({"empty": 0.75}, "SAYS NOTHING: 75 % of gradients are exactly 0"),
        ({"flops_divided": 0.5}, "DIVIDES LESS THAN 90 %"),
    ],
)
def test_a_verdict_is_never_empty(changes: dict[str, object], verdict: str) -> None:
    assert _row(**changes).verdict == verdict
    assert _row(**changes).passed == (verdict == "equal")
