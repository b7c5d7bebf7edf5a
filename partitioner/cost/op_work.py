"""What one op makes one rank do in a micro-batch: products, attention, bytes streamed, kernels launched.

forward    the op itself
backward   a product's two gradients; of other ops what their gradient reads and writes; a parameter's accumulation

Where kernels are fused, a chain of pointwise ops streams only what enters and leaves it, and keeps nothing inside.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import fx

from partitioner.cluster import Cluster
from partitioner.cost.materialized import base, distinct, internal, is_copy, repeats_heads
from partitioner.graph.nodes import is_parameter, is_tensor, op_name, op_of, operands, shape_of
from partitioner.graph.saved_by_autograd import hidden, saved
from partitioner.graph.tied_blocks import Folded
from partitioner.hardware.link import Route
from partitioner.kernel_seconds.attention import RING_PASSES, Attended
from partitioner.kernel_seconds.work import Work, quantized
from partitioner.layouts.op_kinds import core, is_attention, is_bias, is_product
from partitioner.precision import RECIPES
from partitioner.sharding.equations import Strategies
from partitioner.sharding.layout import Layout, Shard, largest_shape, local_share
from partitioner.sharding.mesh_axes import Axes, inner, laid_axes, sharing_axes, whole
from partitioner.sharding.op_equations import Op
from partitioner.sharding.op_rules import rule_of
from partitioner.sharding.products import Gemm
from partitioner.sharding.rule import Rule
from partitioner.software import Software

_ACCUMULATION = 3  # times a weight gradient is streamed to be added: read, read the sum, write it
_SOFTMAX_PASSES = (2, 3)  # of the scores, by softmax and scale in one kernel: read and write; and its gradient's three
_DROPOUT_PASSES = 2.5  # of the scores: read, write, a byte of mask


@dataclass(frozen=True)
class Setting:
    """What an op's work depends on beside its strategies: ``axes`` along which ops lie, ``sharing`` ones whose ranks
    share the tokens of a micro-batch.

    ``attention``: "flash" or "math"; ``software``: what runs it. ``nearer``: ranks of axes inside those, which are not
    laid out yet.
    """

    folded: Folded
    axes: Axes
    sharing: Axes
    attention: str
    software: Software
    nearer: int = 1

    @staticmethod
    def of(
        folded: Folded, cluster: Cluster, degrees: Mapping[str, int], refined: Mapping[str, int] | None = None
    ) -> Setting:
        """With the cluster's attention and kernels, on a mesh of these degrees."""
        axes, sharing = laid_axes(degrees, refined or {}), sharing_axes(degrees)
        return Setting(folded, axes, sharing, cluster.attention, cluster.software)

    @cached_property
    def ranks(self) -> int:
        """Over which ops are divided."""
        return math.prod(ranks for _, ranks in self.axes)

    @cached_property
    def sharers(self) -> int:
        """Ranks that share a micro-batch's tokens."""
        return math.prod(ranks for _, ranks in self.sharing)

    def routes(self, cluster: Cluster) -> dict[str, Route]:
        """Between the ranks of each of the axes, and of what they refine, which lie nearest to each other."""
        found, stride = dict[str, Route](), self.nearer
        for axis in reversed(inner()):
            parts = [(name, ranks) for name, ranks in (*self.axes, *self.sharing) if whole(name) == axis]
            if parts:
                found[axis] = cluster.route(math.prod(ranks for _, ranks in parts), stride)
            for name, ranks in reversed(parts):
                found[name] = cluster.route(ranks, stride)
                stride *= ranks
        return found

    def writes_scores(self, node: fx.Node) -> bool:
        """Whether an op is attention that no fused kernel computes."""
        return is_attention(node) and self.attention == "math" or repeats_heads(node)

    def share(self, node: fx.Node, layout: Layout) -> float:
        """The share of a value that the fullest rank holds."""
        return self.tokens(node) * (local_share(shape_of(node), layout, self.axes) if is_tensor(node) else 1.0)

    def bytes(self, node: fx.Node, layout: Layout) -> float:
        """Bytes of a value on the fullest rank; 0 for a tuple."""
        value = node.meta["val"]
        return value.numel() * value.element_size() * self.share(node, layout) if is_tensor(node) else 0.0

    def local(self, node: fx.Node, layout: Layout) -> list[float]:
        """The shape that the fullest rank holds, tokens not yet divided among those that share them."""
        return [float(n) for n in largest_shape(shape_of(node), layout, self.axes)]

    def tokens(self, node: fx.Node) -> float:
        """The share of its tokens that a rank has."""
        return 1.0 / self.sharers if self.sharers > 1 and node.name in self.folded.sized.batch_layout else 1.0

    def recipe(self, node: fx.Node) -> str:
        """In which few bits an op runs: a product by a weight, in a block."""
        recipe = self.folded.graph.precision.products
        few = recipe and node in self.folded.in_blocks and is_product(node) and is_parameter(base(operands(node)[1]))
        return recipe if few else ""

    def op(self, node: fx.Node) -> Op:
        """What rules look at of a node, looked up once."""
        if node not in self._ops:
            self._ops[node] = op_of(node)
        return self._ops[node]

    @cached_property
    def _ops(self) -> dict[fx.Node, Op]:
        return {}

    @cached_property
    def internal(self) -> frozenset[fx.Node]:
        """Values that never leave a fused kernel."""
        return internal(self.folded) if self.software.fused else frozenset()

    def is_internal(self, node: fx.Node) -> bool:
        """Whether a value, or what it is a view of, stays in a kernel."""
        return base(node) in self.internal

    @cached_property
    def tied(self) -> frozenset[fx.Node]:
        """Parameters that several units read."""
        readers = Counter(node for found in self.folded.graph.trained.values() for node in found)
        return frozenset(self.folded.own(node) for node, count in readers.items() if count > 1)

    def core(self, group: int) -> list[fx.Node]:
        """The core of attention: products of two computed values, and all between them; or the fused kernel."""
        return core(self.folded.body(group))


