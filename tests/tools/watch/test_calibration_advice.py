"""A run far off on figures that were not measured here is told how to mend them; every other is told nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from shown import A100, report

from runtime.report import Report
from tools.watch.calibration_advice import calibration_advice


def _run(ratio: float, steps: int = 3, efficiency: float = 1.0, **cluster: object) -> Report:
    found = report()
    software = found.asked.software | {"efficiency": efficiency}
    asked = replace(found.asked, cluster=A100.as_dict() | cluster, software=software)
    return replace(found, asked=asked, steps=steps, step_seconds=ratio * found.predicted.step_seconds)


@pytest.mark.parametrize("ratio", [1.6, 0.6, 40.0])
def test_it_names_the_command(ratio: float) -> None:
    words = calibration_advice(_run(ratio), "a report.json") or ""
    assert words.startswith(f"calibrate: a step took {ratio:.2f} times what was predicted by dgx-a100, which was not")
    assert "; partitioner calibrate --from 'a report.json' -o measured.toml, and plan with" in words
    assert "; run again with --report report.json, then partitioner" in (calibration_advice(_run(ratio), None) or "")


@pytest.mark.parametrize(
    "run",
    [
        _run(1.4), _run(0.7), _run(9.0, steps=1), _run(9.0, name="ours"),
        _run(9.0, efficiency=0.25),  # as calibrate --from writes it
    ],
    ids=["longer", "shorter", "one step", "own file", "corrected"],
)  # fmt: skip
def test_others_are_told_nothing(run: Report) -> None:
    assert calibration_advice(run, "report.json") is None
