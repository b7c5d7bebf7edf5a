"""The Cluster noun: devices and links as data, read from a TOML file; nothing here knows a GPU by name."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from partitioner.errors import InputError
from partitioner.hardware.checked_table import built, cut, is_name, number, shown, table
from partitioner.hardware.device import Attention, Device, Products
from partitioner.hardware.link import Link, Protocols, Route, TokenExchange
from partitioner.hardware.parts import read_cluster
from partitioner.software import NOT_MEASURED, OWN, Software

MOST_DEVICES = 10_000_000
_GROUPS = {str(size) for size in range(2, 1025)}  # members that a measured collective may have had
DTYPES = (  # by torch's names, of which products can be; tf32 are of float32, rounded as they are read
    "float64", "float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz",
    "float4_e2m1fn_x2", "int8", "tf32",
)  # fmt: skip


@dataclass(frozen=True)
class Cluster:
    """``nodes`` times ``node_devices`` devices; ``node`` links those of one node, ``network`` those of different.

    ``software``: what runs on it, which is no part of the cluster's file or plain data. ``kernels``: the file of what
    GEMM kernels were measured on the device (cutlass_ops/tuning), "" for none.
    """

    name: str
    attention: str
    device: Device
    node: Link
    node_devices: int
    network: Link
    nodes: int = 1
    software: Software = Software()
    kernels: str = ""

    @property
    def devices(self) -> int:
        """All devices."""
        return self.nodes * self.node_devices

    @staticmethod
    def load(name: str | Path, nodes: int = 1, devices: int | None = None, software: str = OWN) -> Cluster:
        """A preset by name, or a TOML file by path; ``devices`` uses that many devices of one node.

        ``software``: the framework that is to run on it, with the traits of its file; of this project's runtime those
        that the cluster's file says were measured on it, in its table [own].
        Raises InputError for an unknown name (with the nearest), an unreadable file, or a wrong field.
        """
        data, folder = read_cluster(name)
        measured = _own(data.pop(OWN, {}), str(name))
        runs = measured if software == OWN else Software.load(software)
        cluster = replace(_cluster(data, str(name)), nodes=nodes, software=runs)
        if cluster.kernels:
            cluster = replace(cluster, kernels=str(folder / cluster.kernels))
        if devices is not None:
            cluster = replace(cluster, nodes=1, node_devices=devices)
        if cluster.devices < 1:
            raise InputError(f"{nodes} nodes of {cluster.node_devices} devices are no cluster: ask for at least one")
        return cluster

    def of_ranks(self, ranks: int) -> Cluster:
        """As much of it as there are ranks: a part of one node, or whole nodes; raises InputError for neither."""
        each = self.node_devices
        if 0 < ranks <= each:
            return replace(self, nodes=1, node_devices=ranks)
        if ranks < 1 or ranks % each:
            raise InputError(f"{ranks} ranks are no whole nodes of {self.name}: start {each} on each")
        return replace(self, nodes=ranks // each)

    def leaving(self, share: float) -> Cluster:
        """Of what tensors can fill on a device, that share left free: plans for it need so much less."""
        room = self.device.allocator_share * (1 - share)
        return replace(self, device=replace(self.device, allocator_share=room))

    def inside(self, ranks: int, stride: int) -> int:
        """How many of ``ranks`` ranks that lie ``stride`` apart are in one node."""
        return max(1, min(ranks, self.node_devices // stride))

    def route(self, ranks: int, stride: int = 1, inside: int | None = None) -> Route:
        """The links of a group of ``ranks`` ranks that lie ``stride`` apart, or of which ``inside`` lie in a node.

        A ring that leaves its nodes has one port of each member's own there, so a node's members share out the load.
        """
        inside = inside or self.inside(ranks, stride)
        nodes, near, far = -(-ranks // inside), self.node, self.network
        speed = near.speed if nodes == 1 else min(near.speed, inside * far.speed)
        return Route(
            ranks, nodes, speed, far.speed, near.latency_seconds, far.latency_seconds, near.ring, near.direct
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a plan file, without the software; ``from_dict`` reads it back."""
        return json.loads(json.dumps({key: value for key, value in asdict(self).items() if key != "software"}))

    @staticmethod
    def from_dict(data: Mapping[str, Any], origin: str = "the cluster", software: Software | None = None) -> Cluster:
        """The inverse of ``as_dict``, with the software that is to run on it; raises InputError naming the field of
        ``origin`` that is wrong."""
        return replace(_cluster(data, origin), software=software or Software())


