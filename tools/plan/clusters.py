"""``partitioner clusters``: the presets, one a row; or each number of one, and where it comes from."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from partitioner.cluster import Cluster
from partitioner.hardware.device import Device
from partitioner.hardware.parts import presets, reasons
from partitioner.software import NOT_MEASURED, Software, framework_reasons, frameworks
from tools.screen import output, size, table

_USUAL = ("bfloat16", "float16", "float32")  # in which people train, the first that a device has
_UNTOLD = "the file does not say"


def clusters_command(options: argparse.Namespace) -> int:
    """Every preset, one a row."""
    if options.why is not None:
        return _why(options)
    found = [Cluster.load(name) for name in presets()]
    if options.json:
        options.document(json.dumps([c.as_dict() for c in found], indent=1) + "\n")
        return 0
    rows = [
        [
            c.name, c.device.name, str(c.node_devices), size(c.device.memory_bytes), _peak(c.device),
            size(c.node.speed) + "/s", size(c.network.speed) + "/s",
        ]
        for c in found
    ]  # fmt: skip
    columns = ("cluster", "device", "a node", "memory", "dense peak", "in a node", "across nodes")
    output().print(table("clusters", columns, rows))
    return 0


def _peak(device: Device) -> str:
    dtype = next((name for name in _USUAL if name in device.flops_per_second), next(iter(device.flops_per_second)))
    return f"{device.flops_per_second[dtype] / 1e12:g} TFLOP/s {dtype}"


def _why(options: argparse.Namespace) -> int:
    if options.why in frameworks():
        title, rows = options.why, _traits(options.why)
    else:
        cluster, told = Cluster.load(options.why), reasons(options.why)
        title, rows = cluster.name, [(path, value, reason(path, told)) for path, value in numbers(cluster)]
    if options.json:
        listed = [{"number": path, "value": value, "why": why} for path, value, why in rows]
        options.document(json.dumps(listed, indent=1) + "\n")
        return 0
    before = ["", *(why for _, _, why in rows)]
    told = ["the same" if why == last != "" else why for (_, _, why), last in zip(rows, before, strict=False)]
    listed = [[name, _word(value), why] for (name, value, _), why in zip(rows, told, strict=True)]
    output().print(table(title, ("number", "value", "where it comes from"), listed))
    return 0


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(" x ".join(map(str, v)) if isinstance(v, list) else _word(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _traits(framework: str) -> list[tuple[str, Any, str]]:
    """Every trait of a framework, and where it comes from."""
    found, told = Software.load(framework).as_dict(), framework_reasons(framework)
    plans = {f"plans.{key}": value for key, value in (found.pop("plans") or {}).items()}
    traits = {key: value for key, value in found.items() if key not in NOT_MEASURED} | plans
    return [(key, value, told.get(key, told.get(key.partition(".")[0], ""))) for key, value in traits.items()]


def numbers(cluster: Cluster) -> Iterator[tuple[str, Any]]:
    """Every number of a cluster's devices and links, by its path; those of products by their first type."""
    data = cluster.as_dict()
    for name in ("device", "node", "network"):
        yield from _leaves(name, data[name])


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _leaves(f"{path}.{key}", each)
    elif isinstance(value, list | tuple) and value and isinstance(value[0], dict):
        for each in value:
            yield from _leaves(f"{path}.{each['types'][0]}", {k: v for k, v in each.items() if k != "types"})
    elif value is not None:
        yield path, value


def reason(path: str, told: dict[str, str]) -> str:
    """What is told of the number, or of the nearest table that holds it."""
    parts = path.split(".")
    tables = (".".join(parts[:n]) for n in range(len(parts), 1, -1))
    return next((told[name] for name in tables if name in told), _UNTOLD)
