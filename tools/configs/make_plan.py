"""What a file of another framework asks for, as a plan: every decision that it makes pinned, the rest searched."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from partitioner import Cluster, Graph, Plan, search
from partitioner.errors import InputError
from partitioner.plan.recompute_ways import NO_RECOMPUTE
from partitioner.sharding.mesh_axes import AXES, DP, TP
from partitioner.software import Software
from partitioner.solve.choices import NoLayout
from tools.configs.checks import layers, product, sequence, state
from tools.configs.divided_weights import divided_weights
from tools.configs.file_model import NotToldError, settings_of, with_options
from tools.dialects.configuration import DEGREES, SIZES, Configuration, Reading
from tools.dialects.dialect import Dialect
from tools.models.entry_point import parse
from tools.models.load import Source

_UNDIVIDED = ("no layout divides all weights over tensor parallel ranks: which are was searched",)
_HALVED = ("keys have fewer heads than there are tensor parallel ranks: their weights are divided too",)
Pins = dict[str, str | int]
Model = tuple[Source, Graph]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """A file's Configuration, complete, and the ``notes`` of what is otherwise in its plan."""

    plan: Plan
    configuration: Configuration
    notes: tuple[str, ...]


def checked(options: argparse.Namespace) -> None:
    """Raises InputError for options that mean nothing, whatever the file."""
    for name in ("nodes", "devices", "global_batch", "seq"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be positive")
    if options.nodes and options.devices:
        raise InputError("--devices are of one node, and --nodes is given too: drop one")
    if options.model:
        parse(options.model)
    settings_of(options)


def cluster_of(options: argparse.Namespace, software: str) -> Cluster:
    """The cluster that the options name; raises InputError."""
    if options.cluster is None:
        raise InputError("--cluster is missing: give it, as in --cluster dgx-h100 (partitioner clusters lists them)")
    return Cluster.load(options.cluster, options.nodes or 1, options.devices, software)


def as_large(cluster: Cluster, options: argparse.Namespace, found: Configuration) -> Cluster:
    """As much of a cluster as the file has devices for, where the options do not say; raises InputError."""
    said = options.nodes or options.devices
    return cluster if said or not found.devices else cluster.of_ranks(found.devices)


def check_mesh(found: Configuration, cluster: Cluster, dialect: Dialect) -> None:
    """Raises InputError where the file's mesh is not of a cluster's devices, or is what the framework is not known to
    do."""
    devices = cluster.devices
    if devices % found.together:
        words = " x ".join(f"{axis} {n}" for axis, n in found.degrees.items() if n > 1)
        raise InputError(f"{words} does not divide the {devices:,} devices of the cluster: give --nodes or --devices")
    if found.data not in (None, devices // found.together):
        words = f"{dialect.key_of('data')} makes {found.data * found.together:,} ranks"
        raise InputError(f"{words}, and the cluster has {devices:,} devices: give --nodes or --devices")
    if (found.expert or 1) > 1:
        words = f"{dialect.key_of('expert')}={found.expert}"
        raise InputError(f"{words}: plans have no expert parallelism yet: set it to 1")
    plans = Software.load(dialect.software).plans
    for field, axis in DEGREES.items():
        degree = getattr(found, field) or 1
        if plans is not None and degree > 1 and axis not in plans.axes:
            words = f"plans for {dialect.software} are of {', '.join(plans.axes)} alone"
            raise InputError(f"{dialect.key_of(field)}={degree}: {words}: set it to 1")
        if degree > 1 and AXES[axis].looked_at and degree not in AXES[axis].looked_at:
            raise InputError(f"{dialect.key_of(field)}={degree}: take at most {max(AXES[axis].looked_at)}")


def plan_for(
    options: argparse.Namespace, dialect: Dialect, reading: Reading, cluster: Cluster, model: Model, say: Say
) -> Asked:
    """The plan of a file's decisions for a model; raises InputError, DoesNotFit."""
    source, graph = model
    blocks = len(graph.blocks)
    settled = dialect.settle(with_options(reading.configuration, options), blocks)
    found = replace(settled, devices=cluster.devices).resolved()
    if found.global_batch is None:
        raise NotToldError(f"{dialect.key_of('global_batch')} is not in the file: give --global-batch")
    _check_counts(replace(found, layers=blocks or None), dialect)
    pins, again = pins_of(found, graph), {"entry": source.spec, "settings": source.settings, "seq": source.seq}
    cluster = replace(cluster, software=replace(cluster.software, **found.traits))
    weights = divided_weights(graph) if found.degrees[TP] > 1 else {}
    try:
        plan = search(graph, cluster, found.global_batch, pins | weights, again, say)
        said = _HALVED if weights and plan.parallelism.refined else ()
    except NoLayout:
        plan, said = search(graph, cluster, found.global_batch, pins, again, say), _UNDIVIDED
    own = reading.unmodelled if options.model else ()
    notes = (*said, *_notes(options, dialect, reading, found, blocks), *own)
    return Asked(replace(plan, notes=(*plan.notes, *notes)), found, notes)


def _check_counts(found: Configuration, dialect: Dialect) -> None:
    """Raises InputError where a plan would take another batch, other stages or groups than the file says, NotToldError
    where the file may well say so."""
    if wrong := [line for check in (product, layers, state, sequence) for line in check(found, dialect.key_of)]:
        raise InputError(wrong[0])
    data, local, whole = found.data, found.local_batch, found.global_batch
    if data and local and whole and whole != data * local:
        key, one = dialect.key_of("local_batch"), dialect.key_of("global_batch")
        words = f"{one} {whole:,} is not {data} data ranks x {key} {local:,}, and a plan has one pass of a pipeline"
        mend = f", or {key} to {whole // data:,}" if whole % data == 0 else ""
        raise NotToldError(f"{words}: set {one} to {data * local:,}{mend}")


def pins_of(found: Configuration, graph: Graph) -> Pins:
    """Every decision that a Configuration makes."""
    pins: Pins = dict(found.degrees)
    if found.data:
        pins[DP] = found.data
    for name in ("micro_batch", "schedule", "virtual"):
        if (value := getattr(found, name)) is not None:
            pins[name] = value
    if found.recomputed is not None:
        pins["recomputed"] = min(found.recomputed, max(1, len(graph.blocks)))  # more are all, to frameworks
    if found.zero is not None and (found.data or 1) * (found.context or 1) > 1:
        pins["zero"] = found.zero
        pins |= {"zero_group": found.shards} if found.zero and found.shards else {}
    if found.recompute is not None:
        pins["recompute"] = "off" if found.recompute == NO_RECOMPUTE else found.recompute
    if found.degrees[TP] > 1 and found.sequence_parallel is not None:
        pins["boundary"] = "sharded" if found.sequence_parallel else "whole"
    if found.stages is not None:
        pins["stages"] = ",".join(map(str, _units(found.stages, graph)))
    return pins


def _units(stages: tuple[int, ...], graph: Graph) -> list[int]:
    """Units of each stage of so many blocks: what is before the blocks in the first, what is behind in the last."""
    blocks = [n for n, unit in enumerate(graph.units) if unit.is_block]
    if blocks and sum(stages) == len(blocks):
        starts = [*blocks, blocks[-1] + 1]
        ends = [starts[done] for done in itertools.accumulate(stages[:-1])]
        found = [b - a for a, b in zip([0, *ends], [*ends, len(graph.units)], strict=True)]
        if min(found) > 0:
            return found
    words = f"stages of {', '.join(map(str, stages))} layers"
    raise InputError(f"{words} are not the model's {len(blocks)} blocks, one a stage but in the ends: change the file")


def _notes(
    options: argparse.Namespace, dialect: Dialect, reading: Reading, found: Configuration, blocks: int
) -> tuple[str, ...]:
    said = reading.configuration
    taken: Mapping[str, tuple[int | None, int | None]] = {
        "global_batch": (said.global_batch, options.global_batch), "seq": (said.seq, options.seq),
    }  # fmt: skip
    notes = [
        f"{dialect.key_of(field)} is {own:,} in the file, --{field.replace('_', '-')} {given:,} is taken"
        for field, (own, given) in taken.items() if own and given and own != given
    ]  # fmt: skip
    if found.devices and said.devices and said.devices != found.devices:
        words = f"{dialect.key_of('devices')} makes {said.devices:,} devices"
        notes.append(f"{words} in the file, {found.devices:,} of the cluster are taken")
    if said.layers and said.layers != blocks:
        notes.append(f"{dialect.key_of('layers')} is {said.layers}, the model has {blocks} blocks, which are taken")
    if options.model and reading.sizes:
        notes.append(f"not taken, since --model has sizes of its own: {', '.join(reading.sizes)}")
    elif not options.model:
        notes += [
            f"{dialect.key_of(key)} is {getattr(said, key)} in the file, --set {key}={given} is taken"
            for key, given in settings_of(options).items()
            if key in SIZES and getattr(said, key) not in (None, given)
        ]
    searched = [field for field in ("micro_batch", "recompute") if field not in found.said]
    if searched:
        words = " and ".join(field.replace("_", "-") for field in searched)
        notes.append(f"the {dialect.name} file does not say {words}: what is best was taken")
    return (*reading.notes, *notes)
