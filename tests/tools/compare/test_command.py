"""compare marks the best, says what a decision saves and costs, and its other plans are what a search finds."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from browser import READY
from playwright.sync_api import Page
from shown import CLUSTER, graph, plan, report

from partitioner import Cluster, Plan
from partitioner.searching.reprice import Repricer
from runtime.report import Report
from tools.calibrate.from_report import cluster_toml, corrected
from tools.compare.explain import explain, off
from tools.compare.sensitivity import break_even, lines
from tools.figures.columns import ROWS, of_plan, of_report, winners
from tools.main import main

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """Two plans that differ in one decision, and a run."""
    folder = tmp_path_factory.mktemp("compare")
    plan().save(folder / "best.json")
    plan(tp=4, dp=1).save(folder / "wide.json")
    report(compute=1.5).save(folder / "run.json")
    return str(folder / "best.json"), str(folder / "wide.json"), str(folder / "run.json")


def test_the_table_is_the_golden_one(files: tuple[str, str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *files]) == 0
    printed = capsys.readouterr().out
    assert "\n".join(line.rstrip() for line in printed.splitlines()) + "\n" == (GOLDEN / "compare.txt").read_text()


def test_every_form_says_the_same(files: tuple[str, str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *files, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [c["kind"] for c in document["columns"]] == ["plan", "plan", "run"]
    assert main(["compare", *files, "--csv"]) == 0
    rows = {row[0]: row[1:] for row in csv.reader(io.StringIO(capsys.readouterr().out))}
    assert rows[""] == ["best", "wide", "run"]
    steps = [column["figures"]["step"] for column in document["columns"]]
    assert [float(cell) for cell in rows["step (seconds)"]] == steps
    assert steps[:2] == [plan().cost.step_seconds, plan(tp=4, dp=1).cost.step_seconds]
    assert main(["compare", *files, "--markdown"]) == 0
    table = capsys.readouterr().out
    assert table.count("**") == 2 * sum(map(len, document["winners"].values()))
    assert document["winners"]["step"] == ["best"]
    assert main(["compare", *files, "--json", "--csv"]) == 2


def test_winners_are_the_least_or_the_most() -> None:
    columns = [of_plan("a", plan()), of_plan("b", plan(tp=4, dp=1)), of_report("c", report(compute=2.0))]
    for row in ROWS:
        known = {c.name: v for c in columns if (v := c.values.get(row.name)) is not None}
        best = winners(columns, row)
        if best:
            assert row.words((min if row.less else max)(known.values())) in {row.words(known[name]) for name in best}
    assert winners(columns, next(row for row in ROWS if row.name == "step")) == {"a"}


def test_a_difference_names_its_decision_and_the_largest_comes_first() -> None:
    told = explain(of_plan("a", plan()), of_plan("b", plan(micro_batch=1)))
    assert told[0].startswith("b: ")
    lines = [line.strip() for line in told[1:]]
    assert lines[0].startswith("micro-batch 8 -> 1")
    assert " costs " in lines[0]
    assert lines[0].endswith(" of compute")
    [line] = [line for line in lines if line.endswith(" of transient")]
    assert line.startswith("micro-batch 8 -> 1")
    assert " saves " in line
    assert explain(of_plan("a", plan()), of_plan("same", plan())) == [told_same()]


def told_same() -> str:
    found = of_plan("x", plan()).values["step"]
    assert found is not None
    from_screen = f"{found * 1e6:.3g} us"
    return f"same: as fast as a ({from_screen}, {from_screen})"


def test_predicted_against_measured_names_what_was_off() -> None:
    told = off(report(compute=1.5))
    assert "1.2" in told[0]
    assert told[1].strip().startswith("compute")
    assert "100 % of what the step is off" in told[1]
    assert off(report())[1:] == []


def test_a_report_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(tp=2.0).save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == report(tp=2.0)
    plan().save(tmp_path / "plan.json")
    assert main(["calibrate", "--from", str(tmp_path / "plan.json"), "-o", str(tmp_path / "c.toml")]) == 2
    assert "is no report" in capsys.readouterr().err


@pytest.mark.parametrize("measured", [{}, {"compute": 0.0}])
def test_a_report_that_tells_no_compute_corrects_nothing(
    measured: dict[str, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replace(report(), measured=measured).save(tmp_path / "report.json")
    (tmp_path / "c.toml").write_text("before")
    assert main(["calibrate", "--from", str(tmp_path / "report.json"), "-o", str(tmp_path / "c.toml")]) == 2
    assert "the report's compute is 0 s measured" in capsys.readouterr().err
    assert (tmp_path / "c.toml").read_text() == "before"


def test_a_corrected_cluster_predicts_what_was_measured(tmp_path: Path) -> None:
    run = report(compute=1.25, tp=3.0, dp=3.0)
    run.save(tmp_path / "report.json")
    path = tmp_path / "corrected.toml"
    assert main(["calibrate", "--from", str(tmp_path / "report.json"), "-o", str(path)]) == 0
    cluster = Cluster.load(path)
    assert cluster == replace(corrected(run, "corrected")[0], nodes=1)
    again = Repricer(graph(), plan()).cost(cluster)
    assert again.compute_seconds == pytest.approx(run.measured["compute"], rel=0.02)
    assert again.exposed_seconds["tp"] == pytest.approx(run.measured["tp communication"], rel=0.02)
    fast, _ = corrected(report(compute=0.1), "fast")
    assert fast.software.efficiency == 1.0
    (tmp_path / "fast.toml").write_text(cluster_toml(fast, "fast"))
    quick = Repricer(graph(), plan()).cost(Cluster.load(tmp_path / "fast.toml"))
    assert quick.compute_seconds == pytest.approx(plan().cost.compute_seconds / 10, rel=0.05)


def test_repricing_changes_nothing_on_the_same_cluster() -> None:
    repricer = Repricer(graph(), plan())
    assert repricer.cost(CLUSTER) == plan().cost
    slow = replace(CLUSTER, node=replace(CLUSTER.node, bytes_per_second=1e9))
    assert repricer.cost(slow).step_seconds > 1.5 * plan().cost.step_seconds


def test_break_even_is_where_two_plans_cost_the_same() -> None:
    assert break_even(lambda f: f - 3.0) == pytest.approx(3.0, rel=1e-4)
    assert break_even(lambda f: f + 3.0) is None
    one, wide = (Repricer(graph(), p) for p in (plan(), plan(tp=4, dp=1)))
    told = lines([of_plan("one", plan()), of_plan("wide", plan(tp=4, dp=1))])
    found = [float(line.split()[-4]) for line in told if "break even" in line]
    for factor in found:
        cluster = replace(CLUSTER, node=replace(CLUSTER.node, bytes_per_second=1e14 * factor))
        assert one.cost(cluster).step_seconds == pytest.approx(wide.cost(cluster).step_seconds, rel=1e-3)
    assert any("from there on" in line for line in told)


def test_baselines_and_why_not_are_searches_of_their_own(
    files: tuple[str, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--baseline", "megatron", "fsdp", "ddp", "--why-not", "tp=1", "--why-not", "tp=3", "--json"]
    assert main(["compare", files[0], *options]) == 0
    found = {c["name"]: c for c in json.loads(capsys.readouterr().out)["columns"]}
    assert found["megatron"]["mesh"] == found["ddp"]["mesh"] == "pp 1 x dp 8 x tp 1"  # fits, so nothing is divided
    assert "ZeRO 3" in found["fsdp"]["recompute"]
    assert found["fsdp"]["figures"]["memory"] < found["ddp"]["figures"]["memory"]
    [freed] = [column for name, column in found.items() if name.startswith("with tp=1, without ")]
    assert freed["mesh"].endswith(" x tp 1")
    assert found["with tp=3"]["kind"] == "infeasible"
    assert "does not divide 8 devices" in found["with tp=3"]["reason"]


def test_too_few_files_are_refused(files: tuple[str, str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", files[0]]) == 2
    assert "takes two files" in capsys.readouterr().err
    assert main(["compare", files[2], "--baseline", "ddp"]) == 2
    assert "is a run: name a plan first" in capsys.readouterr().err
    assert main(["compare", files[2]]) == 0
    assert "predicted against measured" in capsys.readouterr().out


def test_the_page_holds_the_table(files: tuple[str, str, str], tab: Page, tmp_path: Path) -> None:
    path, said = tmp_path / "compare.html", list[str]()
    assert main(["compare", *files, "--html", str(path)]) == 0
    tab.on("console", lambda m: said.append(m.text) if m.type in ("warning", "error") else None)
    tab.on("pageerror", lambda e: said.append(str(e)))
    tab.goto(path.as_uri())
    tab.wait_for_function(READY)
    assert said == []
    assert tab.locator(".bk-Figure").count() == 2
    head = tab.locator("#compared thead").inner_text().split()
    assert head == ["best", "wide", "run", "(run)"]
    steps = tab.locator("#compared tbody tr", has_text="step").first.locator("td")
    assert steps.nth(0).inner_text() == f"{plan().cost.step_seconds * 1e6:.3g} us"
    assert "best" in (steps.nth(0).get_attribute("class") or "")


def test_a_stale_plan_is_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parallelism = replace(plan().parallelism, micro_batch=2)
    edited = replace(plan(), decisions=replace(plan().decisions, parallelism=parallelism))
    edited.save(tmp_path / "edited.json")
    plan().save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "edited.json").edited == ["micro_batch"]
    assert main(["compare", str(tmp_path / "plan.json"), str(tmp_path / "edited.json")]) == 0
    assert "STALE: micro_batch edited" in capsys.readouterr().err
