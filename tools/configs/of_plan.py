"""A plan's decisions as a Configuration, and what no Configuration says of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from partitioner import Plan
from partitioner.errors import InputError
from partitioner.plan.recompute_ways import NO_RECOMPUTE
from partitioner.precision import BRAIN, OWN, PRESETS, SINGLE
from partitioner.searching.pins import matches
from partitioner.sharding.layout import Shard, parse_layout
from partitioner.sharding.mesh_axes import CP, DP, PP, TP, wholes
from partitioner.software import Software
from tools.dialects.configuration import SIZES, TRAITS, Configuration
from tools.models.plain_decoder import COLUMNS_AND_ROWS

_KEPT = {SINGLE: "fp32", BRAIN: "bf16-pure"}  # presets, by the type of a model in which nothing is cast


def configuration_of(plan: Plan, software: str = "") -> Configuration:
    """What another framework could be told; with the traits of the plan's software, or of another ``software`` with
    those that it usually has. Raises InputError where the plan's layouts are none."""
    own, blocks = plan.parallelism, stage_blocks(plan)
    even = len(set(blocks)) == 1
    several = own.replicas > 1
    shards = own.shards if own.zero and several else None
    sizes = {key: plan.model["settings"].get(key) for key in SIZES if key != "layers"} if is_plain(plan) else {}
    recomputed = recomputed_blocks(plan)
    own_software = plan.machine.software
    traits = own_software if software in ("", own_software.name) else Software.load(software)
    found = Configuration(
        pipeline=own.degree(PP), data=own.degree(DP), context=own.degree(CP), tensor=own.degree(TP),
        devices=own.world, node_devices=min(own.world, plan.machine.node_devices),
        schedule=own.schedule, virtual=own.virtual, stages=None if even else blocks,
        micro_batch=own.micro_batch, micro_batches=own.micro_batches, global_batch=plan.global_batch,
        zero=own.zero if several else 0, shards=shards, replicas=own.replicas // shards if shards else None,
        recompute=own.recompute, recomputed=recomputed if own.recompute != NO_RECOMPUTE else None,
        precision=preset_of(plan), gradients=_gradients(plan),
        sequence_parallel=own.degree(TP) > 1 and sharded_boundaries(plan) is True,
        seq=plan.model.get("tokens") or plan.model.get("seq"), layers=sum(blocks), **_complete(sizes, plan),
        **{name: getattr(traits, name) for name in TRAITS},
    )  # fmt: skip
    return replace(found, **{name: None for name in TRAITS if name not in found.traits})


def is_plain(plan: Plan) -> bool:
    """Whether its model is the plain decoder, whose sizes a file may hold."""
    return str(plan.model.get("entry", "")).startswith("plain:")


