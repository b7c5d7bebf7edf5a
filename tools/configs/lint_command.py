"""``partitioner lint``: what can't work, or won't fit, in a framework's configuration or a plan, one line each."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace

from partitioner import Cluster, Plan
from partitioner.errors import DoesNotFit, InputError
from tools.configs.checks import findings, misspelled
from tools.configs.from_command import field_words
from tools.configs.make_plan import cluster_of, expected, plan_for
from tools.configs.of_plan import configuration_of
from tools.dialects.configuration import Reading
from tools.dialects.dialect import Dialect
from tools.dialects.documents import text_of
from tools.dialects.known import DIALECTS, recognised
from tools.screen import output, size

Lines = tuple[list[str], list[str]]


def lint_command(options: argparse.Namespace) -> int:
    """Exit status 1 where something is found."""
    text = text_of(options.file)
    is_plan = options.framework is None and text.lstrip().startswith("{") and '"decisions"' in text
    if is_plan:
        what, (found, notes) = "plan", _of_plan(options, text)
    else:
        dialect = DIALECTS[options.framework] if options.framework else recognised(text, options.file)
        what, (found, notes) = dialect.name, _of_file(options, dialect, dialect.read(text, options.file))
    if options.json:
        listed = {"file": options.file, "kind": what, "found": found, "notes": notes}
        options.document(json.dumps(listed, indent=1) + "\n")
        return int(bool(found))
    console = output()
    for line in found:
        console.print(f"{options.file}: {line}", markup=False, soft_wrap=True)
    for line in notes:
        console.print(f"note: {line}", markup=False, soft_wrap=True)
    words = f"{len(found)} found" if found else "nothing found"
    console.print(f"read as {what}: {words}", markup=False, soft_wrap=True)
    return int(bool(found))


def _of_file(options: argparse.Namespace, dialect: Dialect, reading: Reading) -> Lines:
    said = reading.configuration
    try:
        asked = dialect.settle(said, said.layers)
    except InputError as error:
        return [str(error)], []
    cluster = cluster_of(options, asked, dialect.software) if options.cluster else None
    devices = cluster.devices if cluster else asked.devices
    batch, seq = options.global_batch or asked.global_batch, options.seq or asked.seq
    asked = replace(asked, seq=seq, global_batch=batch, devices=devices).resolved()
    if cluster is None and options.nodes is not None:
        raise InputError("--nodes is of a cluster: give --cluster too")
    found = [*misspelled(reading, dialect), *findings(asked, dialect.key_of, cluster)]
    notes = [*reading.notes, *reading.refused]
    if reading.unknown:
        notes.append(f"not known: {', '.join(reading.unknown)}")
    if cluster is not None and not found:
        more, said_of = _priced(options, dialect, reading, cluster)
        found, notes = [*found, *more], [*notes, *said_of]
    elif cluster is None:
        notes.append("memory and devices were not looked at: give --cluster" if asked.devices is None
                     else "memory was not looked at: give --cluster")  # fmt: skip
    return found, notes


def _priced(options: argparse.Namespace, dialect: Dialect, reading: Reading, cluster: Cluster) -> Lines:
    """Whether it fits, where its model is known."""
    try:
        expected(dialect.settle(reading.configuration, reading.configuration.layers), cluster, dialect)
        plan_for(options, dialect, reading, cluster, options.file)
    except DoesNotFit as error:
        return [str(error).replace("no plan fits: the tightest", "it does not fit in memory: the step", 1)], []
    except InputError as error:
        return [], [f"memory was not looked at: {str(error).removeprefix(f'{options.file}: ')}"]
    return [], []


def _of_plan(options: argparse.Namespace, text: str) -> Lines:
    plan = Plan.from_json(text, options.file)
    cluster = plan.machine
    if options.cluster or options.nodes or options.devices:
        name = options.cluster or plan.cluster["name"]
        cluster = Cluster.load(name, options.nodes or 1, options.devices, plan.machine.software.name)
    found = [*_stale(plan), *findings(replace(configuration_of(plan), layers=None, devices=None), field_words, cluster)]
    room, peak = cluster.device.room, plan.cost.peak_bytes
    if peak > room:
        found.append(f"it needs {size(peak)} of a device, and {size(room)} are free: plan again for {cluster.name}")
    return found, [f"can't be executed yet: {', '.join(plan.decisions.plan_only)}"] if plan.decisions.plan_only else []


def _stale(plan: Plan) -> Iterator[str]:
    if plan.stale:
        yield f"{', '.join(plan.edited)} was edited after the plan was priced: partitioner plan --edit prices it again"