def _cluster(data: Mapping[str, Any], origin: str) -> Cluster:
    """A file's tables, or the plain data of ``as_dict``, with every number checked."""
    data = dict(data)
    device, node, network = (dict(table(data.pop(key, None), key, origin)) for key in ("device", "node", "network"))
    name, attention, kernels = data.pop("name", origin), data.pop("attention", None), data.pop("kernels", "")
    counts = {"node_devices": data.pop("node_devices", node.pop("devices", None)), "nodes": data.pop("nodes", 1)}
    for key, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            where = key.replace("_", ".")
            raise InputError(f"{origin}: {where} must be a positive whole number, it is {shown(value)}")
    if math.prod(counts.values()) > MOST_DEVICES:
        raise InputError(f"{origin}: nodes and node.devices make more than {MOST_DEVICES:,} devices: give fewer")
    if attention not in ("flash", "math"):
        raise InputError(f"{origin}: attention must be 'flash' or 'math', it is {shown(attention)}")
    if not is_name(kernels):
        raise InputError(f"{origin}: kernels must be the name of a file, it is {shown(kernels)}")
    if not is_name(name):
        raise InputError(f"{origin}: name must be a name, it is {shown(name)}")
    if "software" in data:
        raise InputError(f"{origin}: software is no part of a cluster: traits of this runtime stand in its table [own]")
    if data:
        raise InputError(f"{origin}: unknown field {cut(next(iter(data)))}")
    links = [_link(part, key, origin) for part, key in ((node, "node"), (network, "network"))]
    return Cluster(
        name, attention, _device(device, origin), links[0], counts["node_devices"], links[1], counts["nodes"],
        kernels=kernels,
    )  # fmt: skip


def _own(found: Any, origin: str) -> Software:
    """This project's runtime as it was measured on the cluster."""
    traits = table(found, OWN, origin)
    strange = next((key for key in traits if key in NOT_MEASURED), None)
    if strange is not None:
        raise InputError(f"{origin}: unknown field {OWN}.{strange}")
    return replace(built(Software, traits, OWN, origin), measured=bool(traits))


def _device(device: dict[str, Any], origin: str) -> Device:
    flops = table(device.pop("flops_per_second", None), "device.flops_per_second", origin)
    if not flops:
        raise InputError(f"{origin}: device.flops_per_second names no dtype")
    for dtype, value in flops.items():
        if dtype not in DTYPES:
            raise InputError(f"{origin}: device.flops_per_second.{cut(dtype)} is no dtype of torch that products have")
        number(value, f"device.flops_per_second.{dtype}", origin)
    rows = device.pop("products", None)
    if not isinstance(rows, list | tuple) or not rows:
        raise InputError(f"{origin}: the tables [[device.products]] are missing")
    products = [built(Products, table(row, "device.products", origin), "device.products", origin) for row in rows]
    attention = built(
        Attention, table(device.pop("attention", None), "device.attention", origin), "device.attention", origin
    )
    made = {"flops_per_second": dict(flops), "products": tuple(products), "attention": attention}
    return built(Device, {**device, **made}, "device", origin)


def _link(link: dict[str, Any], key: str, origin: str) -> Link:
    measured = dict[str, Any]()
    for name in ("ring", "direct"):
        if (found := link.pop(name, None)) is not None:
            where = f"{key}.{name}"
            measured[name] = _protocols(table(found, where, origin), where, origin)
    for name in ("dispatch", "combine"):
        if (found := link.pop(name, None)) is not None:
            where = f"{key}.{name}"
            measured[name] = built(TokenExchange, table(found, where, origin), where, origin)
    return built(Link, {**link, **measured}, key, origin)


def _protocols(found: Mapping[str, Any], where: str, origin: str) -> Protocols:
    made = built(Protocols, found, where, origin)
    if len({len(made.latency_seconds), len(made.hop_seconds), len(made.bytes_per_second)}) != 1:
        raise InputError(f"{origin}: {where} must have as many latencies and hops as speeds")
    strange = next((size for size in made.group_shares if size not in _GROUPS), None)
    if strange is not None:
        raise InputError(f"{origin}: {where}.group_shares.{cut(strange)} is no number of members")
    return made
