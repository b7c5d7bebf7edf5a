"""The Plan noun: decisions that a person can read and edit, and a derived section stamped with their digest.

asked       the model's entry and digest, the cluster, the global batch, the pins
found       the price of the step and of each stage; stale when its digests are not those of the decisions
decisions   mesh, micro-batch, schedule, stages, recompute, parameter and boundary layouts by module-name pattern
derived     the folded blocks op by op, every parameter's layout, the candidates
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from partitioner.cluster import Cluster
from partitioner.errors import InputError
from partitioner.gc_pause import uncollected
from partitioner.plan.check import check_asked, check_cost, check_decisions, check_derived, check_memory, check_searched
from partitioner.plan.derived_rows import BlockRow, Candidate, Cost
from partitioner.plan.digests import digest_of
from partitioner.plan.json_document import Among, Count, Positive, parsed, parsed_text, plain, read, write
from partitioner.plan.migrate import VERSION, migrated
from partitioner.plan.parallelism import Parallelism, parallelism_error
from partitioner.precision import OWN, Precision
from partitioner.sharding.mesh_axes import DP
from partitioner.software import Software
from partitioner.whole_files import write_whole

_MEND = "make the plan again"
_DECISIONS = """
    mesh order refined micro_batch micro_batches schedule virtual stages recompute recomputed parameters boundaries zero
    zero_group precision plan_only seed
"""


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """What was decided. ``stages``: names of each stage's units. Layouts are lists of placements, W, R, P or
    [dim, segments], one for each axis along which ops lie, outermost first.

    ``recomputed``: how many blocks of each stage, from its first, are recomputed as ``recompute`` says
    (plan/recompute_ways.py). ``zero``: ZeRO's stage. ``precision``: in which types. ``plan_only`` names what
    the runtime can't execute yet.
    """

    parallelism: Annotated[Parallelism, Among(_DECISIONS)]
    stages: tuple[tuple[str, ...], ...]
    recomputed: tuple[int, ...]
    parameters: dict[str, Any]
    boundaries: dict[str, tuple[Any, ...]]
    precision: Precision = OWN
    plan_only: tuple[str, ...] = ()
    seed: Count = 0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that show, compare, diff, lower and run need; ``model`` tells the entry point and the graph's digest.

    ``searched`` counts candidates: all of them, those that need more memory than a device has, those whose Action
    table was walked, and the rest, which a bound on their time excluded. ``candidates`` are the best that fit;
    ``front`` holds those that no other beats in both time and memory, least memory first.
    """

    model: dict[str, Any]
    cluster: dict[str, Any]
    software: dict[str, Any]
    global_batch: int
    pins: dict[str, str]
    decisions: Decisions
    blocks: tuple[BlockRow, ...]
    parameters: dict[str, Any]
    reads: dict[str, tuple[tuple[str, str], ...]]
    cost: Cost
    searched: dict[str, int]
    notes: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = field(default=())
    front: tuple[Candidate, ...] = field(default=())
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def machine(self) -> Cluster:
        """The cluster, with the software that is to run on it."""
        return self.asked.machine

    @property
    def asked(self) -> Asked:
        """What it was made for."""
        return Asked(self.model, self.cluster, self.software, self.global_batch, self.pins)

    @property
    def parallelism(self) -> Parallelism:
        """How its step is divided."""
        return self.decisions.parallelism

    @property
    def world(self) -> int:
        """Ranks that the plan needs."""
        return self.parallelism.world

    @property
    def stale(self) -> bool:
        """Whether the decisions were edited after the rest was derived from them."""
        return bool(self.edited)

    @property
    def edited(self) -> list[str]:
        """What was asked or decided otherwise than what was priced."""
        return [name for name, digest in _digests(self).items() if self.digests.get(name) != digest]

    def stamped(self) -> Plan:
        """The same, said to be what was priced."""
        return replace(self, digests=_digests(self))

    def save(self, path: Path | str) -> None:
        """Write JSON; raises InputError when the path can't be written."""
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}") from error
        write_whole(path, self.to_json())

    def to_json(self) -> str:
        """The document, the same text for the same plan."""
        return write(plain(_document(self)))

    @staticmethod
    @uncollected()
    def from_json(text: str, origin: str = "the plan") -> Plan:
        """A document as ``to_json`` writes it; raises InputError naming the field that is wrong."""
        return _plan(parsed_text(text, origin, _MEND), origin)

    @staticmethod
    def load(path: Path | str) -> Plan:
        """Read a plan file; raises InputError naming the field that is wrong. Nothing is imported or executed."""
        return _plan(parsed(path, f"plan: {_MEND}"), str(path))


