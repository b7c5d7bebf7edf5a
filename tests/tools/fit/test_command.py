"""``partitioner fit``: its answers are those of ``plan``, on screen and as a document."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from few_bytes import GPT, LLAMA, SMALL, cluster

from partitioner import Plan
from tools.main import main

ROOM = 1.9e6


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> str:
    return cluster(tmp_path_factory.mktemp("cluster"), ROOM)


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any, str]:
    """The exit status, the document and what is on standard error."""
    capsys.readouterr()
    status = main(["fit", *words, "--json"])
    told = capsys.readouterr()
    return status, json.loads(told.out) if told.out else None, told.err


def planned(place: str, devices: int, batch: int, *words: str) -> int:
    split = ["--devices", str(devices)] if devices < 4 else ["--nodes", str(devices // 4)]
    return main(["plan", *words, "--cluster", place, *split, "--global-batch", str(batch)])


@pytest.mark.parametrize("model", [[GPT, *SMALL], LLAMA], ids=["example", "hf"])
def test_plan_fits_on_the_least_number_and_not_on_one_step_fewer(
    model: list[str], place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, found, _ = asked(capsys, *model, "--cluster", place)
    assert status == 0
    assert found["fits"]
    rows = {row["devices"]: row for row in found["tried"]}
    least, fewer = found["devices"], max(n for n in rows if n < found["devices"])
    assert planned(place, least, rows[least]["global_batch"], *model) == 0
    assert planned(place, fewer, rows[fewer]["global_batch"], *model) == 3
    assert rows[fewer]["missing_bytes"] > 0 == rows[least]["missing_bytes"]
    assert found["assumed"]
    assert rows[least]["global_batch"] == 4 * least


def test_kinds_of_memory_add_up_and_the_plans_are_what_they_are_called(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.json"
    _, found, _ = asked(capsys, GPT, *SMALL, "--cluster", place, "--nodes", "2", "--free", "0.3", "-o", str(path))
    memory, plans = found["memory"], found["plans"]
    assert memory["room_bytes"] == pytest.approx(ROOM)
    assert memory["device_bytes"] == pytest.approx(memory["room_bytes"] + memory["reserved_bytes"])
    for plan in plans.values():
        assert math.isclose(sum(plan["bytes_by_kind"].values()), plan["peak_bytes"])
        assert math.prod(plan["mesh"].values()) == 8
    tightest, comfortable = plans["tightest"], plans["comfortable"]
    assert tightest["peak_bytes"] < comfortable["peak_bytes"] <= 0.7 * ROOM
    assert comfortable["step_seconds"] < tightest["step_seconds"]
    written = Plan.load(path)
    assert written.cost.peak_bytes == comfortable["peak_bytes"]
    assert not written.stale
    assert written.machine.device.room == pytest.approx(ROOM)


def test_what_does_not_fit_tells_what_is_missing_and_what_would_fit(
    place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [GPT, *SMALL, "--cluster", place, "--devices", "2"]
    status, found, error = asked(capsys, *words)
    assert status == 3
    assert not found["fits"]
    assert list(found["plans"]) == ["tightest"]
    tightest = found["plans"]["tightest"]
    missing = round(tightest["peak_bytes"] - ROOM)
    assert f"misses {missing:,} bytes a device" in error
    assert len(error.splitlines()) == 1
    least = next(row["devices"] for row in found["tried"] if row["fits"])
    assert found["mends"] == [f"it fits on {least} devices, the least of more"]
    assert f"{least} devices" in error


def test_a_pin_that_stands_in_the_way_is_named(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [GPT, *SMALL, "--cluster", place, "--nodes", "1", "--pin", "tp=1", "--pin", "pp=1", "--pin", "zero=0"]
    status, found, _ = asked(capsys, *words)
    assert status == 3
    assert {"it fits without the pin zero=0"} <= set(found["mends"])
    assert "it fits on none of more devices, tried up to" in found["mends"][0]
    assert asked(capsys, *words[:-2])[0] == 0


def test_a_plan_that_only_just_fits_is_said_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = [GPT, *SMALL, "--devices", "1", "--global-batch", "4"]
    _, found, _ = asked(capsys, *model, "--cluster", cluster(tmp_path, 1e9))
    peak = found["plans"]["tightest"]["peak_bytes"]
    assert list(found["plans"]) == ["tightest", "comfortable"]
    assert found["assumed"] == []
    status, found, _ = asked(capsys, *model, "--cluster", cluster(tmp_path, peak * 1.01))
    assert status == 0
    assert list(found["plans"]) == ["tightest", "fastest"]
    assert asked(capsys, *model, "--cluster", cluster(tmp_path, peak * 0.99))[0] == 3


def test_the_screen_says_all_that_the_answer_hangs_on(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", GPT, *SMALL, "--cluster", place, "--up-to", "8"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    for words in (
        "bfloat16, gradients, masters and moments float32, 32 tokens a sample", "priced as this project's runtime",
        "(90.0 %) for tensors", "(10.0 %) for the allocator's gaps, NCCL and the driver together",
        "global batch 4 samples a device (assumed", "tightest comfortable", "work of the fullest moment",
        "devices at least; on",
    ):  # fmt: skip
        assert words in told


def test_parameters_that_do_not_train_are_weights_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "frozen.py"
    path.write_text(
        "from examples import gpt\n"
        "def model(batch: int = 2):\n"
        "    module, example = gpt.model(vocab=256, hidden=32, heads=4, seq=32, layers=2, batch=batch)\n"
        "    for name, parameter in module.named_parameters():\n"
        "        parameter.requires_grad_('head' in name)\n"
        "    return module, example\n"
    )
    assert main(["fit", f"{path}:model", "--cluster", "local-cpu", "--devices", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["plans"]["tightest"]["bytes_by_kind"]["weights"] == 4 * found["model"]["parameters"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--devices", "2", "--nodes", "1"], "drop one"),
        (["--devices", "6"], "6 ranks are no whole nodes"),
        (["--devices", "0"], "must be positive"),
        (["--free", "1"], "--free 1: give a share"),
        (["--up-to", "8", "--devices", "2"], "--up-to goes on"),
        (["--pin", "blob=1"], "pin blob names no decision"),
        (["--pin", "tp=3", "--devices", "2"], "pin tp=3 does not divide 2 devices"),
        (["--precision", "mxfp8"], "partitioner: products in mxfp8 can't be executed yet"),
        (["--pin", "tp=3"], "on no number of devices up to 4,096 is there a plan"),
    ],
)
def test_errors_are_one_line(
    words: list[str], said: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, found, error = asked(capsys, GPT, *SMALL, "--cluster", place, *words)
    assert (status, found) == (2, None)
    assert said in error
    assert len(error.splitlines()) == 1