def op_work(setting: Setting, node: fx.Node, strategies: Strategies) -> tuple[Work, Work]:
    """Forward and backward work of one op where the fullest rank's share of it runs."""
    rule, dtype = rule_of(op_name(node.target)), _dtype(node)
    nothing = Work(dtype)
    if not is_tensor(node) or (rule and rule.view and (setting.software.fused or not is_copy(node))):
        return nothing, nothing
    if is_attention(node):
        forward, backward = _attention(setting, node, strategies)
    elif is_product(node):
        forward, backward = _product(setting, node, strategies)
    elif is_bias(node):
        forward, backward = nothing, _streamed(dtype, setting.bytes(node, strategies.result))
    else:
        forward, backward = _other(setting, node, strategies, rule)
    return forward, backward if node in setting.folded.differentiable else nothing


def _product(setting: Setting, node: fx.Node, strategies: Strategies) -> tuple[Work, Work]:
    """The gradient of the first operand is m x n by n x k, of the second k x m by m x n."""
    gemm, dtype = _gemm(setting, node, strategies), _dtype(node)
    second = _second_gradient(setting, node, strategies, gemm)
    gradients = list(second.gemms)
    if _differentiable(operands(node)[0], setting.folded.differentiable):
        gradients.insert(0, Gemm(gemm.m, gemm.k, gemm.n, gemm.count))
    kernels, recipe = second.kernels + len(gradients) - len(second.gemms), setting.recipe(node)
    forward, backward = Work(dtype, (gemm,), kernels=1, recipe=recipe), replace(second, recipe=recipe)
    backward = replace(backward, gemms=tuple(gradients), kernels=kernels)
    if not recipe:
        return forward, backward
    software, scanned = setting.software, RECIPES[recipe].is_scanned(setting.software.delayed_scales)
    rows = quantized(gemm, software.quantized_once, software.weights_once, scanned)
    return forward.with_quantized(rows[0]), backward.with_quantized(rows[1])


