"""Presets hold together; a broken cluster file is refused with the field."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import pytest

from partitioner import Cluster
from partitioner.cluster import presets
from partitioner.errors import InputError

TEXT = files("partitioner").joinpath("clusters", "dgx-a100.toml").read_text()


@pytest.mark.parametrize("name", presets())
def test_presets_are_sane(name: str) -> None:
    cluster = Cluster.load(name, nodes=2)
    assert cluster.name == name
    assert cluster.network.bytes_per_second <= cluster.node.bytes_per_second
    assert cluster.network.latency_seconds >= cluster.node.latency_seconds
    assert cluster.devices == 2 * cluster.node_devices
    assert Cluster.from_dict(cluster.as_dict()) == cluster


def test_the_machines_people_have_are_there() -> None:
    wanted = ("dgx2-v100", "dgx-a100-40", "dgx-a100", "selene", "dgx-h100", "p5-h100", "dgx-h200", "dgx-b200", "l40s-8")
    assert {*wanted, "rtx4090-8", "local-cpu"} <= {*presets()}


BROKEN = [
    (r"memory_bytes = .*", "memory_bytes = -1", "device.memory_bytes must be a positive number, it is -1"),
    (r"memory_bytes = .*", "", "device.memory_bytes is missing"),
    (r"memory_bytes = .*", 'memory_bytes = "80 GB"', "device.memory_bytes must be a positive number"),
    (r"gemm_efficiency = .*", "gemm_efficiency = 80", "device.gemm_efficiency is a share and at most 1"),
    (r"launch_seconds = .*", "launch_seconds = nan", "device.launch_seconds must be a positive number"),
    (r"watts = .*", "wats = 400", "unknown field device.wats"),
    (r"float64 = .*", "float63 = 1e12", "float63 is no dtype of torch"),
    (r"float64 = .*", "float64 = 0.0", "flops_per_second.float64 must be a positive number"),
    (r"(?s)\[device.flops_per_second\].*?\n\n", "\n", "table .device.flops_per_second. is missing"),
    (r"devices = 8", "devices = 0", "node.devices must be a positive whole number"),
    (r"devices = 8", "devices = 7.5", "node.devices must be a positive whole number"),
    (r"\[network\]", "[netwrk]", "table .network. is missing"),
    (r'attention = "flash"', 'attention = "fast"', "attention must be"),
    (r'attention = "flash"', 'attention = "flash"\ncolour = 1', "unknown field colour"),
    (r'attention = "flash"', 'attention = "flash"\nsoftware = 1', "table .software. is missing"),
    (r'name = "dgx-a100"', "name = 7", ": name must be a name, it is 7"),
    (r'name = "A100.*', "name = 7", "device.name must be a name, it is 7"),
    (r'name = "A100.*', 'name = "\\\\u001b[2J"', "device.name must be a name, it is '.x1b"),
    (r'name = "A100.*', f'name = "{"x" * 5000}"', "device.name must be a name, it is 'x{199}[.]{3}$"),
    (r'attention = "flash"', f'attention = "{"x" * 5000}"', "attention must be .* it is 'x{199}[.]{3}$"),
    (r'attention = "flash"', f'attention = "flash"\n{"x" * 5000} = 1', "unknown field x{200}[.]{3}$"),
    (r"memory_bytes = .*", "memory_bytes = 1e300", "device.memory_bytes must be a positive number"),
    (r"memory_bytes = .*", f"memory_bytes = {10**400}", "device.memory_bytes must be a positive number"),
    (r"memory_bytes = .*", f"memory_bytes = {'9' * 5000}", "is not TOML: "),
    (r"memory_bytes = .*", f"memory_bytes = {'[' * 100_000}", "is not TOML: "),
    (r"multiprocessors = .*", "multiprocessors = 0.5", "device.multiprocessors must be a positive whole number"),
    (r"devices = 8", "devices = 80000000", "nodes and node.devices make more than 10,000,000 devices"),
]


@pytest.mark.parametrize(("pattern", "text", "told"), BROKEN)
def test_a_broken_file_names_the_field(tmp_path: Path, pattern: str, text: str, told: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(re.sub(pattern, text, TEXT, count=1))
    assert path.read_text() != TEXT
    with pytest.raises(InputError, match=told):
        Cluster.load(path)


@pytest.mark.parametrize(
    ("table", "key"), [("device", "memory_bytes"), ("node", "latency_seconds"), ("network", "efficiency")]
)
def test_null_is_no_number(table: str, key: str) -> None:
    data = Cluster.load("dgx-a100").as_dict()
    data[table][key] = None
    with pytest.raises(InputError, match=rf"{table}.{key} must be a positive number, it is None"):
        Cluster.from_dict(data)
