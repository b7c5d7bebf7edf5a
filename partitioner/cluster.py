"""The Cluster noun: devices and links as data, read from a TOML file; nothing here knows a GPU by name."""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from partitioner.errors import InputError

T = TypeVar("T")
MOST = 1e30  # of any number
MOST_DEVICES = 10_000_000
_LONGEST = 200  # of a name
DTYPES = (  # by torch's names, of which products can be; tf32 are of float32, rounded as they are read
    "float64", "float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz",
    "float4_e2m1fn_x2", "int8", "tf32",
)  # fmt: skip


@dataclass(frozen=True)
class Device:
    """One accelerator. ``flops_per_second`` are dense peaks by dtype; efficiencies are the shares of peak reached.

    ``multiprocessors`` work on tiles of a product in waves; ``attention_efficiency`` is fused attention's; ``spread``
    is the standard deviation of the devices' speed, all of which wait for the slowest. ``allocator_share``: of what a
    caching allocator has reserved, what tensors fill at their most. ``dollars_per_hour`` and ``watts`` are None where
    the file does not give them.
    """

    name: str
    memory_bytes: float
    memory_bytes_per_second: float
    launch_seconds: float
    gemm_efficiency: float
    memory_efficiency: float
    attention_efficiency: float
    multiprocessors: int
    spread: float
    flops_per_second: Mapping[str, float]
    allocator_share: float = 1.0
    dollars_per_hour: float | None = None
    watts: float | None = None

    def peak(self, dtype: str) -> float:
        """FLOPs a second in ``dtype``; raises InputError where the device has none."""
        if dtype not in self.flops_per_second:
            known = ", ".join(self.flops_per_second)
            raise InputError(f"{self.name} has no peak for products in {dtype}: give the model one of {known}")
        return self.flops_per_second[dtype]

    @property
    def room(self) -> float:
        """Bytes that tensors can fill."""
        return self.memory_bytes * self.allocator_share


@dataclass(frozen=True)
class Link:
    """What one device can send, one direction, by the datasheet, and the share that collectives reach of it.

    ``latency_seconds``: of one message. ``contention``: the share of its time by which compute beside it is slowed.
    """

    bytes_per_second: float
    efficiency: float
    latency_seconds: float
    contention: float = 0.0

    @property
    def speed(self) -> float:
        """Bytes a second that a collective moves."""
        return self.bytes_per_second * self.efficiency


@dataclass(frozen=True)
class Software:
    """What the training program does with the hardware; the defaults are this project's runtime.

    ``fused``: chains of pointwise ops run as one kernel. ``overlap_gradients``, ``overlap_parameters`` (of sharded
    optimizers), ``overlap_sends`` (between stages), ``overlap_tensor`` (collectives cut into pieces beside the products
    that make or need them): what hides behind compute. ``early_stop``: a recompute ends where the last op that keeps
    something begins, as torch's checkpoint without reentrance does. ``kept_products``: the share of products whose
    results are kept where operators are recomputed. ``scatter_sends``: of a boundary that all tp ranks hold whole, each
    sends a part, and the receivers gather it (Narayanan et al., 2021). ``efficiency``: the share of speed that is left
    of everything. ``dispatch_seconds``: of the host, for one kernel; ``enqueue_seconds``: more of the host, for one
    collective, a rank of its group, in programs whose stages send between nodes.
    """

    fused: bool = False
    overlap_gradients: bool = True
    overlap_parameters: bool = True
    overlap_sends: bool = True
    overlap_tensor: bool = False
    early_stop: bool = True
    kept_products: float = 1.0
    scatter_sends: bool = False
    efficiency: float = 1.0
    dispatch_seconds: float = 0.0
    enqueue_seconds: float = 0.0


@dataclass(frozen=True)
class Route:
    """How a group of ranks is linked: ``nodes`` of it with ``ranks / nodes`` members each.

    ``bytes_per_second`` is what a ring moves a member; ``far`` is what leaves a node, a member; ``hop_seconds`` and
    ``far_hop_seconds`` are one message's within a node and between nodes.
    """

    ranks: int
    nodes: int
    bytes_per_second: float
    far_bytes_per_second: float
    hop_seconds: float
    far_hop_seconds: float


