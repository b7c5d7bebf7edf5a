"""The Cluster noun: devices and links as data, read from a TOML file; nothing here knows a GPU by name."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from partitioner.errors import InputError


@dataclass(frozen=True)
class Device:
    """One accelerator. ``flops_per_second`` are dense peaks by dtype; efficiencies are the shares of peak reached."""

    name: str
    memory_bytes: float
    memory_bytes_per_second: float
    launch_seconds: float
    gemm_efficiency: float
    memory_efficiency: float
    flops_per_second: Mapping[str, float]


@dataclass(frozen=True)
class Link:
    """What one device can send, one direction, and the latency of one message."""

    bytes_per_second: float
    latency_seconds: float


@dataclass(frozen=True)
class Cluster:
    """``nodes`` times ``node_devices`` devices; ``node`` links those of one node, ``network`` those of different."""

    name: str
    attention: str
    device: Device
    node: Link
    node_devices: int
    network: Link
    nodes: int = 1

    @property
    def devices(self) -> int:
        """All devices."""
        return self.nodes * self.node_devices

    @staticmethod
    def load(name: str | Path, nodes: int = 1, devices: int | None = None) -> Cluster:
        """A preset by name, or a TOML file by path; ``devices`` uses that many devices of one node.

        Raises InputError for an unknown name (with the nearest), an unreadable file, or a wrong field.
        """
        cluster = replace(_read(name), nodes=nodes)
        if devices is not None:
            cluster = replace(cluster, nodes=1, node_devices=devices)
        if cluster.devices < 1:
            raise InputError(f"{nodes} nodes of {cluster.node_devices} devices are no cluster: ask for at least one")
        return cluster

    def link(self, span: int) -> Link:
        """The link between devices that lie within ``span`` consecutive ranks."""
        return self.node if span <= self.node_devices else self.network

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a plan file; ``from_dict`` reads it back."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Cluster:
        """The inverse of ``as_dict``; raises InputError naming the field that is wrong."""
        fields = dict(data)
        device = _table(fields, "device", "the cluster")
        try:
            links = {key: Link(**_table(fields, key, "the cluster")) for key in ("node", "network")}
            rest: dict[str, Any] = {**fields, **links, "device": Device(**device)}
            return Cluster(**rest)
        except TypeError as error:
            raise InputError(f"the cluster has a wrong field: {error}") from error


def presets() -> list[str]:
    """Names of the clusters that come with the package."""
    return sorted(p.name.removesuffix(".toml") for p in files("partitioner").joinpath("clusters").iterdir())


def _read(name: str | Path) -> Cluster:
    path = Path(name)
    if path.suffix != ".toml":
        if str(name) not in presets():
            near = difflib.get_close_matches(str(name), presets(), 1, 0.0)[0]
            raise InputError(f"there is no cluster {name}: the nearest is {near}; or name a .toml file")
        text = files("partitioner").joinpath("clusters", f"{name}.toml").read_text()
    else:
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read: {error}") from error
    try:
        return _cluster(tomllib.loads(text), str(name))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{name} is not TOML: {error}") from error


def _cluster(data: dict[str, Any], origin: str) -> Cluster:
    device, node, network = (dict(_table(data, key, origin)) for key in ("device", "node", "network"))
    for table, key in ((device, "memory_bytes"), (node, "devices")):
        if not isinstance(table.get(key), int | float) or table[key] <= 0:
            raise InputError(f"{origin}: {key} must be a positive number, it is {table.get(key)!r}")
    count = int(node.pop("devices"))
    if data.get("attention") not in ("flash", "math"):
        raise InputError(f"{origin}: attention must be 'flash' or 'math', it is {data.get('attention')!r}")
    try:
        return Cluster(
            str(data.get("name", origin)), data["attention"], Device(**device), Link(**node), count, Link(**network)
        )
    except TypeError as error:
        raise InputError(f"{origin}: {error}") from error


def _table(data: Mapping[str, Any], key: str, origin: str) -> dict[str, Any]:
    found = data.get(key)
    if not isinstance(found, dict):
        raise InputError(f"{origin}: the table [{key}] is missing")
    return found
