"""What backward keeps: of a fused chain what enters it, of what is gathered a part where a program gathers again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from partitioner import Cluster, trace
from partitioner.cost.kept_activations import Keeping
from partitioner.cost.op_work import Setting
from partitioner.graph.nodes import shape_of
from partitioner.graph.tied_blocks import fold
from partitioner.searching.pins import read_pins
from partitioner.software import Software
from partitioner.solve.axis_by_axis import solve_axes
from tools.models.plain_decoder import COLUMNS_AND_ROWS, Dimensions, decoder

BATCH, SEQ, HIDDEN, FFN = 2, 2048, 4096, 16384


def keeping(gated: bool, tp: int = 1, **traits: bool) -> Keeping:
    """Of a block in bfloat16."""
    size = Dimensions(2, HIDDEN, 32, 32, FFN, gated, 1024, False, SEQ, False)
    cluster = replace(Cluster.load("dgx-h100"), software=Software(**traits))  # type: ignore[arg-type]
    graph = trace(*decoder(size, torch.bfloat16))
    setting = Setting.of(fold(graph), cluster, {"tp": tp})
    pins = {"boundary": "sharded", **COLUMNS_AND_ROWS} if tp > 1 else {}
    allowed = read_pins(pins, graph).allows(setting.folded)
    return Keeping(setting, solve_axes(setting, cluster, [1], lambda axis: allowed)[1], 1)


def bytes_by_op(found: Keeping) -> dict[str, list[float]]:
    kept: dict[str, list[float]] = {}
    for (node, _), size in found.storages.items():
        kept.setdefault(str(node.target).split(".")[1], []).append(size)
    return kept


def test_a_fused_chain_is_made_again_from_the_product_that_enters_it() -> None:
    """GELU's input never leaves the kernel that adds the bias: the product's own result is what backward has."""
    wide = 2.0 * BATCH * SEQ * FFN
    plain, fused = (keeping(gated=False, fused=on) for on in (False, True))
    for found in (plain, fused):
        of_width = [size for (node, _), size in found.storages.items() if shape_of(node)[-1] == FFN]
        assert of_width == [wide, wide]
    names = {str(node.target) for node, _ in fused.storages if shape_of(node)[-1] == FFN}
    assert names == {"aten.linear.default", "aten.gelu.default"}
    assert not {node for node, _ in fused.storages} & fused.setting.internal


def test_a_gate_is_kept_once_with_what_it_is_a_part_of() -> None:
    found = keeping(gated=True, fused=True)
    assert [size for (node, _), size in found.storages.items() if shape_of(node)[-1] == 2 * FFN] == [
        2.0 * BATCH * SEQ * 2 * FFN
    ]


@pytest.mark.parametrize("regathers", [False, True])
def test_of_what_is_gathered_for_products_a_part_is_kept_where_it_is_gathered_again(regathers: bool) -> None:
    found = bytes_by_op(keeping(gated=True, tp=4, fused=True, overlap_tensor=True, regathers=regathers))
    whole = 2.0 * BATCH * SEQ * HIDDEN
    assert found["rms_norm"] == [whole / (4 if regathers else 1)] * 2
