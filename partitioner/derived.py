"""The rows of a plan's derived section: blocks with their ops and products, costs of stages and step, candidates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class OpRow:
    """One op of a representative block: what it is, how its operands and result lie, its seconds per micro-batch."""

    name: str
    op: str
    module: str
    shape: tuple[int, ...]
    operands: tuple[Any, ...]
    result: Any
    forward_seconds: float
    backward_seconds: float
    collectives: tuple[str, ...] = ()


@dataclass(frozen=True)
class ProductRow:
    """A product of a representative block, (m, k) by (k, n) on rank 0, with what its kernel does as it stores.

    ``line`` is its epilogue (``cutlass_ops.notation``), ``inner`` that of the product whose gradient rides on this
    one's dgrad, "" where none does; ``fused`` counts the ops that joined. ``kernels`` are the keys of the built kernels
    of forward, dgrad and wgrad, "" where torch was chosen, and ``reason`` says why it was.
    """

    name: str
    module: str
    m: int
    n: int
    k: int
    dtype: str
    transposed: bool
    line: str
    inner: str
    fused: int
    kernels: tuple[str, str, str]
    reason: str


@dataclass(frozen=True)
class BlockRow:
    """Identical units and their one layout; ``ports`` are the placements of what they read of earlier units."""

    units: tuple[str, ...]
    is_block: bool
    ports: tuple[Any, ...]
    forward_seconds: float
    backward_seconds: float
    saved_bytes: float
    ops: tuple[OpRow, ...]
    products: tuple[ProductRow, ...]


@dataclass(frozen=True)
class StageCost:
    """Seconds of one micro-batch and peak bytes of one (virtual) stage on its fullest rank."""

    forward_seconds: float
    backward_seconds: float
    state_bytes: float
    activation_bytes: float
    transient_bytes: float

    @property
    def held_bytes(self) -> float:
        """State and activations."""
        return self.state_bytes + self.activation_bytes

    @property
    def peak_bytes(self) -> float:
        """With what comes and goes."""
        return self.held_bytes + self.transient_bytes


@dataclass(frozen=True)
class Cost:
    """A step's price. The parts add up to ``step_seconds``; ``peak_bytes`` is of the fullest rank."""

    step_seconds: float
    compute_seconds: float
    communication_seconds: float
    bubble_seconds: float
    sync_seconds: float
    optimizer_seconds: float
    peak_bytes: float
    stages: tuple[StageCost, ...]
    flops: float = 0.0


@dataclass(frozen=True)
class Candidate:
    """A row of the ranking: what was tried and its price."""

    mesh: dict[str, int]
    micro_batch: int
    schedule: str
    virtual: int
    recompute: str
    zero: int
    order: tuple[str, ...]
    step_seconds: float
    peak_bytes: float
