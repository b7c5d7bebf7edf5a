"""The Configuration noun: what a file of any framework asks of a training step, in this project's words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from partitioner.plan.recompute_ways import NO_RECOMPUTE
from partitioner.precision import RECIPES
from partitioner.sharding.mesh_axes import CP, DP, PP, TP


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """None where the file says nothing.

    ``pipeline``, ``data``, ``context``, ``tensor``, ``expert``: ranks along each; ``devices``: of all, of which
    ``node_devices`` are in a node. ``virtual``: stages a rank. ``stages``: blocks of each stage, where the file cuts
    them. ``micro_batch``: samples, of which a data rank takes ``micro_batches`` a step; ``local_batch``: those of
    one pass through its pipeline, where a step may have several. ``zero``: ZeRO's stage; state is divided over
    ``shards`` ranks, and held again by ``replicas`` of them. ``recompute``: a way of it, of
    ``recomputed`` blocks of each stage, None for all. ``precision``: the name of a preset; ``gradients``: in which type
    those of micro-batches are added up, "" for the model's. ``overlap_gradients`` to ``fused``: traits of the software,
    as partitioner/software.py has them. ``seq``: tokens of a sample. ``layers`` to ``experts``: the
    model's sizes, ``gated`` of an MLP that multiplies with a gate. ``cut``: what a framework divides by, by key.
    """

    pipeline: int | None = None
    data: int | None = None
    context: int | None = None
    tensor: int | None = None
    expert: int | None = None
    devices: int | None = None
    node_devices: int | None = None
    schedule: str | None = None
    virtual: int | None = None
    stages: tuple[int, ...] | None = None
    micro_batch: int | None = None
    micro_batches: int | None = None
    local_batch: int | None = None
    global_batch: int | None = None
    zero: int | None = None
    shards: int | None = None
    replicas: int | None = None
    recompute: str | None = None
    recomputed: int | None = None
    precision: str | None = None
    gradients: str | None = None
    sequence_parallel: bool | None = None
    overlap_gradients: bool | None = None
    overlap_parameters: bool | None = None
    overlap_tensor: bool | None = None
    fused: bool | None = None
    seq: int | None = None
    layers: int | None = None
    hidden: int | None = None
    ffn: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_width: int | None = None
    vocab: int | None = None
    gated: bool | None = None
    tied: bool | None = None
    experts: int | None = None
    cut: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def said(self) -> dict[str, Any]:
        """Its fields that say something, in order, but for ``cut``."""
        values = ((f.name, getattr(self, f.name)) for f in fields(self) if f.name != "cut")
        return {name: value for name, value in values if value is not None}

    @property
    def traits(self) -> dict[str, bool]:
        """Those that the file gives of the software, where they matter to the step."""
        state, tensor = (self.data or 1) * (self.context or 1) > 1, (self.tensor or 1) > 1
        matters = {
            "overlap_gradients": state, "overlap_parameters": state and bool(self.zero), "overlap_tensor": tensor,
            "fused": True,
        }  # fmt: skip
        return {name: getattr(self, name) for name in TRAITS if matters[name] and getattr(self, name) is not None}

    @property
    def cast(self) -> str | None:
        """The preset in which the model computes, but for products in few bits."""
        return "bf16" if self.precision in RECIPES else self.precision

    @property
    def degrees(self) -> dict[str, int]:
        """Ranks along each axis but the data's, 1 where the file says nothing."""
        return {PP: self.pipeline or 1, CP: self.context or 1, TP: self.tensor or 1}

    @property
    def together(self) -> int:
        """Ranks that share a sample's work: of all axes but the data's."""
        return math.prod(self.degrees.values())

    def resolved(self) -> Configuration:
        """With what follows by counting: data ranks of all devices, the batch of micro-batches, shards of replicas.

        What contradicts itself is left as it is.
        """
        found, data = self, self.data
        if data is None and self.devices and self.devices % self.together == 0:
            data = self.devices // self.together
        micro, many, whole_batch = self.micro_batch, self.micro_batches, self.global_batch
        if data and micro is None and many and whole_batch and whole_batch % (data * many) == 0:
            micro = whole_batch // (data * many)
        elif data and micro:
            if whole_batch is None and many:
                whole_batch = data * micro * many
            elif whole_batch and whole_batch % (data * micro) == 0:
                many = many or whole_batch // (data * micro)
        found = replace(found, data=data, micro_batch=micro, micro_batches=many, global_batch=whole_batch)
        if (self.tensor or 1) == 1:
            found = replace(found, sequence_parallel=False)
        if not data or (self.zero or 0) == 0 or data * (self.context or 1) == 1:
            return replace(found, shards=None, replicas=None, zero=0) if data else found
        alike = data * (self.context or 1)
        shards = self.shards or alike // (self.replicas or 1)
        return replace(found, shards=shards, replicas=self.replicas or alike // shards)


DEGREES = {"pipeline": PP, "data": DP, "context": CP, "tensor": TP}  # fields, by the axes that they are degrees of
SIZES = ("layers", "hidden", "ffn", "heads", "kv_heads", "head_width", "vocab", "gated", "tied", "experts")
TRAITS = ("overlap_gradients", "overlap_parameters", "overlap_tensor", "fused")
PLACE = ("devices", "node_devices")  # where a step runs, of which a file need not speak
PLAIN = {  # what a file need not say
    **dict.fromkeys((*DEGREES, "expert", "virtual", "micro_batches", "replicas"), 1), "zero": 0,
    "sequence_parallel": False, "recompute": NO_RECOMPUTE,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A file that was read. ``taken``: by key of the file, its value and the fields that it decides. ``unread``: keys
    that no plan hangs on. ``unknown``: keys of which nothing is known. ``notes``: what is otherwise in a plan, though
    its decisions are the same. ``refused``: what a plan can't be told, each with its mend;
    ``unmodelled``: what the plain decoder has not."""

    configuration: Configuration
    taken: tuple[tuple[str, Any, tuple[str, ...]], ...] = ()
    unread: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    unmodelled: tuple[str, ...] = ()

    @property
    def sizes(self) -> tuple[str, ...]:
        """Keys of ``taken`` that give the model's sizes and nothing else."""
        return tuple(key for key, _, decided in self.taken if set(decided) <= set(SIZES))
