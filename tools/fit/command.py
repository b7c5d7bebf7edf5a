"""``partitioner fit``: traces once, tries numbers of devices, shows the least that fits or what is missing."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from partitioner import Cluster
from partitioner.errors import DoesNotFit, InputError
from partitioner.searching.assumed import assumed
from partitioner.searching.pins import read_pins as check_pins
from partitioner.software import OWN
from tools.figures import figures
from tools.fit import screen
from tools.fit.document import document
from tools.fit.least_devices import least
from tools.fit.mends import mends
from tools.fit.trials import Asked, Trial
from tools.models.traced import asked_graph
from tools.plan.edits_as_pins import read_pins
from tools.screen import output, percent, size, status


def fit_command(options: argparse.Namespace) -> int:
    """Exit status 0 where a plan fits; raises DoesNotFit, all that was found shown, where none does."""
    _check(options)
    cluster = Cluster.load(options.cluster, software=options.framework or OWN)
    devices = options.nodes * cluster.node_devices if options.nodes else options.devices
    cluster.of_ranks(devices or 1)
    with status(f"loading {options.model}") as say:
        graph, model = asked_graph(options, cluster, say)
        asked = Asked(
            graph=graph, cluster=cluster, global_batch=options.global_batch, pins=read_pins(options.pin), model=model,
            free=options.free, plan_only=options.plan_only, say=say,
        )  # fmt: skip
        check_pins(asked.pins, graph)
        shown, trials, told = _on(asked, devices) if devices else _least(asked, options.up_to or 0)
    if options.output and shown.comfortable:
        shown.comfortable.save(options.output)
    if options.json:
        options.document(document(asked, trials, shown, told))
    else:
        _show(asked, trials, shown, told, options.output)
    if not shown.fits:
        raise DoesNotFit(_missed(shown, told))
    return 0


def _check(options: argparse.Namespace) -> None:
    counts = (options.devices, options.nodes, options.global_batch, options.up_to)
    if any(count is not None and count < 1 for count in counts):
        raise InputError("--devices, --nodes, --global-batch and --up-to must be positive")
    if options.devices and options.nodes:
        raise InputError("--devices and --nodes say the same thing: drop one")
    if options.up_to and (options.devices or options.nodes):
        raise InputError("--up-to goes on from the least number of devices: drop --devices and --nodes")
    if not 0 <= options.free < 1:
        raise InputError(f"--free {options.free:g}: give a share of the memory, 0 or more and less than 1")


Found = tuple[Trial, list[Trial], list[str]]  # the one to show, all that were tried, what would make it fit


def _on(asked: Asked, devices: int) -> Found:
    """Exactly so many; where they are too few, also the least of more."""
    own = asked.on(devices, whole=True)
    if own.reason:
        raise InputError(own.reason)
    more = [] if own.fits else least(asked.on, asked.cluster.node_devices, above=devices)
    return own, [own, *more], [] if own.fits else list(mends(asked, own, more))


def _least(asked: Asked, up_to: int) -> Found:
    trials = least(asked.on, asked.cluster.node_devices, up_to=up_to)
    first = next((row for row in trials if row.fits), None)
    if first is not None:
        return first, trials, []
    missed, last = [row for row in trials if row.tightest], trials[-1]
    shown = missed[-1] if missed else last if last.reason else asked.on(last.devices, whole=True)
    if shown.reason:
        if {row.reason for row in trials if row.reason} == {shown.reason}:
            raise InputError(shown.reason)
        raise InputError(f"on no number of devices up to {last.devices:,} is there a plan: {shown.reason}")
    return shown, trials, list(mends(asked, shown, trials))


def _show(asked: Asked, trials: Sequence[Trial], shown: Trial, told: Sequence[str], written: str | None) -> None:
    console, unit = output(), figures.unit(assumed(asked.graph))
    for line in screen.taken(asked):
        console.print(line, markup=False)
    console.print()
    console.print(screen.tried(trials, unit))
    console.print(screen.plans(shown))
    console.print(_answer(trials, shown), markup=False)
    for line in told:
        console.print(line, markup=False)
    if shown.is_full:
        console.print(_full(asked, trials))
    if written:
        words = f"the second plan is written to {written}" if shown.fits else f"nothing is written to {written}"
        console.print(words, markup=False)


def _answer(trials: Sequence[Trial], shown: Trial) -> str:
    if not shown.fits:
        return f"does not fit on {screen.devices(shown)}: {size(shown.missing_bytes)} are missing on each"
    fewer = [row for row in trials if row.devices < shown.devices]
    if not fewer:
        return f"fits on {screen.devices(shown)}"
    below = screen.verdict(fewer[-1]).replace("misses ", "a device misses ")
    return f"fits on {screen.devices(shown)} at least; on {fewer[-1].devices:,} {below}"


def _full(asked: Asked, trials: Sequence[Trial]) -> str:
    roomy = next((row.devices for row in trials if row.fits and not row.is_full), None)
    words = f"; of those tried {roomy:,} devices do" if roomy else ""
    return f"the tightest does not leave {percent(asked.free)} free, so that the other is the fastest that fits{words}"


def _missed(shown: Trial, told: Sequence[str]) -> str:
    """One line."""
    assert shown.tightest is not None
    held = figures.rank_memory(shown.tightest)[figures.worst_rank(shown.tightest)]
    words = ", ".join(f"{screen.KINDS[kind]} {size(many)}" for kind, many in held.items())
    mesh, mend = figures.mesh_words(shown.tightest.parallelism, ", "), "".join(f"; {line}" for line in told)
    return (
        f"no plan fits on {screen.devices(shown)}: the tightest ({mesh}) misses {shown.missing_bytes:,.0f} bytes a "
        f"device; it holds {words}{mend}"
    )
