"""What a file of another framework asks for, as a plan: every decision that it makes pinned, the rest searched."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace

from partitioner import Cluster, Graph, Plan, search
from partitioner.errors import InputError
from partitioner.plan.recompute_ways import NO_RECOMPUTE
from partitioner.precision import PRESETS, Precision
from partitioner.sharding.mesh_axes import AXES, DP, TP
from partitioner.software import Software
from partitioner.solve.choices import NoLayout
from tools.configs.divided_weights import divided_weights
from tools.dialects.configuration import DEGREES, SIZES, Configuration, Reading
from tools.dialects.dialect import Dialect
from tools.models import precision_option
from tools.models.entry_point import parse_settings
from tools.models.load import Source, load
from tools.models.traced import traced, with_values
from tools.screen import status

PLAIN_MODEL = "plain:decoder"
_UNDIVIDED = ("no layout divides all weights over tensor parallel ranks: which are was searched",)
_HALVED = ("keys have fewer heads than there are tensor parallel ranks: their weights are divided too",)
Pins = dict[str, str | int]


@dataclass(frozen=True)
class Asked:
    """A file's Configuration, complete, and the ``notes`` of what is otherwise in its plan."""

    plan: Plan
    configuration: Configuration
    notes: tuple[str, ...]


def cluster_of(options: argparse.Namespace, found: Configuration, software: str) -> Cluster:
    """The cluster that the options name, as large as they or the file say; raises InputError."""
    if options.cluster is None:
        raise InputError("--cluster is missing: give it, as in --cluster dgx-h100 (partitioner clusters lists them)")
    for name in ("nodes", "devices", "global_batch", "seq"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be positive")
    cluster = Cluster.load(options.cluster, options.nodes or 1, options.devices, software)
    if options.nodes is None and options.devices is None and found.devices:
        return cluster.of_ranks(found.devices)
    return cluster


def expected(found: Configuration, cluster: Cluster, dialect: Dialect) -> Configuration:
    """On the devices of a cluster; raises InputError where the file's mesh is of another number, or what the framework
    is not known to do."""
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
    return replace(found, devices=devices)


def plan_for(
    options: argparse.Namespace, dialect: Dialect, reading: Reading, cluster: Cluster, name: str
) -> Asked:
    """The plan of a file's decisions; raises InputError for what no plan can be told, DoesNotFit."""
    refused = [*reading.refused, *([] if options.model else reading.unmodelled)]
    if refused:
        more = f" (and {len(refused) - 1} more: partitioner lint lists them)" if len(refused) > 1 else ""
        raise InputError(f"{name}: {refused[0]}{more}")
    asked = dialect.settle(reading.configuration, reading.configuration.layers)
    with status(f"loading {options.model or PLAIN_MODEL}") as say:
        source = _model(options, asked)
        precision = precision_of(asked, cluster)
        graph = traced(source, say, precision=precision)
        blocks = len(graph.blocks)
        settled = replace(dialect.settle(reading.configuration, blocks), devices=cluster.devices)
        found = replace(settled, global_batch=options.global_batch or settled.global_batch).resolved()
        if found.global_batch is None:
            words = f"{dialect.key_of('global_batch')} is not in the file"
            raise InputError(f"{name}: {words}: give --global-batch")
        pins, model = pins_of(found, graph), {"entry": source.spec, "settings": source.settings, "seq": source.seq}
        cluster = replace(cluster, software=replace(cluster.software, **found.traits))
        weights = divided_weights(graph) if found.degrees[TP] > 1 else {}
        try:
            plan = search(graph, cluster, found.global_batch, pins | weights, model, say)
            said = _HALVED if weights and plan.parallelism.refined else ()
        except NoLayout:
            plan, said = search(graph, cluster, found.global_batch, pins, model, say), _UNDIVIDED
    own = reading.unmodelled if options.model else ()
    notes = (*said, *_notes(options, dialect, reading, found, blocks), *own)
    return Asked(replace(plan, notes=(*plan.notes, *notes)), found, notes)


def _model(options: argparse.Namespace, found: Configuration) -> Source:
    settings = parse_settings(word for words in options.set for word in words)
    seq = options.seq or found.seq
    if options.model:
        return with_values(load(options.model, settings, seq=seq, meta=True))
    return with_values(load(PLAIN_MODEL, decoder_settings(found, settings), seq=seq, meta=True))


def decoder_settings(found: Configuration, given: Mapping[str, object]) -> dict[str, object]:
    """The plain decoder of a file's sizes, and those ``given`` beside; raises InputError where it has no such."""
    if (found.experts or 1) > 1:
        raise InputError(f"the file's model has {found.experts} experts, and the plain decoder none: give --model")
    sizes = {key: value for key, value in found.said.items() if key in SIZES and key not in ("experts", "head_width")}
    made = sizes | dict(given)
    if not {"layers", "hidden", "heads"} <= set(made):
        raise InputError("the file does not hold the sizes of the model: give --model")
    if found.hidden and found.heads and found.head_width not in (None, found.hidden // found.heads):
        words = f"heads of {found.head_width} are not those of {found.hidden} over {found.heads}"
        raise InputError(f"{words}, which the plain decoder has: give --model")
    if "vocab" not in made:
        raise InputError("the file does not say how large the vocabulary is: give --set vocab=N, or --model")
    return made


def precision_of(found: Configuration, cluster: Cluster) -> Precision:
    """That of the file, or what is usual on the cluster."""
    if found.precision is None:
        return precision_option.usual(cluster).of_framework(cluster.software.gradients)
    preset = PRESETS[found.precision]
    return preset.of_framework(cluster.software.gradients if found.gradients is None else found.gradients)


def pins_of(found: Configuration, graph: Graph) -> Pins:
    """Every decision that a Configuration makes."""
    pins: Pins = dict(found.degrees)
    if found.data:
        pins[DP] = found.data
    for name in ("micro_batch", "schedule", "virtual", "recomputed"):
        if (value := getattr(found, name)) is not None:
            pins[name] = value
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
    if sum(stages) != len(blocks) or min(stages) < 1:
        words = f"stages of {', '.join(map(str, stages))} layers"
        raise InputError(f"{words} are not the model's {len(blocks)} blocks, one a stage at least: change the file")
    ends, done = list[int](), 0
    for n in stages[:-1]:
        done += n
        ends.append(blocks[done])
    return [b - a for a, b in zip([0, *ends], [*ends, len(graph.units)], strict=True)]


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
    searched = [field for field in ("micro_batch", "recompute") if field not in found.said]
    if searched:
        words = " and ".join(field.replace("_", "-") for field in searched)
        notes.append(f"the {dialect.name} file does not say {words}: what is best was taken")
    return (*reading.notes, *notes)