def _complete(sizes: dict[str, Any], plan: Plan) -> dict[str, Any]:
    if not sizes:
        return {}
    gated = sizes["gated"] is not False
    hidden, heads = plan.model["settings"]["hidden"], plan.model["settings"]["heads"]
    usual = max(64, hidden * 8 // 3 // 64 * 64) if gated else 4 * hidden
    return sizes | {
        "gated": gated, "tied": bool(sizes["tied"]), "kv_heads": sizes["kv_heads"] or heads,
        "ffn": sizes["ffn"] or usual,
    }  # fmt: skip


def stage_blocks(plan: Plan) -> tuple[int, ...]:
    """Blocks of each stage."""
    blocks = {name for row in plan.blocks if row.is_block for name in row.units}
    return tuple(sum(name in blocks for name in stage) for stage in plan.decisions.stages)


def recomputed_blocks(plan: Plan) -> int | None:
    """So many of each stage, at most all of its; None for all, or where stages differ."""
    blocks, counts = stage_blocks(plan), plan.decisions.recomputed
    if counts == blocks:
        return None
    most = max(counts)
    return most if all(n == min(most, of) for n, of in zip(counts, blocks, strict=True)) else None


def _inside(stages: tuple[tuple[str, ...], ...], blocks: set[str]) -> bool:
    """Whether anything but blocks stands elsewhere than before them in the first stage or behind them in the last."""
    places = [(n, unit in blocks) for n, stage in enumerate(stages) for unit in stage]
    first = next((i for i, (_, is_block) in enumerate(places) if is_block), len(places))
    last = max((i for i, (_, is_block) in enumerate(places) if is_block), default=-1)
    between = any(not is_block for _, is_block in places[first:last])
    return between or any(n for n, _ in places[:first]) or any(n < len(stages) - 1 for n, _ in places[last + 1 :])


def preset_of(plan: Plan) -> str | None:
    """The name of the plan's precision, gradients apart; None where it has none."""
    own = replace(plan.decisions.precision, float32=())
    if own == OWN:
        return _KEPT.get(str(plan.model.get("dtype")))
    alike = (name for name, row in PRESETS.items() if row.state and replace(own, gradients=SINGLE) == row)
    return next(alike, next((name for name, row in PRESETS.items() if row == own), None))


def _gradients(plan: Plan) -> str | None:
    """Where the model computes in 16 bits, whether they are added up in float32."""
    own = plan.decisions.precision
    if own.compute == SINGLE or not (own.compute or own.gradients):
        return None
    return SINGLE if own.gradients == SINGLE else ""


def sharded_boundaries(plan: Plan) -> bool | None:
    """Whether what enters blocks is divided over tensor parallel ranks; None where that differs."""
    blocks = {name for row in plan.blocks if row.is_block for name in row.units}
    kinds = Counter[bool]()
    for name, ports in plan.decisions.boundaries.items():
        if name in blocks:
            for port in ports:
                try:
                    kinds[isinstance(parse_layout(port)[-1], Shard)] += 1
                except ValueError as error:
                    raise InputError(f"decisions.boundaries.{name}: {error}: mend it") from error
    return kinds.most_common(1)[0][0] if len(kinds) == 1 else None if kinds else False


def whole_weights(plan: Plan) -> list[str]:
    """Weights of products, and of the plain decoder's tables, that every tensor parallel rank holds whole."""
    modules = {product.module for row in plan.blocks for product in row.products}
    names = [name for name in plan.decisions.parameters if name.endswith(".weight")]
    if is_plain(plan):
        named = [name for name in names if name in COLUMNS_AND_ROWS]
    else:
        named = [name for name in names if any(matches(name.removesuffix(".weight"), module) for module in modules)]
    places = dict(wholes(plan.parallelism.axes)).get(TP, (-1,))
    found = list[str]()
    for name in named:
        try:
            layout = parse_layout(plan.decisions.parameters[name])
        except ValueError as error:
            raise InputError(f"decisions.parameters.{name}: {error}: mend it") from error
        if not any(isinstance(layout[n], Shard) for n in places):
            found.append(name)
    return found


def unsaid(plan: Plan) -> Iterator[str]:
    """Decisions of which no file of these frameworks speaks."""
    d, blocks = plan.decisions, {name for row in plan.blocks if row.is_block for name in row.units}
    if plan.parallelism.degree(TP) > 1 and (held := whole_weights(plan)):
        some = ", ".join(held[:6]) + (f" and {len(held) - 6} more" if len(held) > 6 else "")
        yield f"{some}: whole on tensor parallel ranks; the framework divides them, which changes the step"
    if plan.parallelism.degree(TP) > 1 and sharded_boundaries(plan) is None:
        yield "what enters blocks is divided in some, whole in others: the framework does the same in all"
    counts = d.recomputed
    if plan.parallelism.recompute != NO_RECOMPUTE and counts != stage_blocks(plan) and recomputed_blocks(plan) is None:
        yield f"recomputed blocks by stage {', '.join(map(str, counts))}: the framework recomputes as many in each"
    if len(d.stages) > 1 and _inside(d.stages, blocks):
        yield "what is before the blocks, or behind them, stands in an inner stage: the framework has it at the ends"
    if d.precision.float32:
        yield f"modules in float32: {', '.join(d.precision.float32)}"
    if plan.parallelism.refined:
        yield "which tensor parallel ranks hold the same keys and values: the framework decides that"
    if preset_of(plan) is None:
        yield f"precision {d.precision}: say it to the framework by hand"
