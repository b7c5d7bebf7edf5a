"""What a run tells, as a whole: two ranks train, of which the loss is soon no number; and a trace's own form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from shown import plan

from partitioner.errors import InputError
from runtime.mesh.step_clock import PART, Slice
from runtime.report import Report
from tools.main import main
from tools.watch.step_trace import trace_text, traced_steps

GPT = f"{Path(__file__).parents[3] / 'examples' / 'gpt.py'}:model"
SMALL = ["--set", "vocab=256", "hidden=32", "heads=4", "seq=32", "layers=2"]
PLACE = ["--cluster", "local-cpu", "--devices", "2", "--global-batch", "4", "--pin", "pp=2"]


def _processes(text: str) -> dict[str, list[dict[str, Any]]]:
    """The slices of each process by its name; those that lie in one another nest."""
    events = json.loads(text)["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names.values()}
    for event in (event for event in events if event["ph"] == "X" and event["tid"] == 0):
        assert event["dur"] >= 0
        found[names[event["pid"]]].append(event)
    for own in found.values():
        ends = list[float]()
        for event in own:
            while ends and ends[-1] <= event["ts"] + 1e-4:
                ends.pop()
            end = event["ts"] + event["dur"]
            assert not ends or end <= ends[-1] + 1e-4, event
            ends.append(end)
    return found


@pytest.mark.timeout(200)
def test_a_run_is_told_whole(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, log, trace, report, saved = (str(tmp_path / name) for name in ("p.json", "log", "t.json", "r.json", "ck"))
    assert main(["plan", GPT, *SMALL, *PLACE, "-o", path]) == 0
    asked = ["--optimizer", "sgd", "--lr", "1e38", "--clip", "1", "--skip-nonfinite", "--checkpoint", saved]
    files = ["--log", log, "--trace", trace, "--trace-steps", "2:3", "--report", report, "--json"]
    capfd.readouterr()
    assert main(["run", path, "--steps", "4", *asked, *files]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["losses"] == list(Report.load(report).losses)
    assert "NaN" not in out + Path(report).read_text() + Path(log).read_text()
    assert "step 4 of 4: loss no number, " in err
    rows = [json.loads(line) for line in Path(log).read_text().splitlines()]
    assert [row["event"] for row in rows] == [
        "start", "step", "step", "step", "trace", "step", "validation", "saving", "saved", "done", "end",
    ]  # fmt: skip
    steps = [row for row in rows if row["event"] == "step"]
    assert [row["loss"] is None for row in steps] == [False, True, True, True]
    assert [row["grad_norm"] is None for row in steps] == [False, True, True, True]
    assert [row["skipped"] for row in steps] == [0, 1, 2, 3]
    assert [row["samples"] for row in steps] == [4, 8, 12, 16]
    assert all(row["learning_rate"] == 1e38 and row["peak_bytes"] > 1e7 for row in steps)
    assert all(sum(row["parts"].values()) == pytest.approx(row["seconds"]) for row in steps)
    assert all(row["tokens_per_second"] == pytest.approx(4 * 32 / row["seconds"]) for row in steps)
    assert rows[-1]["status"] == 0
    assert len({row["run"] for row in rows}) == 1
    found = _processes(Path(trace).read_text())
    assert list(found) == ["predicted rank 0 (pp 0)", "predicted rank 1 (pp 1)", "measured rank 0", "measured rank 1"]
    for rank in (0, 1):
        own = [event["name"] for event in found[f"measured rank {rank}"] if event["cat"] != PART]
        predicted = [event["name"] for event in found[f"predicted rank {rank} (pp {rank})"]]
        actions = [name for name in predicted if name in own]
        assert len(actions) >= 2
        assert own == ["step 2", *actions, "step 3", *actions]


def test_slices_nest_to_the_last_digit() -> None:
    inside = [
        Slice("pipeline", PART, 1 / 3, 0.5), Slice("0F0", "forward", 1 / 3, 1.0), Slice("sync", PART, 2 / 3, 1.0),
    ]  # fmt: skip
    found = _processes(trace_text(plan(), {"rank 0": [*inside, Slice("step 1", "step", 0.1, 1.0)]}))
    rows = [(event["name"], event["cat"], event["ts"], event["dur"]) for event in found["measured rank 0"]]
    assert rows == [
        ("step 1", "step", 100000.0, 900000.0),
        ("0F0", "forward", 333333.333, 666666.667),
        ("pipeline", PART, 333333.333, 166666.667),
        ("sync", PART, 666666.667, 333333.333),
    ]
    assert sum(name.startswith("predicted rank") for name in found) == plan().world


@pytest.mark.parametrize(
    ("path", "steps", "words"),
    [
        ("t.json", None, "--trace needs --trace-steps A:B"),
        (None, "2:3", "--trace-steps needs --trace FILE"),
        ("t.json", "2", "--trace-steps 2: give A:B, the first and the last step, as in 3:4"),
        ("t.json", "3:2", "--trace-steps 3:2: give at most 10 steps, the first one first, of 1:40"),
        ("t.json", "0:2", "of 1:40"),
        ("t.json", "40:41", "of 1:40"),
        ("t.json", "10:20", "at most 10 steps"),
        ("nowhere/t.json", "2:3", "the folder nowhere is not there"),
    ],
)
def test_what_is_asked_wrongly_is_one_line(path: str | None, steps: str | None, words: str) -> None:
    with pytest.raises(InputError, match=words):
        traced_steps(path, steps, 40)


def test_steps_are_counted_with_both_ends(tmp_path: Path) -> None:
    assert traced_steps(None, None, 40) is None
    assert traced_steps(str(tmp_path / "t.json"), "31:40", 40) == (str(tmp_path / "t.json"), 31, 40)
