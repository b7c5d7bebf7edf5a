"""The rows of a plan's derived section: blocks with their ops and products, costs of stages and step, candidates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from partitioner.plan.json_document import Among, Amount, Count
from partitioner.plan.parallelism import Parallelism
from partitioner.sharding.mesh_axes import DP

PIPELINE, OPTIMIZER, SYNC = "pipeline", "optimizer", f"{DP} communication"  # parts of a step as a run can measure them


@dataclass(frozen=True, kw_only=True)
class CollectiveRow:
    """What becomes of ``value``, from one layout to another, and what one rank sends for it each way.

    The kind of the collective ("" where nothing is sent), its payload and its seconds. ``again``: whether a block that
    the plan recomputes sends its forward once more. The payload is the whole tensor of an all_reduce, all_gather or
    reduce_scatter, and the rank's own part of an all_to_all.
    """

    value: str
    source: str
    target: str
    axis: str
    forward: str
    forward_bytes: Amount
    forward_seconds: Amount
    backward: str
    backward_bytes: Amount
    backward_seconds: Amount
    again: bool


@dataclass(frozen=True)
class OtherRow:
    """Another way to divide an op's work, and the seconds a micro-batch that it would add, all else as it is."""

    operands: tuple[Any, ...]
    result: Any
    seconds: float


@dataclass(frozen=True, kw_only=True)
class OpRow:
    """One op of a representative block: what it is, how its operands and result lie, its seconds per micro-batch.

    ``inputs`` names what each operand is: an op of the block, a value of an earlier unit, or a parameter. ``shape`` is
    of the whole result, ``flops`` of the whole forward. ``again``: whether a block that the plan recomputes runs it
    once more. ``collectives``: what is sent before it runs, or inside it. ``others``: the next best ways to divide it.
    """

    name: str
    op: str
    module: str
    shape: tuple[Count, ...]
    inputs: tuple[str, ...]
    operands: tuple[Any, ...]
    result: Any
    flops: Amount
    forward_seconds: Amount
    backward_seconds: Amount
    again: bool = False
    collectives: tuple[CollectiveRow, ...] = ()
    others: tuple[OtherRow, ...] = ()


@dataclass(frozen=True)
class ProductRow:
    """A product of a representative block, (m, k) by (k, n) on rank 0, with what its kernel does as it stores.

    ``line`` is its epilogue (``cutlass_ops.spec.notation``), ``inner`` that of the product whose gradient rides on this
    one's dgrad, "" where none does; ``fused`` counts the ops that joined. ``kernels`` are the keys of the built kernels
    of forward, dgrad and wgrad, "" where torch was chosen, and ``reason`` says why it was.
    """

    name: str
    module: str
    m: Count
    n: Count
    k: Count
    dtype: str
    transposed: bool
    line: str
    inner: str
    fused: Count
    kernels: tuple[str, str, str]
    reason: str


@dataclass(frozen=True, kw_only=True)
class BlockRow:
    """Identical units and their one layout; ``ports`` are the placements of what they read of earlier units.

    ``leaving``: what is sent after the last op, for later units.
    """

    units: tuple[str, ...]
    is_block: bool
    ports: tuple[Any, ...]
    forward_seconds: Amount
    backward_seconds: Amount
    saved_bytes: Amount
    ops: tuple[OpRow, ...]
    leaving: tuple[CollectiveRow, ...]
    products: tuple[ProductRow, ...]


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """One (virtual) stage on its fullest rank: seconds of a micro-batch, bytes at the rank's fullest moment.

    ``put_off_seconds``: the part of backward that the schedule's W does. ``weight_bytes``, ``gradient_bytes``,
    ``optimizer_bytes``, ``activation_bytes`` (kept for backward, and the step's samples on a rank's first stage) and
    ``transient_bytes`` (what comes and goes) lie there at that moment.

    What a timeline needs beside: ``grown_bytes`` of gradients when all are there, ``new_bytes`` of them only from the
    first backward of a step on; ``kept_bytes`` that each micro-batch in flight keeps, ``acting_bytes`` that its
    forward, its backward and the first backward of a step hold beside that. What is sent for it: ``sent_bytes`` to the
    next stage and ``sent_back_bytes`` to the one before for each micro-batch; once a step ``synced_bytes`` of
    gradients, ``partial_bytes`` of them over other axes too, by axis, and ``gathered_bytes`` of weights where ZeRO
    divides them.
    """

    forward_seconds: Amount
    backward_seconds: Amount
    put_off_seconds: Amount
    weight_bytes: Amount
    gradient_bytes: Amount
    optimizer_bytes: Amount
    activation_bytes: Amount
    transient_bytes: Amount
    grown_bytes: Amount
    new_bytes: Amount
    kept_bytes: Amount
    acting_bytes: tuple[Amount, Amount, Amount]
    sent_bytes: Amount
    sent_back_bytes: Amount
    synced_bytes: Amount
    partial_bytes: dict[str, Amount]
    gathered_bytes: Amount

    @property
    def state_bytes(self) -> float:
        """Weights, gradients and optimizer state."""
        return self.weight_bytes + self.gradient_bytes + self.optimizer_bytes

    @property
    def held_bytes(self) -> float:
        """State and activations."""
        return self.state_bytes + self.activation_bytes

    @property
    def peak_bytes(self) -> float:
        """With what comes and goes."""
        return self.held_bytes + self.transient_bytes


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A step's price. The parts add up to ``step_seconds``; ``peak_bytes`` is of the fullest rank.

    ``exposed_seconds``: by mesh axis what communication no compute hides, sync included. ``send_seconds`` pass between
    the end of an action and its result's arrival on the next stage. ``input_bytes``: the samples of a rank's step.
    """

    step_seconds: Amount
    compute_seconds: Amount
    communication_seconds: Amount
    bubble_seconds: float
    sync_seconds: Amount
    optimizer_seconds: Amount
    peak_bytes: Amount
    exposed_seconds: dict[str, Amount]
    send_seconds: Amount
    input_bytes: Amount
    stages: tuple[StageCost, ...]
    flops: Amount = 0.0


_CANDIDATE = """
    mesh micro_batch schedule virtual recompute zero zero_group order refined step_seconds compute_seconds
    exposed_seconds bubble_seconds peak_bytes
"""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A row of the ranking: what was tried and its price; ``exposed_seconds``: of communication, sync included."""

    parallelism: Annotated[Parallelism, Among(_CANDIDATE, micro_batches=0)]
    step_seconds: Amount
    compute_seconds: Amount
    exposed_seconds: Amount
    bubble_seconds: float
    peak_bytes: Amount