@dataclass(frozen=True)
class Asked:
    """What was asked for: the model's entry point, settings and digest, the cluster, the software that is to run on it,
    samples a step, the pins."""

    model: dict[str, Any]
    cluster: dict[str, Any]
    software: dict[str, Any]
    global_batch: Positive
    pins: dict[str, str]

    @property
    def machine(self) -> Cluster:
        """The cluster, with the software that is to run on it."""
        return Cluster.from_dict(self.cluster, software=Software.from_dict(self.software))


@dataclass(frozen=True)
class Found:
    """The price, how many candidates there were, and what a reader must know. ``digests``: of each decision priced."""

    digests: dict[str, str]
    cost: Cost
    searched: dict[str, Count]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Derived:
    """All that follows from the decisions: each parameter's layout, blocks op by op; the candidates beside them.

    ``reads``: of each unit, for each port of its block the unit and the value in its block that enter there.
    """

    parameters: dict[str, Any]
    reads: dict[str, tuple[tuple[str, str], ...]]
    blocks: tuple[BlockRow, ...]
    candidates: tuple[Candidate, ...]
    front: tuple[Candidate, ...]


@dataclass(frozen=True)
class Document:
    """A plan file. Edit asked and decisions; found and derived follow from them and say stale until planned again."""

    version: int
    asked: Asked
    found: Found
    decisions: Decisions
    derived: Derived


def _document(plan: Plan) -> Document:
    derived = Derived(
        parameters=plan.parameters, reads=plan.reads, blocks=plan.blocks, candidates=plan.candidates, front=plan.front
    )
    return Document(
        version=VERSION, asked=plan.asked,
        found=Found(dict(plan.digests), plan.cost, plan.searched, plan.notes), decisions=plan.decisions,
        derived=derived,
    )  # fmt: skip


def _digests(plan: Plan) -> dict[str, str]:
    """A short hash of each thing that the price hangs on."""
    asked = {"cluster": plan.cluster, "software": plan.software, "global_batch": plan.global_batch}
    return {name: digest_of(value) for name, value in (plain(plan.decisions) | asked).items()}


def _plan(data: Any, origin: str) -> Plan:
    if isinstance(data, dict):
        data = migrated(data, origin, data.get("version", VERSION))
    document = read(Document, data, origin)
    asked, found, derived = document.asked, document.found, document.derived
    check_decisions(document.decisions, f"{origin}: decisions")
    check_asked(asked, f"{origin}: asked")
    check_cost(found.cost, f"{origin}: found.cost")
    check_searched(found.searched, f"{origin}: found.searched")
    plan = Plan(
        model=asked.model, cluster=asked.cluster, software=asked.software, global_batch=asked.global_batch,
        pins=asked.pins,
        decisions=document.decisions, blocks=derived.blocks, parameters=derived.parameters, reads=derived.reads,
        cost=found.cost, searched=found.searched, notes=found.notes,
        candidates=_counted(derived.candidates, asked.global_batch, f"{origin}: derived.candidates"),
        front=_counted(derived.front, asked.global_batch, f"{origin}: derived.front"), digests=found.digests,
    )  # fmt: skip
    check_derived(derived, f"{origin}: derived", None if plan.stale else len(plan.parallelism.axes))
    check_memory(plan, f"{origin}: found.cost")
    return plan


def _counted(rows: tuple[Candidate, ...], global_batch: int, place: str) -> tuple[Candidate, ...]:
    """Candidates with the micro-batches of a step, which a file does not repeat in each."""
    found = list[Candidate]()
    for n, row in enumerate(rows):
        own = row.parallelism
        if wrong := parallelism_error(own):
            raise InputError(f"{place}[{n}].{wrong}")
        many = global_batch // (own.mesh[DP] * own.micro_batch)
        found.append(replace(row, parallelism=replace(own, micro_batches=many)))
    return tuple(found)
