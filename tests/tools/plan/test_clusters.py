"""Each number of a preset, a file or a framework stands beside where it comes from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from partitioner import Cluster
from tools.main import main


def told(name: str, capsys: pytest.CaptureFixture[str]) -> dict[str, tuple[object, str]]:
    assert main(["clusters", "--why", name, "--json"]) == 0
    return {row["number"]: (row["value"], row["why"]) for row in json.loads(capsys.readouterr().out)}


def test_a_preset_tells_of_each_number(capsys: pytest.CaptureFixture[str]) -> None:
    rows, device = told("dgx-h100", capsys), Cluster.load("dgx-h100").device
    assert rows["device.memory_bytes"] == (device.memory_bytes, "what torch.cuda finds of it: 79.18 GiB")
    value, why = rows["device.products.fp8.share"]
    assert value == next(row.share for row in device.products if "fp8" in row.types)
    assert "% of those kept aside" in why
    assert rows["device.attention.backward"][1] != rows["device.attention.share"][1]
    assert "nccl-tests" in rows["node.ring.latency_seconds"][1]


def test_a_file_of_the_user_says_what_it_does_not_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'name = "mine"\nattention = "flash"\n[device]\nbase = "a100-sxm-80gb"\nmemory_bytes = 64e9\n[node]\n'
        'base = "nvlink-3"\ndevices = 8\n[network]\nbytes_per_second = 1e10\nefficiency = 0.9\nlatency_seconds = 1e-5\n'
    )
    rows = told(str(path), capsys)
    assert rows["device.memory_bytes"] == (64e9, "the file does not say")
    assert rows["device.memory_bytes_per_second"] == (2039e9, "datasheet")
    assert rows["network.efficiency"] == (0.9, "the file does not say")


def test_a_framework_tells_of_its_traits(capsys: pytest.CaptureFixture[str]) -> None:
    rows = told("megatron", capsys)
    assert rows["overlap_tensor"] == (True, "--tp-comm-overlap")
    assert rows["plans.virtual"][0] == 12
    assert main(["clusters", "--why", "megatron"]) == 0
    shown = capsys.readouterr().out
    assert "pp, dp, cp, tp" in shown
    assert "the same" in shown


def test_an_unknown_name_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clusters", "--why", "dgx-h1000"]) == 2
    assert "there is no cluster dgx-h1000: the nearest is dgx-h100" in capsys.readouterr().err.replace("\n", " ")