@dataclass(frozen=True)
class Cluster:
    """``nodes`` times ``node_devices`` devices; ``node`` links those of one node, ``network`` those of different.

    ``kernels``: the file of what GEMM kernels were measured on the device (cutlass_ops/tuning), "" for none.
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

    def of_ranks(self, ranks: int) -> Cluster:
        """As much of it as there are ranks: a part of one node, or whole nodes; raises InputError for neither."""
        each = self.node_devices
        if 0 < ranks <= each:
            return replace(self, nodes=1, node_devices=ranks)
        if ranks < 1 or ranks % each:
            raise InputError(f"{ranks} ranks are no whole nodes of {self.name}: start {each} on each")
        return replace(self, nodes=ranks // each)

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
        return Route(ranks, nodes, speed, far.speed, near.latency_seconds, far.latency_seconds)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a plan file; ``from_dict`` reads it back."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any], origin: str = "the cluster") -> Cluster:
        """The inverse of ``as_dict``; raises InputError naming the field of ``origin`` that is wrong."""
        return _cluster(data, origin)


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
        cluster = _cluster(tomllib.loads(text), str(name))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not TOML: {error}") from error
    return replace(cluster, kernels=str(path.parent / cluster.kernels)) if cluster.kernels else cluster


def _cluster(data: Mapping[str, Any], origin: str) -> Cluster:
    """A file's tables, or the plain data of ``as_dict``, with every number checked."""
    data = dict(data)
    device, node, network = (dict(_table(data.pop(key, None), key, origin)) for key in ("device", "node", "network"))
    name, attention, kernels = data.pop("name", origin), data.pop("attention", None), data.pop("kernels", "")
    software = _built(Software, _table(data.pop("software", {}), "software", origin), "software", origin)
    counts = {"node_devices": data.pop("node_devices", node.pop("devices", None)), "nodes": data.pop("nodes", 1)}
    for key, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            field = key.replace("_", ".")
            raise InputError(f"{origin}: {field} must be a positive whole number, it is {_shown(value)}")
    if math.prod(counts.values()) > MOST_DEVICES:
        raise InputError(f"{origin}: nodes and node.devices make more than {MOST_DEVICES:,} devices: give fewer")
    if attention not in ("flash", "math"):
        raise InputError(f"{origin}: attention must be 'flash' or 'math', it is {_shown(attention)}")
    if not _is_name(kernels):
        raise InputError(f"{origin}: kernels must be the name of a file, it is {_shown(kernels)}")
    if not _is_name(name):
        raise InputError(f"{origin}: name must be a name, it is {_shown(name)}")
    if data:
        raise InputError(f"{origin}: unknown field {_cut(next(iter(data)))}")
    flops = _table(device.pop("flops_per_second", None), "device.flops_per_second", origin)
    if not flops:
        raise InputError(f"{origin}: device.flops_per_second names no dtype")
    for dtype, value in flops.items():
        if dtype not in DTYPES:
            raise InputError(f"{origin}: device.flops_per_second.{_cut(dtype)} is no dtype of torch that products have")
        _number(value, f"device.flops_per_second.{dtype}", origin)
    made = _built(Device, {**device, "flops_per_second": flops}, "device", origin)
    links = [_built(Link, table, key, origin) for table, key in ((node, "node"), (network, "network"))]
    return Cluster(
        name, attention, made, links[0], counts["node_devices"], links[1], counts["nodes"], software, kernels
    )  # fmt: skip


def _built(kind: type[T], table: Mapping[str, Any], where: str, origin: str) -> T:
    """A dataclass of numbers out of a table; raises InputError naming a field that is missing, unknown or absurd."""
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    strange = next((key for key in table if key not in known), None)
    if strange is not None:
        raise InputError(f"{origin}: unknown field {where}.{_cut(strange)}")
    for key, f in known.items():
        if key not in table and f.default is MISSING:
            raise InputError(f"{origin}: the field {where}.{key} is missing")
        if isinstance(f.default, bool) and not isinstance(table.get(key, f.default), bool):
            raise InputError(f"{origin}: {where}.{key} must be true or false, it is {_shown(table[key])}")
        if key == "name" and not _is_name(table[key]):
            raise InputError(f"{origin}: {where}.name must be a name, it is {_shown(table[key])}")
        if f.type == "int" and not (isinstance(table[key], int) and table[key] > 0):
            raise InputError(f"{origin}: {where}.{key} must be a positive whole number, it is {_shown(table[key])}")
        is_number = key not in ("name", "flops_per_second") and not isinstance(f.default, bool)
        if is_number and key in table and not (table[key] is None and f.default is None):
            _number(table[key], f"{where}.{key}", origin)
    return kind(**table)


def _number(value: Any, where: str, origin: str) -> None:
    """Refuse what is no positive finite number; times may be 0, efficiencies are at most 1."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MOST
    may_be_zero = where.endswith(("_seconds", "spread", "contention"))
    if not is_number or value < 0 or (value == 0 and not may_be_zero):
        raise InputError(f"{origin}: {where} must be a positive number, it is {_shown(value)}")
    if where.endswith(("efficiency", "share", "kept_products", "contention")) and value > 1:
        raise InputError(f"{origin}: {where} is a share and at most 1, it is {_shown(value)}")


def _is_name(value: Any) -> bool:
    """Short, and without what would drive a terminal."""
    return isinstance(value, str) and len(value) <= _LONGEST and value.isprintable()


def _shown(value: Any) -> str:
    """A value in a message."""
    return _cut(repr(value))


def _cut(text: str) -> str:
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _table(found: Any, key: str, origin: str) -> Mapping[str, Any]:
    if not isinstance(found, Mapping):
        raise InputError(f"{origin}: the table [{key}] is missing")
    return found
