"""Products in few bits: priced in blocks alone, by the device's own row, and never executed here."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from examples.gpt import model
from partitioner import Cluster, Graph, lower, search, trace
from partitioner.cost.op_work import Setting
from partitioner.errors import InputError
from partitioner.graph.nodes import operands
from partitioner.graph.tied_blocks import fold
from partitioner.layouts.op_kinds import is_product
from partitioner.precision import PRESETS, RECIPES
from tools.figures import figures
from tools.figures.card import facts

PINS: dict[str, str | int] = {"tp": 1, "pp": 1, "dp": 8, "micro_batch": 4, "zero": 1, "recompute": "off"}


def graph(precision: str) -> Graph:
    """Wide enough that products count."""
    with torch.device("meta"):
        module, batch = model(layers=2, hidden=4096, heads=32, vocab=1024, seq=1024)
    batch = {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in batch.items()}
    return trace(module, batch, compare=False, precision=PRESETS[precision])


def on(cluster: str, software: str = "megatron") -> Cluster:
    return Cluster.load(cluster, devices=8, software=software)


@pytest.mark.parametrize("recipe", RECIPES)
def test_fewer_bits_take_less_and_are_measured_against_their_own_peak(recipe: str) -> None:
    cluster = on("dgx-b200")
    plain, few = (search(graph(name), cluster, 32, PINS) for name in ("bf16", recipe))
    assert few.cost.step_seconds < plain.cost.step_seconds
    assert few.model["product_dtype"] == RECIPES[recipe].dtype
    ratio = plain.cost.step_seconds / few.cost.step_seconds
    peaks = cluster.device.flops_per_second
    expected = figures.mfu(plain) * ratio * peaks["bfloat16"] / peaks[RECIPES[recipe].dtype]
    assert figures.mfu(few) == pytest.approx(expected)
    assert f"products of blocks in {recipe}" in facts(few)[0]
    assert any("counted in the types of the model" in line for line in facts(few))


def test_only_products_by_weights_in_blocks_are_quantized() -> None:
    folded = fold(graph("fp8"))
    setting = Setting.of(folded, on("dgx-h100"), {"tp": 1})
    nodes = [n for group in range(len(folded.groups)) for n in folded.body(group)]
    few = [n for n in nodes if is_product(n) and setting.recipe(n)]
    weights = [str(operands(n)[1].meta["source"]) for n in few]
    assert len(weights) == 4
    assert all(name.startswith("blocks.0.") for name in weights)
    assert len([n for n in nodes if is_product(n)]) > len(few)  # the head's
    plain = Setting.of(fold(graph("bf16")), on("dgx-h100"), {"tp": 1})
    assert not any(plain.recipe(n) for n in plain.folded.body(1) if is_product(n))


def test_they_are_looked_at_only() -> None:
    traced = graph("fp8")
    with pytest.raises(InputError, match="products in fp8 can't be executed yet: add --plan-only"):
        search(traced, on("dgx-h100", "own"), 32, PINS)
    plan = search(traced, on("dgx-h100", "own"), 32, PINS, plan_only=True)
    assert plan.decisions.plan_only == ("products in fp8",)
    with pytest.raises(InputError, match="the plan is to look at: products in fp8 can't be executed yet"):
        lower(traced, plan)
    with pytest.raises(InputError, match="has no peak for products in float8_e4m3fn"):
        search(traced, on("dgx-a100"), 32, PINS)
    assert PRESETS["fp8"].promoted().products == ""
    assert str(replace(PRESETS["fp8"], gradients="")) == "compute in bfloat16, state in float32, products in fp8"
