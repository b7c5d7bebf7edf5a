"""The Plan noun: decisions that a person can read and edit, and a derived section stamped with their digest.

asked       the model's entry and digest, the cluster, the global batch, the pins
found       the price of the step and of each stage; stale when its digests are not those of the decisions
decisions   mesh, micro-batch, schedule, stages, recompute, parameter and boundary layouts by module-name pattern
derived     the folded blocks op by op, every parameter's layout, the candidates
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from partitioner.cluster import Cluster
from partitioner.errors import InputError
from partitioner.gc_pause import uncollected
from partitioner.plan.derived_rows import BlockRow, Candidate, Cost
from partitioner.plan.digests import digest_of
from partitioner.plan.json_document import Among, plain, read, write
from partitioner.plan.migrate import VERSION, migrated
from partitioner.plan.parallelism import Parallelism, mesh_error, refined_error
from partitioner.precision import OWN, REAL, Precision
from partitioner.sharding.mesh_axes import DP
from partitioner.whole_files import write_whole

_MOST_BYTES = 16_000_000


_DECISIONS = """
    mesh order refined micro_batch micro_batches schedule virtual stages recompute recomputed parameters boundaries zero
    zero_group precision plan_only seed
"""


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """What was decided. ``stages``: names of each stage's units. Layouts are lists of placements, W, R, P or
    [dim, segments], one for each axis along which ops lie, outermost first.

    ``recomputed``: how many blocks of each stage, from its first, are recomputed as ``recompute`` says ("none", "full",
    or "selective": attention's scores). ``zero``: ZeRO's stage. ``precision``: in which types. ``plan_only`` names what
    the runtime can't execute yet.
    """

    parallelism: Annotated[Parallelism, Among(_DECISIONS)]
    stages: tuple[tuple[str, ...], ...]
    recomputed: tuple[int, ...]
    parameters: dict[str, Any]
    boundaries: dict[str, tuple[Any, ...]]
    precision: Precision = OWN
    plan_only: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that show, compare, diff, lower and run need; ``model`` tells the entry point and the graph's digest.

    ``searched`` counts candidates: all of them, those that need more memory than a device has, those whose Action
    table was walked, and the rest, which a bound on their time excluded. ``candidates`` are the best that fit;
    ``front`` holds those that no other beats in both time and memory, least memory first.
    """

    model: dict[str, Any]
    cluster: dict[str, Any]
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
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{origin} is not a whole JSON document ({error}): make the plan again") from error
        return _plan(data, origin)

    @staticmethod
    def load(path: Path | str) -> Plan:
        """Read a plan file; raises InputError naming the field that is wrong. Nothing is imported or executed."""
        try:
            if Path(path).stat().st_size > _MOST_BYTES:
                raise InputError(f"{path} has more than {_MOST_BYTES} bytes: it is no plan")
            text = Path(path).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read: {error}") from error
        return Plan.from_json(text, str(path))


@dataclass(frozen=True)
class Asked:
    """What was asked for: the model's entry point, settings and digest, the cluster, samples a step, the pins."""

    model: dict[str, Any]
    cluster: dict[str, Any]
    global_batch: int
    pins: dict[str, str]


@dataclass(frozen=True)
class Found:
    """The price, how many candidates there were, and what a reader must know. ``digests``: of each decision priced."""

    digests: dict[str, str]
    cost: Cost
    searched: dict[str, int]
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
        version=VERSION, asked=Asked(plan.model, plan.cluster, plan.global_batch, plan.pins),
        found=Found(dict(plan.digests), plan.cost, plan.searched, plan.notes), decisions=plan.decisions,
        derived=derived,
    )  # fmt: skip


def _digests(plan: Plan) -> dict[str, str]:
    """A short hash of each thing that the price hangs on."""
    asked = {"cluster": plan.cluster, "global_batch": plan.global_batch}
    return {name: digest_of(value) for name, value in (plain(plan.decisions) | asked).items()}


def _plan(data: Any, origin: str) -> Plan:
    if isinstance(data, dict):
        data = migrated(data, origin, data.get("version", VERSION))
    document = read(Document, data, origin)
    asked, found, derived = document.asked, document.found, document.derived
    _check(document.decisions, origin)
    _check_asked(asked, origin)
    return Plan(
        model=asked.model, cluster=asked.cluster, global_batch=asked.global_batch, pins=asked.pins,
        decisions=document.decisions, blocks=derived.blocks, parameters=derived.parameters, reads=derived.reads,
        cost=found.cost, searched=found.searched, notes=found.notes,
        candidates=_counted(derived.candidates, asked.global_batch, f"{origin}: derived.candidates"),
        front=_counted(derived.front, asked.global_batch, f"{origin}: derived.front"), digests=found.digests,
    )  # fmt: skip


def _counted(rows: tuple[Candidate, ...], global_batch: int, place: str) -> tuple[Candidate, ...]:
    """Candidates with the micro-batches of a step, which a file does not repeat in each."""
    found = list[Candidate]()
    for n, row in enumerate(rows):
        own = row.parallelism
        wrong = mesh_error(own.mesh, own.order) or refined_error(own.mesh, own.refined)
        if wrong or own.micro_batch < 1:
            raise InputError(f"{place}[{n}].{wrong or 'micro_batch must be positive'}")
        many = global_batch // (own.mesh[DP] * own.micro_batch)
        found.append(replace(row, parallelism=replace(own, micro_batches=many)))
    return tuple(found)


def _check_asked(asked: Asked, origin: str) -> None:
    words, counts = ("digest", "dtype", "product_dtype"), ("blocks", "tokens", "parameters")
    for key, kind in (*((word, str) for word in words), *((count, int) for count in counts)):
        value = asked.model.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise InputError(f"{origin}: the field asked.model.{key} has a wrong value {str(value)[:60]!r}")
    Cluster.from_dict(asked.cluster)


def _check(decisions: Decisions, origin: str) -> None:
    parallelism, counts = decisions.parallelism, decisions.recomputed
    mesh, order, refined = parallelism.mesh, parallelism.order, parallelism.refined
    if wrong := mesh_error(mesh, order) or refined_error(mesh, refined):
        raise InputError(f"{origin}: decisions.{wrong}")
    group = parallelism.zero_group
    if group < 0 or parallelism.replicas % (group or 1):
        raise InputError(f"{origin}: decisions.zero_group must divide the {parallelism.replicas} replicas, or be 0")
    for key in ("compute", "gradients", "state"):
        if getattr(decisions.precision, key) not in ("", *REAL):
            raise InputError(f"{origin}: decisions.precision.{key} must be one of {', '.join(REAL)}")
    if len(counts) != len(decisions.stages) or min(counts, default=0) < 0:
        raise InputError(f"{origin}: decisions.recomputed must give a number of blocks for each of the stages")
