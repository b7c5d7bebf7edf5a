"""``partitioner clusters``: the presets, one a row."""

from __future__ import annotations

import argparse
import json

from partitioner.cluster import Cluster, presets
from tools.screen import output, size, table


def clusters_command(options: argparse.Namespace) -> int:
    """Every preset, one a row."""
    found = [Cluster.load(name) for name in presets()]
    if options.json:
        options.document(json.dumps([c.as_dict() for c in found], indent=1) + "\n")
        return 0
    rows = [
        [
            c.name, c.device.name, str(c.node_devices), size(c.device.memory_bytes),
            f"{max(c.device.flops_per_second.values()) / 1e12:g} TFLOP/s", size(c.node.speed) + "/s",
            size(c.network.speed) + "/s",
        ]
        for c in found
    ]  # fmt: skip
    columns = ("cluster", "device", "a node", "memory", "peak", "in a node", "across nodes")
    output().print(table("clusters", columns, rows))
    return 0