def _gemm(setting: Setting, node: fx.Node, strategies: Strategies) -> Gemm:
    sides = [setting.local(n, p) for n, p in zip(operands(node)[:2], strategies.operands, strict=False)]
    rule = rule_of(op_name(node.target))
    assert rule is not None
    assert rule.gemm is not None
    gemm = rule.gemm(setting.op(node), sides[0], sides[1], setting.local(node, strategies.result))
    return Gemm(gemm.m * setting.tokens(node), gemm.n, gemm.k, gemm.count)


def _second_gradient(setting: Setting, node: fx.Node, strategies: Strategies, gemm: Gemm) -> Work:
    second = operands(node)[1]
    if not _differentiable(second, setting.folded.differentiable):
        return Work(_dtype(node))
    streamed = _accumulated(setting, second, strategies.operands[1])
    gradient = Gemm(gemm.k, gemm.n, gemm.m, gemm.count)
    return Work(_dtype(node), (gradient,), (), streamed, 1 + (streamed > 0), setting.recipe(node))


def weight_work(setting: Setting, node: fx.Node, strategies: Strategies) -> Work:
    """The part of an op's backward that makes and accumulates a weight's gradient, which no earlier op waits for."""
    if not (is_product(node) and is_parameter(base(operands(node)[1]))) or node not in setting.folded.differentiable:
        return Work(_dtype(node))
    return _second_gradient(setting, node, strategies, _gemm(setting, node, strategies))


def _accumulated(setting: Setting, weight: fx.Node, layout: Layout) -> float:
    """Bytes streamed to add a weight's gradient to the sum, which a fused product does as it writes."""
    fused = setting.software.fused or not is_parameter(base(weight))
    return 0.0 if fused else _ACCUMULATION * setting.bytes(weight, layout)


def _differentiable(node: fx.Node, differentiable: set[fx.Node]) -> bool:
    return node in differentiable or base(node) in differentiable


def _attention(setting: Setting, node: fx.Node, strategies: Strategies) -> tuple[Work, Work]:
    dtype = _dtype(node)
    part = op_share(setting, node, strategies)
    if not setting.writes_scores(node):
        many = setting.sharers if setting.software.overlap_context else 1
        parts = _attended(setting, node, strategies, part).ring(many, causal=bool(op_of(node).literal("is_causal")))
        streamed = RING_PASSES * many * setting.bytes(node, strategies.result) if many > 1 else 0.0
        forward, back = (tuple(replace(row, backward=way) for row in parts) for way in (False, True))
        return Work(dtype, (), forward, streamed, many), Work(dtype, (), back, streamed, 2 * many)
    query, key, value = (shape_of(n) for n in operands(node)[:3])
    count, rows = math.prod(query[:-2]) * part * setting.sharers, query[-2] / setting.sharers
    scores, mixed = Gemm(rows, key[-2], query[-1], count), Gemm(rows, value[-1], key[-2], count)
    size, dropped = scores_bytes(setting, node, strategies), _DROPOUT_PASSES if _drops(node) else 0.0
    gradients = (
        Gemm(rows, key[-2], value[-1], count), Gemm(key[-2], value[-1], rows, count),
        Gemm(rows, query[-1], key[-2], count), Gemm(key[-2], query[-1], rows, count),
    )  # fmt: skip
    kernels = 2 + (dropped > 0)
    return (
        Work(dtype, (scores, mixed), (), size * (_SOFTMAX_PASSES[0] + dropped), kernels),
        Work(dtype, gradients, (), size * (_SOFTMAX_PASSES[1] + dropped), kernels + 2),
    )


def _attended(setting: Setting, node: fx.Node, strategies: Strategies, part: float) -> Attended:
    """What the fused kernel does of it; keys and values of ranks that share tokens are whole again on each."""
    query, key, value = (shape_of(n) for n in operands(node)[:3])
    width, lies = float(query[-1] + value[-1]), (operands(node)[1], strategies.operands[1])
    size = node.meta["val"].element_size() * key[-1]
    keys = setting.bytes(*lies) * distinct(lies[0], setting.local(*lies)) * setting.sharers / size
    return Attended(math.prod(query[:-1]) * part, op_flops(node) * part / (2 * width), key[-2], width, keys)


