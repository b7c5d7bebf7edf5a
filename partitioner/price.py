"""Seconds and bytes of one op, one collective, one optimizer step: pure functions of shapes and a Cluster.

op           max(FLOPs / reached peak, bytes / reached bandwidth) + launch          (roofline)
collective   steps x latency + share x bytes / bandwidth                            (alpha-beta, ring)
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from partitioner.cluster import Cluster, Link
from partitioner.collectives import Collective, convert
from partitioner.equations import Strategy
from partitioner.graph import op_of
from partitioner.layout import Placement, Shard
from partitioner.rules import rule_of
from partitioner.shapes import operands, shape_of
from partitioner.strategies import is_tensor, local_share

_PRODUCTS = ("aten.linear.default", "aten.matmul.default")
_STEPS = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1, "all_to_all": 1}


@dataclass(frozen=True)
class Seconds:
    """Time of one micro-batch, forward and backward."""

    forward: float
    backward: float

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.forward + other.forward, self.backward + other.backward)

    @property
    def total(self) -> float:
        """Forward and backward together."""
        return self.forward + self.backward


ZERO = Seconds(0.0, 0.0)


def node_bytes(node: fx.Node) -> int:
    """Bytes of a node's whole value; 0 for a tuple."""
    value = node.meta["val"]
    return value.numel() * value.element_size() if is_tensor(node) else 0


def collective_seconds(kind: str, payload: float, ranks: int, link: Link) -> float:
    """One ring collective of ``payload`` bytes (all_gather: gathered; all_to_all: held by a rank) over ``ranks``."""
    if not kind or ranks == 1 or not payload:
        return 0.0
    steps = _STEPS[kind]
    moved = payload * (ranks - 1) / ranks
    return steps * ((ranks - 1) * link.latency_seconds + moved / link.bytes_per_second)


def convert_seconds(
    node: fx.Node, source: Placement, target: Placement, ranks: int, link: Link, differentiable: bool
) -> Seconds | None:
    """Time to turn one placement of a value into another, both phases; None where no collective does."""
    if source == target:
        return ZERO
    rows = conversion(source, target, ranks, differentiable)
    if rows is None:
        return None
    forward, backward = (payloads(node, rows, ranks, phase) for phase in ("forward", "backward"))
    return Seconds(
        sum(collective_seconds(kind, size, ranks, link) for kind, size in forward),
        sum(collective_seconds(kind, size, ranks, link) for kind, size in backward) if differentiable else 0.0,
    )


def conversion(source: Placement, target: Placement, ranks: int, differentiable: bool) -> tuple[Collective, ...] | None:
    """``collectives.convert``; a value without a gradient that every rank holds is anything that it can be cut into."""
    if not differentiable and str(source) in ("W", "R"):
        if str(target) in ("W", "R"):
            return ()
        assert isinstance(target, Shard) or str(target) == "P"
        return _cut(target, ranks) if isinstance(target, Shard) else None
    return convert(source, target, ranks)


def _cut(target: Shard, ranks: int) -> tuple[Collective, ...]:
    segments = [number for s in target.segments for number in (s.repeat, s.units, s.granule)]
    return (Collective("shard", (target.dim, segments, False), "", ""),)


def payloads(node: fx.Node, rows: tuple[Collective, ...], ranks: int, phase: str) -> list[tuple[str, int]]:
    """(kind, bytes) of what collectives on a value send in one phase."""
    size = node_bytes(node)
    found = [(row.forward if phase == "forward" else row.backward) for row in rows]
    return [(kind, size // ranks if kind == "all_to_all" else size) for kind in found if kind]


def op_seconds(node: fx.Node, strategy: Strategy, ranks: int, cluster: Cluster) -> Seconds:
    """Roofline of one op where the fullest rank's share of it runs; views, and a bias that joins its GEMM, are free."""
    rule = rule_of(str(node.target))
    if not is_tensor(node) or (rule and rule.view) or is_bias(node):
        return ZERO
    device = cluster.device
    bytes_ = sum(node_bytes(n) * share(n, p, ranks) for n, p in zip(operands(node), strategy.operands, strict=True))
    assert not isinstance(strategy.result, tuple)
    bytes_ += node_bytes(node) * share(node, strategy.result, ranks)
    streamed = bytes_ / (device.memory_bytes_per_second * device.memory_efficiency)
    computed = op_flops(node) * op_share(node, strategy, ranks) / (peak(node, cluster) * device.gemm_efficiency)
    forward = max(streamed, computed) + device.launch_seconds
    is_sum = rule is not None and (0, 1) in rule.linear  # a sum's gradient is its operands': backward does nothing
    return Seconds(forward, 0.0 if is_sum else 2 * forward)


def is_bias(node: fx.Node) -> bool:
    """Whether an op adds a bias to a product that nothing else reads, so that the GEMM does it."""
    found = operands(node)
    if str(node.target) != "aten.add.Tensor" or len(found) != 2 or len(shape_of(found[1])) != 1:
        return False
    return str(found[0].target) in _PRODUCTS and len(found[0].users) == 1


def peak(node: fx.Node, cluster: Cluster) -> float:
    """FLOP/s of the device in the node's dtype; the slowest known where the dtype is not listed."""
    table = cluster.device.flops_per_second
    return table.get(str(node.meta["val"].dtype).removeprefix("torch."), min(table.values()))


def op_flops(node: fx.Node) -> float:
    """FLOPs of one op, forward, unsharded."""
    rule = rule_of(str(node.target))
    return rule.flops(op_of(node)) if rule and rule.flops else 0.0


def op_share(node: fx.Node, strategy: Strategy, ranks: int) -> float:
    """The share of an op's work that the fullest rank does."""
    assert not isinstance(strategy.result, tuple)
    sides = [*zip(operands(node), strategy.operands, strict=True), (node, strategy.result)]
    shares = [share(n, p, ranks) for n, p in sides if isinstance(p, Shard)]
    return max(shares, default=1.0)


def share(node: fx.Node, placement: Placement, ranks: int) -> float:
    """The share of a value's bytes that the fullest rank holds."""
    return local_share(shape_of(node), placement, ranks) if is_tensor(node) else 1.0


def state_bytes(elements: float, itemsize: int, zero_ranks: int = 1) -> float:
    """Weights, gradients and two AdamW moments; below 4 bytes a weight, moments and a master copy are float32."""
    moments = 8 if itemsize >= 4 else 12
    return elements * (2 * itemsize + (2 * itemsize if itemsize > 4 else moments) / zero_ranks)


def optimizer_seconds(elements: float, itemsize: int, cluster: Cluster) -> float:
    """The update reads and writes all state once."""
    device = cluster.device
    moved = 2 * state_bytes(elements, itemsize)
    return moved / (device.memory_bytes_per_second * device.memory_efficiency)
