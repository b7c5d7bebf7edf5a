"""Presets hold together; a broken cluster file is refused with the field."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from partitioner import Cluster
from partitioner.errors import InputError
from partitioner.hardware.parts import presets

TEXT = """
name = "mine"
attention = "flash"

[device]
name = "A100"
memory_bytes = 80e9
memory_bytes_per_second = 2039e9
launch_seconds = 4.0e-06
memory_efficiency = 0.92
multiprocessors = 108
spread = 0.007
watts = 400
[device.flops_per_second]
float64 = 19.5e12
bfloat16 = 312e12

[[device.products]]
types = ["bfloat16"]
share = 0.9

[device.attention]
share = 0.6

[node]
devices = 8
bytes_per_second = 300e9
efficiency = 0.78
latency_seconds = 6.0e-06

[node.ring]
latency_seconds = [5e-6, 1e-5]
hop_seconds = [1e-6, 1e-6]
bytes_per_second = [1e10, 2e11]
group_shares = { "2" = 0.8 }

[network]
bytes_per_second = 25e9
efficiency = 0.92
latency_seconds = 1.2e-05
"""


@pytest.mark.parametrize("name", presets())
def test_presets_are_sane(name: str) -> None:
    cluster = Cluster.load(name, nodes=2)
    assert cluster.name == name
    assert cluster.network.bytes_per_second <= cluster.node.bytes_per_second
    assert cluster.network.latency_seconds >= cluster.node.latency_seconds
    assert cluster.devices == 2 * cluster.node_devices
    assert Cluster.from_dict(cluster.as_dict(), software=cluster.software) == cluster
    assert cluster.software.measured == (name == "local-cpu")


def test_the_machines_people_have_are_there() -> None:
    wanted = ("dgx2-v100", "dgx-a100-40", "dgx-a100", "selene", "dgx-h100", "p5-h100", "dgx-h200", "dgx-b200", "l40s-8")
    newer = ("dgx-b300", "gb200-nvl72", "gb300-nvl72", "gh200-4", "mi300x-8", "rtx-pro-6000-8")
    assert {*wanted, *newer, "rtx4090-8", "local-cpu"} <= {*presets()}


BROKEN = [
    (r"memory_bytes = .*", "memory_bytes = -1", "device.memory_bytes must be a positive number, it is -1"),
    (r"memory_bytes = .*", "", "device.memory_bytes is missing"),
    (r"memory_bytes = .*", 'memory_bytes = "80 GB"', "device.memory_bytes must be a positive number"),
    (r"share = 0.9", "share = 80", "device.products.share is a share and at most 1"),
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
    (r'attention = "flash"', 'attention = "flash"\nsoftware = 1', "software is no part of a cluster: traits .* .own."),
    (r'attention = "flash"', 'attention = "flash"\nown = 1', "table .own. is missing"),
    (r'attention = "flash"', 'attention = "flash"\nown = {name = "mine"}', "unknown field own.name"),
    (r'attention = "flash"', 'attention = "flash"\nown = {fused = 1}', "own.fused must be true or false"),
    (r'name = "mine"', "name = 7", ": name must be a name, it is 7"),
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
    (r"\[\[device.products\]\]", "[[device.product]]", "the tables ..device.products.. are missing"),
    (r"types = .*", 'types = "bfloat16"', "device.products.types must be a list of 1 to 64, it is 'bfloat16'"),
    (r"types = .*", "types = [7]", "device.products.types must be a name, it is 7"),
    (r"share = 0.6", "share = 0.6\ntail = -1", "device.attention.tail must be a positive number, it is -1"),
    (r"hop_seconds = .*", "hop_seconds = [1e-6]", "node.ring must have as many latencies and hops as speeds"),
    (r'"2" = 0.8', '"two" = 0.8', "node.ring.group_shares.two is no number of members"),
    (r'"2" = 0.8', '"2" = -1', "node.ring.group_shares.2 must be a positive number"),
    (r"watts = 400", "watts = 400\ntiles = [[128]]", "device.tiles must be a list of pairs"),
    (r"watts = 400", "watts = 400\ntiles = []", "device.tiles must be a list of 1 to 64, it is"),
    (r"watts = 400", "watts = 400\ntiles = [[100000000000, 1]]", "device.tiles must be at most 65536"),
    (r"share = 0.9", "share = 0.9\nnorm = 0", "device.products.norm must be a positive number"),
    (r"share = 0.9", "share = 0.9\ntile_power = 1e5", "device.products.tile_power must be at most 16"),
    (r"share = 0.6", "share = 0.6\ngeneration_shares = {x_seconds = 0}", "generation_shares.x_seconds must be"),
    (r'"2" = 0.8', '"02" = 0.8', "node.ring.group_shares.02 is no number of members"),
    (r"latency_seconds = .5e-6.*", "latency_seconds = []", "node.ring.latency_seconds must be a list of 1 to 64"),
    (r"watts = 400", "watts = 400\nsustained = 1.5", "device.sustained is a share and at most 1"),
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
