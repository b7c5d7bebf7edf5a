"""What can't work in a step as a Configuration has it, one line each with its mend: counting alone."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator

from partitioner.cluster import Cluster
from partitioner.schedule.tables import SCHEDULES
from partitioner.sharding.mesh_axes import AXES
from tools.dialects.configuration import DEGREES, Configuration, Reading
from tools.dialects.dialect import Dialect

Key = Callable[[str], str]
_NEAR = 0.87  # likeness of a key that is not known to one that is


def findings(found: Configuration, key: Key, cluster: Cluster | None) -> Iterator[str]:
    """All that is wrong; ``key`` names a field as people know it. Without a ``cluster`` on as many devices as the file
    has."""
    devices = cluster.devices if cluster else found.devices
    yield from _mesh(found, key, devices)
    yield from _nodes(found, key, cluster)
    yield from _batch(found, key, devices)
    yield from layers(found, key)
    yield from _widths(found, key)
    yield from sequence(found, key)
    yield from state(found, key)


def _mesh(found: Configuration, key: Key, devices: int | None) -> Iterator[str]:
    own, expert = found.together, found.expert or 1
    if devices is None:
        return
    words = " x ".join(f"{axis} {n}" for axis, n in found.degrees.items() if n > 1)
    if own > devices:
        yield f"{words} are {own:,} ranks, and there are {devices:,} devices: lower one, or take more devices"
    elif devices % own:
        yield f"{words} do not divide {devices:,} devices: take {own * (devices // own):,}, or change a degree"
    elif found.data is not None and found.data * own != devices:
        words = f"{key('data')} makes {found.data} data ranks of {own} devices each"
        yield f"{words}, and there are {devices:,} devices: set it to {devices // own}"
    pipeline = found.pipeline or 1
    if expert > 1 and pipeline * expert > devices:
        words = f"{key('expert')} {expert} beside {pipeline} pipeline stages needs {pipeline * expert:,} devices"
        yield f"{words}, and there are {devices:,}: set it to at most {devices // pipeline}"
    elif expert > 1 and devices % (pipeline * expert) == 0 and found.experts and found.experts % expert:
        yield f"{key('expert')} {expert} does not divide {found.experts} experts: take a divisor of them"
    elif expert > 1 and devices % (pipeline * expert):
        yield f"{key('expert')} {expert} does not divide the {devices // pipeline:,} devices of a stage: take a divisor"


def _nodes(found: Configuration, key: Key, cluster: Cluster | None) -> Iterator[str]:
    each = cluster.node_devices if cluster else found.node_devices
    if each is None:
        return
    inside = {field: getattr(found, field) or 1 for field, axis in DEGREES.items() if AXES[axis].in_node}
    inside["expert"] = found.expert or 1
    for field, ranks in inside.items():
        if ranks > each or (ranks > 1 and each % ranks and math.gcd(each, ranks) != ranks):
            near = max(n for n in range(1, each + 1) if each % n == 0 and n <= ranks)
            does = "leaves" if ranks > each else "does not divide"
            words = f"{key(field)} {ranks} {does} the node of {each} devices, over slow links"
            yield f"{words}: set it to {near}" + (f" and {key('pipeline')} higher" if field != "expert" else "")


def _batch(found: Configuration, key: Key, devices: int | None) -> Iterator[str]:
    data = found.data or (devices // found.together if devices and devices % found.together == 0 else None)
    whole, micro = found.global_batch, found.micro_batch or 1
    if whole is None or not data:
        return
    local = found.local_batch or micro
    if whole % (data * local):
        each = "in a pass" if found.local_batch else "a micro-batch"
        words = f"{key('global_batch')} {whole:,} does not divide by {data} data ranks x {local} {each}"
        near = max(1, round(whole / (data * local))) * data * local
        yield f"{words}: take {near:,}"
        return
    yield from product(found, key)
    each, pipeline = (found.local_batch or whole // data) // micro, found.pipeline or 1
    schedule = SCHEDULES.get(found.schedule or "")
    if schedule and schedule.in_rounds and each % pipeline:
        words = f"{each} micro-batches are no multiple of {pipeline} pipeline ranks, which {schedule.name} needs"
        yield f"{words}: change {key('global_batch')} or {key('micro_batch')}"
    elif pipeline > 1 and each < pipeline:
        words = f"{each} micro-batches do not fill {pipeline} pipeline ranks"
        yield f"{words}: lower {key('pipeline')} or raise {key('local_batch' if found.local_batch else 'global_batch')}"


def product(found: Configuration, key: Key) -> Iterator[str]:
    """Where the batch is not all of its micro-batches."""
    whole, data, many = found.global_batch, found.data, found.micro_batches
    if not whole or not data or not many:
        return
    micro = found.micro_batch or max(1, round(whole / (data * many)))
    if whole != data * many * micro:
        words = f"{key('global_batch')} {whole:,} is not {data} data ranks x {many} micro-batches of {micro}"
        yield f"{words}: take {data * many * micro:,}"


def layers(found: Configuration, key: Key) -> Iterator[str]:
    """Where stages are not those of the model."""
    pipeline, virtual, many = found.pipeline or 1, found.virtual or 1, found.layers
    if many is None:
        return
    if found.stages is not None:
        if sum(found.stages) != many:
            words = f"the stages hold {sum(found.stages)} layers, the model has {many}"
            yield f"{words}: change {key('stages')}"
    elif many % (pipeline * virtual):
        words = f"{many} layers do not divide into {pipeline} x {virtual} stages"
        yield f"{words}: change {key('pipeline')}" + (f" or {key('virtual')}" if virtual > 1 else "")


def _widths(found: Configuration, key: Key) -> Iterator[str]:
    tensor = found.tensor or 1
    for field in ("heads", "ffn", "hidden", "vocab"):
        size = getattr(found, field)
        if size and size % tensor:
            yield f"{key(field)} {size:,} does not divide by {tensor} tensor parallel ranks: change {key('tensor')}"
    if found.kv_heads and found.kv_heads % tensor and tensor % found.kv_heads:
        words = f"{key('kv_heads')} {found.kv_heads} neither divides by {tensor} tensor parallel ranks nor divides them"
        yield f"{words}: change {key('tensor')}"
    if found.heads and found.kv_heads and found.heads % found.kv_heads:
        words = f"{key('heads')} {found.heads} is no multiple of {found.kv_heads} heads of keys"
        yield f"{words}: change {key('kv_heads')}"
    if found.expert and found.expert > 1 and tensor > 1 and found.sequence_parallel is False:
        yield f"{key('expert')} beside tensor parallelism needs sequence parallelism: set {key('sequence_parallel')}"


def sequence(found: Configuration, key: Key) -> Iterator[str]:
    """Where a sample's tokens do not divide."""
    tensor, context = found.tensor or 1, found.context or 1
    parts = context * 2 if context > 1 else 1
    if found.seq and found.seq % parts:
        words = f"{key('seq')} {found.seq:,} does not divide into {parts} parts, two a rank of context parallelism"
        yield f"{words}: take {max(1, found.seq // parts) * parts:,}"
    if found.seq and found.sequence_parallel and tensor > 1 and (found.seq // context) % tensor:
        words = f"{key('seq')} {found.seq:,} does not divide by {tensor} ranks, as sequence parallelism needs"
        yield f"{words}: take {max(1, found.seq // (tensor * context)) * tensor * context:,}"


def state(found: Configuration, key: Key) -> Iterator[str]:
    """Where ranks are no whole groups of those that hold ZeRO's state."""
    alike = (found.data or 0) * (found.context or 1)
    for field in ("shards", "replicas"):
        if (n := getattr(found, field)) and alike % n:
            yield f"{key(field)} {n} does not divide the {alike} ranks that hold the same parameters: take a divisor"


def misspelled(reading: Reading, dialect: Dialect) -> Iterator[str]:
    """Keys that nobody knows, and that are nearly one that is."""
    known = [dialect.spelled(key) for row in dialect.rows for key in row.keys]
    for key in reading.unknown:
        if near := difflib.get_close_matches(key, known, 1, _NEAR):
            yield f"{key} is no key that is known: write {near[0]}"
