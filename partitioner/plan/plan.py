"""The Plan noun: decisions that a person can read and edit, and a derived section stamped with their digest.

asked       the model's entry and digest, the cluster, the global batch, the pins
found       the price of the step and of each stage; stale when its digests are not those of the decisions
decisions   mesh, micro-batch, schedule, stages, recompute, parameter and boundary layouts by module-name pattern
derived     the folded blocks op by op, every parameter's layout, the candidates
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from partitioner.cluster import Cluster
from partitioner.errors import InputError
from partitioner.gc_pause import uncollected
from partitioner.plan.derived_rows import BlockRow, Candidate, Cost
from partitioner.plan.json_document import read, write

VERSION = 6
AXES = ("pp", "dp", "tp")  # and "cp" in plans that are not executed
_MOST_BYTES = 16_000_000


@dataclass(frozen=True)
class Decisions:
    """What was decided. ``stages``: names of each stage's units. Layouts are W, R, P or [dim, segments].

    ``recomputed``: how many blocks of each stage, from its first, are recomputed as ``recompute`` says ("none", "full",
    or "selective": attention's scores). ``zero``: ZeRO's stage. ``plan_only`` names what the runtime can't execute yet.
    """

    mesh: dict[str, int]
    order: tuple[str, ...]
    micro_batch: int
    micro_batches: int
    schedule: str
    virtual: int
    stages: tuple[tuple[str, ...], ...]
    recompute: str
    recomputed: tuple[int, ...]
    parameters: dict[str, Any]
    boundaries: dict[str, tuple[Any, ...]]
    zero: int = 0
    plan_only: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
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
    def world(self) -> int:
        """Ranks that the plan needs."""
        return math.prod(self.decisions.mesh.values())

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
            Path(path).write_text(self.to_json())
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error}") from error

    def to_json(self) -> str:
        """The document, the same text for the same plan."""
        return write(asdict(_document(self)))

    @staticmethod
    @uncollected()
    def load(path: Path | str) -> Plan:
        """Read a plan file; raises InputError naming the field that is wrong. Nothing is imported or executed."""
        try:
            if Path(path).stat().st_size > _MOST_BYTES:
                raise InputError(f"{path} has more than {_MOST_BYTES} bytes: it is no plan")
            data = json.loads(Path(path).read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read: {error}") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not a whole JSON document ({error}): make the plan again") from error
        return _plan(data, str(path))


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
    return Document(
        VERSION, Asked(plan.model, plan.cluster, plan.global_batch, plan.pins),
        Found(dict(plan.digests), plan.cost, plan.searched, plan.notes), plan.decisions,
        Derived(plan.parameters, plan.reads, plan.blocks, plan.candidates, plan.front),
    )  # fmt: skip


def _digests(plan: Plan) -> dict[str, str]:
    """A short hash of each thing that the price hangs on."""
    asked = {"cluster": plan.cluster, "global_batch": plan.global_batch}
    return {name: digest_of(value) for name, value in (asdict(plan.decisions) | asked).items()}


def digest_of(data: object) -> str:
    """16 hexadecimal digits of the SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def _plan(data: Any, origin: str) -> Plan:
    version = data.get("version", VERSION) if isinstance(data, dict) else VERSION
    if version != VERSION:
        raise InputError(f"{origin}: version {str(version)[:60]} is not known here, this program reads {VERSION}")
    document = read(Document, data, origin)
    asked, found, derived = document.asked, document.found, document.derived
    _check(document.decisions, origin)
    _check_asked(asked, origin)
    return Plan(
        asked.model, asked.cluster, asked.global_batch, asked.pins, document.decisions, derived.blocks,
        derived.parameters, derived.reads, found.cost, found.searched, found.notes, derived.candidates, derived.front,
        found.digests,
    )  # fmt: skip


def _check_asked(asked: Asked, origin: str) -> None:
    words, counts = ("digest", "dtype", "product_dtype"), ("blocks", "tokens", "parameters")
    for key, kind in (*((word, str) for word in words), *((count, int) for count in counts)):
        value = asked.model.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise InputError(f"{origin}: the field asked.model.{key} has a wrong value {str(value)[:60]!r}")
    Cluster.from_dict(asked.cluster)


def _check(decisions: Decisions, origin: str) -> None:
    mesh, counts = decisions.mesh, decisions.recomputed
    axes = sorted({*AXES, *({"cp"} & set(mesh))})
    if sorted(mesh) != axes or min(mesh.values()) < 1:
        raise InputError(f"{origin}: decisions.mesh must give a positive size to each of {', '.join(AXES)}")
    if sorted(decisions.order) != axes:
        raise InputError(f"{origin}: decisions.order must hold each of {', '.join(axes)} once")
    if len(counts) != len(decisions.stages) or min(counts, default=0) < 0:
        raise InputError(f"{origin}: decisions.recomputed must give a number of blocks for each of the stages")
