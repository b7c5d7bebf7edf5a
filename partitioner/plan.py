"""The Plan noun: decisions that a person can read and edit, and a derived section stamped with their digest.

asked       the model's entry and digest, the cluster, the global batch, the pins
decisions   mesh, micro-batch, schedule, stages, recompute, parameter and boundary layouts by module-name pattern
derived     the folded blocks op by op, costs and reasons; stale when the digest of the decisions differs
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from partitioner.derived import BlockRow, Candidate, Cost, OpRow, ProductRow, StageCost
from partitioner.errors import InputError

VERSION = 4
AXES = ("pp", "dp", "tp")  # and "cp" in plans that are not executed
_MOST_BYTES = 64_000_000


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
    boundaries: dict[str, list[Any]]
    zero: int = 0
    plan_only: tuple[str, ...] = ()
    seed: int = 0

    def digest(self) -> str:
        """A short hash of all decisions."""
        return digest_of(asdict(self))


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
    cost: Cost
    searched: dict[str, int]
    notes: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = field(default=())
    front: tuple[Candidate, ...] = field(default=())
    digest: str = ""

    @property
    def world(self) -> int:
        """Ranks that the plan needs."""
        return math.prod(self.decisions.mesh.values())

    @property
    def stale(self) -> bool:
        """Whether the decisions were edited after the rest was derived from them."""
        return self.digest != self.decisions.digest()

    def save(self, path: Path | str) -> None:
        """Write JSON; raises InputError when the path can't be written."""
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(self.to_json())
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error}") from error

    def to_json(self) -> str:
        """The document, the same text for the same plan."""
        asked = {"model": self.model, "cluster": self.cluster, "global_batch": self.global_batch, "pins": self.pins}
        derived = {
            "digest": self.digest, "cost": asdict(self.cost), "searched": self.searched, "notes": self.notes,
            "parameters": self.parameters, "blocks": [asdict(b) for b in self.blocks],
            "candidates": [asdict(c) for c in self.candidates], "front": [asdict(c) for c in self.front],
        }  # fmt: skip
        whole = {"version": VERSION, "asked": asked, "decisions": asdict(self.decisions), "derived": derived}
        return _compact(json.dumps(whole, indent=1)) + "\n"

    @staticmethod
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


def _compact(text: str) -> str:
    """Lists of numbers and short words on one line."""
    return re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: "[" + re.sub(r"\s*\n\s*", " ", m[1]) + "]", text)


def digest_of(data: object) -> str:
    """16 hexadecimal digits of the SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def _plan(data: Any, origin: str) -> Plan:
    where = _Reader(data, origin, "")
    version = where.get("version", int)
    if version != VERSION:
        raise InputError(f"{origin}: version {version} is not known here, this program reads {VERSION}")
    asked, derived = where.at("asked"), where.at("derived")
    cost = derived.at("cost")
    stages = tuple(s.build(StageCost) for s in cost.each("stages"))
    plan = Plan(
        model=asked.get("model", dict),
        cluster=asked.get("cluster", dict),
        global_batch=asked.get("global_batch", int),
        pins=asked.get("pins", dict),
        decisions=_decisions(where.at("decisions")),
        blocks=tuple(_block(row) for row in derived.each("blocks")),
        parameters=derived.get("parameters", dict),
        cost=cost.build(Cost, stages=stages),
        searched=derived.get("searched", dict),
        notes=tuple(derived.get("notes", list)),
        candidates=_candidates(derived.each("candidates")),
        front=_candidates(derived.each("front")),
        digest=derived.get("digest", str),
    )
    return plan


def _decisions(where: _Reader) -> Decisions:
    stages = where.get("stages", list)
    mesh = where.get("mesh", dict)
    axes = sorted({*AXES, *({"cp"} & set(mesh))})
    if sorted(mesh) != axes or not all(isinstance(n, int) and n > 0 for n in mesh.values()):
        raise InputError(f"{where.origin}: decisions.mesh must give a positive size to each of {', '.join(AXES)}")
    order = tuple(where.get("order", list))
    if sorted(order) != axes:
        raise InputError(f"{where.origin}: decisions.order must hold each of {', '.join(axes)} once")
    counts = tuple(where.get("recomputed", list))
    if len(counts) != len(stages) or not all(isinstance(n, int) and n >= 0 for n in counts):
        raise InputError(f"{where.origin}: decisions.recomputed must give a number of blocks for each of the stages")
    listed = tuple(where.get("plan_only", list))
    return where.build(
        Decisions, stages=tuple(tuple(s) for s in stages), order=order, recomputed=counts, plan_only=listed
    )


def _candidates(rows: list[_Reader]) -> tuple[Candidate, ...]:
    return tuple(row.build(Candidate, order=tuple(row.get("order", list))) for row in rows)


def _block(where: _Reader) -> BlockRow:
    ops = tuple(
        row.build(
            OpRow, shape=tuple(row.get("shape", list)), operands=tuple(row.get("operands", list)),
            collectives=tuple(row.get("collectives", list)),
        )
        for row in where.each("ops")
    )  # fmt: skip
    products = tuple(row.build(ProductRow, kernels=tuple(row.get("kernels", list))) for row in where.each("products"))
    units, ports = (tuple(where.get(key, list)) for key in ("units", "ports"))
    return where.build(BlockRow, ops=ops, products=products, units=units, ports=ports)


_KINDS: dict[str, type | tuple[type, ...]] = {
    "int": int, "float": (int, float), "str": str, "bool": bool, "dict[str, int]": dict, "dict[str, Any]": dict,
    "dict[str, list[Any]]": dict,
}  # fmt: skip


class _Reader:
    """A JSON object that knows where it stands in its file."""

    def __init__(self, data: Any, origin: str, path: str) -> None:
        self.origin, self.path = origin, path
        if not isinstance(data, dict):
            raise InputError(f"{origin}: {path or 'the document'} must be an object")
        self.data: Mapping[str, Any] = data

    def get(self, key: str, kind: type | tuple[type, ...]) -> Any:
        name = f"{self.path}.{key}".lstrip(".")
        if key not in self.data:
            raise InputError(f"{self.origin}: the field {name} is missing")
        value = self.data[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise InputError(f"{self.origin}: the field {name} has a wrong value {str(value)[:60]!r}")
        return value

    def at(self, key: str) -> _Reader:
        return _Reader(self.get(key, dict), self.origin, f"{self.path}.{key}".lstrip("."))

    def each(self, key: str) -> list[_Reader]:
        rows = self.get(key, list)
        return [_Reader(row, self.origin, f"{self.path}.{key}[{n}]".lstrip(".")) for n, row in enumerate(rows)]

    def build(self, cls: type, **given: Any) -> Any:
        known = {f.name: str(f.type) for f in fields(cls)}
        strange = set(self.data) - set(known)
        if strange:
            raise InputError(f"{self.origin}: {self.path} has an unknown field {sorted(strange)[0]}")
        values = {name: self.get(name, _KINDS.get(kind, object)) for name, kind in known.items() if name not in given}
        return cls(**values, **given)
