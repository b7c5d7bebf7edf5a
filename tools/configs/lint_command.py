"""``partitioner lint``: what can't work, or won't fit, in a framework's configuration or a plan, one line each."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace

from partitioner import Cluster, Plan
from partitioner.errors import DoesNotFit, InputError
from tools.configs.checks import findings, misspelled
from tools.configs.file_model import PLAIN_MODEL, NotToldError, model_of, with_options
from tools.configs.from_command import field_words
from tools.configs.make_plan import as_large, check_mesh, checked, cluster_of, plan_for
from tools.configs.of_plan import configuration_of
from tools.dialects.configuration import Configuration, Reading
from tools.dialects.dialect import Dialect
from tools.dialects.documents import text_of
from tools.dialects.known import DIALECTS, recognised
from tools.screen import output, size, status

Lines = tuple[list[str], list[str]]


def lint_command(options: argparse.Namespace) -> int:
    """Exit status 1 where something is found."""
    text = text_of(options.file)
    is_plan = options.framework is None and text.lstrip().startswith("{") and '"decisions"' in text
    _looked_at(options, is_plan)
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


def _looked_at(options: argparse.Namespace, is_plan: bool) -> None:
    """Raises InputError for options that nothing here would look at."""
    checked(options)
    given = [name for name in ("nodes", "devices", "model", "set") if getattr(options, name)]
    if is_plan:
        idle = [name for name in ("model", "set", "global_batch", "seq") if getattr(options, name)]
        words = "says nothing of a plan, which holds its own: leave it out"
    else:
        idle = [] if options.cluster else given
        words = "is of a step on a cluster: give --cluster too"
    if idle:
        raise InputError(f"--{idle[0].replace('_', '-')} {words}")


def _of_file(options: argparse.Namespace, dialect: Dialect, reading: Reading) -> Lines:
    cluster = cluster_of(options, dialect.software) if options.cluster else None
    said = with_options(reading.configuration, options)
    try:
        asked = dialect.settle(said, said.layers)
        cluster = as_large(cluster, options, asked) if cluster else None
    except InputError as error:
        return [str(error)], []
    asked = replace(asked, devices=cluster.devices if cluster else asked.devices).resolved()
    found = [*misspelled(reading, dialect), *findings(asked, dialect.key_of, cluster)]
    if cluster is not None and not found:
        found = [*_not_done(asked, dialect, cluster)]
    notes = [*reading.notes, *reading.refused]
    if reading.unknown:
        notes.append(f"not known: {', '.join(reading.unknown)}")
    if cluster is not None and not found:
        more, said_of = _priced(options, dialect, reading, asked, cluster)
        found, notes = [*found, *more], [*notes, *said_of]
    elif cluster is None:
        notes.append("memory and devices were not looked at: give --cluster" if asked.devices is None
                     else "memory was not looked at: give --cluster")  # fmt: skip
    return found, notes


def _not_done(asked: Configuration, dialect: Dialect, cluster: Cluster) -> Iterator[str]:
    try:
        check_mesh(asked, cluster, dialect)
    except InputError as error:
        yield str(error)


def _priced(
    options: argparse.Namespace, dialect: Dialect, reading: Reading, asked: Configuration, cluster: Cluster
) -> Lines:
    """Whether it fits, where its model is known; raises InputError for what the options say of that."""
    model = None
    with status(f"loading {options.model or PLAIN_MODEL}") as say:
        try:
            model = model_of(options, reading, asked, cluster, say)
            plan_for(options, dialect, reading, cluster, model, say)
        except DoesNotFit as error:
            return [str(error).replace("no plan fits: the tightest", "it does not fit in memory: the step", 1)], []
        except NotToldError as error:
            return [], [f"memory was not looked at: {error}"]
        except InputError as error:
            if model is None and (options.model or options.set):
                raise
            return [str(error)], []
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
