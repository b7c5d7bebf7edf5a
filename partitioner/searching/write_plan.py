"""A priced graph as the rows of a plan: blocks op by op, what is sent between ops, how else an op could be divided."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import fx

from partitioner.cost.communication import Moved, Sent, moved
from partitioner.cost.op_seconds import op_seconds
from partitioner.cost.op_work import op_flops
from partitioner.cost.unit_cost import Priced
from partitioner.emit.block_code import emit
from partitioner.emit.product_rows import products
from partitioner.graph.dependence import module_path
from partitioner.graph.graph import Unit, unit_names
from partitioner.graph.nodes import is_parameter, is_tensor, operands
from partitioner.graph.step_inputs import is_kept
from partitioner.graph.tied_blocks import Folded, Port
from partitioner.layouts.exports import Export, exports
from partitioner.layouts.from_plan import graph_digest
from partitioner.layouts.run_again import RunAgain, run_again
from partitioner.layouts.strategies import space
from partitioner.plan.derived_rows import BlockRow, Candidate, CollectiveRow, Cost, OpRow, OtherRow, ProductRow
from partitioner.plan.executed import not_executed
from partitioner.plan.name_patterns import by_pattern
from partitioner.plan.parallelism import Parallelism
from partitioner.plan.plan import Decisions, Plan
from partitioner.plan.recompute_ways import NO_RECOMPUTE, WAYS
from partitioner.searching.assumed import assumed
from partitioner.searching.pins import Pins, read_pins
from partitioner.searching.splits import Tried
from partitioner.sharding.layout import layout_json, layout_word
from partitioner.sharding.op_rules import rule_of
from partitioner.solve.choices import Choices, Prices
from partitioner.solve.solve import increases

OTHERS = 3
NOTED = 0.01  # of a micro-batch's seconds: a smaller difference of two prices is not worth a line
NOTHING = Sent("", 0.0, 0.0)
_Others = Mapping[fx.Node, tuple[OtherRow, ...]]


def block_rows(priced: Priced, names: Mapping[Unit, str], own: Parallelism, pins: Pins) -> Iterator[BlockRow]:
    """One for each group of identical units; ``names`` are those of the plan."""
    folded, solution, fused = priced.folded, priced.solution, priced.cluster.software.fused
    out, others = exports(folded, solution), _others(priced, own.micro_batches, pins)
    for g, units in enumerate(folded.groups):
        ports = folded.ports(g)
        is_recomputed = own.recompute in WAYS and units[0].is_block
        again = run_again(folded, solution, g, own.recompute, fused) if is_recomputed else None
        cost, (ops, leaving) = priced.groups[g], _ops(priced, g, others, again)
        yield BlockRow(
            units=tuple(names[u] for u in units), is_block=units[0].is_block,
            ports=tuple(layout_json(solution.ports[p]) for p in ports), forward_seconds=cost.seconds.forward,
            backward_seconds=cost.seconds.backward, saved_bytes=cost.stash[NO_RECOMPUTE].bytes, ops=ops,
            leaving=leaving, products=_products(priced, g, out[units[0]]),
        )  # fmt: skip


def unit_reads(folded: Folded, names: Mapping[Unit, str]) -> dict[str, tuple[tuple[str, str], ...]]:
    """By unit, for each of its ports: the unit that makes what enters, and that value's name in its block."""
    graph, home = folded.graph, folded.home
    return {
        names[unit]: tuple((names[home[v]], folded.node[v].name) for v in folded.entering[unit]) for unit in graph.units
    }


def notes(priced: Priced) -> Iterator[str]:
    """What tracing has to say, what was replicated for want of a rule, and what keeps the batch in one piece."""
    yield from priced.folded.graph.notes
    if priced.folded.graph.inseparable:
        yield f"{priced.folded.graph.inseparable}: dp 1 and one micro-batch"
    if priced.solution.scarcity > 1:
        yield f"layouts hold fewer bytes and take longer: a byte costs {priced.solution.scarcity:g} passes of memory"
    yield from _differs(priced)
    for g, units in enumerate(priced.folded.groups):
        for node in priced.folded.body(g):
            if rule_of(str(node.target)) is None:
                yield f"{node.target} in {units[0].name} has no rule: it stays replicated"


