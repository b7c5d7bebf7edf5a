"""The product that a rule says an op is has the FLOPs that torch counts when the op runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from partitioner.graph.nodes import emit, op_of
from partitioner.sharding.op_rules import RULES, rule_of

aten = torch.ops.aten
CALLS: dict[str, tuple[Callable[..., object], tuple[object, ...]]] = {
    "linear": (aten.linear.default, ((3, 5, 4), (6, 4))),
    "linear, bias": (aten.linear.default, ((3, 4), (6, 4), (6,))),
    "rows by a matrix": (aten.matmul.default, ((3, 5, 4), (4, 7))),
    "batches": (aten.matmul.default, ((2, 3, 5, 4), (2, 3, 4, 7))),
    "broadcast batches": (aten.matmul.default, ((2, 3, 5, 4), (1, 1, 4, 7))),
    "scores": (aten.einsum.default, ("bhqd,bhkd->bhqk", [(2, 3, 5, 4), (2, 3, 6, 4)])),
    "experts": (aten.einsum.default, ("tec,td->ecd", [(6, 3, 2), (6, 5)])),
    "dots": (aten.einsum.default, ("...i,ij->...j", [(2, 3, 5), (5, 7)])),
    "implied": (aten.einsum.default, ("ij,jk", [(3, 4), (4, 5)])),
    "conv1d": (aten.conv1d.default, ((2, 4, 9), (6, 4, 3))),
    "conv1d, one sample": (aten.conv1d.default, ((4, 9), (6, 4, 3))),
    "conv2d": (aten.conv2d.default, ((2, 4, 9, 7), (6, 4, 3, 2))),
    "conv2d, groups": (aten.conv2d.default, ((2, 4, 9, 7), (6, 2, 3, 2), None, [1, 1], [0, 0], [1, 1], 2)),
    "conv2d, padding": (aten.conv2d.padding, ((2, 4, 9, 7), (6, 4, 3, 3), None, [1, 1], "same")),
    "conv3d": (aten.conv3d.default, ((2, 4, 5, 5, 5), (6, 4, 3, 2, 1))),
    "transposed 1d": (aten.conv_transpose1d.default, ((2, 4, 9), (4, 6, 3))),
    "transposed 2d": (aten.conv_transpose2d.input, ((2, 4, 5, 5), (4, 6, 3, 3))),
    "attention": (aten.scaled_dot_product_attention.default, ((2, 3, 5, 4), (2, 3, 6, 4), (2, 3, 6, 4))),
}


def node_of(target: Callable[..., object], arguments: tuple[object, ...]) -> fx.Node:
    """A call of an op in a graph; shapes stand for its tensors, the last lists of numbers for themselves."""
    graph = fx.Graph()
    root = graph.placeholder("root")
    root.meta = {"val": torch.zeros(1, device="meta"), "kind": "input", "source": "root"}

    def made(argument: object) -> object:
        if isinstance(argument, tuple):
            tensor = graph.placeholder(f"x{len(graph.nodes)}")
            tensor.meta = {"val": torch.zeros(argument, device="meta"), "kind": "input", "source": "x"}
            return tensor
        shapes = isinstance(argument, list) and argument and isinstance(argument[0], tuple)
        return [made(shape) for shape in argument] if shapes else argument  # type: ignore[union-attr]

    return emit(graph, root, target, *[made(argument) for argument in arguments])


def counted(node: fx.Node) -> int:
    """What torch counts when the op runs on zeros."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: torch.zeros(n.meta["val"].shape))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        node.target(*args, **kwargs)  # type: ignore[operator]
    return counter.get_total_flops()


@pytest.mark.parametrize("name", CALLS)
def test_flops_are_those_that_torch_counts(name: str) -> None:
    node = node_of(*CALLS[name])
    rule = rule_of(str(node.target))
    assert rule is not None
    assert rule.flops(op_of(node)) == counted(node) > 0


@pytest.mark.parametrize(
    ("shapes", "sizes"),
    [
        (((4,), (4,)), (1, 1, 4, 1)), (((3, 4), (4,)), (3, 1, 4, 1)), (((4,), (4, 7)), (1, 7, 4, 1)),
        (((4,), (2, 4, 7)), (1, 7, 4, 2)),
    ],
)  # fmt: skip
def test_a_vector_is_one_row_or_column(shapes: tuple[tuple[int, ...], ...], sizes: tuple[int, ...]) -> None:
    node = node_of(aten.matmul.default, shapes)
    gemm = RULES["aten.matmul.default"].product(op_of(node))
    assert gemm is not None
    assert (gemm.m, gemm.n, gemm.k, gemm.count) == sizes


def test_an_equation_of_three_operands_is_all_of_its_products() -> None:
    """ab,bc -> abc has no sum; then abc,cd -> ad sums over b and c."""
    node = node_of(aten.einsum.default, ("ab,bc,cd->ad", [(2, 3), (3, 4), (4, 5)]))
    gemm = RULES["aten.einsum.default"].product(op_of(node))
    assert gemm is not None
    assert gemm.flops == pytest.approx(2 * 2 * 3 * 4 + 2 * 2 * 4 * 5)


def test_what_permutes_alone_is_no_product() -> None:
    node = node_of(aten.einsum.default, ("ab->ba", [(2, 3)]))
    assert RULES["aten.einsum.default"].product(op_of(node)) is None
