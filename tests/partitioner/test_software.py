"""Frameworks are data that hold together and say where they come from; what they can't be told is not searched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from examples.gpt import model
from partitioner import Cluster, lower, search, trace
from partitioner.errors import DoesNotFit, InputError
from partitioner.plan.check import check_software
from partitioner.plan.executed import Space, space_of
from partitioner.precision import PRESETS
from partitioner.schedule.tables import SCHEDULES
from partitioner.sharding.mesh_axes import AXES
from partitioner.software import OWN, Expressible, Software, framework_reasons, frameworks
from tools.models.plain_decoder import Dimensions, decoder

OTHERS = [name for name in frameworks() if name != OWN]


@pytest.mark.parametrize("name", OTHERS)
def test_a_framework_says_what_it_does_and_why(name: str) -> None:
    found, told = Software.load(name), framework_reasons(name)
    assert found.name == name
    assert found.title
    assert not found.is_executed
    assert Software.from_dict(found.as_dict()) == found
    usual = Software()
    changed = {f.name for f in fields(Software) if getattr(found, f.name) != getattr(usual, f.name)}
    implied = {"name", "title", "early_stop", "scatter_sends", "overlap_parameters", "balanced", "attention"}
    assert changed - implied <= {*told}
    plans = found.plans
    assert plans is not None
    assert {*plans.axes} <= {*AXES}
    assert {*plans.schedules} <= {*SCHEDULES}


def test_an_unknown_framework_is_named_with_all() -> None:
    with pytest.raises(InputError, match="no framework megatrom is known: the nearest is megatron; all are own, ddp"):
        Software.load("megatrom")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"efficiency": 1.5}, "the software: software.efficiency is a share and at most 1"),
        ({"fused": 1}, "software.fused must be true or false"),
        ({"speed": 1.0}, "unknown field software.speed"),
        ({"plans": {"axes": ["dp"]}}, "software.plans.schedules is missing"),
        ({"plans": 3}, "the table .software.plans. is missing"),
    ],
)
def test_a_wrong_trait_is_named(changed: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        Software.from_dict(Software.load("megatron").as_dict() | changed)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (lambda s: s.pop("title"), "the field asked.software.title is missing"),
        (lambda s: s.clear(), "the field asked.software.name is missing"),
        (lambda s: s.update(plans=None), "asked.software.plans must be those of 'megatron'"),
        (lambda s: s.update(name="own"), "asked.software.plans must be those of 'own'"),
        (lambda s: s.update(gradients="float3"), "asked.software.gradients 'float3' is no type of a gradient"),
        (lambda s: s["plans"].update(axes=["xp"]), "asked.software.plans.axes has a wrong value 'xp'"),
        (lambda s: s["plans"].update(schedules=["2f2b"]), "plans.schedules has a wrong value '2f2b'"),
        (lambda s: s["plans"].update(zero=[7]), "plans.zero has a wrong value '7'"),
        (lambda s: s["plans"].update(zero=[]), "plans.zero must be a list of 1 to 64"),
        (lambda s: s["plans"].update(recompute=["some"]), "plans.recompute has a wrong value 'some'"),
        (lambda s: s["plans"].update(collectives=["all_sum"]), "plans.collectives has a wrong value 'all_sum'"),
        (lambda s: s["plans"].update(virtual=10**9), "plans.virtual must be at most 64"),
    ],
)
def test_a_plan_s_software_is_checked_whole(changed: Callable[[dict[str, Any]], object], told: str) -> None:
    software = Software.load("megatron").as_dict()
    check_software(software, "asked")
    changed(software)
    with pytest.raises(InputError, match=told):
        check_software(software, "asked")


def test_a_space_is_what_can_be_expressed() -> None:
    own, looked_at, megatron, fsdp = (
        space_of(Software()), space_of(Software(), plan_only=True), space_of(Software.load("megatron")),
        space_of(Software.load("fsdp")),
    )  # fmt: skip

    def admitted(decision: str, value: object) -> list[bool]:
        return [space.admits(decision, value) for space in (own, looked_at, megatron, fsdp)]

    assert admitted("cp", 2) == [False, True, True, False]
    assert admitted("pp", 4) == admitted("tp", 8) == [True, True, True, False]
    assert admitted("zero", 3) == [True, True, False, True]
    assert admitted("zero", 0) == [True, True, True, False]
    assert admitted("schedule", "zbv") == [False, True, False, False]
    assert admitted("recompute", "operators") == [True, True, False, True]
    assert [space.virtual for space in (own, looked_at, megatron, fsdp)] == [4, 4, 12, 1]
    assert isinstance(own, Space)


GRAPH = trace(*model(layers=4, hidden=64, heads=4, vocab=256, seq=32))


def on(framework: str) -> Cluster:
    return Cluster.load("dgx-h100", devices=8, software=framework)


def test_what_is_searched_is_the_framework_s_and_is_refused_here() -> None:
    plan = search(GRAPH, on("fsdp"), 16)
    assert (plan.software["name"], plan.parallelism.mesh["dp"]) == ("fsdp", 8)
    assert plan.machine == on("fsdp")
    with pytest.raises(InputError, match="the plan is of PyTorch FSDP2, which runs it: leave out --for fsdp"):
        lower(GRAPH, plan)
    with pytest.raises(InputError, match="pin tp=2 asks for what fsdp can't be told"):
        search(GRAPH, on("fsdp"), 16, {"tp": 2})
    with pytest.raises(InputError, match="pin zero=3 asks for what megatron can't be told"):
        search(GRAPH, on("megatron"), 16, {"zero": 3})
    assert search(GRAPH, on("megatron"), 16, {"cp": 2}).parallelism.degree("cp") == 2


def test_traits_make_the_price() -> None:
    """The same plan of a program that fuses takes less, and one that overlaps nothing more."""
    pins: dict[str, str | int] = {"tp": 2, "pp": 1, "zero": 0, "recompute": "off", "micro_batch": 2}
    own, fused = (search(GRAPH, on(name), 16, pins).cost.step_seconds for name in (OWN, "megatron"))
    assert fused < own
    waits = replace(on(OWN), software=replace(Software(), overlap_gradients=False))
    assert search(GRAPH, waits, 16, pins).cost.step_seconds > own


def test_stages_are_even_where_a_framework_cuts_by_number() -> None:
    """A head as large as several blocks: by cost the last stage has fewer."""
    wide = trace(*model(layers=8, hidden=64, heads=4, vocab=65536, seq=32), compare=False)
    pins: dict[str, str | int] = {"pp": 2, "virtual": 1}
    blocks: dict[str, list[int]] = {}
    for name in (OWN, "megatron"):
        stages = search(wide, Cluster.load("dgx-h100", devices=2, software=name), 8, pins).decisions.stages
        blocks[name] = [sum(unit.startswith("blocks.") for unit in stage) for stage in stages]
    assert blocks["megatron"] == [4, 4] != blocks[OWN]


def test_gradients_are_added_up_as_a_framework_does() -> None:
    assert PRESETS["bf16"].of_framework("").gradients == ""
    assert PRESETS["bf16"].of_framework("float32") == PRESETS["bf16"]
    assert PRESETS["fp32"].of_framework("") == PRESETS["fp32"]


def test_more_stages_a_rank_are_a_framework_s_to_allow() -> None:
    told = Expressible(("pp", "dp"), ("1f1b", "interleaved"), 2, (0,), (), ("all_reduce",))
    deep = trace(*model(layers=12, hidden=64, heads=4, vocab=256, seq=32), compare=False)
    for most in (2, 6):
        software = replace(Software.load("megatron"), plans=replace(told, virtual=most))
        cluster = replace(Cluster.load("dgx-h100", devices=2), software=software)
        pins: dict[str, str | int] = {"pp": 2, "virtual": 6}
        if most == 2:
            with pytest.raises(InputError, match="virtual=6"):
                search(deep, cluster, 8, pins)
        else:
            assert search(deep, cluster, 8, pins).parallelism.virtual == 6


def test_ends_take_a_slot_where_a_framework_gives_them_one() -> None:
    """Six blocks in four stages on each of two ranks: embedding and head stand alone."""
    graph = trace(*model(layers=6, hidden=64, heads=4, vocab=256, seq=32), compare=False)
    pins: dict[str, str | int] = {"pp": 2, "virtual": 4}
    found = search(graph, Cluster.load("dgx-h100", devices=2, software="megatron"), 8, pins).decisions.stages
    assert [sum(unit.startswith("blocks.") for unit in stage) for stage in found] == [0, 1, 1, 1, 1, 1, 1, 0]
    with pytest.raises(InputError, match="pins pp=2 and virtual=4 conflict: 8 stages, the model has 6 blocks"):
        search(graph, Cluster.load("dgx-h100", devices=2), 8, pins)


def test_layouts_are_of_the_collectives_that_a_framework_has() -> None:
    """Attention among ranks that divide tokens goes to heads and back by all_to_all, which Megatron-LM has not."""
    size = Dimensions(2, 6144, 48, 8, 24576, False, 1024, False, 4096, False)
    wide = trace(*decoder(size, torch.bfloat16), compare=False)
    pins: dict[str, str | int] = {"tp": 4, "pp": 1, "boundary": "sharded"}
    kinds: dict[bool, set[str]] = {}
    for every in (False, True):
        software = Software.load("megatron")
        assert software.plans is not None
        told = (*software.plans.collectives, "all_to_all") if every else software.plans.collectives
        cluster = replace(on("megatron"), software=replace(software, plans=replace(software.plans, collectives=told)))
        plan = search(wide, cluster, 16, pins)
        kinds[every] = {move.forward for block in plan.blocks for op in block.ops for move in op.collectives}
    assert "all_to_all" in kinds[True]
    assert "all_to_all" not in kinds[False]


@pytest.mark.parametrize(
    ("way", "same", "recomputed"),
    [("full", True, (1, 1)), ("full", False, (1, 0)), ("mlp", True, (4, 4)), ("mlp", False, (1, 0))],
)
def test_blocks_are_recomputed_alike_where_a_framework_knows_one_number(
    way: str, same: bool, recomputed: tuple[int, int]
) -> None:
    """On the first of two pipeline ranks, which holds more micro-batches, a block has to be."""
    graph = trace(*model(layers=8, hidden=64, heads=4, vocab=256, seq=64), compare=False)
    told = Software.load("megatron").plans
    assert told is not None
    software = replace(Software.load("megatron"), plans=replace(told, recompute=(way,), same_recompute=same))
    roomy = replace(Cluster.load("dgx-h100", devices=2), software=software)
    pins: dict[str, str | int] = {"pp": 2, "micro_batch": 4, "schedule": "1f1b"}
    plain = search(graph, roomy, 32, pins)
    assert plain.decisions.recomputed == (0, 0)
    memory = 0.98 * plain.cost.peak_bytes / roomy.device.allocator_share
    tight = replace(roomy, device=replace(roomy.device, memory_bytes=memory))
    assert search(graph, tight, 32, pins).decisions.recomputed == recomputed


def test_no_more_blocks_are_recomputed_than_have_to_be() -> None:
    """Of four stages of four blocks on two ranks: one block fewer of each does not fit."""
    graph = trace(*model(layers=16, hidden=64, heads=4, vocab=256, seq=64), compare=False)
    roomy = Cluster.load("dgx-h100", devices=2, software="megatron-2021")
    pins: dict[str, str | int] = {"pp": 2, "virtual": 2, "micro_batch": 4, "recompute": "off"}
    least = search(graph, roomy, 32, pins | {"recompute": "full"}).cost.peak_bytes
    most = search(graph, roomy, 32, pins).cost.peak_bytes
    memory = (least + most) / 2 / roomy.device.allocator_share
    tight = replace(roomy, device=replace(roomy.device, memory_bytes=memory))
    del pins["recompute"]
    found = search(graph, tight, 32, pins | {"stages": "5,4,4,5"}).decisions.recomputed
    assert found == (found[0],) * 4
    assert 0 < found[0] < 4
    with pytest.raises(DoesNotFit):
        search(graph, tight, 32, pins | {"recompute": "full", "recomputed": found[0] - 1})
    with pytest.raises(InputError, match="modules of some blocks"):
        search(graph, tight, 32, pins | {"recompute": "selective", "recomputed": 1})
