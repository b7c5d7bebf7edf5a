"""``--precision`` and ``--float32``: what is taken where nobody says, and what is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from partitioner import Cluster, Plan
from partitioner.precision import OWN, PRESETS, preset
from tools.main import main
from tools.models.precision_option import usual

GPT = f"{Path(__file__).parents[3] / 'examples' / 'gpt.py'}:model"
SMALL = ["--set", "layers=2", "hidden=32", "heads=2", "vocab=256", "seq=16", "--global-batch", "4"]


@pytest.mark.parametrize("name", ["dgx-a100", "dgx-h100", "dgx-b200", "l40s-8", "rtx4090-8"])
def test_gpus_compute_in_bfloat16(name: str) -> None:
    assert usual(Cluster.load(name)) == PRESETS["bf16"]


@pytest.mark.parametrize("name", ["local-cpu", "dgx2-v100"])
def test_what_is_no_gpu_or_has_no_bfloat16_leaves_the_model_its_own(name: str) -> None:
    assert usual(Cluster.load(name)) == OWN


def planned(cluster: str, folder: Path, *more: str) -> Plan:
    path = folder / "plan.json"
    assert main(["plan", GPT, *SMALL, "--cluster", cluster, "--devices", "2", "-o", str(path), *more]) == 0
    return Plan.load(path)


def test_a_plan_holds_it_and_an_edit_keeps_it(tmp_path: Path) -> None:
    plan = planned("dgx-h100", tmp_path, "--float32", "blocks.*.norm1")
    assert plan.decisions.precision == preset("bf16", ("blocks.*.norm1",))
    edit = ["plan", "--edit", str(tmp_path / "plan.json"), "--float32", "blocks.*.norm2"]
    assert main([*edit, "-o", str(tmp_path / "other.json")]) == 0
    other = Plan.load(tmp_path / "other.json")
    assert other.decisions.precision == preset("bf16", ("blocks.*.norm2",))
    data = json.loads(plan.to_json())
    data["decisions"]["precision"]["float32"] = []
    (tmp_path / "edited.json").write_text(json.dumps(data))
    assert Plan.load(tmp_path / "edited.json").edited == ["precision"]
    assert main(["plan", "--edit", str(tmp_path / "edited.json"), "-o", str(tmp_path / "new.json")]) == 0
    again = Plan.load(tmp_path / "new.json")
    assert (again.decisions.precision, again.stale) == (PRESETS["bf16"], False)


def test_float32_is_priced_with_tf32_or_without(tmp_path: Path) -> None:
    pins = [word for pin in ("tp=1", "micro_batch=1", "dp=2") for word in ("--pin", pin)]
    slow, fast = (planned("dgx-a100", tmp_path, "--precision", name, *pins) for name in ("fp32", "tf32"))
    assert (slow.model["product_dtype"], fast.model["product_dtype"]) == ("float32", "tf32")
    assert fast.cost.compute_seconds <= slow.cost.compute_seconds
    assert fast.cost.peak_bytes == slow.cost.peak_bytes


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--precision", "bf61"], "there is no precision bf61: the nearest is bf16"),
        (["--precision", "fp32", "--float32", "*.norm"], "computes nothing in less than float32"),
        (["--float32", "nix"], "float32=nix names no module of GPT"),
    ],
)
def test_what_is_wrong_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", GPT, *SMALL, "--cluster", "dgx-h100", "--devices", "2", *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert said in error[-1]


def test_a_group_that_divides_no_replicas_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned("dgx-h100", tmp_path, "--pin", "dp=2")
    data = json.loads(plan.to_json())
    data["decisions"]["zero_group"] = 3
    (tmp_path / "edited.json").write_text(json.dumps(data))
    assert main(["show", str(tmp_path / "edited.json")]) == 2
    assert "decisions.zero_group must divide the 2 replicas, or be 0" in capsys.readouterr().err
