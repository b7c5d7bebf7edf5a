"""Products in few bits: priced in blocks alone, by the device's own row, and never executed here."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from examples.gpt import model
from partitioner import Cluster, Graph, lower, search, trace
from partitioner.cost.communication import moved
from partitioner.cost.conversion_seconds import sent_bytes
from partitioner.cost.op_work import Setting
from partitioner.cost.price_units import price_units
from partitioner.cost.unit_cost import Priced
from partitioner.errors import InputError
from partitioner.graph.nodes import operands
from partitioner.graph.tied_blocks import fold
from partitioner.layouts.conversions import Conversion, hops_of
from partitioner.layouts.op_kinds import is_product
from partitioner.layouts.strategies import space
from partitioner.precision import PRESETS, RECIPES
from partitioner.searching.pins import read_pins
from partitioner.solve.choices import Prices
from partitioner.solve.solve import solve
from tools.figures import figures
from tools.figures.card import facts
from tools.models.plain_decoder import COLUMNS_AND_ROWS, Dimensions, decoder

NOTHING = dict.fromkeys(("quantized_once", "weights_once", "delayed_scales", "sends_quantized"), False)
ONCE = {"quantized_once": True, "weights_once": True}
Pins = dict[str, str | int]
PINS: Pins = {"tp": 1, "pp": 1, "dp": 8, "micro_batch": 4, "zero": 1, "recompute": "off"}


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


TOKENS, HIDDEN = 2 * 1024, 4096  # of a micro-batch


def priced(
    traits: Mapping[str, bool], traced: Graph | None = None, tp: int = 1, pins: Pins | None = None
) -> Priced:
    """One micro-batch on H100s as the program with these traits does it."""
    cluster = on("dgx-h100")
    cluster = replace(cluster, software=replace(cluster.software, **NOTHING | {**traits}))
    folded = fold(traced or graph("fp8"))
    setting = Setting.of(folded, cluster, {"tp": tp})
    fixed = read_pins(pins or {}, folded.graph)
    solution = solve(folded, space(folded, "tp", tp), Prices(cluster, setting, 1), fixed.allows(folded))
    return price_units(setting, solution, cluster)


def test_seconds_follow_what_is_quantized_when() -> None:
    """Of a block with 12 h^2 weights: bytes by hand, and launches."""
    activations, results, weights = TOKENS * 7 * HIDDEN, TOKENS * 9 * HIDDEN, 12 * HIDDEN**2
    each, once, kept = (priced(traits) for traits in ({}, {"quantized_once": True}, ONCE))
    device = each.cluster.device

    def seconds(found: Priced, again: Priced) -> float:
        return found.groups[1].compute.total - again.groups[1].compute.total

    launches = 8 * 2 * device.launch_seconds  # of activations and weights in backward, and of scans
    assert seconds(each, once) == pytest.approx((activations + weights) * (5 + 5 - 6) / device.streaming + launches)
    assert seconds(once, kept) == pytest.approx(weights * 6 / device.streaming + launches / 2)
    assert kept.groups[1].once_seconds == pytest.approx(weights * 6 / device.streaming + launches / 2)
    assert kept.groups[1].copied_bytes == 2 * weights
    assert each.groups[1].once_seconds == each.groups[1].copied_bytes == 0
    late = priced({**ONCE, "delayed_scales": True})
    streamed = (activations + results) * 2
    assert seconds(kept, late) == pytest.approx(streamed / device.streaming + launches / 2)


def test_activations_are_kept_in_few_bits() -> None:
    """Of four products: two norms' results and the activation's; that of attention is kept in 16 bits for it too."""
    plain, few = (priced({"quantized_once": once}).groups[1].stash["none"] for once in (False, True))
    assert plain.bytes - few.bytes == (1 + 1 + 4 - 1) * TOKENS * HIDDEN
    assert few.peaks.backward < plain.peaks.backward
    assert few.peaks.forward < plain.peaks.forward


def test_what_is_gathered_is_quantized_before() -> None:
    size = Dimensions(2, HIDDEN, 32, 32, 4 * HIDDEN, False, 1024, False, 8192, False)
    traced = replace(trace(*decoder(size, torch.bfloat16)), precision=PRESETS["fp8"])
    pins: Pins = {"boundary": "sharded", **COLUMNS_AND_ROWS}
    plain, few = (priced({"sends_quantized": sends}, traced, 4, pins) for sends in (False, True))
    rows = [moved(p.setting, p.solution, p.cluster, 1) for p in (plain, few)]
    sent = [sorted(s.bytes for m in itertools.chain(*row.values()) for s in (*m.forward, *m.backward)) for row in rows]
    whole = 2 * 8192 * HIDDEN * 2
    assert sent == [[whole] * 8, [whole / 2] * 4 + [whole] * 4]  # gathers; what is scattered is summed in 16 bits
    assert few.groups[1].communication.total < plain.groups[1].communication.total
    gather = next(m for m in itertools.chain(*rows[1].values()) if few.setting.recipe(next(iter(m.value.users))))
    product = next(iter(gather.value.users))
    (hop,) = hops_of(Conversion(product, gather.source, gather.target), few.setting.axes, differentiable=True)
    summed = hop.payload(few.setting.bytes(product, hop.whole), "backward")
    assert sent_bytes(few.setting, product, hop, "backward") == summed  # scattered sums, though a product's gradient


@pytest.mark.parametrize(("zero", "times"), [(1, 1), (3, 4)])
def test_weights_are_quantized_once_a_step_and_kept_but_where_they_are_gathered(zero: int, times: int) -> None:
    """Of four micro-batches: the copies of a weight in either order stay, or ZeRO 3 lets them go."""
    cluster, traced = on("dgx-h100", "own"), graph("fp8")
    clusters = (replace(cluster, software=replace(cluster.software, weights_once=once)) for once in (True, False))
    pins = PINS | {"micro_batch": 1, "zero": zero}
    once, each = (search(traced, c, 32, pins, plan_only=True).cost for c in clusters)
    weights, device = 2 * 12 * HIDDEN**2, cluster.device
    seconds = weights * 6 / device.streaming + 2 * 8 * device.launch_seconds
    assert once.optimizer_seconds - each.optimizer_seconds == pytest.approx(times * seconds)
    assert once.compute_seconds < each.compute_seconds
    kept = 2 * weights if zero == 1 else 0
    assert once.stages[0].weight_bytes - each.stages[0].weight_bytes == kept


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
