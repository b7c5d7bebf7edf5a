"""A report has null for the loss of a skipped step; those of earlier programs, in which it is NaN, are read so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

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
