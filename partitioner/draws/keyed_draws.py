"""Random draws as functions of (sample, unit, site in the unit, element), so that every plan draws the same ones.

    torch.rand(b, 1)                  draw(sample_keys, "uniform", [0, 1], site, [1])     each sample's own
    torch.rand(s, d)                  draw(step_key, "uniform", [0, 1], site, [s, d])     one a step, alike for all
    F.dropout(x, p)                   dropout(x, p, sample_keys, site)

Each keeps in ``meta["site"]`` which call of the eager module it is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import fx

from partitioner.draws.random_calls import is_random, read
from partitioner.errors import InputError
from partitioner.graph.dependence import module_path
from partitioner.graph.graph import Unit
from partitioner.graph.nodes import arguments, emit, schema_of, shape_of
from partitioner.graph.step_inputs import SAMPLE_KEYS, STEP_KEY, sample_keys, step_key
from partitioner.ops.own_ops import own
from partitioner.samples.batch_dimension import follow
from partitioner.samples.samples_first import of_one_sample, samples_back, samples_first
from partitioner.sharding.layout import Segment, Shard

aten = torch.ops.aten

@dataclass(frozen=True)
class Site:
    """The ``ordinal``-th random call of one forward in which ``module`` is the innermost that runs.

    ``place``: where samples lie in what it draws; None: one draw a step.
    """

    module: str
    ordinal: int
    place: Shard | None = None

    def __str__(self) -> str:
        return f"random call {self.ordinal} of {self.module or 'the model'}"


def name_draws(graph: fx.Graph) -> None:
    """Note the site of each random call in its meta; all but dropouts become draws alike for all samples.

    Raises InputError for a call that can't be drawn by key, naming op, module and line.
    """
    ordinals: Counter[str] = Counter()
    key: fx.Node | None = None
    for node in list(graph.nodes):
        if node.op != "call_function" or not is_random(node.target, node.args, node.kwargs):
            continue
        module = "".join(module_path(node)[-1:])
        site, ordinals[module] = Site(module, ordinals[module]), ordinals[module] + 1
        draw = read(node.target, node.args, node.kwargs, _where(node))
        if draw is None:
            node.meta["site"] = site
            continue
        key = key or step_key(graph)
        value, make = node.meta["val"], partial(emit, graph, node)
        shape = list(value.shape if draw.shape is None else draw.shape)
        with graph.inserting_before(node):
            new = make(
                own.draw.default, key, draw.distribution, list(draw.parameters), 0, shape, draw.dtype or value.dtype
            )
            new.meta["site"] = site
            _replace(node, draw.finish(make, new, value.dtype) if draw.finish else new)


def _replace(node: fx.Node, new: fx.Node) -> None:
    """A call that draws into its operand copies there."""
    if schema_of(node).is_mutable:
        node.target, node.args, node.kwargs = aten.copy_.default, (node.args[0], new), {}
    else:
        node.replace_all_uses_with(new)
        node.graph.erase_node(node)


def _where(node: fx.Node) -> str:
    """The innermost module that made a node, and the line."""
    lines = str(node.meta.get("stack_trace", "")).strip().splitlines()
    line = f" ({lines[-2].strip()}: {lines[-1].strip()})" if len(lines) > 1 else ""
    return ("".join(module_path(node)[-1:]) or "the model") + line


def key_draws(graph: fx.Graph, batch: int) -> None:
    """Draws and dropouts of what holds samples read the samples' keys, all others the step's."""
    sites = [n for n in graph.nodes if n.op == "call_function" and n.target in (own.draw.default, aten.dropout.default)]
    found = follow(graph, batch).layout if sites else {}
    for node in sites:
        with graph.inserting_before(node):
            keyed = _keyed_dropout if node.target == aten.dropout.default else _keyed_draw
            new = keyed(graph, node, _place_of(node, batch, found), batch)
        if new is not node:
            node.replace_all_uses_with(new)
            graph.erase_node(node)
    for name in (SAMPLE_KEYS, STEP_KEY):
        found = _input(graph, name)
        if found is not None and not found.users:
            graph.erase_node(found)


def _input(graph: fx.Graph, name: str) -> fx.Node | None:
    return next((n for n in graph.nodes if n.op == "placeholder" and n.meta["source"] == name), None)


def _place_of(node: fx.Node, batch: int, found: dict[fx.Node, Shard]) -> Shard | None:
    """Where samples lie in a value that grows with the batch: as was found along the ops, else ahead of all else."""
    dims: tuple[int, ...] = node.meta["batch_dims"]
    if not dims:
        return None
    shard = found.get(node)
    if shard is not None and len(shard.segments) == 1:
        return shard
    return Shard(dims[0], (Segment(1, batch, shape_of(node)[dims[0]] // batch),))


def _keyed_draw(graph: fx.Graph, node: fx.Node, place: Shard | None, batch: int) -> fx.Node:
    if place is None:
        return node
    _, distribution, parameters, number, _, dtype = node.args
    if distribution == "permutation":
        raise InputError(f"{_where(node)} permutes samples by torch.randperm: what mixes samples can't be divided")
    make, shape = partial(emit, graph, node), shape_of(node)
    keys = sample_keys(graph, batch)
    new = make(own.draw.default, keys, distribution, parameters, number, of_one_sample(shape, place), dtype)
    new.meta["site"] = replace(node.meta["site"], place=place)
    return samples_back(make, new, shape, place)


def _keyed_dropout(graph: fx.Graph, node: fx.Node, place: Shard | None, batch: int) -> fx.Node:
    source, p = arguments(node)[0], float(arguments(node)[1])
    make, shape, site = partial(emit, graph, node), shape_of(node), node.meta.get("site")
    if p == 1.0:  # torch draws nothing, and neither does it divide by 0
        return make(aten.mul.Tensor, source, 0.0)
    if place is None:
        key = step_key(graph)
        kept = make(own.draw.default, key, "bernoulli", [1.0 - p], 0, list(shape), node.meta["val"].dtype)
        kept.meta["site"] = site
        return make(aten.mul.Tensor, source, make(aten.div.Tensor, kept, 1.0 - p))
    first = samples_first(make, source, shape, place)
    new = make(own.dropout.default, first, p, sample_keys(graph, batch), 0)
    new.meta["site"] = replace(site, place=place)  # type: ignore[type-var]
    return samples_back(make, new, shape, place)


def separate_units(graph: fx.Graph, units: tuple[Unit, ...]) -> None:
    """Each unit draws from keys of its own, made in the prelude; identical blocks number their sites alike from 0.

    What depends on no parameter is drawn in the prelude, from keys that are no unit's.
    """
    nodes = {n.name: n for n in graph.nodes}
    before = [n for n in graph.nodes if n.target == own.draw.default]
    groups = [[nodes[name] for name in unit.nodes if nodes[name].target == own.dropout.default] for unit in units]
    for index, sites in enumerate([*groups, before]):
        keys = dict[fx.Node, fx.Node]()
        for number, site in enumerate(sites):
            slot = 2 if site.target == own.dropout.default else 0
            given: Any = site.args[slot]
            if given not in keys:
                with graph.inserting_before(nodes[units[0].nodes[0]] if slot else before[0]):
                    keys[given] = emit(graph, given, own.site_keys.default, given, index)
            args = list(site.args)
            args[slot], args[3] = keys[given], number
            site.args = tuple(args)
