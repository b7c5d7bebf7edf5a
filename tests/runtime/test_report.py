"""A report says the same everywhere of how many steps and ranks it is, or it is refused by the name of the field.

It has null for the loss of a skipped step; those of earlier programs, in which it is NaN, are read so.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from shown import report

from partitioner.errors import InputError
from runtime.report import Report


def test_a_loss_that_is_no_number_is_null(tmp_path: Path) -> None:
    path, run = tmp_path / "report.json", replace(report(), losses=(5.0, None, 3.0))
    run.save(path)
    assert json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(word))["losses"] == [5.0, None, 3.0]
    assert Report.load(path) == run
    path.write_text(path.read_text().replace("[5.0, null, 3.0]", "[NaN, Infinity, 3.0]"))
    assert Report.load(path) == replace(run, losses=(None, None, 3.0))


def test_no_other_figure_may_be(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(report().to_json().replace('"peak_bytes": 2000000000.0', '"peak_bytes": NaN'))
    with pytest.raises(InputError, match="the field peak_bytes has a wrong value 'None'"):
        Report.load(path)


OLD = Path(__file__).parents[1] / "partitioner" / "plan" / "version_6" / "report.json"
Edit = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d: d["losses"].pop(), "losses are"),
        (lambda d: d["all_step_seconds"].append(1.0), "all_step_seconds are"),
        (lambda d: d.update(ranks=99), "ranks are 99, of"),
        (lambda d: d.update(ranks=0), "ranks must be positive, not 0"),
        (lambda d: d.update(step_seconds=9.5), "step_seconds are 9.5, the median of all_step_seconds"),
        (lambda d: d["measured"].update(compute=-1.0), "measured.'compute' must be at least 0"),
        (lambda d: d["asked"].update(global_batch=-8), "asked.global_batch must be positive"),
        (lambda d: d["asked"]["model"].pop("dtype"), "asked.model.dtype has a wrong value"),
        (lambda d: d["asked"]["cluster"].pop("device"), "asked.cluster: the table .device. is missing"),
        (lambda d: d["predicted"].update(step_seconds=0.0), "predicted.step_seconds must be positive"),
        (lambda d: d["decisions"].update(schedule="other"), "decisions.schedule must be one of"),
    ],
)
def test_what_contradicts_is_told(change: Edit, told: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    Report.load(OLD).save(path)
    data = json.loads(path.read_text())
    assert Report.load(path).steps == data["steps"]
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=told):
        Report.load(path)


def test_a_key_that_stands_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    Report.load(OLD).save(path)
    path.write_text(path.read_text().replace('"kind":', '"steps": 3, "kind":', 1))
    with pytest.raises(InputError, match="'steps' stands there twice"):
        Report.load(path)