def _differs(priced: Priced) -> Iterator[str]:
    """By how much layouts were chosen by other seconds than the plan's: measured kernels, what is too short to hide."""
    pairs = [(len(units), cost) for units, cost in zip(priced.folded.groups, priced.groups, strict=True)]
    seen, priced_at = sum(n * c.surrogate for n, c in pairs), sum(n * c.seconds.total for n, c in pairs)
    if seen and abs(priced_at / seen - 1) > NOTED:
        yield (
            f"layouts were chosen by modelled products and full overlap: a micro-batch takes {seen * 1e3:.3g} ms so, "
            f"and {priced_at * 1e3:.3g} ms by the plan's prices"
        )


def _ops(
    priced: Priced, group: int, others: _Others, again: RunAgain | None
) -> tuple[tuple[OpRow, ...], tuple[CollectiveRow, ...]]:
    """The ops of a group's unit, and what is sent after them; ``again``: what of it runs again, where some does."""
    body, cluster, setting = priced.folded.body(group), priced.cluster, priced.setting
    moves = moved(setting, priced.solution, cluster, group)
    skipped = again.begun if again and cluster.software.early_stop else frozenset[fx.Node]()
    rows: list[OpRow] = []
    for node in body:
        strategies = priced.solution.strategies[node]
        seconds = op_seconds(setting, node, strategies, cluster)
        rows.append(
            OpRow(
                name=node.name, op=str(node.target),
                module=next((name for name in reversed(module_path(node)) if name), ""),
                shape=tuple(node.meta["val"].shape) if is_tensor(node) else (),
                inputs=tuple(n.meta["source"] if is_parameter(n) else n.name for n in operands(node)),
                operands=tuple(map(layout_json, strategies.operands)), result=layout_json(strategies.result),
                flops=op_flops(node), forward_seconds=seconds.forward, backward_seconds=seconds.backward,
                again=again is not None and node in again.again and node not in skipped,
                collectives=_collectives(moves.get(node, ()), node, again), others=others.get(node, ()),
            )
        )  # fmt: skip
    return tuple(rows), _collectives(moves.get(None, ()), None, again)


def _collectives(
    moves: Iterable[Moved], reader: fx.Node | None, again: RunAgain | None
) -> tuple[CollectiveRow, ...]:
    def sends(move: Moved) -> bool:
        return again is not None and reader is not None and again.sends(move.conversion, move.number, reader)

    return tuple(row for move in moves for row in _sent(move, sends(move)))


def _sent(move: Moved, again: bool) -> Iterator[CollectiveRow]:
    """A row for each collective of a conversion; one for a conversion that sends nothing."""
    for n in range(max(1, len(move.forward), len(move.backward))):
        forward, backward = (sent[n] if n < len(sent) else NOTHING for sent in (move.forward, move.backward))
        yield CollectiveRow(
            value=move.value.name, source=layout_word(move.source), target=layout_word(move.target), axis=move.axis,
            forward=forward.kind, forward_bytes=forward.bytes, forward_seconds=forward.seconds,
            backward=backward.kind, backward_bytes=backward.bytes, backward_seconds=backward.seconds, again=again,
        )  # fmt: skip