def scores_bytes(setting: Setting, node: fx.Node, strategies: Strategies) -> float:
    """Bytes of the attention scores on one rank."""
    query, key = (shape_of(n) for n in operands(node)[:2])
    size = node.meta["val"].element_size()
    return math.prod(query[:-1]) * key[-2] * size * op_share(setting, node, strategies)


def scores_kept(setting: Setting, node: fx.Node, strategies: Strategies) -> float:
    """What unfused attention keeps: its softmax, with dropout also a byte of mask and the product with it; keys and
    values repeated for each head."""
    size = node.meta["val"].element_size()
    repeated = 2 * setting.bytes(operands(node)[0], strategies.operands[0]) if repeats_heads(node) else 0.0
    return scores_bytes(setting, node, strategies) * (2 + 1 / size if _drops(node) else 1) + repeated


def _drops(node: fx.Node) -> bool:
    return bool(op_of(node).literal("dropout_p"))


def _other(setting: Setting, node: fx.Node, strategies: Strategies, rule: Rule | None) -> tuple[Work, Work]:
    """By bytes: a sum's gradient is its operands', a table's is as large as the table."""
    differentiable, dtype = setting.folded.differentiable, _dtype(node)
    result = 0.0 if node in setting.internal else setting.bytes(node, strategies.result)
    sides = zip(operands(node), strategies.operands, strict=True)
    read = [(n, 0.0 if setting.is_internal(n) else setting.bytes(n, p)) for n, p in sides]
    hidden = hidden_bytes(setting, node) * op_share(setting, node, strategies)
    looked_up = rule is not None and rule.lookup
    entering = result if looked_up else sum(size for _, size in read)
    forward = _streamed(dtype, entering + result + hidden)
    trained = {n: size for n, size in read if n in differentiable}
    if rule and (0, 1) in rule.linear:
        back = result if any(math.prod(shape_of(n)) < math.prod(shape_of(node)) for n in trained) else 0.0
    else:
        kept = {n: size for n, size in [*read, (node, result)] if n in saved(node, differentiable)}
        back = result + hidden + sum(kept.values()) + sum(trained.values()) + (result if looked_up else 0.0)
    back += sum(_ACCUMULATION * size for n, size in trained.items() if is_parameter(n))
    return forward, _streamed(dtype, back)


def hidden_bytes(setting: Setting, node: fx.Node) -> float:
    """What only backward sees of an unsharded op."""
    rule = rule_of(op_name(node.target))
    if rule and rule.fused_hidden and setting.software.fused:
        return rule.fused_hidden(setting.op(node), node.meta["val"].element_size())
    return hidden(node)


def _streamed(dtype: torch.dtype, size: float) -> Work:
    return Work(dtype, streamed_bytes=size, kernels=int(size > 0))


def op_share(setting: Setting, node: fx.Node, strategies: Strategies) -> float:
    """The share of an op's work that the fullest rank does."""
    sides = [*zip(operands(node), strategies.operands, strict=True), (node, strategies.result)]
    tensors, share = [(shape_of(n), layout) for n, layout in sides if is_tensor(n)], setting.tokens(node)
    for n, axis in enumerate(setting.axes):
        divided = [(largest_shape(s, p[:n], setting.axes[:n]), p[n]) for s, p in tensors if isinstance(p[n], Shard)]
        share *= max((local_share(shape, (placement,), (axis,)) for shape, placement in divided), default=1.0)
    return share


def op_flops(node: fx.Node) -> float:
    """FLOPs of one op, forward, unsharded."""
    rule = rule_of(op_name(node.target))
    return rule.flops(op_of(node)) if rule else 0.0


def _dtype(node: fx.Node) -> torch.dtype:
    value = node.meta["val"]
    return value.dtype if isinstance(value, torch.Tensor) else value[0].dtype
