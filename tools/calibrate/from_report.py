"""A cluster file corrected by what a run of a plan measured: ``partitioner calibrate --from REPORT``.

compute          all speeds of the device alike, by what compute took against what was predicted
communication    a link's latency and bandwidth alike, by what the axes that it carries took together
left as it is    the pipeline's waiting, which follows from the rest; the update; memory, of which a report of a CPU
                 tells that of the whole process
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from partitioner.cluster import Cluster
from partitioner.errors import InputError
from partitioner.plan.parallelism import Parallelism
from partitioner.sharding.mesh_axes import PP, named
from partitioner.software import NOT_MEASURED, OWN, Software
from runtime.report import Report
from tools.toml_words import toml_word

LINKS = {"node": "the links inside a node", "network": "the links across nodes"}


@dataclass(frozen=True)
class Correction:
    """What was scaled: predicted and measured seconds of a step."""

    what: str
    predicted: float
    measured: float

    @property
    def ratio(self) -> float:
        """How many times longer it took than predicted."""
        return self.measured / self.predicted


def corrected(report: Report, name: str) -> tuple[Cluster, list[Correction]]:
    """The report's cluster as it would have predicted compute and communication right, and what was changed; raises
    InputError for a report that tells no compute."""
    cluster, found = replace(report.asked.machine, name=name), list[Correction]()
    parts = {part: (was, now) for part, was, now in report.parts()}
    was, now = parts.get("compute", (0.0, 0.0))
    if not (was > 0 and now > 0):
        words = f"the report's compute is {now:g} s measured, {was:g} s predicted"
        raise InputError(f"{words}: take one of a run that computed")
    compute = Correction("compute", was, now)
    cluster = _faster(cluster, 1 / compute.ratio)
    found.append(compute)
    own = report.decisions.parallelism
    for link, words in LINKS.items():
        carried = [parts[f"{axis} communication"] for axis in named() if axis != PP
                   if f"{axis} communication" in parts and _link(axis, own, cluster) == link]  # fmt: skip
        was, now = (sum(column) for column in zip(*carried, strict=True)) if carried else (0.0, 0.0)
        if was > 0 and now > 0:
            found.append(Correction(words, was, now))
            cluster = replace(cluster, **{link: getattr(cluster, link).scaled(was / now, now / was)})
    return cluster, found


def _faster(cluster: Cluster, factor: float) -> Cluster:
    """All of the device's speeds times ``factor``, in the share that the program reaches while that is below 1."""
    share = cluster.software.efficiency * factor
    rest, device = max(1.0, share), cluster.device
    peaks = {dtype: peak * rest for dtype, peak in device.flops_per_second.items()}
    products = tuple(
        replace(
            row, fixed_seconds=row.fixed_seconds / rest, split_seconds=row.split_seconds / rest,
            quantize_seconds=row.quantize_seconds / rest,
        ) for row in device.products
    )  # fmt: skip
    attention = replace(device.attention, fixed_seconds=device.attention.fixed_seconds / rest)
    device = replace(
        device, memory_bytes_per_second=device.memory_bytes_per_second * rest, flops_per_second=peaks,
        launch_seconds=device.launch_seconds / rest, products=products, attention=attention,
    )  # fmt: skip
    software = replace(cluster.software, efficiency=min(1.0, share), measured=True)
    return replace(cluster, device=device, software=software)


def _link(axis: str, parallelism: Parallelism, cluster: Cluster) -> str:
    """Which link carries an axis: that inside a node where neighbours on it lie there."""
    reach = parallelism.stride(axis) * parallelism.degree(axis)
    return "network" if cluster.nodes > 1 and reach > cluster.node_devices else "node"


def cluster_toml(cluster: Cluster, comment: str) -> str:
    """A cluster file with every field, which ``Cluster.load`` reads back."""
    data = cluster.as_dict()
    top = {key: data[key] for key in ("name", "attention", "kernels") if data[key]}
    tables = {
        "": top, "device": data["device"], "node": {"devices": data["node_devices"], **data["node"]},
        "network": data["network"], OWN: _measured(cluster.software),
    }  # fmt: skip
    return "\n".join([f"# {comment}", *(line for name, table in tables.items() for line in _table(name, table))]) + "\n"


def _table(name: str, table: dict[str, Any]) -> Iterator[str]:
    if name:
        yield from ("", f"[{name}]")
    for key, value in table.items():
        if value is not None:
            yield f"{key} = {toml_word(value)}"


def _measured(software: Software) -> dict[str, Any]:
    """The traits that are not this runtime's by default."""
    usual = Software().as_dict()
    return {key: value for key, value in software.as_dict().items() if value != usual[key] and key not in NOT_MEASURED}
