"""Dropout masks as a function of (sample, unit, site in the unit, element), so that every plan draws the same ones."""

from __future__ import annotations

import torch
from torch import fx

from partitioner.graph import Unit
from partitioner.ops import own
from partitioner.shapes import emit, shape_of
from partitioner.step_inputs import sample_keys

aten = torch.ops.aten


def key_dropouts(graph: fx.Graph, batch: int) -> None:
    """Each dropout reads the samples' keys; its operand leads with the batch (OPT merges batch and tokens)."""
    sites = [n for n in graph.nodes if n.op == "call_function" and n.target == aten.dropout.default]
    if not sites:
        return
    keys = sample_keys(graph, batch)
    for node in sites:
        source, probability = node.args[:2]
        assert isinstance(source, fx.Node)
        shape = list(shape_of(source))
        merged = shape[0] != batch and shape[0] % batch == 0
        with graph.inserting_before(node):
            if merged:
                source = emit(graph, node, aten.reshape.default, source, [batch, shape[0] // batch, *shape[1:]])
            new = emit(graph, node, own.dropout.default, source, probability, keys, 0)
            if merged:
                new = emit(graph, node, aten.reshape.default, new, shape)
        node.replace_all_uses_with(new)
        graph.erase_node(node)


def separate_units(graph: fx.Graph, units: tuple[Unit, ...]) -> None:
    """Each unit draws from keys of its own, made in the prelude; identical blocks number their sites alike from 0."""
    nodes = {n.name: n for n in graph.nodes}
    first = nodes[units[0].nodes[0]]
    for index, unit in enumerate(units):
        sites = [nodes[name] for name in unit.nodes if nodes[name].target == own.dropout.default]
        if not sites:
            continue
        keys = sites[0].args[2]
        assert isinstance(keys, fx.Node)
        with graph.inserting_before(first):
            own_keys = emit(graph, keys, own.site_keys.default, keys, index)
        for number, site in enumerate(sites):
            site.args = (*site.args[:2], own_keys, number)
