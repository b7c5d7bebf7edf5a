"""Parts are laid under what a file says; every number of every preset is told where it comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from partitioner import Cluster
from partitioner.errors import InputError
from partitioner.hardware.parts import presets, reasons
from tools.plan.clusters import numbers, reason

MINE = """
name = "mine"
attention = "flash"
[device]
base = "h100-sxm-80gb"
memory_bytes = 96e9
[node]
base = "nvlink-4"
devices = 4
[network]
bytes_per_second = 50e9
efficiency = 0.9
latency_seconds = 1e-5
[why]
"device.memory_bytes" = "my vendor"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_a_file_changes_what_it_says_of_a_part(tmp_path: Path) -> None:
    mine, whole = Cluster.load(written(tmp_path, MINE)), Cluster.load("dgx-h100")
    assert mine.device.memory_bytes == 96e9
    assert mine.device.products == whole.device.products
    assert (mine.node.ring, mine.node_devices) == (whole.node.ring, 4)
    told = reasons(tmp_path / "mine.toml")
    assert told["device.memory_bytes"] == "my vendor"
    assert told["device.memory_bytes_per_second"] == "datasheet"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("h100-sxm-80gb", "h100-sxm-81gb", "there is no part h100-sxm-81gb: the nearest is h100-sxm-80gb"),
        ("h100-sxm-80gb", "../clusters/dgx-h100", "there is no part"),
        ('base = "nvlink-4"', "base = 4", "base must be the name of a part, it is 4"),
        ("memory_bytes = 96e9", "memory_bites = 96e9", "unknown field device.memory_bites"),
    ],
)
def test_a_wrong_part_is_named(tmp_path: Path, old: str, new: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        Cluster.load(written(tmp_path, MINE.replace(old, new)))


@pytest.mark.parametrize("name", [n for n in presets() if n != "local-cpu"])
def test_every_number_of_a_preset_says_where_it_comes_from(name: str) -> None:
    told = reasons(name)
    untold = [path for path, _ in numbers(Cluster.load(name)) if reason(path, told) == "the file does not say"]
    assert not untold


@pytest.mark.parametrize("wrong", ['why = "words"', "why = 3", "[why]\na = 3", "[device.why]\na = []"])
def test_reasons_that_are_none_are_named(tmp_path: Path, wrong: str) -> None:
    text = MINE.split("[why]")[0]
    text = f"{wrong}\n{text}" if wrong.startswith("why") else f"{text}{wrong}\n"
    with pytest.raises(InputError, match="must hold a line of text for each number"):
        reasons(written(tmp_path, text))
