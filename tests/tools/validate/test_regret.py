"""Ranking on planted timings, the plans that a small model has, and one run of them all."""

from __future__ import annotations

from pathlib import Path

import pytest

from partitioner import Cluster
from tools.validate import regret
from tools.validate.regret import Run, name_of, plans_of, regret_of

ROOT = Path(__file__).parents[3]
GPT = f"{ROOT / 'examples' / 'gpt.py'}:model"
SMALL = {"layers": 2, "hidden": 16, "heads": 2, "seq": 16, "vocab": 32}


def runs(predicted: list[float], measured: list[float]) -> list[Run]:
    rows = enumerate(zip(predicted, measured, strict=True))
    return [Run(f"plan{n}", p, {"compute": p}, m, m, m, m) for n, (p, m) in rows]


def test_a_prediction_in_order_has_no_regret() -> None:
    found = regret_of(runs([1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 7.0, 9.0]))
    assert (found.plans, found.rank, found.regret) == (4, pytest.approx(1.0), 0.0)
    assert (found.picked, found.best) == ("plan0", "plan0")
    assert found.bias == pytest.approx((3 / 7 + 4 / 9) / 2, abs=0.05)


def test_regret_is_what_the_pick_loses() -> None:
    found = regret_of(runs([1.0, 2.0, 3.0], [3.0, 2.0, 4.0]))
    assert found.regret == pytest.approx(0.5)
    assert found.rank == pytest.approx(0.5)
    assert (found.picked, found.best) == ("plan0", "plan1")
    assert regret_of(runs([1.0, 2.0, 3.0], [3.0, 2.0, 1.0])).rank == pytest.approx(-1.0)


def test_plans_are_all_of_the_space_each_program_once() -> None:
    plans = plans_of(GPT, SMALL, Cluster.load("local-cpu", devices=2), 4, {})
    names = [name_of(p) for p in plans]
    assert len(set(names)) == len(names)
    wanted = {"dp2 mb1", "dp2 mb2", "tp2 mb1", "tp2 mb2", "tp2 mb4", "pp2 mb1 1f1b", "pp2 mb1 gpipe", "pp2 mb2 1f1b"}
    assert wanted <= set(names)
    assert sum(name.startswith("pp2 mb4") for name in names) == 1  # of one micro-batch both schedules are one program
    predicted = [p.cost.step_seconds for p in plans]
    assert predicted == sorted(predicted)


def test_plans_run_and_are_ranked(capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"{key}={value}" for key, value in SMALL.items()]
    asked = ["--ranks", "2", "--cluster", "local-cpu", "--model", GPT, "--set", *words, "--global-batch", "4"]
    assert regret.main([*asked, "--pin", "micro_batch=2", "--rounds", "1", "--steps", "1"]) == 0
    printed = capsys.readouterr().out
    assert "Spearman" in printed
    assert "dp2 mb2" in printed


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert regret.main(["--cluster", "nowhere.toml"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert regret.main(["--cluster", "local-cpu", "--ranks", "0"]) == 2
    assert "must be positive" in capsys.readouterr().err
