"""Whether a model fits on so many devices, by the very search of ``plan``: its tightest plan and a comfortable one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from partitioner import Cluster, Graph, Plan, search
from partitioner.cost.state_bytes import least_state_bytes
from partitioner.errors import InputError
from partitioner.searching.pins import read_pins
from partitioner.searching.search import tightest

SAMPLES = 4  # a device: where every rank holds samples of its own it may add gradients up, as in larger batches


Given = tuple[
    Graph, Cluster, int, Mapping[str, str | int], Mapping[str, object], Callable[[str], None], bool
]  # of ``search`` and ``tightest``


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What was found of ``devices`` devices with ``room`` bytes for tensors each.

    ``tightest``: of the fewest bytes, whether they fit or not; None where there is no plan for a ``reason``, or where
    state alone, ``state_bytes`` a device if it is divided over all of them, is above the room. ``comfortable``: where
    it fits, the fastest plan that leaves the share free that was asked for or, where the tightest does not
    (``is_full``), that fits at all.
    """

    devices: int
    global_batch: int
    room: float
    state_bytes: float
    tightest: Plan | None = None
    comfortable: Plan | None = None
    is_full: bool = False
    reason: str = ""

    @property
    def fits(self) -> bool:
        """Whether some plan does."""
        return self.comfortable is not None

    @property
    def peak_bytes(self) -> float:
        """Of the tightest plan; where none was made, of state alone."""
        return self.tightest.cost.peak_bytes if self.tightest else self.state_bytes

    @property
    def missing_bytes(self) -> float:
        """A device, of the tightest plan; below 0 where it fits."""
        return self.peak_bytes - self.room


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One model on devices of one kind, however many. ``cluster``: a node of them. ``global_batch``: None for SAMPLES a
    device. ``free``: of the room, what the comfortable plan leaves."""

    graph: Graph
    cluster: Cluster
    global_batch: int | None
    pins: Mapping[str, str | int]
    model: Mapping[str, object]
    free: float
    plan_only: bool
    say: Callable[[str], None] = lambda text: None

    @cached_property
    def state_bytes(self) -> float:
        """That all devices hold together, at least."""
        return least_state_bytes(self.graph)

    @property
    def parameters(self) -> int:
        """Elements of all."""
        return sum(prod(row.shape) for row in self.graph.parameters.values())

    @property
    def samples(self) -> int:
        """A device, where nobody said a global batch: SAMPLES micro-batches."""
        return SAMPLES * (read_pins(self.pins, self.graph).number("micro_batch") or 1)

    def batch_on(self, devices: int) -> int:
        """The global batch: as asked, else ``samples`` a device, or the example's where samples can't be divided."""
        if self.global_batch is not None:
            return self.global_batch
        if self.graph.inseparable:
            return read_pins(self.pins, self.graph).number("micro_batch") or self.graph.batch
        return self.samples * devices

    def without(self, *names: str) -> Asked:
        """The same but for some pins; the global batch stays what it is with them."""
        return replace(self, pins={key: value for key, value in self.pins.items() if key not in names})

    def on(self, devices: int, whole: bool = False) -> Trial:
        """What fits on so many; with ``whole`` a plan is made even where state alone is too large. Raises InputError
        where they are no part of a node nor whole nodes."""
        cluster, batch = self.cluster.of_ranks(devices), self.batch_on(devices)
        found = Trial(
            devices=devices, global_batch=batch, room=cluster.device.room, state_bytes=self.state_bytes / devices
        )
        if found.state_bytes > found.room and not whole:
            return found

        def say(text: str) -> None:
            self.say(f"{devices:,} devices: {text}")

        def asked(of: Cluster) -> Given:
            return self.graph, of, batch, self.pins, self.model, say, self.plan_only

        try:
            found = replace(found, tightest=tightest(*asked(cluster)))
        except InputError as error:
            return replace(found, reason=str(error))
        if found.missing_bytes > 0:
            return found
        roomy = cluster.leaving(self.free)
        if found.peak_bytes > roomy.device.room:
            return replace(found, comfortable=search(*asked(cluster)), is_full=True)
        return replace(found, comfortable=replace(search(*asked(roomy)), cluster=cluster.as_dict()).stamped())