def _others(priced: Priced, micro_batches: int, pins: Pins) -> dict[fx.Node, tuple[OtherRow, ...]]:
    """Of each op the next best strategies on the innermost axis that the pins admit."""
    folded, solution = priced.folded, priced.solution
    axis, ranks = solution.axes[-1]
    if ranks == 1:
        return {}
    prices = Prices(priced.cluster, priced.setting, micro_batches, solution.scarcity)
    options = space(folded, axis, ranks, solution.on(solution.axes[:-1]))
    choices = Choices(folded, options, prices, pins.allows(folded))
    found: dict[fx.Node, tuple[OtherRow, ...]] = {}
    for value, more in increases(choices).items():
        if not isinstance(value, Port) and value in priced.solution.strategies:
            pairs = zip(choices.of[value], more, strict=True)
            rows = [(options.left.together(value, c.strategy), float(s)) for c, s in pairs if c.strategy is not None]
            best = sorted((row for row in rows if row[1] < float("inf")), key=lambda row: row[1])
            chosen = solution.strategies[value]
            found[value] = tuple(
                OtherRow(tuple(map(layout_json, s.operands)), layout_json(s.result), seconds)
                for s, seconds in best if s != chosen
            )[:OTHERS]  # fmt: skip
    return found


def _products(priced: Priced, group: int, out: tuple[Export, ...]) -> tuple[ProductRow, ...]:
    first, solution = priced.folded.groups[group][0], priced.solution
    wanted = tuple((first.nodes.index(e.node.name), e.layout) for e in out)
    module = emit(priced.folded, solution, group, wanted).module
    return tuple(found.row for found in products(module, solution.axes, priced.cluster))


Ranking = list[tuple[Tried, Cost]]
ALONE = {"candidates": 1, "over_memory": 0, "walked": 1, "beaten_by_bound": 0}  # one that was asked for, and priced


def plan_of(
    ranking: Ranking, front: Ranking, searched: dict[str, int], global_batch: int, pins: Mapping[str, str | int],
    model: Mapping[str, object],
) -> Plan:  # fmt: skip
    """The first of a ranking as a Plan, all of it as its candidates; and the front of time and memory."""
    best, cost = ranking[0]
    fixed = read_pins(pins, best.priced.folded.graph)
    priced, split, folded, parallelism = best.priced, best.split, best.priced.folded, best.split.parallelism
    names = {unit: name for name, unit in unit_names(folded.graph).items()}
    layouts = {n.meta["source"]: layout_json(priced.solution.parameters[r]) for n, r in folded.parameter.items()}
    boundaries = {
        names[units[0]]: tuple(layout_json(priced.solution.ports[p]) for p in folded.ports(g))
        for g, units in enumerate(folded.groups)
    }
    decisions = Decisions(
        parallelism=parallelism, stages=tuple(tuple(names[u] for u in units) for units in split.units),
        recomputed=split.recomputed, parameters=by_pattern(layouts), boundaries=boundaries,
        precision=priced.precision,
        plan_only=tuple(not_executed(parallelism, priced.precision)) if priced.cluster.software.is_executed else (),
    )  # fmt: skip
    return Plan(
        model={**model, "digest": graph_digest(folded), "blocks": len(folded.graph.blocks),
               "parameters": _parameters_of(folded), **assumed(folded.graph)},
        cluster=priced.cluster.as_dict(), software=priced.cluster.software.as_dict(), global_batch=global_batch,
        pins={k: str(v) for k, v in pins.items()},
        decisions=decisions, blocks=tuple(block_rows(priced, names, parallelism, fixed)),
        parameters=dict(sorted(layouts.items())), reads=unit_reads(folded, names),
        cost=cost, searched=searched, notes=tuple(notes(priced)),
        candidates=tuple(_candidate(tried, cost) for tried, cost in ranking),
        front=tuple(_candidate(tried, cost) for tried, cost in front),
    ).stamped()  # fmt: skip


def _candidate(tried: Tried, cost: Cost) -> Candidate:
    return Candidate(
        parallelism=tried.split.parallelism, step_seconds=cost.step_seconds, compute_seconds=cost.compute_seconds,
        exposed_seconds=cost.communication_seconds + cost.sync_seconds, bubble_seconds=cost.bubble_seconds,
        peak_bytes=cost.peak_bytes,
    )  # fmt: skip


def _parameters_of(folded: Folded) -> int:
    """Numbers of the model's own parameters: what is kept from call to call of an answer is none of them."""
    return sum(n.meta["val"].numel() for n in folded.parameter if not is_kept(n.meta["source"]))
